use std::collections::BTreeMap;

use lapstrake_oci::{History, ImageConfig, Platform};

use crate::lower::draft::DraftOutput;
use crate::lower::env::Env;
use crate::source::Span;

/// A stage at some point of its instructions.
#[derive(Debug, Clone)]
pub(crate) struct State {
    /// Its files; `None` is the empty file system.
    pub(crate) output: Option<DraftOutput>,
    pub(crate) env: Env,
    /// Working directory, absolute.
    pub(crate) dir: String,
    pub(crate) user: String,
    pub(crate) image: ImageConfig,
    pub(crate) platform: Platform,
    /// Arguments declared so far, with the values that they had.
    pub(crate) args: Vec<(String, Option<String>)>,
    /// `CMD` was given in this stage.
    pub(crate) cmd_set: bool,
    /// `WORKDIR` was given in this file.
    pub(crate) dir_set: bool,
    /// The base image is not known: what it sets isn't either.
    pub(crate) open: bool,
    /// Where `CMD`, `ENTRYPOINT` and `HEALTHCHECK` were given in this stage.
    pub(crate) once: BTreeMap<&'static str, ((u32, u32), Span)>,
}

impl State {
    /// A stage that starts from an image config.
    pub(crate) fn new(output: Option<DraftOutput>, image: ImageConfig, platform: Platform) -> Self {
        Self {
            output,
            env: Env::default(),
            dir: "/".to_owned(),
            user: String::new(),
            image,
            platform,
            args: Vec::new(),
            cmd_set: false,
            dir_set: false,
            open: false,
            once: BTreeMap::new(),
        }
    }

    /// What a copy of it costs, bytes, roughly.
    pub(crate) fn bytes(&self) -> usize {
        let config = &self.image.config;
        let entries =
            config.env.len() + config.labels.len() + config.volumes.len() + config.exposed_ports.len();
        512 + self.env.bytes() + 64 * (self.image.history.len() + entries + self.args.len())
    }

    /// Adds a history entry. `files` is set for instructions that touch files, whose text BuildKit marks.
    pub(crate) fn record(&mut self, text: String, layer: bool, marked: bool, epoch: Option<i64>) {
        let created_by = if marked { format!("{text} # buildkit") } else { text };
        self.image.history.push(History {
            created: epoch.map(rfc3339),
            created_by: Some(created_by),
            author: None,
            comment: Some("buildkit.dockerfile.v0".to_owned()),
            empty_layer: !layer,
        });
    }
}

/// Seconds since 1970 as `2006-01-02T15:04:05Z`.
pub(crate) fn rfc3339(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days to a civil date, by eras of 400 years that begin in March.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_print_as_dates() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(rfc3339(-1), "1969-12-31T23:59:59Z");
    }
}
