//! Ways out of a step, each of which must lead nowhere, under each sandbox.

mod stage;

use std::os::unix::net::UnixListener;

use stage::{Bench, SETTINGS, Setting};

/// System calls that a step must be refused.
const CALLS: &[&str] = &[
    "mount",
    "umount",
    "fsopen",
    "open_tree",
    "mount_setattr",
    "pivot_root",
    "unshare_user",
    "unshare_mount",
    "clone_user",
    "clone3",
    "setns_pid1",
    "setns_self",
    "keyctl",
    "add_key",
    "request_key",
    "bpf",
    "perf_event_open",
    "userfaultfd",
    "kexec_load",
    "init_module",
    "finit_module",
    "delete_module",
    "open_by_handle_at",
    "ptrace_pid1",
    "process_vm_readv",
    "io_uring_setup",
    "settimeofday",
    "clock_settime",
    "reboot",
    "swapon",
    "acct",
    "quotactl",
    "syslog",
    "sethostname",
    "vsock",
    "personality",
];

#[cfg(target_arch = "x86_64")]
const CALLS_OF_ARCH: &[&str] = &["iopl", "ioperm", "mount_i386", "x32_mount"];
#[cfg(not(target_arch = "x86_64"))]
const CALLS_OF_ARCH: &[&str] = &[];

/// Shell commands that must fail, or print nothing of what lies outside.
const COMMANDS: &[(&str, &str)] = &[
    ("mount of a disk", "mount -t ext4 /dev/vda /tmp"),
    ("remount of /sys", "mount -o remount,rw /sys"),
    ("unmount of a mask", "umount /proc/sys"),
    ("sysrq", "echo h >/proc/sysrq-trigger"),
    ("core pattern", "echo '|/tmp/x' >/proc/sys/kernel/core_pattern"),
    ("modprobe path", "echo /tmp/x >/proc/sys/kernel/modprobe"),
    ("kernel memory", "test -s /proc/kcore && head -c 1 /proc/kcore | grep -q ."),
    ("kernel keys", "test -s /proc/keys"),
    ("uevent helper", "echo /tmp/x >/sys/kernel/uevent_helper"),
    ("sysfs", "d=$(find /sys -name uevent -type f | head -1); echo add >$d"),
    (
        "cgroup release agent",
        "f=$(find /sys/fs/cgroup -name release_agent | head -1); test -n \"$f\" && echo /tmp/x >$f",
    ),
    (
        "cgroup limits",
        "f=$(find /sys/fs/cgroup -name 'memory.*max*' -o -name memory.limit_in_bytes | head -1); test -n \"$f\" && echo 1 >$f",
    ),
    ("new cgroup", "mkdir /sys/fs/cgroup/x || mkdir /sys/fs/cgroup/memory/x"),
    ("disk made in the root", "mknod /disk b 254 0 && head -c 1 /disk"),
    ("disk made in /dev", "mknod /dev/disk b 254 0 && head -c 1 /dev/disk"),
    ("disk made in /dev/shm", "mknod /dev/shm/disk b 254 0 && head -c 1 /dev/shm/disk"),
    ("disk made in /dev/pts", "mknod /dev/pts/disk b 254 0 && head -c 1 /dev/pts/disk"),
    ("memory device", "mknod /mem c 1 1 && head -c 1 /mem"),
    ("kernel log device", "mknod /kmsg c 1 11 && head -c 1 /kmsg"),
    ("fuse device", "mknod /fuse c 10 229 && head -c 0 /fuse"),
    ("init: root", "ls /proc/1/root/"),
    ("init: directory", "ls /proc/1/cwd/"),
    ("init: program", "cat /proc/1/exe"),
    (
        "init: descriptors",
        "for fd in 0 1 2 3 4 5 6 7 8 9; do readlink /proc/1/fd/$fd && exit 0; done; exit 1",
    ),
    ("init: environment", "cat /proc/1/environ | grep -q ."),
    ("init: memory", "head -c 1 /proc/1/mem"),
    ("init: maps", "grep -q . /proc/1/maps"),
    ("raised score", "echo -1000 >/proc/self/oom_score_adj"),
    ("id map", "echo 0 0 1 >/proc/self/uid_map"),
    ("resolvers", "echo x >/etc/resolv.conf"),
    ("hosts", "rm -f /etc/hosts"),
];

#[test]
fn the_probe_can_succeed() {
    for setting in SETTINGS {
        let bench = Bench::new(setting).with_probe();
        assert_eq!(bench.run(&bench.spec(&["probe", "getpid"])).ok(), "getpid: passed\n");
    }
}

