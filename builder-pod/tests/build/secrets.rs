//! Secrets: seen by the step that asks for them, and by nothing else, ever.

use std::path::{Path, PathBuf};
use std::process::Command;

use lapstrake_testkit::TempDir;
use serde_json::json;

use crate::lab::{Fate, Lab};

const VALUE: &str = "correct-horse-battery-staple";

/// A place for secrets that is not searched for them.
fn place() -> TempDir {
    lapstrake_testkit::tempdir().unwrap()
}

fn secret_file(dir: &TempDir, name: &str, value: &[u8]) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, value).unwrap();
    path
}

/// A flag for it.
fn flag(id: &str, path: &Path) -> String {
    format!("id={id},src={}", path.display())
}

/// The value as it is, and as base64 (without its edges) and hexadecimal have it.
fn forms(value: &str) -> Vec<String> {
    let encoded = |text: &str, skip: usize| {
        let shell = format!("printf %s '{text}' | base64 -w0");
        let out = Command::new("sh").arg("-c").arg(shell).output().unwrap().stdout;
        let out = String::from_utf8(out).unwrap();
        out.trim_end_matches('=')[skip..].trim_end_matches('=').to_owned()
    };
    let inner = |text: String| text[..text.len() - 2].to_owned();
    let hex: String = value.bytes().map(|byte| format!("{byte:02x}")).collect();
    vec![
        value.to_owned(),
        inner(encoded(value, 0)),
        inner(encoded(&format!("x{value}"), 2)),
        inner(encoded(&format!("xx{value}"), 3)),
        hex.to_uppercase(),
        hex,
    ]
}

/// Files below `dir` that have one of the forms, those inside of compressed blobs included.
fn leaks(dir: &Path, value: &str) -> Vec<PathBuf> {
    let forms = forms(value);
    let has = |bytes: &[u8]| {
        forms.iter().any(|form| bytes.windows(form.len()).any(|window| window == form.as_bytes()))
    };
    let mut found = Vec::new();
    let list = Command::new("find").arg(dir).args(["-type", "f"]).output().unwrap().stdout;
    let (mut seen, mut unpacked) = (0, 0);
    for path in String::from_utf8(list).unwrap().lines().map(PathBuf::from) {
        // The same busybox many times over has no secret.
        let Ok(bytes) = std::fs::read(&path) else { continue };
        seen += 1;
        let mut leak = has(&bytes);
        if bytes.starts_with(&[0x1f, 0x8b]) {
            unpacked += 1;
            let out = Command::new("gzip").arg("-dc").stdin(std::fs::File::open(&path).unwrap()).output();
            leak |= has(&out.unwrap().stdout);
        }
        if leak {
            found.push(path);
        }
    }
    assert!(seen > 3, "{seen} files, {unpacked} of them compressed: nothing was searched");
    found
}

#[test]
fn a_secret_is_a_file_a_variable_or_both_with_its_owner_and_mode() {
    let (lab, secrets) = (Lab::new(), place());
    let file = secret_file(&secrets, "token", VALUE.as_bytes());
    let text = "FROM @base\n\
        RUN --mount=type=secret,id=token stat -c '%a %u %g' /run/secrets/token >/out; wc -c </run/secrets/token >>/out\n\
        RUN --mount=type=secret,id=token,target=/tmp/t,mode=0444,uid=1000,gid=100 stat -c '%a %u %g' /tmp/t >>/out\n\
        RUN --mount=type=secret,id=token,env=TOKEN echo ${#TOKEN} >>/out; ls /run/secrets >>/out 2>&1 || echo no file >>/out\n\
        RUN --mount=type=secret,id=token,env=TOKEN,target=/t [ \"$(cat /t)\" = \"$TOKEN\" ] && echo both >>/out\n\
        RUN --mount=type=secret,id=other cat /run/secrets/other >>/out 2>/dev/null || echo none >>/out\n\
        RUN --mount=type=secret,id=other,env=OTHER echo \"<$OTHER>\" >>/out\n\
        RUN --mount=type=secret,id=variable wc -c </run/secrets/variable >>/out\n";
    let out = lab.path("files");
    let build = lab.build(lab.dockerfile(text)).env("A_VARIABLE", "four").args([
        "--secret",
        &flag("token", &file),
        "--secret",
        "id=variable,env=A_VARIABLE",
        "-o",
        out.to_str().unwrap(),
    ]);
    build.ok();
    let got = std::fs::read_to_string(out.join("out")).unwrap();
    let got: Vec<&str> = got.lines().filter(|line| !line.contains("No such file")).collect();
    assert_eq!(got, ["400 0 0", "28", "444 1000 100", "28", "no file", "both", "none", "<>", "4"]);
    assert!(!out.join("run/secrets").exists() && !out.join("t").exists() && !out.join("tmp/t").exists());
}

