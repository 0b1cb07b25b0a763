//! What a step sees, leaves behind and tells; the same under each sandbox.

mod stage;

use std::io::Write;
use std::process::Stdio;

use lapstrake_run::{Changes, ExtraHost, MountSource, Network, Rlimit, StepMount};
use stage::{Bench, SETTINGS, Setting, tree};

fn mount(target: &str, source: MountSource) -> StepMount {
    StepMount::new(target, source)
}

#[test]
fn preflight_passes_where_steps_run() {
    for setting in SETTINGS {
        let bench = Bench::new(setting);
        let output = bench.command().arg("--preflight").output().expect("run");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{setting:?}: {}", String::from_utf8_lossy(&output.stderr));
        let expected = match setting {
            Setting::Root => "mode: Root, nested: false, root_outside: 0",
            Setting::UserNamespace => "mode: UserNamespace, nested: true, root_outside: 100000, ids: 65536",
            Setting::Baseline => "mode: Baseline, nested: true, root_outside: 100000, ids: 65536",
        };
        assert!(text.contains(expected), "{text}");
        assert!(tree(&bench.path("state")).is_empty(), "the check left something behind");
    }
}

#[test]
fn what_a_killed_builder_left_of_its_preflight_does_no_harm() {
    let bench = Bench::new(Setting::Root);
    // As the kernel marks a work directory whose mount did not end in order.
    std::fs::create_dir_all(bench.path("state").join("preflight/work/work/incompat/volatile"))
        .expect("mkdir");
    let output = bench.command().arg("--preflight").output().expect("run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn exit_codes_and_signals_are_told() {
    for setting in SETTINGS {
        let bench = Bench::new(setting);
        for code in [0, 1, 42, 255] {
            let ran = bench.sh(&format!("exit {code}"));
            assert_eq!(ran.code, code, "{ran:?}");
            assert_eq!(ran.exit.expect("exit").signal, None);
        }
        let ran = bench.sh("kill -TERM $$");
        let exit = ran.exit.expect("exit");
        assert_eq!((exit.code, exit.signal, exit.oom_killed), (143, Some(15), false));
    }
}

#[test]
fn streams_are_kept_apart_and_whole() {
    for setting in SETTINGS {
        let bench = Bench::new(setting);
        let ran = bench
            .sh("echo out; echo err >&2; echo more >/dev/stdout; head -c 3000000 /dev/zero | tr '\\0' x");
        assert_eq!(ran.stderr, "err\n");
        assert_eq!(ran.code, 0);
        assert!(ran.stdout.starts_with("out\nmore\nxxx"), "{}", &ran.stdout[..20]);
        assert_eq!(ran.stdout.len(), "out\nmore\n".len() + 3_000_000);
    }
}

#[test]
fn environment_directory_and_user_are_as_asked() {
    for setting in SETTINGS {
        let bench = Bench::new(setting);
        let mut spec = bench.spec(&["sh", "-c", "echo $A; pwd; id; echo $HOME; echo hi >/dev/stdout; umask"]);
        spec.env = vec!["A=1 2".to_owned(), "PATH=/bin".to_owned()];
        spec.cwd = "/srv/made/here".to_owned();
        spec.user = "web".to_owned();
        let ran = bench.run(&spec);
        assert_eq!(
            ran.stdout,
            "1 2\n/srv/made/here\nuid=33(web) gid=34(web) groups=34(web),70(ssl)\n/srv/web\nhi\n0022\n",
            "{ran:?}"
        );
        assert_eq!(tree(&ran.upper), ["srv", "srv/made", "srv/made/here"]);
        spec = bench.spec(&["id"]);
        spec.user = "4711:70".to_owned();
        assert_eq!(bench.run(&spec).ok(), "uid=4711 gid=70(ssl) groups=70(ssl)\n");
    }
}

#[test]
fn faults_of_the_step_are_named() {
    let bench = Bench::new(Setting::Root);
    let ran = bench.run(&bench.spec(&["no-such-program"]));
    assert!(ran.stderr.contains("exec: \"no-such-program\": executable file not found in $PATH"), "{ran:?}");
    let ran = bench.run(&bench.spec(&["/etc/passwd"]));
    assert!(ran.stderr.contains("exec: \"/etc/passwd\": permission denied"), "{ran:?}");
    let mut spec = bench.spec(&["true"]);
    spec.user = "ghost".to_owned();
    let ran = bench.run(&spec);
    assert!(ran.stderr.contains("user \"ghost\" is not in the image's /etc/passwd"), "{ran:?}");
    let mut spec = bench.spec(&["true"]);
    spec.mounts = vec![mount("/m", MountSource::Bind("/no/such/place".into()))];
    let ran = bench.run(&spec);
    assert!(ran.stderr.contains("source of mount /m") && ran.stderr.contains("/no/such/place"), "{ran:?}");
}

#[test]
fn the_view_is_the_steps_own() {
    for setting in SETTINGS {
        let bench = Bench::new(setting);
        let ran =
            bench.sh("ps -o pid,comm | tail -n +2 | head -2; hostname; tty; cat </dev/null; echo stdin: $?");
        let out = ran.ok();
        assert_eq!(
            out, "    1 lapstrake-init\n    2 sh\nbuildkitsandbox\nnot a tty\nstdin: 0\n",
            "{setting:?}"
        );
        let devices = bench.sh("cd /dev && ls -1").ok();
        let expected =
            "fd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n";
        assert_eq!(devices, expected);
        let ran = bench.sh(
            "set -e; head -c 4 /dev/urandom | wc -c; head -c 2 /dev/zero | wc -c; echo x >/dev/null; \
             if echo x >/dev/full; then exit 9; fi 2>/dev/null; \
             touch /dev/shm/x; ls /dev/fd >/dev/null; cat /proc/sys/kernel/hostname; ls /sys/class/net >/dev/null",
        );
        assert_eq!(ran.ok(), "4\n2\nbuildkitsandbox\n");
    }
}

#[test]
fn names_are_resolved_as_asked() {
    for setting in SETTINGS {
        let bench = Bench::new(setting);
        let mut spec = bench.spec(&["sh", "-c", "cat /etc/hosts; hostname; wc -c </etc/resolv.conf"]);
        spec.hostname = "box".to_owned();
        spec.extra_hosts = vec![ExtraHost { name: "db".to_owned(), ip: "10.0.0.7".parse().expect("ip") }];
        let resolvers = std::fs::metadata("/etc/resolv.conf").map_or(0, |file| file.len());
        let expected = format!(
            "127.0.0.1\tlocalhost box\n::1\tlocalhost ip6-localhost ip6-loopback\n10.0.0.7\tdb\nbox\n{resolvers}\n"
        );
        let ran = bench.run(&spec);
        assert_eq!(tree(&ran.upper), Vec::<String>::new());
        assert_eq!(ran.ok(), expected);
    }
}

#[test]
fn capabilities_are_the_containers_fourteen_and_none_for_other_users() {
    for setting in SETTINGS {
        let bench = Bench::new(setting);
        let script = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status | tr -d '\\t'";
        let expected = "CapInh:0000000000000000\nCapPrm:00000000a80425fb\nCapEff:00000000a80425fb\n\
                        CapBnd:00000000a80425fb\nCapAmb:0000000000000000\nNoNewPrivs:0\nSeccomp:2\n";
        assert_eq!(bench.sh(script).ok(), expected, "{setting:?}");
        let mut spec = bench.spec(&["sh", "-c", script]);
        spec.user = "web".to_owned();
        let expected = expected.replacen("a80425fb", "00000000", 2);
        assert_eq!(bench.run(&spec).ok(), expected, "{setting:?}");
    }
}

#[test]
fn setuid_programs_gain_what_they_should() {
    for setting in SETTINGS {
        let bench = Bench::new(setting).with_probe();
        let ran = bench.sh("cp /bin/probe /bin/suid && chmod 4755 /bin/suid");
        let upper = ran.upper.clone();
        ran.ok();
        for (program, code) in [("probe", 1), ("suid", 0)] {
            let mut spec = bench.spec_on(vec![upper.clone(), bench.image()], &[program, "effective_root"]);
            spec.user = "web".to_owned();
            let ran = bench.run(&spec);
            assert_eq!(ran.code, code, "{setting:?}: {program}: {ran:?}");
        }
    }
}

#[test]
fn doing_nothing_leaves_nothing_in_the_layer() {
    for setting in SETTINGS {
        let bench = Bench::new(setting);
        // An image of one file: no /proc, /dev, /sys, /etc.
        let image = bench.path("tiny");
        std::fs::create_dir(&image).expect("mkdir");
        std::fs::copy(bench.image().join("bin/busybox"), image.join("true")).expect("copy");
        bench.own(&image);
        let mut spec = bench.spec_on(vec![image], &["/true"]);
        let volume = bench.directory("volume", "file", "contents");
        spec.mounts = vec![
            mount("/a/b/c", MountSource::Tmpfs { size_bytes: None }),
            mount("/run/secrets/token", MountSource::Bind(volume.join("file"))),
        ];
        let ran = bench.run(&spec);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!(tree(&ran.upper), Vec::<String>::new(), "{setting:?}");
    }
}

#[test]
fn places_hidden_by_the_image_leave_nothing_either() {
    for setting in SETTINGS {
        let bench = Bench::new(setting);
        let ran = bench.sh("rm -rf /etc /srv; mkdir /run /var; ln -s /run /var/run; mkdir -p /run/here");
        let hidden = ran.upper.clone();
        ran.ok();
        let lowers = vec![hidden, bench.image()];
        let mut spec =
            bench.spec_on(lowers.clone(), &["sh", "-c", "ls /var/run/x/y; grep -c localhost /etc/hosts"]);
        let volume = bench.directory("volume", "file", "contents");
        spec.mounts = vec![mount("/var/run/x/y", MountSource::Bind(volume.clone()))];
        let ran = bench.run(&spec);
        assert_eq!(ran.stdout, "file\n2\n", "{ran:?}");
        assert_eq!(tree(&ran.upper), Vec::<String>::new(), "{setting:?}");
        // What the step itself puts beside a stub stays.
        let mut spec = bench.spec_on(lowers, &["touch", "/run/x/mine"]);
        spec.mounts = vec![mount("/var/run/x/y", MountSource::Bind(volume))];
        let ran = bench.run(&spec);
        assert_eq!(tree(&ran.upper), ["run", "run/x", "run/x/mine"], "{ran:?}");
    }
}

#[test]
fn removals_become_whiteouts_and_opaque_directories() {
    for setting in SETTINGS {
        let bench = Bench::new(setting);
        let ran = bench.sh("rm -rf /root /etc/group; rm -rf /tmp && mkdir /tmp && touch /tmp/new");
        let upper = ran.upper.clone();
        ran.ok();
        assert_eq!(tree(&upper), ["etc", "etc/group c0,0", "root c0,0", "tmp", "tmp/new"]);
        let tmp = lapstrake_sys::fs::open_root(&upper.join("tmp")).expect("open");
        let mark = if setting == Setting::Root { "trusted.overlay.opaque" } else { "user.overlay.opaque" };
        assert_eq!(lapstrake_sys::xattr::get(&tmp, mark).expect("xattr"), Some(b"y".to_vec()), "{setting:?}");
    }
}

#[test]
fn no_network_means_loopback_only() {
    for setting in SETTINGS {
        let bench = Bench::new(setting);
        let script = "ls /sys/class/net 2>/dev/null | grep -v lo; ip -o addr | cut -d' ' -f2 | sort -u; \
                      ping -c1 -W1 127.0.0.1 >/dev/null && echo self; ping -c1 -W1 10.9.8.7 2>&1 | tail -1; true";
        let mut spec = bench.spec(&["sh", "-c", script]);
        spec.network = Network::None;
        let out = bench.run(&spec).ok();
        assert!(out.contains("lo\nself\n"), "{setting:?}: {out}");
        assert!(out.contains("unreachable"), "{setting:?}: {out}");
    }
}

#[test]
fn tmpfs_has_its_size_and_binds_their_mode() {
    for setting in SETTINGS {
        let bench = Bench::new(setting);
        let volume = bench.directory("volume", "file", "contents");
        let script = "df -k /t | tail -1 | awk '{print $2}'; cat /ro/file /one; \
                      touch /ro/x 2>/dev/null || echo ro; echo y >/one 2>/dev/null || echo one; \
                      echo kept >/rw/new; head -c 2000000 /dev/zero >/t/big 2>/dev/null || echo full";
        let mut spec = bench.spec(&["sh", "-c", script]);
        spec.mounts = vec![
            mount("/t", MountSource::Tmpfs { size_bytes: Some(1 << 20) }),
            StepMount { readonly: true, ..mount("/ro", MountSource::Bind(volume.clone())) },
            StepMount { readonly: true, ..mount("/one", MountSource::Bind(volume.join("file"))) },
            mount("/rw", MountSource::Bind(volume.clone())),
        ];
        assert_eq!(bench.run(&spec).ok(), "1024\ncontentscontentsro\none\nfull\n", "{setting:?}");
        assert_eq!(std::fs::read_to_string(volume.join("new")).expect("read"), "kept\n");
    }
}

#[test]
fn layers_mount_read_only_or_with_changes_thrown_away() {
    for setting in SETTINGS {
        let bench = Bench::new(setting);
        let low = bench.directory("low", "a", "low");
        let top = bench.directory("top", "b", "top");
        std::fs::create_dir_all(top.join("sub/deep")).expect("mkdir");
        std::fs::write(top.join("sub/deep/c"), "deep").expect("write");
        bench.own(&top);
        let layers =
            |changes| MountSource::Layers { lowers_top_first: vec![top.clone(), low.clone()], changes };
        let single = MountSource::Layers { lowers_top_first: vec![low.clone()], changes: Changes::Refused };
        let script = "cat /ro/a /ro/b /part/c /single/a; echo; touch /ro/x 2>/dev/null || echo ro; \
                      touch /single/x 2>/dev/null || echo single; rm /rw/a; echo new >/rw/b; cat /rw/b; ls /rw";
        let mut spec = bench.spec(&["sh", "-c", script]);
        spec.mounts = vec![
            mount("/ro", layers(Changes::Refused)),
            mount("/rw", layers(Changes::Discarded)),
            StepMount { subpath: "sub/deep".into(), ..mount("/part", layers(Changes::Refused)) },
            mount("/single", single),
        ];
        let out = bench.run(&spec).ok();
        assert_eq!(out, "lowtopdeeplow\nro\nsingle\nnew\nb\nsub\n", "{setting:?}");
        assert_eq!(tree(&low), ["a"]);
        assert_eq!(std::fs::read_to_string(top.join("b")).expect("read"), "top");
        assert!(tree(&bench.path("state/run/discard")).is_empty(), "thrown away");
    }
}

#[test]
fn limits_reach_the_step() {
    for setting in SETTINGS {
        let bench = Bench::new(setting);
        let mut spec = bench.spec(&["sh", "-c", "ulimit -n; ulimit -c; ulimit -u"]);
        spec.rlimits = vec![Rlimit { name: "nproc".to_owned(), soft: Some(1234), hard: Some(2000) }];
        let out = bench.run(&spec).ok();
        assert!(out.ends_with("\n0\n1234\n"), "{setting:?}: {out}");
        spec = bench.spec(&["true"]);
        spec.rlimits = vec![Rlimit { name: "tea".to_owned(), soft: None, hard: None }];
        assert!(bench.run(&spec).stderr.contains("no such limit: \"tea\""));
        // Few files are the step's limit, not that of what sets it up.
        let limit = |name: &str, soft, hard| Rlimit { name: name.to_owned(), soft, hard };
        let mut spec = bench.spec(&["sh", "-c", "ulimit -n; ulimit -Hn"]);
        spec.rlimits = vec![limit("nofile", Some(5), Some(7))];
        assert_eq!(bench.run(&spec).ok(), "5\n7\n", "{setting:?}");
    }
}

#[test]
fn more_than_the_builder_may_have_itself_is_told() {
    let own = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    for setting in [Setting::UserNamespace, Setting::Baseline] {
        let bench = Bench::new(setting);
        let mut spec = bench.spec(&["true"]);
        let above = own.map(|own| own + 1);
        spec.rlimits = vec![Rlimit { name: "nofile".to_owned(), soft: above, hard: above }];
        let ran = bench.run(&spec);
        if let Some(own) = own {
            let said = format!("limit nofile: {} is above {own}", own + 1);
            assert!(ran.stderr.contains(&said), "{setting:?}: {ran:?}");
        }
    }
}

#[test]
fn ids_that_the_pod_does_not_have_are_told() {
    let bench = Bench::new(Setting::Baseline);
    let mut spec = bench.spec(&["true"]);
    spec.user = "100000".to_owned();
    let ran = bench.run(&spec);
    assert!(ran.stderr.contains("user id 100000 is not among the 65536 ids"), "{ran:?}");
}

#[test]
fn a_root_without_an_upper_directory_is_read_only() {
    for setting in SETTINGS {
        let bench = Bench::new(setting);
        let mut spec = bench.spec(&["sh", "-c", "touch /x 2>/dev/null || echo refused; echo y >/dev/shm/y"]);
        let upper = spec.rootfs.upper.clone().expect("upper");
        spec.rootfs.upper = None;
        spec.rootfs.work = None;
        let mut child = bench.command().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start");
        let json = serde_json::to_vec(&spec).expect("json");
        child.stdin.take().expect("stdin").write_all(&json).expect("write");
        let output = child.wait_with_output().expect("wait");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "refused\n", "{setting:?}");
        assert_eq!(tree(&upper), Vec::<String>::new());
    }
}

