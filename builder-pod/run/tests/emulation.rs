//! Steps of another architecture, in a real root of it; the same under each sandbox.

mod stage;

use std::path::{Path, PathBuf};
use std::process::Command;

use lapstrake_run::{Emulator, StepSpec};
use lapstrake_testkit::debian;
use stage::{Bench, Ran, SETTINGS, Setting};

/// The emulator as the builder's image has it.
fn emulator() -> Emulator {
    let found = ["/usr/libexec/lapstrake/emulators", "/usr/bin"]
        .map(|dir| Path::new(dir).join("qemu-aarch64-static"))
        .into_iter()
        .find(|path| path.exists());
    let interpreter = found.expect("these tests need an emulator (Debian: qemu-user-static)");
    Emulator { architecture: "arm64".to_owned(), interpreter }
}

struct Arm {
    bench: Bench,
    root: PathBuf,
}

impl Arm {
    fn new(setting: Setting) -> Self {
        let bench = Bench::new(setting);
        let root = bench.path("arm64");
        std::fs::create_dir(&root).expect("a directory");
        debian::root_at("arm64", &root).expect("a root");
        bench.own(&root);
        Self { bench, root }
    }

    fn spec(&self, args: &[&str]) -> StepSpec {
        let mut spec = self.bench.spec_on(vec![self.root.clone()], args);
        spec.emulator = Some(emulator());
        spec.env = vec!["DEBIAN_FRONTEND=noninteractive".to_owned()];
        spec
    }

    fn sh(&self, script: &str) -> Ran {
        self.bench.run(&self.spec(&["/bin/sh", "-ec", script]))
    }
}

/// Entries of the machine's own table.
fn own_table() -> Vec<String> {
    let table = std::fs::read_dir("/proc/sys/fs/binfmt_misc").map(|entries| {
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    });
    table.unwrap_or_default()
}

#[test]
fn a_foreign_debian_works_and_the_machines_table_stays_as_it_was() {
    let before = own_table();
    for setting in SETTINGS {
        let arm = Arm::new(setting);
        assert_eq!(arm.sh("uname -m; dpkg --print-architecture").ok(), "aarch64\narm64\n", "{setting:?}");
        // A child by its absolute path, a script, a program that looks at itself, one that it may only run.
        let script =
            "printf '#!/usr/bin/perl\\nprint qq(perl says hello\\\\n);\\n' > /tmp/s; chmod 755 /tmp/s; /tmp/s
            /usr/bin/readlink /proc/self/exe
            chmod 711 /usr/bin/id; /usr/bin/id -u
            /usr/bin/env -i /bin/sh -c 'echo $0'";
        assert_eq!(arm.sh(script).ok(), "perl says hello\n/usr/bin/readlink\n0\n/bin/sh\n", "{setting:?}");
        // Files get their owners and modes; a set-user-id program works.
        let script = "useradd -m web; touch /home/web/f; chown web:web /home/web/f; stat -c %U /home/web/f
            su web -c 'id -un; test ! -w /etc/passwd; passwd -S web' | cut -d' ' -f1";
        assert_eq!(arm.sh(script).ok(), "web\nweb\nweb\n", "{setting:?}");
        let mut spec = arm.spec(&["id", "-u"]);
        spec.user = "nobody".to_owned();
        assert_eq!(arm.bench.run(&spec).ok(), "65534\n", "{setting:?}");
        let code = arm.sh("exit 7");
        assert_eq!(code.code, 7, "{code:?}");
    }
    assert_eq!(own_table(), before);
}

#[test]
fn packages_are_installed_and_a_compiler_compiles() {
    for setting in SETTINGS {
        let arm = Arm::new(setting);
        let script =
            "apt-get update -qq && apt-get install -qq -y --no-install-recommends tcc libc6-dev >/dev/null
            printf '#include <stdio.h>\\nint main(){puts(\"compiled\");return 0;}' > /tmp/a.c
            tcc -o /tmp/a /tmp/a.c && /tmp/a && od -An -tx1 -j18 -N1 /tmp/a";
        assert_eq!(arm.sh(script).ok(), "compiled\n b7\n", "{setting:?}");
        if setting == Setting::Root {
            // The layer is like any other: it runs on, in a step that is not emulated at all.
            let spec = arm.bench.spec(&["true"]);
            arm.bench.run(&spec).ok();
        }
    }
}

#[test]
fn without_an_emulator_the_reason_is_the_program_and_not_the_sandbox() {
    let arm = Arm::new(Setting::Root);
    let mut spec = arm.spec(&["/bin/true"]);
    spec.emulator = None;
    let ran = arm.bench.run(&spec);
    assert!(ran.code != 0 && ran.stderr.contains("exec format error"), "{ran:?}");
    spec.emulator = Some(Emulator { interpreter: arm.bench.path("no-such-file"), ..emulator() });
    let ran = arm.bench.run(&spec);
    assert!(ran.code != 0 && ran.stderr.contains("no-such-file"), "{ran:?}");
}

#[test]
fn an_emulated_step_cannot_write_its_emulator() {
    for setting in SETTINGS {
        let arm = Arm::new(setting);
        let copy = arm.bench.directory("emulators", "note", "");
        let interpreter = copy.join("qemu-aarch64-static");
        std::fs::copy(emulator().interpreter, &interpreter).unwrap();
        arm.bench.own(&interpreter);
        let sum = |path: &Path| Command::new("sha256sum").arg(path).output().unwrap().stdout;
        let before = sum(&interpreter);
        // A native program sees the file behind an emulated process, and holds it beyond that one's end.
        std::fs::copy(arm.bench.image().join("bin/busybox"), arm.root.join("busybox")).unwrap();
        arm.bench.own(&arm.root.join("busybox"));
        let mut spec = arm.spec(&["/busybox", "sh", "-c", ATTACK]);
        spec.emulator = Some(Emulator { interpreter: interpreter.clone(), ..emulator() });
        let ran = arm.bench.run(&spec);
        assert!(ran.stdout.contains("tried"), "{setting:?}: {ran:?}");
        assert_eq!(sum(&interpreter), before, "{setting:?}: {ran:?}");
    }
}

const ATTACK: &str =
    "/bin/sleep 5 & pid=$!; while ! /busybox readlink /proc/$pid/exe | /busybox grep -q qemu; do :; done
exec 9</proc/$pid/exe; kill $pid; wait $pid
n=0; while [ $n -lt 100 ]; do echo x >> /proc/self/fd/9; n=$((n+1)); done 2>/dev/null; echo tried";
