//! The debug address: `/metrics`, `/healthz`, and a word for who looks for Go's profiles.
//!
//! One request a connection, read within bounds: nothing more is needed here, and nothing more of HTTP is answered.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lapstrake_api::control::StatusResponse;
use lapstrake_daemon::Conn;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::Daemon;

/// Longest head of a request.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// How long a client may take.
const CLIENT_MAX: Duration = Duration::from_secs(10);
/// Requests at the same time.
const CLIENTS_MAX: usize = 16;

/// What is counted.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    completed: AtomicU64,
    failed: AtomicU64,
    canceled: AtomicU64,
    steps: AtomicU64,
    cached_steps: AtomicU64,
    milliseconds: AtomicU64,
}

impl Metrics {
    /// Counts a build that has ended: how, after how long, and what was told of it.
    pub(crate) fn ended(&self, error: Option<&Status>, took: Duration, told: &[Arc<StatusResponse>]) {
        let counter = match error.map(Status::code) {
            None => &self.completed,
            Some(Code::Cancelled) => &self.canceled,
            Some(_) => &self.failed,
        };
        add(counter, 1);
        add(&self.milliseconds, u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        // A vertex is told of more than once; its end is told once.
        let ended =
            || told.iter().flat_map(|status| &status.vertexes).filter(|vertex| vertex.completed.is_some());
        add(&self.steps, ended().count() as u64);
        add(&self.cached_steps, ended().filter(|vertex| vertex.cached).count() as u64);
    }

    /// As Prometheus reads it. `running` builds and `clients` are as of now.
    fn text(&self, running: usize, clients: usize) -> String {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (completed, failed, canceled) =
            (value(&self.completed), value(&self.failed), value(&self.canceled));
        let mut text = String::new();
        let mut metric = |name: &str, kind: &str, help: &str, values: &[(&str, String)]| {
            write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n").ok(); // a String takes everything
            for (labels, value) in values {
                writeln!(text, "{name}{labels} {value}").ok(); // as above
            }
        };
        let builds = [
            (r#"{status="completed"}"#, completed.to_string()),
            (r#"{status="error"}"#, failed.to_string()),
            (r#"{status="canceled"}"#, canceled.to_string()),
        ];
        metric("buildkit_builds_total", "counter", "Builds that have ended.", &builds);
        let seconds = Duration::from_millis(value(&self.milliseconds)).as_secs_f64();
        let took = "buildkit_build_duration_seconds";
        metric(&format!("{took}_sum"), "counter", "Seconds that builds took.", &[("", seconds.to_string())]);
        let count = (completed + failed + canceled).to_string();
        metric(&format!("{took}_count"), "counter", "Builds whose time was taken.", &[("", count)]);
        let (steps, cached) = (value(&self.steps), value(&self.cached_steps));
        let kinds = [(r#"{kind="total"}"#, steps.to_string()), (r#"{kind="cached"}"#, cached.to_string())];
        metric("buildkit_builds_steps_total", "counter", "Steps of builds that have ended.", &kinds);
        metric("lapstrake_builds_running", "gauge", "Builds that run now.", &[("", running.to_string())]);
        metric("lapstrake_sessions", "gauge", "Clients that are connected.", &[("", clients.to_string())]);
        if let Some(bytes) = resident_bytes() {
            let help = "Memory of the daemon.";
            metric("process_resident_memory_bytes", "gauge", help, &[("", bytes.to_string())]);
        }
        text
    }
}

fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Answers as long as clients can come.
pub(crate) async fn serve(mut incoming: ReceiverStream<std::io::Result<Conn>>, daemon: Arc<Daemon>) {
    let clients = Arc::new(Semaphore::new(CLIENTS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&clients).acquire_owned().await else { return };
        let Some(stream) = incoming.next().await else { return };
        let Ok(stream) = stream else { continue };
        let daemon = Arc::clone(&daemon);
        tokio::spawn(async move {
            // A client that takes too long is left.
            tokio::time::timeout(CLIENT_MAX, client(stream, &daemon)).await.ok();
            drop(permit);
        });
    }
}

async fn client(mut stream: Conn, daemon: &Daemon) -> std::io::Result<()> {
    let mut head = Vec::with_capacity(1024);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < HEAD_BYTES_MAX {
        if stream.read_buf(&mut head).await? == 0 {
            break;
        }
    }
    let head = String::from_utf8_lossy(&head);
    let mut words = head.lines().next().unwrap_or_default().split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = path.split('?').next().unwrap_or_default();
    let metrics = || daemon.metrics.text(daemon.jobs.running().len(), daemon.sessions.count());
    let (status, body) = answer(method, path, metrics);
    let body = if method == "HEAD" { String::new() } else { body };
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

fn answer(method: &str, path: &str, metrics: impl FnOnce() -> String) -> (&'static str, String) {
    match (method, path) {
        ("GET" | "HEAD", "/metrics") => ("200 OK", metrics()),
        ("GET" | "HEAD", "/healthz") => ("200 OK", "ok\n".to_owned()),
        ("GET" | "HEAD", path) if path.starts_with("/debug/pprof") => {
            ("404 Not Found", "this daemon is not written in Go: it has no pprof profiles\n".to_owned())
        }
        ("GET" | "HEAD", _) => ("404 Not Found", "there are /metrics and /healthz\n".to_owned()),
        _ => ("405 Method Not Allowed", "only GET\n".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use lapstrake_api::Timestamp;
    use lapstrake_api::control::Vertex;

    use super::*;

    #[test]
    fn builds_are_counted_by_how_they_ended() {
        let metrics = Metrics::default();
        let vertex = |cached, completed: bool| Vertex {
            cached,
            completed: completed.then(Timestamp::default),
            ..Vertex::default()
        };
        let vertexes = vec![vertex(false, false), vertex(false, true), vertex(true, true)];
        let told = [Arc::new(StatusResponse { vertexes, ..StatusResponse::default() })];
        metrics.ended(None, Duration::from_millis(1500), &told);
        metrics.ended(Some(&Status::unknown("no")), Duration::from_secs(1), &[]);
        metrics.ended(Some(&Status::cancelled("context canceled")), Duration::ZERO, &[]);
        let text = metrics.text(2, 3);
        for line in [
            r#"buildkit_builds_total{status="completed"} 1"#,
            r#"buildkit_builds_total{status="error"} 1"#,
            r#"buildkit_builds_total{status="canceled"} 1"#,
            "buildkit_build_duration_seconds_sum 2.5",
            "buildkit_build_duration_seconds_count 3",
            r#"buildkit_builds_steps_total{kind="total"} 2"#,
            r#"buildkit_builds_steps_total{kind="cached"} 1"#,
            "lapstrake_builds_running 2",
            "lapstrake_sessions 3",
            "# TYPE process_resident_memory_bytes gauge",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn only_metrics_and_health_are_there() {
        let of = |method, path| answer(method, path, || "m".to_owned());
        assert_eq!(of("GET", "/metrics"), ("200 OK", "m".to_owned()));
        assert_eq!(of("GET", "/healthz").0, "200 OK");
        assert!(of("GET", "/debug/pprof/heap").1.contains("no pprof"));
        assert_eq!(of("GET", "/").0, "404 Not Found");
        assert_eq!(of("POST", "/metrics").0, "405 Method Not Allowed");
    }
}