#[test]
fn steps_stand_on_many_layers() {
    for setting in SETTINGS {
        let bench = Bench::new(setting);
        let mut lowers = vec![bench.image()];
        for number in 0..120 {
            lowers.insert(0, bench.directory(&format!("layer{number}"), &format!("file{number}"), "x"));
        }
        let out = bench.run(&bench.spec_on(lowers, &["sh", "-c", "ls / | grep -c file"])).ok();
        assert_eq!(out, "120\n", "{setting:?}");
    }
}

#[test]
fn an_insecure_step_has_what_the_builder_has_and_a_usual_one_has_not() {
    let script = "mkdir -p /m; mount -t tmpfs none /m 2>/dev/null && echo mounted; \
                  grep -E '^(CapEff|CapAmb|Seccomp):' /proc/self/status; cat /proc/keys >/dev/null && echo keys";
    for setting in SETTINGS {
        let bench = Bench::new(setting);
        let usual = bench.sh(script);
        assert!(!usual.stdout.contains("mounted"), "{setting:?}: {usual:?}");
        for user in ["", "1000"] {
            let mut spec = bench.spec(&["sh", "-c", script]);
            (spec.insecure, spec.user) = (true, user.to_owned());
            spec.cwd = "/tmp".to_owned();
            let ran = bench.run(&spec);
            let field = |name: &str| {
                let line = ran.stdout.lines().find(|line| line.starts_with(name)).unwrap_or_default();
                u64::from_str_radix(line.split_whitespace().nth(1).unwrap_or_default(), 16)
                    .unwrap_or_default()
            };
            // CAP_SYS_ADMIN and CAP_NET_ADMIN, with all others that there are.
            for number in [12, 21] {
                assert!(field("CapEff") & (1 << number) > 0, "{setting:?} {user:?}: {ran:?}");
            }
            assert_eq!(field("CapAmb"), field("CapEff"), "{setting:?} {user:?}");
            // A pod's own filter stays.
            if setting == Setting::Root {
                assert_eq!(field("Seccomp"), own_filter(), "{user:?}: {ran:?}");
            }
            assert!(ran.stdout.contains("mounted"), "{setting:?} {user:?}: {ran:?}");
        }
    }
}

/// How calls of this process are filtered.
fn own_filter() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("read");
    let line = status.lines().find(|line| line.starts_with("Seccomp:")).expect("a line");
    line.split_whitespace().nth(1).and_then(|text| text.parse().ok()).expect("a number")
}

#[test]
fn a_device_of_the_builder_opens_where_it_is_shown_as_one() {
    for setting in SETTINGS {
        let bench = Bench::new(setting);
        let null = std::path::PathBuf::from("/dev/null");
        let script = "echo x >/dev/given && test -c /dev/given && echo opened; \
                      (echo x >/dev/other) 2>/dev/null || echo refused";
        let mut spec = bench.spec(&["sh", "-c", script]);
        spec.mounts.push(mount("/dev/given", MountSource::Device(null.clone())));
        spec.mounts.push(mount("/dev/other", MountSource::Bind(null)));
        let ran = bench.run(&spec);
        assert_eq!(ran.stdout, "opened\nrefused\n", "{setting:?}: {ran:?}");
        assert!(
            !tree(&ran.upper).iter().any(|name| name.contains("given")),
            "{setting:?}: it leaves nothing"
        );
    }
}
