//! What steps find around them, by flags and by an ImageBuild, and what makes them run again.

use crate::lab::{Fate, Lab};
use crate::manifests::manifest;

const LOOK: &str = "FROM @base\nRUN cat /etc/hosts; hostname; echo files $(ulimit -Sn) of $(ulimit -Hn), core $(ulimit -c); \
    df -k /dev/shm | tail -n 1\n";

#[test]
fn steps_find_hosts_limits_and_shared_memory_by_flags() {
    let lab = Lab::new();
    let dir = lab.dockerfile(LOOK);
    let flags = |address: &str| {
        let host = format!("--add-host=db.example:{address}");
        lab.build(&dir)
            .args(["--ulimit", "nofile=512:1024", "--ulimit", "core=0:-1", "--shm-size", "96m"])
            .args([&host, "--opt", "hostname=build-box"])
    };
    let ran = flags("10.1.2.3").ok();
    ran.says(&["10.1.2.3\\tdb.example", "build-box", "files 512 of 1024, core 0", "98304"]);
    // Where a name is to be found differs from machine to machine, and does not count; that there is one does.
    assert_eq!(flags("10.9.9.9").ok().fate("RUN cat"), Fate::Cached);
    assert_eq!(flags("10.9.9.9").args(["--add-host", "b=10.0.0.1"]).ok().fate("RUN cat"), Fate::Done);
    assert_eq!(flags("10.9.9.9").args(["--ulimit", "nofile=513:1024"]).ok().fate("RUN cat"), Fate::Done);
}

#[test]
fn an_image_build_says_the_same_and_flags_win() {
    let lab = Lab::new();
    let spec = "  steps:\n    hosts: [{ip: 10.1.2.3, hostnames: [db.example, DB]}]\n    ulimits: [{name: nofile, soft: 512, hard: 1024}]\n    \
         shmSize: 96Mi\n    hostname: build-box\n    network: None\n  noCache: {all: true}\n  \
         contexts: [{name: below, build: {name: base}}]\n";
    let file = manifest(&lab, LOOK, spec);
    let ran = lab.build(&file).args(["--ulimit", "nofile=7:7"]).ok();
    ran.says(&["10.1.2.3\\tdb.example", "10.1.2.3\\tdb\"", "build-box", "files 7 of 7", "98304"]);
    ran.says(&["give it by --build-context below=docker-image://IMAGE"]);
    assert_eq!(lab.build(&file).args(["--ulimit", "nofile=7:7"]).ok().fate("RUN cat"), Fate::Done, "noCache");
    let unknown = manifest(&lab, LOOK, "  steps: {ulimits: [{name: nofiles, soft: 1}]}\n");
    lab.build(&unknown).fails(2).says(&["spec.steps.ulimits[nofiles]", "did you mean nofile?"]);
}

#[test]
fn more_than_the_builder_may_have_is_told_at_the_step() {
    let lab = Lab::new();
    let dir = lab.dockerfile("FROM @base\nRUN true\n");
    let build = lab.build(&dir).args(["--ulimit", "nofile=100000:4000000000"]);
    let ran = build.run();
    // As root of the machine a limit can be raised, up to what the kernel has at most.
    ran.says(&["limit nofile"]);
    assert_eq!(ran.code, Some(10), "{}", ran.stderr());
}

/// A control group of a test's own at the root of the tree that limits memory (v1 or v2); it goes with the test.
struct Parent(String);

impl Parent {
    fn dir(&self) -> std::path::PathBuf {
        let v1 = std::path::Path::new("/sys/fs/cgroup/memory");
        let tree = if v1.is_dir() { v1 } else { std::path::Path::new("/sys/fs/cgroup") };
        tree.join(&self.0)
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        let trees =
            std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|tree| tree.path());
        for tree in trees.chain(["/sys/fs/cgroup".into()]) {
            std::fs::remove_dir(tree.join(&self.0).join("buildkit")).ok(); // not every tree has one
            std::fs::remove_dir(tree.join(&self.0)).ok();
        }
    }
}

#[test]
fn a_step_runs_in_a_control_group_with_its_limits() {
    let lab = Lab::new();
    let parent = Parent(format!("lapstrake-test-{}", std::process::id()));
    let limited = |dockerfile: &str| {
        let dir = lab.dockerfile(dockerfile);
        lab.build(&dir).args([
            "--cgroup-parent",
            &parent.0,
            "--resource",
            "memory=32m",
            "--resource",
            "cpu-quota=50000",
        ])
    };
    let greedy = "FROM @base\nRUN tail /dev/zero\n";
    limited(greedy).fails(14).says(&["out of memory"]);
    assert!(parent.dir().join("buildkit").is_dir(), "as BuildKit has it");
    // Limits are no part of what a step is; the group is, as with BuildKit.
    limited("FROM @base\nRUN echo small\n").ok();
    let dir = lab.dockerfile("FROM @base\nRUN echo small\n");
    let free = lab.build(&dir).args(["--cgroup-parent", &parent.0]);
    assert_eq!(free.ok().fate("RUN echo"), Fate::Cached);
    let left = std::fs::read_dir(parent.dir().join("buildkit")).unwrap();
    assert_eq!(left.flatten().filter(|one| one.path().is_dir()).count(), 0, "no group of a step is left");
    limited("FROM @base\nRUN echo other\n")
        .args(["--resource", "memory-swap=1m", "--resource", "cpuset-cpus=900"])
        .fails(10)
        .says(&["control group"]);
}

#[test]
fn options_that_are_none_are_told() {
    let lab = Lab::new();
    let dir = lab.dockerfile(LOOK);
    for (flag, value, why) in [
        ("--opt", "image-resolve-mod=pull", "did you mean image-resolve-mode?"),
        ("--opt", "multi-platform=true", "BUILDKIT_MULTI_PLATFORM"),
        ("--ulimit", "nofile=2:1", "above the hard one"),
        ("--add-host", "db", "db.example:10.0.0.7"),
    ] {
        let ran = lab.build(&dir).args([flag, value]).run();
        ran.says(&[why]);
        assert!(matches!(ran.code, Some(2 | 10)), "{}", ran.stderr());
    }
}
