use lapstrake_api::control::{Vertex, VertexLog};
use tokio_stream::StreamExt as _;

use super::*;

struct Fixture {
    history: Arc<History>,
    store: Store,
    _dir: tempfile::TempDir,
}

fn fixture(config: lapstrake_daemon::History) -> Fixture {
    let (store, dir) = Store::temporary().expect("a store");
    Fixture { history: History::open(&store, config).expect("opened"), store, _dir: dir }
}

fn usual() -> lapstrake_daemon::History {
    lapstrake_daemon::History::default()
}

fn record(name: &str) -> BuildHistoryRecord {
    BuildHistoryRecord {
        r#ref: name.to_owned(),
        frontend: "dockerfile.v0".to_owned(),
        ..BuildHistoryRecord::default()
    }
}

/// A record of a build that ended `age` ago.
fn old(name: &str, age: Duration) -> BuildHistoryRecord {
    let at = Some(clock::stamp(SystemTime::now() - age));
    BuildHistoryRecord { created_at: at, completed_at: at, ..record(name) }
}

fn said(text: &str) -> StatusResponse {
    let log = VertexLog { vertex: "v1".to_owned(), msg: text.as_bytes().to_vec(), ..VertexLog::default() };
    let vertex = |digest: &str, cached| Vertex { digest: digest.to_owned(), cached, ..Vertex::default() };
    StatusResponse {
        vertexes: vec![vertex("v1", false), vertex("v2", true)],
        logs: vec![log],
        ..StatusResponse::default()
    }
}

fn build(history: &History, name: &str, lines: &[&str]) {
    history.started(record(name));
    let mut recorder = history.recorder().expect("a file");
    lines.iter().for_each(|line| recorder.add(&said(line)));
    history.completed(record(name), Some(recorder), None).expect("kept");
}

/// Type and ref of what a listener gets that leaves at once.
async fn listed(history: &Arc<History>, request: BuildHistoryRequest) -> Vec<(Type, String)> {
    let request = BuildHistoryRequest { early_exit: true, ..request };
    let events: Vec<_> = history.listen(&request).expect("valid").collect().await;
    events.into_iter().map(|event| short(&event.expect("an event"))).collect()
}