#[test]
fn a_secret_leaves_no_trace() {
    let (lab, secrets) = (Lab::new(), place());
    let file = secret_file(&secrets, "token", format!("{VALUE}\n").as_bytes());
    let text = "FROM @base\n\
        RUN --mount=type=secret,id=token,env=TOKEN --mount=type=cache,target=/c \
        cat /run/secrets/* 2>/dev/null; echo \"the token: $TOKEN\"; echo -n \"me:$TOKEN\" | base64; date >/c/d; sha256sum /bin/sh >/out\n\
        RUN --mount=type=secret,id=token cat /run/secrets/token; head -c 7 /run/secrets/token; sleep 0.1; tail -c +8 /run/secrets/token; echo it failed >&2; exit 3\n";
    let dir = lab.dockerfile(text);
    for progress in ["json", "plain"] {
        let mut build = lab.build(&dir).args([
            "--secret",
            &flag("token", &file),
            "-t",
            &lab.name("out:1"),
            "--push",
            "--no-cache",
        ]);
        build.0.arg(format!("--progress={progress}")).arg("--log=trace").env("RUST_BACKTRACE", "1");
        let ran = build.fails(10);
        let said = ran.stderr();
        for form in forms(VALUE) {
            assert!(!said.contains(&form), "{form} in:\n{said}");
        }
        ran.says(&["the token: ***", "it failed"]);
        assert_eq!(leaks(lab.dir.path(), VALUE), Vec::<PathBuf>::new());
    }
    // And of a build that succeeds, in what was pushed.
    let good = text.split("RUN --mount=type=secret,id=token cat").next().unwrap().to_owned();
    let build = lab.build(lab.dockerfile(&good)).args(["--secret", &flag("token", &file)]);
    build.args(["-t", &lab.name("out:1"), "--push"]).ok();
    assert_eq!(leaks(lab.registry.storage().dir(), VALUE), Vec::<PathBuf>::new());
    assert_eq!(leaks(lab.dir.path(), VALUE), Vec::<PathBuf>::new());
    // The search finds what is there.
    let planted = lab.path("planted");
    for form in forms(VALUE) {
        std::fs::write(&planted, format!("some text {form} and more")).unwrap();
        assert_eq!(leaks(lab.dir.path(), VALUE), std::slice::from_ref(&planted), "{form}");
    }
}

#[test]
fn a_pods_user_namespace_takes_nothing_away() {
    use crate::userns::{Mode, PodPlace};
    let lab = Lab::new();
    let text = "FROM @base\nRUN --mount=type=secret,id=s,uid=1000,env=S --mount=type=secret,id=s,uid=1000 \
                --mount=type=ssh,uid=1000,required --mount=type=cache,target=/c,uid=1000 --mount=type=tmpfs,target=/t \
                [ \"$(stat -c %u /run/secrets/s)\" = 1000 ] && [ \"$(cat /run/secrets/s)\" = \"$S\" ] && [ $S = value ] && \
                [ -S $SSH_AUTH_SOCK ] && [ \"$(stat -c %u $SSH_AUTH_SOCK)\" = 1000 ] && [ \"$(stat -c %u /c)\" = 1000 ] && \
                touch /c/f /t/f && grep -q T1VSUw /etc/ssl/certs/ca-certificates.crt\n";
    for mode in [Mode::UserNamespace, Mode::Baseline] {
        let place = PodPlace::new(&lab, text);
        let secret = flag("s", &place.file("s", "value"));
        let key = place.file("key", "");
        std::fs::remove_file(&key).unwrap();
        crate::lab::tool("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", key.to_str().unwrap()]);
        std::os::unix::fs::chown(&key, Some(100_000), Some(100_000)).unwrap();
        let agent = format!("default={}", key.display());
        let pem = "-----BEGIN CERTIFICATE-----\nT1VSUw==\n-----END CERTIFICATE-----\n";
        let certificate = place.file("ca.pem", pem).display().to_string();
        let flags =
            ["--secret", &secret, "--ssh", &agent, "--certificate", &certificate, "--step-certificates"];
        place.build(&lab, Some(mode)).args(&flags).ok();
    }
}

#[test]
fn a_builder_that_is_killed_leaves_no_secret_either() {
    let (lab, secrets) = (Lab::new(), place());
    let file = secret_file(&secrets, "token", VALUE.as_bytes());
    let text = "FROM @base\nRUN --mount=type=secret,id=token,env=TOKEN --mount=type=secret,id=token \
                touch /done; echo now waits; sleep 600\n";
    let mut running = lab.build(lab.dockerfile(text)).args(["--secret", &flag("token", &file)]).start();
    running.until("RUN --mount");
    running.until("now waits\"");
    running.signal("KILL");
    running.wait();
    assert_eq!(leaks(&lab.path("state"), VALUE), Vec::<PathBuf>::new());
    lab.build(lab.dockerfile("FROM @base\nRUN true\n")).ok();
    assert_eq!(leaks(&lab.path("state"), VALUE), Vec::<PathBuf>::new());
}

