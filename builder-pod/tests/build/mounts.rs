//! `RUN --mount` of caches, binds and memory; networks.

use std::os::unix::fs::PermissionsExt as _;

use crate::lab::{Fate, Lab};

/// Waits in a step until a file is there; a step that waits for ever fails.
const AWAIT: &str =
    "await() { n=0; until [ -e $1 ]; do n=$((n+1)); [ $n -lt 600 ] || exit 9; sleep 0.05; done; }";

#[test]
fn a_cache_outlives_the_build_and_is_not_in_the_image() {
    let lab = Lab::new();
    let text = |word: &str| {
        format!(
            "FROM @base\nRUN --mount=type=cache,target=/c/d cat /c/d/* >/out; echo {word} >/c/d/{word}; chmod 640 /c/d/{word}\n"
        )
    };
    let files = lab.files_of(lab.dockerfile(&text("first")));
    assert!(!files.join("c").exists(), "not even its mount point");
    std::fs::remove_dir_all(&files).unwrap();
    // Another step, another process: the same directory.
    let files = lab.files_of(lab.dockerfile(&text("second")));
    assert_eq!(std::fs::read_to_string(files.join("out")).unwrap(), "first\n");
    // What it holds is no part of a step's key.
    let again = lab.build(lab.dockerfile(&text("second"))).ok();
    assert_eq!(again.fate("RUN --mount"), Fate::Cached);
    std::fs::remove_dir_all(&files).unwrap();
    // Its name is its target, or its id; a namespace keeps caches apart.
    let by_id = "FROM @base\nRUN --mount=type=cache,id=/c/d,target=/elsewhere ls /elsewhere >/out\n";
    assert_eq!(lab.file_of(lab.dockerfile(by_id), "out"), "first\nsecond\n");
    std::fs::remove_dir_all(&files).unwrap();
    let out = lab.path("files");
    let build = lab.build(lab.dockerfile(by_id)).args(["--build-arg", "BUILDKIT_CACHE_MOUNT_NS=other"]);
    build.args(["-o", out.to_str().unwrap()]).ok();
    assert_eq!(std::fs::read_to_string(out.join("out")).unwrap(), "");
}

#[test]
fn a_failed_step_leaves_in_its_cache_what_it_put_there() {
    let lab = Lab::new();
    lab.build(lab.dockerfile("FROM @base\nRUN --mount=type=cache,target=/c echo kept >/c/f; exit 3\n"))
        .fails(10);
    let text = "FROM @base\nRUN --mount=type=cache,target=/c cat /c/f >/out\n";
    assert_eq!(lab.file_of(lab.dockerfile(text), "out"), "kept\n");
}

/// Two stages that run at the same time, and a result that needs both.
fn two(lab: &Lab, a: &str, b: &str) -> std::path::PathBuf {
    let text = format!(
        "FROM @base AS a\nRUN {a}\nFROM @base AS b\nRUN {b}\nFROM @base\nCOPY --from=a /out /a\nCOPY --from=b /out /b\n"
    );
    lab.dockerfile(&text)
}

#[test]
fn a_shared_cache_is_one_directory_for_all_at_the_same_time() {
    let lab = Lab::new();
    let step = |own: &str, other: &str| {
        format!(
            "--mount=type=cache,target=/c,sharing=shared {AWAIT}; touch /c/{own}; await /c/{other}; ls /c >/out"
        )
    };
    let files = lab.files_of(two(&lab, &step("a", "b"), &step("b", "a")));
    for name in ["a", "b"] {
        assert_eq!(std::fs::read_to_string(files.join(name)).unwrap(), "a\nb\n");
    }
}

#[test]
fn a_private_cache_is_another_directory_for_whoever_comes_while_it_is_in_use() {
    let lab = Lab::new();
    // They meet in a shared one.
    let step = |own: &str, other: &str| {
        format!(
            "--mount=type=cache,target=/p,sharing=private --mount=type=cache,target=/s {AWAIT}; \
             touch /p/{own} /s/{own}; await /s/{other}; ls /p >/out"
        )
    };
    let files = lab.files_of(two(&lab, &step("a", "b"), &step("b", "a")));
    for name in ["a", "b"] {
        assert_eq!(std::fs::read_to_string(files.join(name)).unwrap(), format!("{name}\n"));
    }
}

#[test]
fn a_locked_cache_is_had_by_one_step_at_a_time() {
    let lab = Lab::new();
    let step =
        |caches: &str| format!("{caches} mkdir /x/busy && sleep 0.3 && rmdir /x/busy && echo alone >/out");
    // Two caches, named in either order: nobody waits for the other for ever.
    let (x, y) =
        ("--mount=type=cache,target=/x,sharing=locked", "--mount=type=cache,target=/y,sharing=locked");
    let files = lab.files_of(two(&lab, &step(&format!("{x} {y}")), &step(&format!("{y} {x}"))));
    for name in ["a", "b"] {
        assert_eq!(std::fs::read_to_string(files.join(name)).unwrap(), "alone\n");
    }
}

