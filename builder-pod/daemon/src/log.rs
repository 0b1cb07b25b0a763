//! The log in the forms in which `buildkitd` writes it: other people's programs read it.

use std::fmt::{self, Write as _};
use std::time::SystemTime;

use jiff::{Timestamp, Unit, tz::TimeZone};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::{LogConfig, LogFormat};

/// Sends the log to standard error from now on; where it goes elsewhere already, that stays.
pub fn init(config: &LogConfig) {
    let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(std::io::stderr);
    let layer = layer.event_format(Form(config.format));
    tracing_subscriber::registry().with(layer).with(targets(config.level)).try_init().ok(); // a test's log stays
}

/// What others' crates say of every packet is for those who ask for everything.
fn targets(level: LevelFilter) -> Targets {
    let others = if level == LevelFilter::TRACE { level } else { level.min(LevelFilter::WARN) };
    let loud = ["h2", "hyper", "hyper_util", "tonic", "tower", "rustls", "reqwest", "axum"];
    Targets::new().with_default(level).with_targets(loud.map(|target| (target, others)))
}

/// Writes events in one of the forms.
#[derive(Debug, Clone, Copy)]
struct Form(LogFormat);

impl<S, N> FormatEvent<S, N> for Form
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        fields.more.sort();
        let time = Timestamp::try_from(SystemTime::now()).unwrap_or_default();
        let line = line(self.0, time, *event.metadata().level(), &fields);
        writeln!(writer, "{line}")
    }
}

#[derive(Debug, Default)]
struct Fields {
    message: String,
    more: Vec<(String, String)>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), value.to_owned());
    }
}

impl Fields {
    fn put(&mut self, name: &str, value: String) {
        match name {
            "message" => self.message = value,
            // A name that the line has already is told apart as there.
            "time" | "level" | "msg" => self.more.push((format!("fields.{name}"), value)),
            name => self.more.push((name.to_owned(), value)),
        }
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

fn line(format: LogFormat, time: Timestamp, level: Level, fields: &Fields) -> String {
    let zoned = time.round(Unit::Second).unwrap_or(time).to_zoned(TimeZone::system());
    let offset = zoned.offset();
    let time = if offset.is_zero() {
        zoned.timestamp().to_string()
    } else {
        zoned.timestamp().display_with_offset(offset).to_string()
    };
    match format {
        LogFormat::Text => {
            let mut line =
                format!("time=\"{time}\" level={} msg={}", level_name(level), quoted(&fields.message));
            for (name, value) in &fields.more {
                write!(line, " {name}={}", quoted(value)).ok(); // a String takes everything
            }
            line
        }
        LogFormat::Json => {
            let own = [("level", level_name(level)), ("msg", &fields.message), ("time", &time)];
            let more = fields.more.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            // Sorted by name, as there.
            let map: std::collections::BTreeMap<_, _> = more.chain(own).collect();
            serde_json::to_string(&map).unwrap_or_default()
        }
    }
}

/// In quotes where it has more than plain characters.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._/@^+".contains(c);
    if text.chars().all(is_plain) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_ascii_control() => {
                write!(out, "\\x{:02x}", u32::from(c)).ok(); // as above
            }
            c if c.is_control() => {
                write!(out, "\\u{:04x}", u32::from(c)).ok(); // as above
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(message: &str, more: &[(&str, &str)]) -> Fields {
        let more = more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Fields { message: message.to_owned(), more }
    }

    #[test]
    fn the_ready_line_is_buildkitd_s() {
        let time: Timestamp = "2026-11-27T00:23:50.4Z".parse().expect("a time");
        let ready = fields("running server on /run/buildkit/buildkitd.sock", &[]);
        let text = line(LogFormat::Text, time, Level::INFO, &ready);
        assert_eq!(
            text.split_once(' ').map(|(_, rest)| rest),
            Some(r#"level=info msg="running server on /run/buildkit/buildkitd.sock""#)
        );
        assert!(text.starts_with("time=\"20"), "{text}");
        let json = line(LogFormat::Json, time, Level::WARN, &ready);
        let end = json.find("\"time\"").expect("a time");
        assert_eq!(
            json.get(..end),
            Some(r#"{"level":"warning","msg":"running server on /run/buildkit/buildkitd.sock","#)
        );
    }

    #[test]
    fn a_line_stays_one_line() {
        assert_eq!(quoted("plain-1.0/x@y"), "plain-1.0/x@y");
        assert_eq!(quoted("two\nlines \"q\" \\ \x1b[31m"), r#""two\nlines \"q\" \\ \x1b[31m""#);
        assert_eq!(quoted(""), "");
        let text = line(
            LogFormat::Text,
            Timestamp::UNIX_EPOCH,
            Level::ERROR,
            &fields("m", &[("a", "b c"), ("z", "1")]),
        );
        assert!(text.ends_with(r#"level=error msg=m a="b c" z=1"#), "{text}");
    }

    #[test]
    fn fields_of_events_reach_the_line_in_order() {
        let mut seen = Fields::default();
        seen.put("msg", "mine".into());
        seen.put("message", "text".into());
        assert_eq!(
            (seen.message.as_str(), seen.more),
            ("text", vec![("fields.msg".to_owned(), "mine".to_owned())])
        );
    }
}