#[test]
fn another_value_changes_no_key_and_a_missing_one_that_is_required_is_named() {
    let (lab, secrets) = (Lab::new(), place());
    let file = secret_file(&secrets, "token", VALUE.as_bytes());
    let dir = lab.dockerfile(
        "FROM @base\nRUN --mount=type=secret,id=token,required cat /run/secrets/token >/dev/null\n",
    );
    lab.build(&dir).args(["--secret", &flag("token", &file)]).ok();
    std::fs::write(&file, "another value").unwrap();
    let again = lab.build(&dir).args(["--secret", &flag("token", &file)]).ok();
    assert_eq!(again.fate("RUN --mount"), Fate::Cached);
    let ran = lab.build(&dir).args(["--no-cache"]).fails(11);
    ran.says(&["secret token: not found", "--secret id=token", "Dockerfile:2"]);
    let required = "FROM @base\nRUN --mount=type=secret,id=token,env=T,required true\n";
    lab.build(lab.dockerfile(required)).fails(11).says(&["secret token: not found"]);
    // The bound is BuildKit's; bytes are bytes.
    let binary: Vec<u8> = (0..=255_u8).cycle().take(500 * 1024).collect();
    std::fs::write(&file, &binary).unwrap();
    let sum = "FROM @base\nRUN --mount=type=secret,id=token sha256sum </run/secrets/token >/out\n";
    let out = lab.path("files");
    let build = lab.build(lab.dockerfile(sum)).args(["--secret", &flag("token", &file)]);
    build.args(["-o", out.to_str().unwrap()]).ok();
    let expected = crate::lab::tool("sha256sum", &[file.to_str().unwrap()]);
    let got = std::fs::read_to_string(out.join("out")).unwrap();
    assert_eq!(got.split(' ').next(), expected.split(' ').next());
    std::fs::write(&file, [&binary[..], b"!"].concat()).unwrap();
    let build = lab.build(&dir).args(["--secret", &flag("token", &file), "--no-cache"]);
    build.fails(10).says(&["secret token is larger than 500 KiB"]);
}

#[test]
fn a_value_is_masked_however_it_is_printed() {
    let (lab, secrets) = (Lab::new(), place());
    let key = "-----BEGIN KEY-----\nMIIBVgIBADANBgkqhkiG\nend\n-----END KEY-----\n";
    let file = secret_file(&secrets, "key", key.as_bytes());
    // One byte at a time, with pauses: reads cut the value anywhere.
    let text = "FROM @base\nRUN --mount=type=secret,id=key cat /run/secrets/key; \
                for c in M I I B V g I B A D A N B g k q h k i G; do printf $c; sleep 0.01; done; echo; \
                base64 /run/secrets/key >&2; printf 'at the very end MIIBVgIBADANBgkqhkiG'; exit 1\n";
    let ran = lab.build(lab.dockerfile(text)).args(["--secret", &flag("key", &file)]).fails(10);
    let said = ran.stderr();
    let encoded = crate::lab::tool("base64", &[file.to_str().unwrap()]);
    assert!(encoded.lines().all(|line| line.len() < 20 || !said.contains(&line[..20])), "{said}");
    // The Dockerfile's own words are shown: it is there that the value stands in clear.
    let printed = said.lines().filter(|line| line.contains("\"log\"")).collect::<Vec<_>>().join("\n");
    assert!(!printed.contains("MIIBVg"), "{printed}");
    ran.says(&["at the very end ***"]);
}

#[test]
fn a_pod_reads_secrets_from_the_folders_that_the_request_names() {
    let (lab, secrets) = (Lab::new(), place());
    secret_file(&secrets, "user", b"alice");
    secret_file(&secrets, "password", VALUE.as_bytes());
    let text = "FROM @base\nRUN --mount=type=secret,id=user --mount=type=secret,id=pw,env=PW,required \
                --mount=type=secret,id=gone cat /run/secrets/user; echo \"pw $PW\"; ls /run/secrets; exit 4\n";
    let asked = crate::pod::request(&lab, text, |r| {
        r["secrets"] = json!([
            {"path": secrets.path()},
            {"id": "pw", "path": secrets.path().join("password")},
            {"id": "gone", "path": secrets.path().join("gone")},
        ]);
    });
    let (code, outcome) = crate::pod::serve(&lab, &asked);
    assert_eq!(code, Some(10), "{outcome}");
    let excerpt = outcome["failure"]["excerpt"].as_str().unwrap();
    assert!(excerpt.contains("pw ***") && excerpt.ends_with("user"), "{excerpt}");
    assert!(!outcome.to_string().contains(VALUE));
    let asked = crate::pod::request(&lab, text, |_| {});
    let (code, outcome) = crate::pod::serve(&lab, &asked);
    assert_eq!((code, &outcome["failure"]["reason"]), (Some(11), &json!("SecretNotFound")));
    assert_eq!(leaks(lab.dir.path(), VALUE), Vec::<PathBuf>::new());
}
