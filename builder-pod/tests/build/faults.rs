//! Signals, kills, full disks: nothing is left, nothing is lost.

use std::path::Path;

use crate::lab::{Fate, Lab, tool};

/// Processes of the machine whose command line has `text`.
fn processes(text: &str) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).replace('\0', " ").contains(text) && pid != std::process::id() {
            found.push(pid);
        }
    }
    found
}

/// Waits until no such process is there: a killed parent's children end a moment later.
#[track_caller]
fn no_process(text: &str) {
    for _ in 0..500 {
        if processes(text).is_empty() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("{text} still runs: {:?}", processes(text));
}

fn mounts_below(dir: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let dir = dir.to_str().unwrap();
    table
        .lines()
        .filter(|line| line.split(' ').nth(4).is_some_and(|at| at.starts_with(dir)))
        .map(str::to_owned)
        .collect()
}

/// Snapshots that were not committed.
fn active(state: &Path) -> usize {
    let all = std::fs::read_dir(state.join("snapshots")).unwrap().flatten();
    all.filter(|entry| !entry.path().join("meta").exists()).count()
}

/// Whether an index has a record of each committed snapshot.
fn all_recorded(state: &Path, index: &[u8]) -> bool {
    let all = std::fs::read_dir(state.join("snapshots")).unwrap().flatten();
    all.filter(|entry| entry.path().join("meta").exists()).all(|entry| {
        let result = format!("\"results\":[\"{}\"", entry.file_name().to_string_lossy());
        index.windows(result.len()).any(|window| window == result.as_bytes())
    })
}

/// Waits until only one snapshot is not committed, and the index has a record of each that is. Its pages are written before the header
/// that makes them count, which nobody can tell from outside: a header that no longer changes does.
fn until_recorded(state: &Path) {
    const WRITE_ENDS: std::time::Duration = std::time::Duration::from_secs(3);
    let (mut before, mut since) = (None, std::time::Instant::now());
    while since.elapsed() < WRITE_ENDS {
        let index = std::fs::read(state.join("index.redb")).unwrap();
        let header = index.get(..4096).map(<[u8]>::to_vec);
        if active(state) > 1 || !all_recorded(state, &index) || before != header {
            (before, since) = (header, std::time::Instant::now());
        }
        std::thread::yield_now();
    }
}

/// A build with a finished step, then one that waits; `mark` makes its processes findable.
fn waiting(lab: &Lab, mark: &str) -> std::path::PathBuf {
    lab.dockerfile(&format!(
        "FROM @base\nRUN echo finished >/first\nRUN echo waits; sleep {mark} & sleep {mark}\n"
    ))
}

#[test]
fn an_interrupt_ends_the_build_and_leaves_nothing() {
    let lab = Lab::new();
    let dir = waiting(&lab, "654.321");
    for signal in ["INT", "TERM"] {
        let mut running = lab.build(&dir).start();
        running.until("\"waits\"");
        running.signal(signal);
        let ran = running.wait();
        assert_eq!(ran.code, Some(16), "{}", ran.stderr());
        assert_eq!(ran.fate("waits"), Fate::Canceled);
        ran.says(&["canceled"]);
        assert_eq!(processes("sleep 654.321"), [0u32; 0], "no process is left when the builder has ended");
        assert!(mounts_below(lab.dir.path()).is_empty(), "{:?}", mounts_below(lab.dir.path()));
        assert_eq!(active(&lab.path("state")), 0);
    }
}

#[test]
fn an_interrupt_while_a_registry_is_silent_ends_the_build_at_once() {
    use lapstrake_testkit::registry::{Ask, Fault, Gate, What};
    let lab = Lab::new();
    let gate = Gate::closed();
    lab.registry.inject(Fault::always(Ask::BlobGet, What::Hold(gate.clone())).after(1));
    let mut running = lab.build(lab.dockerfile("FROM @base\nRUN true\n")).start();
    running.until("FROM ");
    while lab.registry.running(Ask::BlobGet) == 0 {
        std::thread::yield_now();
    }
    running.signal("INT");
    let ran = running.wait();
    assert_eq!(ran.code, Some(16), "{}", ran.stderr());
    gate.open();
}

#[test]
fn a_killed_build_is_taken_up_where_it_was() {
    let lab = Lab::new();
    let dir = waiting(&lab, "765.432");
    let mut running = lab.build(&dir).start();
    running.until("\"waits\"");
    // What is committed, and the record that names it, is on the disk a moment later (the store's own interval).
    let state = lab.path("state");
    until_recorded(&state);
    running.signal("KILL");
    assert_eq!(running.wait().code, None);
    no_process("sleep 765.432");
    assert!(mounts_below(lab.dir.path()).is_empty());
    let text = std::fs::read_to_string(dir.join("Dockerfile")).unwrap();
    std::fs::write(dir.join("Dockerfile"), text.replace("sleep 765.432 & sleep 765.432", "true")).unwrap();
    let again = lab.build(&dir).ok();
    assert_eq!(again.ran(), ["RUN echo waits; true"], "{}", again.stderr());
    assert_eq!(active(&state), 0);
}

#[test]
fn kills_at_any_moment_leave_a_usable_state() {
    let lab = Lab::new();
    let text = "FROM @base AS a\nRUN seq 1 20000 >/a\nFROM @base\nRUN seq 1 30000 >/b\nCOPY --from=a /a /a\nRUN cat /a /b >/c\n";
    let dir = lab.dockerfile(text);
    // Kills after each line of progress in turn; later rounds find more done.
    for lines in 1..14 {
        let mut running = lab.build(&dir).args(["--push", "-t", &lab.name("killed:1")]).start();
        for _ in 0..lines {
            running.until("");
        }
        running.signal("KILL");
        drop(running);
    }
    lab.build(&dir).args(["--push", "-t", &lab.name("killed:1")]).ok();
    let fresh = lab.build_in("other", &dir).args(["-o", lab.path("fresh").to_str().unwrap()]).ok();
    assert_eq!(fresh.fate("cat /a /b"), Fate::Done);
    let after_kills = lab.files_of(&dir);
    tool(
        "diff",
        &["-r", "--no-dereference", lab.path("fresh").to_str().unwrap(), after_kills.to_str().unwrap()],
    );
}

#[test]
fn interrupts_at_any_moment_leave_nothing() {
    let lab = Lab::new();
    let text = "FROM @base AS a\nRUN seq 1 20000 >/a && sleep 0.05321\nFROM @base\nRUN seq 1 30000 >/b && sleep 0.05321\n\
                COPY --from=a /a /a\nRUN cat /a /b >/c\n";
    let dir = lab.dockerfile(text);
    let name = lab.name("interrupted:1");
    let mut interrupted = 0;
    for lines in 1..16 {
        let mut running = lab.build(&dir).args(["--push", "-t", &name]).start();
        for _ in 0..lines {
            running.until("");
        }
        running.signal("INT");
        let ran = running.wait();
        interrupted += u32::from(ran.code == Some(16));
        // The last ones may have ended before the signal came.
        assert!(matches!(ran.code, Some(16 | 0)), "after {lines} lines: {:?} {}", ran.code, ran.stderr());
        assert_eq!(processes("sleep 0.05321"), [0u32; 0], "after {lines} lines");
        assert!(mounts_below(lab.dir.path()).is_empty(), "after {lines} lines");
        assert_eq!(active(&lab.path("state")), 0, "after {lines} lines");
    }
    assert!(interrupted > 0);
    lab.build(&dir).args(["--push", "-t", &name]).ok();
}

#[test]
fn a_second_builder_on_the_same_state_says_who_holds_it() {
    let lab = Lab::new();
    let mut first = lab.build(waiting(&lab, "543.21")).start();
    first.until("\"waits\"");
    let pid = first.pid().to_string();
    lab.build(lab.dockerfile("FROM scratch\n")).fails(13).says(&[&pid, lab.path("state").to_str().unwrap()]);
    first.signal("INT");
    assert_eq!(first.wait().code, Some(16));
}

/// A small file system of its own for the state; unmounted when dropped.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn new(lab: &Lab) -> Self {
        let dir = lab.path("small");
        std::fs::create_dir(&dir).unwrap();
        tool("mount", &["-t", "tmpfs", "-o", "size=24m", "small", dir.to_str().unwrap()]);
        Self(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        std::process::Command::new("umount").arg(&self.0).status().ok(); // said by the next assertion
    }
}