#[test]
fn two_mounts_of_one_locked_cache_in_one_step_do_not_wait_for_each_other() {
    let lab = Lab::new();
    let mounts =
        "--mount=type=cache,id=l,target=/a,sharing=locked --mount=type=cache,id=l,target=/b,sharing=locked";
    let text = format!("FROM @base\nRUN {mounts} echo x >/a/f; cat /b/f >/out\n");
    assert_eq!(lab.file_of(lab.dockerfile(&text), "out"), "x\n");
}

#[test]
fn a_cache_has_the_owner_and_mode_that_are_asked_for_and_others_are_another_cache() {
    let lab = Lab::new();
    let step = |keys: &str| {
        format!(
            "FROM @base\nRUN --mount=type=cache,target=/c{keys} stat -c '%u %g %a' /c >/out; ls /c >>/out; touch /c/f; : {keys}\n"
        )
    };
    for (keys, expected) in [
        ("", "0 0 755\n"),
        (",uid=1000,gid=100,mode=0700", "1000 100 700\n"),
        (",uid=1000,gid=100,mode=0750", "1000 100 750\n"),
        // The same again is the same cache.
        (",uid=1000,gid=100,mode=0700,ro=false", "1000 100 700\nf\n"),
    ] {
        let files = lab.files_of(lab.dockerfile(&step(keys)));
        assert_eq!(std::fs::read_to_string(files.join("out")).unwrap(), expected, "{keys}");
        std::fs::remove_dir_all(files).unwrap();
    }
}

#[test]
fn a_cache_begins_with_a_part_of_a_stage_and_a_read_only_one_is_not_written() {
    let lab = Lab::new();
    let text = "FROM @base AS seed\nRUN mkdir -p /seed/in && echo seeded >/seed/in/f\nFROM @base\n\
                RUN --mount=type=cache,id=s,target=/c,from=seed,source=/seed/in cat /c/f >/out; echo more >/c/g\n\
                RUN --mount=type=cache,id=s,target=/c,from=seed,source=/seed/in,ro cat /c/f /c/g >>/out; ! touch /c/h\n\
                RUN --mount=type=cache,id=s,target=/c,source=/part touch /c/here; ls /c >>/out\n";
    assert_eq!(lab.file_of(lab.dockerfile(text), "out"), "seeded\nseeded\nmore\nhere\n");
}

#[test]
fn binds_show_context_stage_and_image_and_what_is_written_there_is_thrown_away() {
    let lab = Lab::new();
    let text = format!(
        "FROM @base AS stage\nRUN mkdir /made && echo stage >/made/f\nFROM @base\n\
         RUN --mount=target=/ctx --mount=type=bind,from=stage,source=/made,target=/m,rw \
         --mount=type=bind,from={},source=/etc/passwd,target=/p \
         cat /ctx/file /m/f >/out; head -1 /p >>/out; ! touch /ctx/x; echo changed >/m/f; cat /m/f >>/out\n\
         RUN --mount=type=bind,from=stage,source=/made,target=/m cat /m/f >>/out\n",
        lab.base()
    );
    let text = format!("{text}RUN --mount=type=bind,source=private,target=/q stat -c %a /q /q/f >>/out\n");
    let dir = lab.context("context", &[("Dockerfile", &text), ("file", "context\n"), ("private/f", "")]);
    std::fs::set_permissions(dir.join("private"), std::fs::Permissions::from_mode(0o710)).unwrap();
    let files = lab.files_of(&dir);
    let expected = "context\nstage\nroot:x:0:0:root:/root:/bin/sh\nchanged\nstage\n710\n644\n";
    assert_eq!(std::fs::read_to_string(files.join("out")).unwrap(), expected);
    assert!(!files.join("ctx").exists() && !files.join("m").exists() && !files.join("p").exists());
}

#[test]
fn memory_has_its_size_and_is_gone_with_the_step() {
    let lab = Lab::new();
    let text = "FROM @base\nRUN --mount=type=tmpfs,target=/t,size=1m df -k /t | tail -1 >/out; \
                ! dd if=/dev/zero of=/t/f bs=1k count=2048 2>/dev/null\n";
    let files = lab.files_of(lab.dockerfile(text));
    assert!(std::fs::read_to_string(files.join("out")).unwrap().contains(" 1024 "));
    assert!(!files.join("t").exists());
}

