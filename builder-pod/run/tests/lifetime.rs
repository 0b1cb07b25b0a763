//! How steps end: of themselves, canceled, or with the builder killed. Nothing is left.

mod stage;

use std::io::Read;

use lapstrake_run::{ControlGroup, Input, StepSpec};
use rustix::process::{Pid, Signal};
use stage::{Bench, SETTINGS, Setting, eventually, processes_with, tree};

/// A tree of processes that cannot be asked to leave.
fn stubborn(mark: &str) -> String {
    format!(
        "trap '' TERM INT HUP; (trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep {mark}' & ) ; \
         (setsid setsid sleep {mark} &) ; echo ready; sleep {mark}; sleep {mark}"
    )
}

fn wait_ready(child: &mut std::process::Child) {
    let mut line = [0; 6];
    child.stdout.as_mut().expect("stdout").read_exact(&mut line).expect("the step starts");
    assert_eq!(&line, b"ready\n");
}

fn pid(child: &std::process::Child) -> Pid {
    Pid::from_child(child)
}

fn mounts_of(bench: &Bench) -> usize {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    mounts.lines().filter(|line| line.contains(&bench.dir.path().display().to_string())).count()
}

/// What a script beside a step's program saw, and how the program ended when it was sent SIGTERM.
fn beside(bench: &Bench, input: Input, script: &str) -> stage::Ran {
    let program = "trap 'echo caught; exit 5' TERM; echo ready > /tmp/ready; while :; do sleep 0.02; done";
    let spec = StepSpec { input, ..bench.spec(&["sh", "-c", program]) };
    let mut command = bench.command();
    command.arg("--beside").arg(script);
    let output = bench.start_as(command, &spec).wait_with_output().expect("it ends");
    Bench::ran(&spec, &output)
}

#[test]
fn a_program_beside_a_step_s_own_is_in_the_same_tree_and_signals_arrive() {
    let script =
        "until [ -s /tmp/ready ]; do sleep 0.01; done; cat /tmp/ready; ps -o pid,args | grep -c '[t]rap'";
    for setting in SETTINGS {
        let bench = Bench::new(setting);
        let ran = beside(&bench, Input::Pipe, script);
        assert_eq!((ran.code, ran.stdout.as_str()), (5, "ready\n1\ncaught\n"), "{setting:?} {ran:?}");
        assert_eq!(mounts_of(&bench), 0);
    }
}

#[test]
fn signals_that_who_started_the_builder_ignores_mean_to_a_step_what_they_mean() {
    for setting in SETTINGS {
        let bench = Bench::new(setting);
        let step = bench.command();
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "trap '' HUP INT USR1; exec \"$0\" \"$@\""]).arg(step.get_program());
        command.args(step.get_args());
        let spec = bench.spec(&["grep", "-E", "Sig(Ign|Blk)", "/proc/self/status"]);
        let output = bench.start_as(command, &spec).wait_with_output().expect("it ends");
        let ran = Bench::ran(&spec, &output);
        let sets =
            ran.stdout.lines().filter_map(|line| u64::from_str_radix(line.split_once('\t')?.1, 16).ok());
        // What is beyond 31 is the C library's.
        let sets: Vec<u64> = sets.map(|set| set & 0x7fff_ffff).collect();
        assert_eq!(sets, [0, 0], "{setting:?} {ran:?}");
    }
}

#[test]
fn programs_have_terminals_of_their_own() {
    for setting in SETTINGS {
        let bench = Bench::new(setting);
        let ran = beside(&bench, Input::Terminal, "tty; until [ -s /tmp/ready ]; do sleep 0.01; done");
        assert_eq!((ran.code, ran.stdout.as_str()), (5, "/dev/pts/1\r\ncaught\r\n"), "{setting:?} {ran:?}");
    }
}

#[test]
fn orphans_are_reaped_while_the_step_runs() {
    for setting in SETTINGS {
        let bench = Bench::new(setting);
        // Zombies of the moment come and go; those that nobody reaps would stay to the loop's end.
        let script = "for i in 1 2 3 4 5; do (sh -c \"sleep 0.01; touch /tmp/$i\" &); done; \
                      n=0; while [ $n -lt 1000 ]; do n=$((n+1)); \
                      [ $(ls /tmp | wc -l) = 5 ] && ! ps -o stat | grep -q Z && echo reaped && break; \
                      sleep 0.01; done";
        assert_eq!(bench.sh(script).ok(), "reaped\n", "{setting:?}");
    }
}