#[test]
fn a_full_disk_is_named_and_the_state_works_when_there_is_room_again() {
    let lab = Lab::new();
    let _disk = SmallDisk::new(&lab);
    let big = lab.context(
        "big",
        &[("Dockerfile", "FROM @base\nRUN echo kept >/kept\nRUN head -c 60000000 /dev/urandom >/big\n")],
    );
    let ran = lab.build_in("small/state", &big).fails(14);
    ran.says(&["no space left", "Dockerfile:3"]);
    // A context that does not fit either, this time in a copy.
    let copied =
        lab.context("copied", &[("Dockerfile", "FROM @base\nRUN echo kept >/kept\nCOPY big /big\n")]);
    std::fs::write(copied.join("big"), vec![7; 60_000_000]).unwrap();
    lab.build_in("small/state", &copied).fails(14).says(&["Dockerfile:3"]);
    std::fs::write(copied.join("big"), "small now").unwrap();
    let again = lab.build_in("small/state", &copied).ok();
    assert_eq!(again.ran(), ["COPY big /big"], "{}", again.stderr());
    assert_eq!(active(&lab.path("small/state")), 0);
}

#[test]
fn a_disk_that_is_full_while_packing_and_pulling_is_named() {
    let lab = Lab::new();
    let _disk = SmallDisk::new(&lab);
    // 14 MB of noise fit once, but not a second time as a layer.
    let dir = lab.dockerfile("FROM @base\nRUN head -c 14000000 /dev/urandom >/noise\n");
    lab.build_in("small/state", &dir).fails(14).says(&["space"]);
    std::fs::remove_dir_all(lab.path("small/state")).unwrap();
    std::fs::write(lab.path("small/filler"), vec![1; 24_000_000]).unwrap();
    let ran = lab.build_in("small/state", lab.dockerfile("FROM @base\nRUN true\n")).run();
    assert_eq!(ran.code, Some(14), "{}", ran.stderr());
}

