//! Filters of build records: `status==error`, `startedAt>1h,repository~=lapstrake`, `duration>=5m`.

use std::time::{Duration, SystemTime};

use lapstrake_api::control::BuildHistoryRecord;
use lapstrake_daemon::parse_duration;

use super::clock;
use super::filter::Filter;

/// Alternatives; none: every record.
#[derive(Debug)]
pub(crate) struct HistoryFilter(Vec<All>);

/// What must hold together.
#[derive(Debug)]
struct All {
    times: Vec<Bound>,
    fields: Filter,
}

#[derive(Debug)]
struct Bound {
    of: Of,
    sign: &'static str,
    value: Duration,
}

#[derive(Debug, Clone, Copy)]
enum Of {
    Started,
    Completed,
    Lasted,
}

const SIGNS: [&str; 4] = [">=", "<=", ">", "<"];

impl HistoryFilter {
    /// Reads the filters of a request that came at `now`.
    pub(crate) fn parse(texts: &[String], now: SystemTime) -> Result<Self, String> {
        texts.iter().map(|text| all(text, now)).collect::<Result<_, _>>().map(Self)
    }

    /// Whether a record is asked for.
    pub(crate) fn matches(&self, record: &BuildHistoryRecord) -> bool {
        self.0.is_empty() || self.0.iter().any(|all| all.matches(record))
    }
}

fn all(text: &str, now: SystemTime) -> Result<All, String> {
    let (mut times, mut rest) = (Vec::new(), Vec::new());
    for part in parts(text) {
        match bound(&part, now)? {
            Some(bound) => times.push(bound),
            None => rest.push(part),
        }
    }
    let rest = rest.join(",");
    let fields =
        Filter::parse(&[rest]).map_err(|wrong| format!("failed to parse history filters {text}: {wrong}"))?;
    Ok(All { times, fields })
}

/// The parts between commas; those in quotes stay.
fn parts(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut quote = None;
    for c in text.chars() {
        match (quote, c) {
            (None, ',') => parts.push(String::new()),
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            _ => {}
        }
        if let Some(last) = parts.last_mut().filter(|_| quote.is_some() || c != ',') {
            last.push(c);
        }
    }
    parts
}

fn bound(text: &str, now: SystemTime) -> Result<Option<Bound>, String> {
    let found = SIGNS.iter().find_map(|sign| text.split_once(sign).map(|(name, value)| (name, *sign, value)));
    let Some((name, sign, value)) = found else { return Ok(None) };
    let of = match name {
        "startedAt" => Of::Started,
        "completedAt" => Of::Completed,
        "duration" => Of::Lasted,
        _ => return Ok(None),
    };
    let since = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let value = match (of, parse_duration(value)) {
        (Of::Lasted, Some(value)) => value,
        (Of::Lasted, None) => return Err(format!("invalid duration {value}")),
        (_, Some(ago)) => Duration::from_secs(since(now).saturating_sub(ago).as_secs()),
        (_, None) => {
            let time: jiff::Timestamp = value.parse().map_err(|_| format!("invalid time {value}"))?;
            Duration::from_secs(u64::try_from(time.as_second()).unwrap_or(0))
        }
    };
    Ok(Some(Bound { of, sign, value }))
}

impl All {
    fn matches(&self, record: &BuildHistoryRecord) -> bool {
        self.times.iter().all(|bound| bound.holds(record)) && self.fields.matches(|path| field(record, path))
    }
}

impl Bound {
    fn holds(&self, record: &BuildHistoryRecord) -> bool {
        let time = |stamp: Option<_>| {
            let time = stamp.map_or(SystemTime::UNIX_EPOCH, clock::system);
            time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
        };
        let (started, completed) = (time(record.created_at), time(record.completed_at));
        // Points in time count in whole seconds.
        let value = match self.of {
            Of::Started => Duration::from_secs(started.as_secs()),
            Of::Completed => Duration::from_secs(completed.as_secs()),
            Of::Lasted => completed.saturating_sub(started),
        };
        match self.sign {
            ">=" => value >= self.value,
            "<=" => value <= self.value,
            ">" => value > self.value,
            _ => value < self.value,
        }
    }
}