fn short(event: &BuildHistoryEvent) -> (Type, String) {
    (event.r#type(), event.record.clone().unwrap_or_default().r#ref)
}

fn names(history: &History) -> Vec<String> {
    history.state().done.keys().cloned().collect()
}

#[tokio::test]
async fn what_a_build_said_is_there_again_after_the_daemon() {
    let Fixture { history, store, _dir } = fixture(usual());
    build(&history, "r1", &["one", "two"]);
    drop(history);
    let history = History::open(&store, usual()).expect("opened again");
    let messages: Vec<_> = history.replay("r1").expect("there").map(|m| m.expect("whole")).collect();
    assert_eq!(messages, [said("one"), said("two")]);
    let record = history.state().done.get("r1").cloned().expect("there");
    assert_eq!((record.num_total_steps, record.num_cached_steps, record.num_completed_steps), (2, 1, 0));
    let logs = record.logs.expect("logs");
    assert_eq!(logs.media_type, LOG_TYPE);
    let size = history.blob(&logs.digest).expect("a blob").metadata().expect("readable").len();
    assert_eq!(i64::try_from(size).ok(), Some(logs.size));
    assert!(history.replay("r2").is_none());
    assert!(history.blob("../../etc/passwd").is_none() && history.blob("sha256:00").is_none());
}

#[tokio::test]
async fn a_listener_gets_the_past_and_then_what_comes() {
    let Fixture { history, store: _store, _dir } = fixture(usual());
    build(&history, "done", &[]);
    history.started(record("running"));
    let request = BuildHistoryRequest::default();
    let both = [(Type::Started, "running".to_owned()), (Type::Complete, "done".to_owned())];
    assert_eq!(listed(&history, request.clone()).await, both);
    let active = BuildHistoryRequest { active_only: true, ..request.clone() };
    assert_eq!(listed(&history, active).await, both[..1]);
    let one = BuildHistoryRequest { r#ref: "done".to_owned(), ..request.clone() };
    assert_eq!(listed(&history, one).await, both[1..]);
    let mut events = history.listen(&request).expect("valid");
    history.completed(record("running"), None, None).expect("kept");
    let delete = UpdateBuildHistoryRequest { r#ref: "done".to_owned(), delete: true, ..Default::default() };
    history.update(&delete).expect("there");
    let mut seen = Vec::new();
    while seen.len() < 4 {
        seen.push(short(&events.next().await.expect("more").expect("an event")));
    }
    let later = [(Type::Complete, "running".to_owned()), (Type::Deleted, "done".to_owned())];
    assert_eq!(seen, both.into_iter().chain(later).collect::<Vec<_>>());
    assert_eq!(names(&history), ["running"]);
}

#[tokio::test]
async fn filters_and_a_limit_choose_the_newest_that_match() {
    let Fixture { history, store: _store, _dir } = fixture(usual());
    for (name, hours) in [("a", 3), ("b", 1), ("c", 2)] {
        history.completed(old(name, Duration::from_secs(hours * 3600)), None, None).expect("kept");
    }
    let error = rpc::Status { code: 2, message: "no".to_owned(), details: vec![Default::default()] };
    history.completed(old("d", Duration::ZERO), None, Some(error)).expect("kept");
    let ask = |filter: &str, limit| BuildHistoryRequest {
        filter: vec![filter.to_owned()],
        limit,
        ..Default::default()
    };
    let refs = |events: Vec<(Type, String)>| events.into_iter().map(|(_, name)| name).collect::<Vec<_>>();
    assert_eq!(refs(listed(&history, ask("status==completed", 2)).await), ["b", "c"]);
    assert_eq!(refs(listed(&history, ask("status==error", 0)).await), ["d"]);
    assert_eq!(refs(listed(&history, ask("startedAt<90m", 0)).await), ["a", "c"]);
    assert_eq!(history.listen(&ask("", -1)).expect_err("negative").code(), tonic::Code::InvalidArgument);
    let failed = history.state().done.get("d").cloned().expect("there");
    assert_eq!(failed.error.expect("kept").details, [], "details are in the blob");
    assert_eq!(failed.external_error.expect("a blob").media_type, ERROR_TYPE);
}

#[test]
fn old_records_go_unless_they_are_few_or_pinned() {
    let config = lapstrake_daemon::History { entries_min: 2, ..usual() };
    let Fixture { history, store: _store, _dir } = fixture(config);
    let days = |n: u64| Duration::from_secs(n * 24 * 3600);
    history.completed(old("pinned", days(0)), None, None).expect("kept");
    let pin = UpdateBuildHistoryRequest { r#ref: "pinned".to_owned(), pinned: true, ..Default::default() };
    history.update(&pin).expect("there");
    for (name, age) in [("now", 0), ("young", 1), ("three", 3), ("four", 4)] {
        history.completed(old(name, days(age)), None, None).expect("kept");
    }
    // Each came when there were no more than two others that are younger.
    assert_eq!(names(&history), ["now", "pinned", "young"]);
    history.collect(SystemTime::now() + days(10));
    assert_eq!(names(&history), ["now", "pinned", "young"], "two are kept whatever their age");
    let delete = UpdateBuildHistoryRequest { r#ref: "pinned".to_owned(), delete: true, ..Default::default() };
    history.update(&delete).expect("deleted, although pinned");
    assert!(history.update(&pin).is_err());
}

#[test]
fn what_a_kill_leaves_behind_is_put_right() {
    let Fixture { history, store, _dir } = fixture(usual());
    build(&history, "whole", &["x"]);
    build(&history, "broken", &["y"]);
    let logs = history.state().done.get("broken").and_then(|r| r.logs.clone()).expect("logs");
    std::fs::remove_file(history.blob_path(&logs.digest).expect("a digest")).expect("removed");
    let records = history.dir.join("records");
    std::fs::write(records.join("half"), b"\x0a\xff").expect("written");
    drop(history);
    let history = History::open(&store, usual()).expect("opened again");
    assert_eq!(names(&history), ["whole"]);
    assert_eq!(std::fs::read_dir(records).expect("there").count(), 1);
}

#[test]
fn a_log_and_a_record_are_bounded() {
    let Fixture { history, store: _store, _dir } = fixture(usual());
    let mut recorder = history.recorder().expect("a file");
    recorder.add(&said("first"));
    recorder.add(&said(&"x".repeat((16 << 20) + 1)));
    recorder.add(&said("last"));
    let mut large = record("r1");
    large.frontend_attrs.insert("build-arg:big".to_owned(), "x".repeat(RECORD_BYTES_MAX));
    large.frontend_attrs.insert("target".to_owned(), "t".to_owned());
    history.completed(large, Some(recorder), None).expect("kept");
    assert_eq!(history.replay("r1").expect("there").count(), 1, "nothing after what was too large");
    let kept = history.state().done.get("r1").cloned().expect("there");
    assert_eq!(kept.frontend_attrs.len(), 1);
    assert_eq!(kept.num_total_steps, 2);
}

#[test]
fn history_that_is_switched_off_keeps_nothing() {
    let Fixture { history, store: _store, _dir } =
        fixture(lapstrake_daemon::History { enabled: false, ..usual() });
    assert!(history.begin(&lapstrake_api::control::SolveRequest::default(), "r1").is_none());
    build(&history, "r1", &["x"]);
    assert_eq!(names(&history), [""; 0]);
    assert!(history.state().active.is_empty());
}