#[test]
fn steps_do_not_see_the_builders_environment_or_credentials() {
    let lab = Lab::new();
    lab.log_in("alice", "s3cr3t-word");
    let text = "FROM @base\nRUN env >/env; cat /proc/self/environ >>/env; ls -la / /root /run /tmp >>/env 2>&1; true\n";
    let dir = lab.dockerfile(text);
    let out = lab.path("files");
    lab.build(&dir).env("SECRET_OF_MINE", "s3cr3t-word").args(["-o", out.to_str().unwrap()]).ok();
    let seen = std::fs::read_to_string(out.join("env")).unwrap();
    assert!(
        !seen.contains("s3cr3t-word") && !seen.contains("LAPSTRAKE") && !seen.contains("DOCKER_CONFIG"),
        "{seen}"
    );
}

#[test]
fn whatever_room_is_left_a_full_disk_is_called_so() {
    let lab = Lab::new();
    let _disk = SmallDisk::new(&lab);
    let text = "FROM @base\nRUN head -c 300000 /dev/urandom >/a\nCOPY context /b\nRUN cat /a /b >/c\n";
    let dir = lab.context("c", &[("Dockerfile", text)]);
    std::fs::write(dir.join("context"), vec![b'x'; 200_000]).unwrap();
    let name = lab.name("full:1");
    let build = || lab.build_in("small/state", &dir).args(["--push", "-t", &name]);
    let disk_kib: usize = 24 << 10;
    let mut codes = std::collections::BTreeSet::new();
    for room_kib in [0, 8, 64, 200, 700, 1500, 3000, 4000, 4500, 5000, 5500] {
        // What was made with less room is thrown away, or the next round would need none.
        std::fs::remove_dir_all(lab.path("small/state")).ok();
        std::fs::write(lab.path("small/filler"), vec![1; (disk_kib - room_kib) << 10]).ok();
        let ran = build().run();
        codes.insert(ran.code);
        assert!(matches!(ran.code, Some(14 | 0)), "{room_kib} KiB: {:?} {}", ran.code, ran.stderr());
        std::fs::remove_file(lab.path("small/filler")).unwrap();
        build().ok();
    }
    assert_eq!(codes.len(), 2, "some had too little room, some enough: {codes:?}");
}
