//! Files in memory, secret variables and certificates: seen by the step, and nowhere afterwards.

mod stage;

use lapstrake_run::{MountSource, SecretBytes, SecretVar, StepCertificates, StepFile, StepMount, StepSpec};
use stage::{Bench, SETTINGS, Setting, tree};

const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";

fn file(target: &str, contents: &str, mode: u32, uid: u32, gid: u32) -> StepMount {
    let contents = SecretBytes::new(contents);
    let file = StepFile { contents, mode, uid, gid, after_own: false };
    let mount = StepMount::new(target, MountSource::File(file));
    StepMount { readonly: true, nosuid: true, noexec: mode & 0o111 == 0, ..mount }
}

#[test]
fn a_file_in_memory_has_its_owner_and_mode_and_leaves_nothing() {
    for setting in SETTINGS {
        let bench = Bench::new(setting);
        let script = "cat /run/secrets/token; stat -c '%a %u %g' /run/secrets/token /key; \
                      grep -E '/run/secrets/token ' /proc/mounts | cut -d' ' -f3,4; \
                      echo x >/run/secrets/token; echo $?; /tool";
        let mut spec = bench.spec(&["sh", "-c", script]);
        spec.mounts = vec![
            file("/run/secrets/token", "hunter2\n", 0o400, 0, 0),
            file("/key", "k", 0o440, 33, 70),
            file("/tool", "#!/bin/sh\necho runs\n", 0o555, 0, 0),
        ];
        let ran = bench.run(&spec);
        let upper = ran.upper.clone();
        let out = ran.ok();
        let mut lines = out.lines();
        assert_eq!(lines.next(), Some("hunter2"), "{setting:?}");
        assert_eq!((lines.next(), lines.next()), (Some("400 0 0"), Some("440 33 70")));
        let mount = lines.next().expect("the mount");
        assert!(mount.starts_with("tmpfs ro,nosuid,nodev,noexec"), "{mount}");
        assert_eq!((lines.next(), lines.next()), (Some("1"), Some("runs")));
        assert!(tree(&upper).is_empty(), "{:?}", tree(&upper));
    }
}

#[test]
fn the_user_who_owns_a_file_reads_it_and_another_does_not() {
    let bench = Bench::new(Setting::UserNamespace);
    for (uid, expected) in [(33, "secret"), (34, "")] {
        let mut spec = bench.spec(&["sh", "-c", "cat /s 2>/dev/null; true"]);
        spec.user = "33:33".to_owned();
        spec.mounts = vec![file("/s", "secret", 0o400, uid, uid)];
        assert_eq!(bench.run(&spec).ok(), expected);
    }
    let mut spec = bench.spec(&["true"]);
    spec.mounts = vec![file("/s", "secret", 0o400, 1_000_000, 0)];
    let ran = bench.run(&spec);
    assert!(ran.stderr.contains("source of mount /s") && ran.stderr.contains("1000000:0"), "{ran:?}");
}

#[test]
fn what_the_image_has_there_comes_first_where_that_is_asked_for() {
    let bench = Bench::new(Setting::Root);
    std::fs::create_dir_all(bench.path("image/etc/ssh")).expect("made");
    std::fs::write(bench.path("image/etc/ssh/ssh_known_hosts"), "theirs").expect("written");
    let mut spec = bench.spec(&["cat", "/etc/ssh/ssh_known_hosts"]);
    let mut mount = file("/etc/ssh/ssh_known_hosts", "ours\n", 0o444, 0, 0);
    let MountSource::File(ours) = &mut mount.source else { unreachable!("made so") };
    ours.after_own = true;
    spec.mounts = vec![mount];
    let ran = bench.run(&spec);
    assert!(tree(&ran.upper).is_empty());
    assert_eq!(ran.ok(), "theirs\nours\n");
}

#[test]
fn a_secret_variable_wins_and_its_value_is_bytes() {
    let bench = Bench::new(Setting::Root);
    let mut spec = bench.spec(&["sh", "-c", "printf %s \"$TOKEN\" | od -An -tx1"]);
    spec.env = vec!["TOKEN=other".to_owned()];
    let variable =
        |value: &[u8]| vec![SecretVar { name: "TOKEN".to_owned(), value: SecretBytes::new(value) }];
    spec.secret_env = variable(&[0xff, b'=', b'x']);
    assert_eq!(bench.run(&spec).ok().trim(), "ff 3d 78");
    let mut spec = bench.spec(&["true"]);
    spec.secret_env = variable(b"hunter2\0");
    let ran = bench.run(&spec);
    assert!(
        ran.stderr.contains("variable TOKEN has a zero byte") && !ran.stderr.contains("hunter2"),
        "{ran:?}"
    );
}

fn with_certificates(bench: &Bench, script: &str, usual: &str) -> StepSpec {
    let mut spec = bench.spec(&["sh", "-c", script]);
    let certificates = StepCertificates { extra: "-- OURS --\n".to_owned(), usual: usual.to_owned() };
    spec.certificates = Some(certificates);
    spec
}