#[test]
fn background_processes_end_with_the_step() {
    for (number, setting) in SETTINGS.into_iter().enumerate() {
        let bench = Bench::new(setting);
        let mark = format!("7771{number}");
        let ran = bench.sh(&format!("setsid sleep {mark} & echo started; exit 3"));
        assert_eq!(
            (ran.code, ran.stdout.as_str()),
            (3, "started\n"),
            "the pipe that it keeps open is not waited for"
        );
        assert_eq!(processes_with(&format!("sleep {mark}")), Vec::<i32>::new());
        assert_eq!(mounts_of(&bench), 0);
    }
}

#[test]
fn cancellation_kills_what_ignores_signals() {
    for (number, setting) in SETTINGS.into_iter().enumerate() {
        let bench = Bench::new(setting);
        let mark = format!("7772{number}");
        let spec = bench.spec(&["sh", "-c", &stubborn(&mark)]);
        let mut child = bench.start(&spec);
        wait_ready(&mut child);
        assert!(!processes_with(&format!("sleep {mark}")).is_empty());
        rustix::process::kill_process(pid(&child), Signal::TERM).expect("kill");
        let output = child.wait_with_output().expect("wait");
        assert_eq!(output.status.code(), Some(125), "{setting:?}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("the step was canceled"), "{output:?}");
        assert_eq!(processes_with(&format!("sleep {mark}")), Vec::<i32>::new(), "gone when the call returns");
        assert_eq!(mounts_of(&bench), 0);
    }
}

#[test]
fn a_killed_builder_takes_its_steps_along() {
    for (number, setting) in SETTINGS.into_iter().enumerate() {
        let bench = Bench::new(setting);
        let mark = format!("7773{number}");
        let spec = bench.spec(&["sh", "-c", &stubborn(&mark)]);
        let mut child = bench.start(&spec);
        wait_ready(&mut child);
        child.kill().expect("kill");
        child.wait().expect("wait");
        eventually("no process of the step is left", || processes_with(&format!("sleep {mark}")).is_empty());
        eventually("no helper is left", || {
            processes_with(&bench.dir.path().display().to_string()).is_empty()
        });
        assert_eq!(mounts_of(&bench), 0);
        // The next builder finds a usable place.
        assert_eq!(bench.sh("echo again").ok(), "again\n", "{setting:?}");
    }
}

#[test]
fn exit_code_and_signals_pass_through_the_waiting_parent() {
    for setting in SETTINGS {
        let bench = Bench::new(setting);
        assert_eq!(bench.sh("exit 77").code, 77, "{setting:?}");
    }
}

#[test]
fn steps_side_by_side_do_not_see_each_other() {
    for setting in SETTINGS {
        let bench = Bench::new(setting);
        let script =
            "echo $0 >/mark; n=$(ps | grep -c 'sh -c'); cat /mark; sleep 0.2; cat /mark; ls / | grep -c mark";
        let specs: Vec<_> = (0..6).map(|n| bench.spec(&["sh", "-c", script, &format!("step{n}")])).collect();
        let children: Vec<_> = specs.iter().map(|spec| bench.start(spec)).collect();
        for (number, (spec, child)) in specs.iter().zip(children).enumerate() {
            let ran = Bench::ran(spec, &child.wait_with_output().expect("wait"));
            assert_eq!(tree(&ran.upper), ["mark"]);
            assert_eq!(ran.ok(), format!("step{number}\nstep{number}\n1\n"), "{setting:?}");
        }
    }
}

/// A memory cgroup (v1 or v2) of a test's own, below the one that this process is in.
struct MemoryGroup(std::path::PathBuf);

impl MemoryGroup {
    fn new(bytes: u64) -> Self {
        let groups = std::fs::read_to_string("/proc/self/cgroup").expect("cgroup");
        let v1 = groups.lines().find_map(|line| line.split_once(":memory:").map(|(_, path)| path.to_owned()));
        let name = format!("lapstrake-test-{}", std::process::id());
        let (dir, limit) = match v1 {
            Some(path) => (format!("/sys/fs/cgroup/memory{path}/{name}"), "memory.limit_in_bytes"),
            None => (format!("/sys/fs/cgroup/{name}"), "memory.max"),
        };
        std::fs::create_dir(&dir).expect("this test makes a memory cgroup");
        std::fs::write(format!("{dir}/{limit}"), bytes.to_string()).expect("limit");
        Self(dir.into())
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        eventually("the cgroup is empty", || std::fs::remove_dir(&self.0).is_ok());
    }
}

#[test]
fn running_out_of_memory_is_told_apart_from_a_plain_kill() {
    let group = MemoryGroup::new(96 << 20);
    for setting in SETTINGS {
        let bench = Bench::new(setting);
        let inside = |script: &str| {
            let spec = bench.spec(&["sh", "-c", script]);
            let step = bench.command();
            let mut command = std::process::Command::new("/bin/sh");
            command.args(["-c", "echo $$ >\"$0/cgroup.procs\"; exec \"$@\""]).arg(&group.0);
            command.arg(step.get_program()).args(step.get_args());
            Bench::ran(&spec, &bench.start_as(command, &spec).wait_with_output().expect("wait"))
        };
        let ran = inside("tail /dev/zero");
        let exit = ran.exit.clone().unwrap_or_else(|| panic!("{setting:?}: {ran:?}"));
        assert!(exit.oom_killed && exit.code == 137, "{setting:?}: {ran:?}");
        let exit = inside("kill -9 $$").exit.expect("exit");
        assert_eq!((exit.signal, exit.oom_killed), (Some(9), false), "{setting:?}");
    }
}

#[test]
fn a_program_beside_a_step_s_own_is_in_the_step_s_control_group() {
    let bench = Bench::new(Setting::Root);
    let parent = format!("lapstrake-beside-{}", std::process::id());
    let program =
        "trap 'cat /proc/self/cgroup; exit 5' TERM; echo ready > /tmp/ready; while :; do sleep 0.02; done";
    let group = ControlGroup { parent: parent.clone(), ..ControlGroup::default() };
    let spec = StepSpec { control_group: Some(group), ..bench.spec(&["sh", "-c", program]) };
    let mut command = bench.command();
    // Groups are told as they are seen from the step's, which is the root of what it sees.
    command
        .arg("--beside")
        .arg("until [ -s /tmp/ready ]; do sleep 0.01; done; cat /proc/self/cgroup; echo and");
    let output = bench.start_as(command, &spec).wait_with_output().expect("it ends");
    let ran = Bench::ran(&spec, &output);
    let (second, first) = ran.stdout.split_once("and\n").unwrap_or_else(|| panic!("{ran:?}"));
    let limited = |told: &str| {
        let lines = told.lines().filter(|line| !line.contains(":name=") && line.ends_with(":/"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(!limited(first).is_empty(), "{ran:?}");
    assert_eq!(limited(second), limited(first), "{ran:?}");
    assert_eq!(groups_of(&parent), Vec::<std::path::PathBuf>::new(), "nothing is left of them");
}

#[test]
fn an_insecure_step_makes_control_groups_in_its_own_and_a_usual_one_does_not() {
    let made = "d=/sys/fs/cgroup; test -d $d/memory && d=$d/memory; mkdir -p $d/made/below && echo made";
    let bench = Bench::new(Setting::Root);
    let usual = bench.sh(made);
    assert!(!usual.stdout.contains("made") && usual.stderr.contains("Read-only"), "{usual:?}");
    let parent = format!("lapstrake-made-{}", std::process::id());
    for parent in [String::new(), parent] {
        let group = ControlGroup { parent: parent.clone(), ..ControlGroup::default() };
        let spec = StepSpec { insecure: true, control_group: Some(group), ..bench.spec(&["sh", "-c", made]) };
        assert_eq!(bench.run(&spec).ok(), "made\n");
        if !parent.is_empty() {
            assert_eq!(groups_of(&parent), Vec::<std::path::PathBuf>::new(), "nothing is left of them");
        }
    }
    let trees = std::fs::read_dir("/sys/fs/cgroup").expect("control groups").flatten();
    let left = trees.map(|tree| tree.path().join("made")).filter(|made| made.exists());
    assert_eq!(left.collect::<Vec<_>>(), Vec::<std::path::PathBuf>::new(), "they were in its own");
}

/// Groups that steps have had below a parent; those above are removed.
fn groups_of(parent: &str) -> Vec<std::path::PathBuf> {
    let trees = std::fs::read_dir("/sys/fs/cgroup").expect("control groups");
    let mut parents: Vec<_> = trees.flatten().map(|tree| tree.path().join(parent)).collect();
    parents.push(std::path::Path::new("/sys/fs/cgroup").join(parent));
    let mut left = Vec::new();
    for parent in parents {
        let family = parent.join("buildkit");
        let Ok(groups) = std::fs::read_dir(&family) else { continue };
        left.extend(groups.flatten().map(|group| group.path()).filter(|path| path.is_dir()));
        std::fs::remove_dir(&family).ok(); // What is left is told.
        std::fs::remove_dir(&parent).ok();
    }
    left
}
