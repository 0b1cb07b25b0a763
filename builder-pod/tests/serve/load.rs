//! A daemon that is killed at any moment, and one that a hundred builds ask at once.
//!
//! `LAPSTRAKE_KILLS=200` kills as often as that, at moments that `LAPSTRAKE_SEED` repeats; what was seen is printed with `--nocapture`.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lapstrake_testkit::peer;
use lapstrake_testkit::registry::{Options, Registry};

use super::{Daemon, Place, text};

/// Kills where nobody says how many.
const KILLS: u64 = 12;
/// The latest moment of a kill after the builds began, milliseconds.
const MOMENT_MAX: u64 = 1500;
/// `du` and the disk may differ by one part in so many.
const AGREES: u64 = 20;
/// How long what a killed build left may stay on the disk.
const SETTLES: Duration = Duration::from_secs(20);

fn number(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text}")),
        Err(_) => otherwise,
    }
}

/// Moments that look random, and are the same for the same seed.
struct Moments(u64);

impl Moments {
    fn next(&mut self) -> Duration {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Duration::from_millis((self.0 >> 33) % MOMENT_MAX)
    }
}

fn control(place: &Place) -> Command {
    let mut command = Command::new(peer::buildctl());
    command.arg("--addr").arg(place.address());
    command
}