fn with_bundle(setting: Setting) -> Bench {
    let bench = Bench::new(setting);
    for dir in ["etc/ssl/certs", "etc/pki/tls/certs"] {
        std::fs::create_dir_all(bench.image().join(dir)).expect("made");
    }
    std::fs::write(bench.image().join(BUNDLE), "-- USUAL --").expect("written");
    let link = bench.image().join("etc/pki/tls/certs/ca-bundle.crt");
    std::os::unix::fs::symlink("/etc/ssl/certs/ca-certificates.crt", link).expect("linked");
    bench.own(&bench.image());
    bench
}

#[test]
fn certificates_stand_behind_the_images_and_leave_nothing() {
    for setting in SETTINGS {
        let bench = with_bundle(setting);
        let script = "grep -c OURS /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt \
                      $SSL_CERT_FILE $NODE_EXTRA_CA_CERTS; grep -c USUAL $CURL_CA_BUNDLE $NODE_EXTRA_CA_CERTS; \
                      head -1 /etc/ssl/certs/ca-certificates.crt; echo $PIP_CERT";
        let mut spec = with_certificates(&bench, script, "");
        spec.env = vec!["PIP_CERT=/mine".to_owned()];
        let ran = bench.run(&spec);
        assert!(tree(&ran.upper).is_empty(), "{setting:?}: {:?}", tree(&ran.upper));
        let expected = "/etc/ssl/certs/ca-certificates.crt:1\n/etc/pki/tls/certs/ca-bundle.crt:1\n\
                        /run/lapstrake/ca-certificates.crt:1\n/run/lapstrake/extra-ca-certificates.crt:1\n\
                        /run/lapstrake/ca-certificates.crt:1\n/run/lapstrake/extra-ca-certificates.crt:0\n\
                        -- USUAL --\n/mine\n";
        assert_eq!(ran.ok(), expected, "{setting:?}");
    }
}

#[test]
fn a_bundle_that_the_step_writes_is_kept_without_ours() {
    let bundle = format!("/{BUNDLE}");
    // As update-ca-certificates: a new file, renamed into place.
    let renews = format!("cd /etc/ssl/certs && echo NEW >x && chmod 644 x && mv x {bundle}");
    for (script, expected) in [
        (renews, "NEW\n"),
        (
            format!(
                "cd /etc/ssl/certs && cp {bundle} old && grep -q OURS /usr/local/share/ca-certificates/*.crt && \
                 ln -s /usr/local/share/ca-certificates/lapstrake.crt lapstrake.pem && ln -s lapstrake.pem 1234.0 && \
                 rm old && {{ echo NEW; cat /usr/local/share/ca-certificates/*.crt; echo END; }} >x && mv x {bundle} && \
                 grep -q OURS {bundle}"
            ),
            "NEW\nEND\n",
        ),
        (format!("echo MORE >>{bundle}"), "-- USUAL --MORE\n"),
        (format!("chmod 600 {bundle}"), "-- USUAL --"),
        (format!("mv {bundle} /moved; ln -s /moved {bundle}"), "link"),
        (format!("rm {bundle}"), "gone"),
    ] {
        for setting in SETTINGS {
            let bench = with_bundle(setting);
            let ran = bench.run(&with_certificates(&bench, &script, ""));
            assert_eq!(ran.code, 0, "{ran:?}");
            let path = ran.upper.join(BUNDLE);
            let kind = path.symlink_metadata().expect("in the layer").file_type();
            match expected {
                "gone" => assert!(std::os::unix::fs::FileTypeExt::is_char_device(&kind), "{script}"),
                "link" => assert!(kind.is_symlink()),
                _ => assert_eq!(
                    std::fs::read_to_string(&path).expect("file"),
                    expected,
                    "{script} {setting:?}"
                ),
            }
        }
    }
}

#[test]
fn an_image_without_a_bundle_has_one_for_the_step_only() {
    for setting in SETTINGS {
        let bench = Bench::new(setting);
        let script = format!("grep -c OURS /{BUNDLE}; env | grep -c lapstrake; grep -c USUAL $SSL_CERT_FILE");
        let ran = bench.run(&with_certificates(&bench, &script, "-- USUAL --\n"));
        assert!(tree(&ran.upper).is_empty(), "{setting:?}: {:?}", tree(&ran.upper));
        assert_eq!(ran.ok(), "1\n7\n1\n");
        // Nothing may replace the usual authorities with less than them.
        let ran = bench.run(&with_certificates(&bench, "env | grep lapstrake", ""));
        assert_eq!(ran.ok(), "NODE_EXTRA_CA_CERTS=/run/lapstrake/extra-ca-certificates.crt\n");
        // A package that brings the bundle.
        let ran = bench.run(&with_certificates(&bench, &format!("echo NEW >/n; mv /n /{BUNDLE}"), ""));
        assert_eq!(tree(&ran.upper), ["etc", "etc/ssl", "etc/ssl/certs", BUNDLE]);
        assert_eq!(std::fs::read_to_string(ran.upper.join(BUNDLE)).expect("file"), "NEW\n");
    }
}