#[test]
fn mistakes_in_mounts_are_told_with_their_place() {
    let lab = Lab::new();
    for (mount, why) in [
        ("type=cache", "invalid mount target"),
        ("type=cache,target=/", "invalid mount target"),
        ("type=cahce,target=/c", "unsupported mount type"),
        ("type=cache,target=/c,sharing=often", "unsupported sharing value"),
        ("type=cache,target=/c,size=1m", "unexpected key 'size'"),
        ("type=bind,target=/c,sharing=locked", "invalid cache sharing"),
        ("type=tmpfs,target=/t,size=many", "invalid value for size"),
        ("type=tmpfs,target=/t,mode=0700", "mode not allowed"),
        ("type=secret", "invalid secret mount"),
        ("type=secret,id=a,source=b", "both source and id"),
        ("type=ssh,source=a", "ssh does not support source"),
        ("type=cache,target=/c,uid=root", "invalid value root for uid"),
        ("type=bind,target=/c,required", "unexpected key 'required'"),
        ("type=cache,taget=/c", "unexpected key 'taget'"),
    ] {
        let ran = lab.build(lab.dockerfile(&format!("FROM @base\nRUN --mount={mount} true\n"))).fails(10);
        ran.says(&[why, "Dockerfile:2:"]);
    }
}

#[test]
fn networks_are_those_that_are_asked_for_and_host_only_with_leave() {
    let lab = Lab::new();
    let devices = "ls /sys/class/net | tr '\\n' ' ' >/out";
    let text = |flag: &str| format!("FROM @base\nRUN {flag} {devices}\n");
    let out = lab.path("files");
    let with = |flag: &str, args: &[&str]| {
        let mut build =
            lab.build(lab.dockerfile(&text(flag))).args(["--no-cache", "-o", out.to_str().unwrap()]);
        build.0.args(args);
        std::fs::remove_dir_all(&out).ok(); // the first time there is none
        build.ok();
        std::fs::read_to_string(out.join("out")).unwrap()
    };
    let hosts = with("", &[]);
    assert_eq!(with("--network=none", &[]), "lo ");
    assert_eq!(with("", &["--network", "none"]), "lo ");
    assert_eq!(with("--network=default", &["--network=none"]), "lo ");
    assert_eq!(with("--network=host", &["--allow", "network.host"]), hosts);
    assert_eq!(with("--network=host", &["--network=host"]), hosts);
    let ran = lab.build(lab.dockerfile(&text("--network=host"))).fails(10);
    ran.says(&["network.host is not allowed", "--allow network.host", "Dockerfile:2:"]);
    lab.build(lab.dockerfile(&text("")))
        .args(["--network=bridge"])
        .fails(2)
        .says(&["default, none and host"]);
}

const CA: &str = "-----BEGIN CERTIFICATE-----\nT1VSUw==\n-----END CERTIFICATE-----\n";

#[test]
fn certificates_of_steps_are_seen_and_are_in_neither_layer_nor_key() {
    let lab = Lab::new();
    let pem = lab.path("ca.pem");
    std::fs::write(&pem, CA).unwrap();
    let pem = pem.display().to_string();
    let text = "FROM @base\nRUN mkdir -p /etc/ssl/certs && echo theirs >/etc/ssl/certs/ca-certificates.crt\n\
                RUN grep -c T1VSUw /etc/ssl/certs/ca-certificates.crt $SSL_CERT_FILE $NODE_EXTRA_CA_CERTS >/out; \
                grep -c theirs $CURL_CA_BUNDLE >>/out\n\
                RUN echo written anew >/etc/ssl/certs/new && mv /etc/ssl/certs/new /etc/ssl/certs/ca-certificates.crt\n";
    let dir = lab.dockerfile(text);
    let files = lab.path("files");
    let build = || {
        lab.build(&dir).args(["-o", files.to_str().unwrap(), "--certificate", &pem, "--step-certificates"])
    };
    build().ok();
    let out = std::fs::read_to_string(files.join("out")).unwrap();
    let expected = "/etc/ssl/certs/ca-certificates.crt:1\n/run/lapstrake/ca-certificates.crt:1\n\
                    /run/lapstrake/extra-ca-certificates.crt:1\n1\n";
    assert_eq!(out, expected);
    let bundle = std::fs::read_to_string(files.join("etc/ssl/certs/ca-certificates.crt")).unwrap();
    assert_eq!(bundle, "written anew\n");
    assert!(!files.join("run/lapstrake").exists());
    let grep = std::process::Command::new("grep").args(["-rl", "T1VSUw"]).arg(&files).output().unwrap();
    assert!(grep.stdout.is_empty(), "{}", String::from_utf8_lossy(&grep.stdout));
    // The same steps without them: all known.
    std::fs::remove_dir_all(&files).unwrap();
    let again = lab.build(&dir).ok();
    assert!(again.ran().is_empty(), "{}", again.stderr());
    let mode = std::fs::metadata(lab.path("ca.pem")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644, "the file itself is only read");
    lab.build(&dir)
        .args(["--step-certificates", "--certificate", "/etc/passwd", "--no-cache"])
        .fails(2)
        .says(&["no certificate in PEM form"]);
}