/// A build that runs a few steps with files, all of them made anew for another `number`.
fn build(place: &Place, number: &str) -> Command {
    let mut command = control(place);
    let context = place.path("context");
    command.args(["build", "--frontend", "dockerfile.v0", "--progress", "plain"]);
    for local in ["context", "dockerfile"] {
        command.arg("--local").arg(format!("{local}={}", context.display()));
    }
    command.arg("--opt").arg(format!("build-arg:N={number}"));
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// One of several kinds of work.
fn some_work(place: &Place, round: u64, of: u64) -> Command {
    let mut work = build(place, &format!("{round}-{of}"));
    match of % 4 {
        0 => work.args(["--output", "type=oci,dest=/dev/null"]),
        1 => work.args(["--opt", "target=many"]),
        2 => work.args(["--output", "type=image,name=local/image:1,compression=zstd"]),
        _ => work.arg("--no-cache"),
    };
    work
}

fn bytes_below(path: &Path) -> u64 {
    let du = Command::new("du").args(["-s", "--block-size=1"]).arg(path).output().unwrap();
    text(&du.stdout).split_whitespace().next().and_then(|word| word.parse().ok()).unwrap()
}

/// What `du` tells, and what the disk does.
fn account(place: &Place) -> (u64, u64) {
    let du = control(place).args(["du", "--format", "{{json .}}"]).output().unwrap();
    let records: serde_json::Value = serde_json::from_slice(&du.stdout).unwrap();
    let told = records.as_array().unwrap().iter().filter_map(|record| record["size"].as_u64()).sum();
    (told, bytes_below(&place.path("root")))
}

/// The same once they agree: what a killed build left is removed beside the work of others. What does not agree after a while
/// never will.
fn settled(place: &Place) -> (u64, u64) {
    let until = Instant::now() + SETTLES;
    loop {
        let (told, there) = account(place);
        if told.abs_diff(there) * AGREES < there || Instant::now() > until {
            return (told, there);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn start(place: &Place) -> (Daemon, Duration) {
    let began = Instant::now();
    let mut daemon = place.daemon(&[]);
    daemon.ready(place);
    (daemon, began.elapsed())
}

#[test]
fn a_kill_at_any_moment_loses_nothing_that_was_finished_and_leaves_nothing_behind() {
    let kills = number("LAPSTRAKE_KILLS", KILLS);
    let seed = number("LAPSTRAKE_SEED", u64::from(std::process::id()));
    println!("{kills} kills, LAPSTRAKE_SEED={seed}");
    let mut moments = Moments(seed);
    let place = Place::new();
    let context = place.path("context");
    lapstrake_testkit::rootfs::busybox_at(&context.join("root")).unwrap();
    std::fs::write(
        context.join("Dockerfile"),
        "FROM scratch AS base\nCOPY root /\n\
         FROM base AS many\nARG N\nRUN mkdir /d && for i in $(seq 200); do echo $N > /d/$i; done\nRUN rm -r /d\n\
         FROM base\nARG N\n\
         RUN for i in 1 2 3 4; do dd if=/dev/urandom of=/f$i bs=64k count=8 2>/dev/null; done; echo $N > /n\n\
         RUN --mount=type=cache,target=/c cat /f1 /f2 | tee /c/$N > /all\n",
    )
    .unwrap();
    let (mut daemon, _) = start(&place);
    let finished = build(&place, "finished").output().unwrap();
    assert!(finished.status.success(), "{}", text(&finished.stderr));
    let (mut slowest, mut worst, mut done) = (Duration::ZERO, 0.0_f64, 0_u64);
    for round in 0..kills {
        let mut builds: Vec<Child> = (0..4).map(|of| some_work(&place, round, of).spawn().unwrap()).collect();
        // The moment is what varies, not what is waited for.
        std::thread::sleep(moments.next());
        daemon.end("-KILL");
        done += builds.iter_mut().filter_map(|build| build.wait().ok()).filter(|end| end.success()).count()
            as u64;
        let took;
        (daemon, took) = start(&place);
        slowest = slowest.max(took);
        let again = build(&place, "finished").output().unwrap();
        let said = text(&again.stderr);
        assert!(again.status.success(), "after kill {round}: {said}");
        assert_eq!(
            said.matches("CACHED").count(),
            3,
            "after kill {round} what was finished is there: {said}"
        );
        let (told, there) = settled(&place);
        let apart = told.abs_diff(there);
        worst = worst.max(apart as f64 / there as f64);
        if apart * AGREES >= there {
            let du = Command::new("du")
                .args(["-a", "--block-size=1", "--max-depth=3"])
                .arg(place.path("root"))
                .output();
            let records = control(&place).args(["du", "--verbose"]).output().unwrap();
            panic!(
                "after kill {round} du says {told}, the disk {there}\n{}\n{}",
                text(&du.unwrap().stdout),
                text(&records.stdout)
            );
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(
            !mounts.contains(place.path("root").to_str().unwrap()),
            "after kill {round} nothing stays mounted"
        );
    }
    let (told, there) = account(&place);
    println!(
        "{done} of {} builds had ended before the kill; slowest start {} ms; du and the disk at most {:.2} % apart, at last {told} and {there} bytes",
        kills * 4,
        slowest.as_millis(),
        worst * 100.0
    );
}

/// Builds that run at the same time: each of these groups is asked for by as many clients.
const GROUPS: usize = 10;
const CLIENTS: usize = 10;
/// Bytes that a daemon with all of them may need.
const MEMORY_MIB_MAX: u64 = 512;

#[test]
fn a_hundred_builds_at_once_run_each_step_once_in_bounded_memory() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let registry = runtime.block_on(Registry::start(Options::default())).unwrap();
    registry.put_image("base", "1", &lapstrake_testkit::rootfs::busybox_image().unwrap()).unwrap();
    let place = Place::new();
    let context = place.path("context");
    std::fs::create_dir_all(&context).unwrap();
    let host = registry.host();
    // What is on a cache mount outlives a step, so that each run of one leaves a line.
    let count = "RUN --mount=type=cache,id=count,target=/c,sharing=locked";
    let step = |n: usize| format!("{count} echo $N-{n} >> /c/runs && echo {n} > /{n}\n");
    let steps: String = (0..3).map(step).collect();
    std::fs::write(
        context.join("Dockerfile"),
        format!(
            "FROM {host}/base:1 AS work\nARG N\n{steps}\
             FROM {host}/base:1 AS told\nARG ASK\n{count} sort /c/runs > /runs\n\
             FROM scratch AS runs\nCOPY --from=told /runs /\n"
        ),
    )
    .unwrap();
    let config = place.path("toml");
    std::fs::write(&config, format!("[registry.\"{host}\"]\nhttp = true\n")).unwrap();
    let mut daemon = place.daemon(&["--config", config.to_str().unwrap()]);
    daemon.ready(&place);
    let began = Instant::now();
    let mut builds: Vec<Child> = Vec::new();
    for client in 0..CLIENTS * GROUPS {
        let mut command = build(&place, &format!("group{}", client % GROUPS));
        builds.push(command.args(["--opt", "target=work"]).spawn().unwrap());
    }
    for build in builds {
        let ended = build.wait_with_output().unwrap();
        assert!(ended.status.success(), "{}", text(&ended.stderr));
    }
    let took = began.elapsed();
    let out = place.path("out");
    let mut ask = build(&place, "none");
    ask.args(["--opt", "target=runs", "--output"]).arg(format!("type=local,dest={}", out.display()));
    let asked = ask.output().unwrap();
    assert!(asked.status.success(), "{}", text(&asked.stderr));
    let runs = std::fs::read_to_string(out.join("runs")).unwrap();
    let mut expected: Vec<String> =
        (0..GROUPS).flat_map(|group| (0..3).map(move |n| format!("group{group}-{n}"))).collect();
    expected.sort();
    assert_eq!(runs.lines().collect::<Vec<_>>(), expected, "each step ran once");
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
    let highest = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let highest: u64 = highest.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap();
    println!("{} builds in {:.1} s, {} MiB at most", CLIENTS * GROUPS, took.as_secs_f64(), highest / 1024);
    assert!(highest / 1024 < MEMORY_MIB_MAX, "{} MiB", highest / 1024);
}