#[test]
fn system_calls_that_lead_out_are_refused() {
    for setting in SETTINGS {
        let bench = Bench::new(setting).with_probe();
        let calls: Vec<&str> = CALLS.iter().chain(CALLS_OF_ARCH).copied().collect();
        let script = format!(
            "for call in {}; do probe $call; test $? = 1 || echo ESCAPED $call; done",
            calls.join(" ")
        );
        let out = bench.sh(&script).ok();
        assert!(!out.contains("ESCAPED"), "{setting:?}: {out}");
        assert_eq!(out.lines().count(), calls.len(), "{out}");
        for (call, errno) in
            [("clone3", "ENOSYS"), ("unshare_user", "EPERM"), ("mount", "EPERM"), ("bpf", "EPERM")]
        {
            assert!(out.contains(&format!("{call}: {errno}\n")), "{setting:?}: {call}: {out}");
        }
        let mut spec = bench.spec(&["probe", "chroot_escape"]);
        spec.env = vec![format!("OUTSIDE={}", bench.dir.path().display())];
        assert_eq!(
            bench.run(&spec).stdout,
            "chroot_escape: ENOENT\n",
            "{setting:?}: it went up and found nothing"
        );
        // The same as another user.
        let mut spec = bench.spec(&["sh", "-c", &script]);
        spec.user = "web".to_owned();
        let out = bench.run(&spec).ok();
        assert!(!out.contains("ESCAPED"), "{setting:?}: {out}");
    }
}

#[test]
fn commands_that_lead_out_fail() {
    for setting in SETTINGS {
        let bench = Bench::new(setting);
        let script: String = COMMANDS
            .iter()
            .map(|(name, command)| {
                format!("if ( {command} ) >/dev/null 2>&1; then echo 'ESCAPED: {name}'; fi\n")
            })
            .collect();
        assert_eq!(bench.sh(&script).ok(), "", "{setting:?}");
    }
}

#[test]
fn the_builder_is_out_of_reach() {
    for setting in SETTINGS {
        let bench = Bench::new(setting);
        let state = bench.path("state");
        std::fs::write(state.join("secret"), "of the builder").expect("write");
        let _listener = UnixListener::bind(state.join("api.sock")).expect("bind");
        bench.own(&state);
        let other = bench.directory("other-snapshot", "secret", "of another step");
        let base = bench.dir.path().display();
        let script = format!(
            "set +e; ls -d {base} {state} {other} 2>/dev/null; cat {state}/secret {other}/secret 2>/dev/null; \
             test -S {state}/api.sock && echo socket; \
             mkdir -p /jail/bin && cp /bin/busybox /jail/bin/ && (chroot /jail /bin/busybox ls -d {base} 2>/dev/null; cd /; cd ../../../../..; ls -d {base} 2>/dev/null); \
             for pid in $(ls /proc | grep '^[0-9]*$'); do \
               tr '\\0' ' ' </proc/$pid/cmdline 2>/dev/null | grep -q -- '--[s]tate' && echo sees the builder as $pid; \
             done; \
             n=3; while [ $n -lt 400 ]; do kill -9 $((n+60)) 2>/dev/null; n=$((n+1)); done; \
             grep -c {base} /proc/self/maps; ls -l /proc/self/fd | grep -c -E 'socket|{base}'; true",
            state = state.display(),
            other = other.display()
        );
        let ran = bench.sh(&script);
        assert_eq!(ran.stdout, "0\n0\n", "{setting:?}: {ran:?}");
    }
}

#[test]
fn the_builders_program_cannot_be_overwritten_through_proc() {
    for setting in SETTINGS {
        let bench = Bench::new(setting);
        // The trick: the step's program is the runner itself, reached by its own link.
        let mut spec = bench.spec(&["/proc/self/exe"]);
        spec.env = vec!["PATH=/bin".to_owned()];
        let before =
            std::fs::metadata(env!("CARGO_BIN_EXE_lapstrake-step")).expect("stat").modified().expect("time");
        let ran = bench.run(&spec);
        assert_ne!(ran.code, 0, "{ran:?}");
        let after =
            std::fs::metadata(env!("CARGO_BIN_EXE_lapstrake-step")).expect("stat").modified().expect("time");
        assert_eq!(before, after);
    }
}

#[test]
fn a_machine_without_the_promised_sandbox_is_refused() {
    // The machine's root, told to be in a pod.
    for setting in [Setting::UserNamespace, Setting::Baseline] {
        let bench = Bench::new(Setting::Root);
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_lapstrake-step"))
            .args(["--mode", &format!("{setting:?}"), "--preflight", "--state"])
            .arg(bench.path("state"))
            .output()
            .expect("run");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(125));
        assert!(text.contains("its root is the node's root") && text.contains("hostUsers: false"), "{text}");
    }
}

#[test]
fn a_pod_that_cannot_map_its_ids_is_told_what_it_lacks() {
    let bench = Bench::new(Setting::Baseline);
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_lapstrake-pod-sim"))
        .args(["without-setfcap", env!("CARGO_BIN_EXE_lapstrake-step"), "--preflight", "--state"])
        .arg(bench.path("state"))
        .output()
        .expect("run");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{text}");
    assert!(text.contains("needs the capabilities SETUID, SETGID and SETFCAP"), "{text}");
}