fn field(record: &BuildHistoryRecord, path: &[String]) -> Option<String> {
    match path.first().map(String::as_str)? {
        "ref" => (!record.r#ref.is_empty()).then(|| record.r#ref.clone()),
        "status" => Some(status(record).to_owned()),
        "repository" => repository(record),
        _ => None,
    }
}

fn status(record: &BuildHistoryRecord) -> &'static str {
    match (&record.completed_at, &record.error) {
        (None, _) => "running",
        (_, None) => "completed",
        (_, Some(error)) if error.message.contains("context canceled") => "canceled",
        _ => "error",
    }
}

/// Where the source came from: as the client says, or a context that is a repository.
fn repository(record: &BuildHistoryRecord) -> Option<String> {
    if let Some(source) = record.frontend_attrs.get("vcs:source") {
        return Some(source.clone());
    }
    let context = record.frontend_attrs.get("context")?;
    let remote = context.split(['#', '?']).next().unwrap_or_default();
    let is_git = remote.starts_with("git@") || remote.starts_with("ssh://") || remote.starts_with("git://");
    let is_http =
        ["http://", "https://"].iter().any(|scheme| remote.starts_with(scheme)) && remote.ends_with(".git");
    (is_git || is_http).then(|| remote.to_owned())
}

#[cfg(test)]
mod tests {
    use lapstrake_api::rpc;

    use super::*;

    const NOW: Duration = Duration::from_secs(1_000_000);

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// Began an hour ago and took ten minutes.
    fn record() -> BuildHistoryRecord {
        BuildHistoryRecord {
            r#ref: "r1".to_owned(),
            created_at: Some(clock::stamp(at(NOW.as_secs() - 3600))),
            completed_at: Some(clock::stamp(at(NOW.as_secs() - 3000))),
            frontend_attrs: [("context".to_owned(), "https://example.com/me/it.git#main:sub".to_owned())]
                .into(),
            ..BuildHistoryRecord::default()
        }
    }

    fn matches(filters: &[&str]) -> bool {
        let texts: Vec<_> = filters.iter().map(|f| (*f).to_owned()).collect();
        HistoryFilter::parse(&texts, SystemTime::UNIX_EPOCH + NOW).expect("valid").matches(&record())
    }

    #[test]
    fn times_are_bounds_and_durations_reach_back_from_now() {
        assert!(matches(&["startedAt>2h"]) && !matches(&["startedAt>30m"]));
        assert!(matches(&["startedAt<=1h", "status==error"]));
        assert!(
            matches(&["completedAt>=1970-01-12T12:00:00Z"])
                && !matches(&["completedAt<1970-01-12T12:00:00Z"])
        );
        assert!(matches(&["duration>=10m,duration<11m"]) && !matches(&["duration>10m"]));
    }

    #[test]
    fn fields_are_ref_status_and_repository() {
        assert!(matches(&[]) && matches(&["ref==r1"]) && matches(&["status==completed,duration>1m"]));
        assert!(matches(&["repository==https://example.com/me/it.git"]) && matches(&["repository~=me/it"]));
        assert!(matches(&["ref~='^(r1|x,y)$'"]));
        let mut failed = record();
        for (message, name) in [("process did not complete", "error"), ("x: context canceled", "canceled")] {
            failed.error = Some(rpc::Status { message: message.to_owned(), ..rpc::Status::default() });
            assert_eq!(status(&failed), name);
        }
        failed.completed_at = None;
        assert_eq!(status(&failed), "running");
    }

    #[test]
    fn what_is_no_filter_is_told() {
        let wrong = |text: &str| HistoryFilter::parse(&[text.to_owned()], at(0)).expect_err("wrong");
        assert_eq!(wrong("startedAt>soon"), "invalid time soon");
        assert_eq!(wrong("duration>soon"), "invalid duration soon");
        assert!(wrong("status=done").starts_with("failed to parse history filters status=done: "));
    }
}
