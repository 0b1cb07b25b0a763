//! SSH over a real sshd: a private repository that a step clones, and one that is the source of a build; the key, which
//! no step can read and nothing keeps.

use anyhow::{Context, Result};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use lapstrake_crds::{ConditionType, ImageBuild, Reason};
use lapstrake_e2e::{Form, Leak, Manifest, Place, Search, Sshd, Test, random_text, reason, run, ssh_client};
use serde_json::{Value, json};

/// The message of the condition `Ready`.
fn message(build: &ImageBuild) -> &str {
    let ready = build.status.as_ref().and_then(|s| s.condition(ConditionType::Ready));
    ready.map_or("", |condition| condition.message.as_str())
}

async fn secret(test: &Test, name: &str, kind: &str, keys: Value) -> Result<()> {
    let secret = json!({ "metadata": { "name": name }, "type": kind, "stringData": keys });
    test.create::<Secret>(secret).await.map(drop)
}

/// The private half of an Ed25519 key, out of its file: 32 bytes, before the second time that the public half is there.
fn private_half(key: &str) -> Result<Vec<u8>> {
    let lines: String = key.lines().filter(|line| !line.starts_with("-----")).collect();
    let bytes = BASE64_STANDARD.decode(lines).context("a key is base64 between two lines")?;
    // Its length stands before it: that of both halves together.
    let at = bytes.windows(4).rposition(|window| window == [0, 0, 0, 64]).context("an Ed25519 key")? + 4;
    Ok(bytes.get(at..at + 32).context("32 bytes")?.to_vec())
}

/// How a step looks for the key: what it looks at, a command that prints what it found, and all that it may find: a key of
/// the step's own, so that the search itself is seen to work.
const WAYS_TO_THE_KEY: &[(&str, &str, &str)] = &[
    (
        "files that hold a private key",
        "grep -rlsI -D skip --exclude-dir=proc --exclude-dir=sys -e '^-----[B]EGIN .*PRIVATE KEY' /",
        "/planted/key",
    ),
    (
        "files named as keys are",
        "find / \\( -path /proc -o -path /sys -o -path /usr \\) -prune -o -type f \
         \\( -name 'id_*' -o -name ssh-privatekey -o -name known_hosts \\) -print",
        "/planted/id_rsa",
    ),
    (
        "mounts of the pod",
        "ls -d /run/lapstrake /etc/lapstrake /var/lib/lapstrake /var/run/secrets /planted 2>/dev/null",
        "/planted",
    ),
    (
        "environments",
        "PLANTED='-----BEGIN A PRIVATE KEY' sh -c 'cat /proc/[0-9]*/environ' | tr '\\0' '\\n' | \
         grep -a -o -e '-----[B]EGIN [A-Z ]*KEY'",
        "-----BEGIN A PRIVATE KEY",
    ),
    (
        "command lines",
        "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -a -o -e '-----[B]EGIN [A-Z ]*KEY'",
        "-----BEGIN A PRIVATE KEY",
    ),
    (
        "open files",
        "sh -c 'exec 9</planted/key; ls -l /proc/[0-9]*/fd; :' | grep -o -e '/.*lapstrake.*' -e '/planted/.*'",
        "/planted/key",
    ),
];

/// Requests to the agent that would hand out or change keys.
const REFUSED: &[(&str, &str)] = &[
    ("remove all keys", "ssh-add -D"),
    ("remove a key", "ssh-add -L > /tmp/public.pub && ssh-add -d /tmp/public.pub"),
    ("add a key", "ssh-keygen -q -t ed25519 -N '' -f /tmp/own && ssh-add /tmp/own"),
    ("lock it", "echo word | SSH_ASKPASS_REQUIRE=force SSH_ASKPASS=/bin/cat ssh-add -x"),
];

/// A step's script. Its words are cut, since the log has the script too.
fn attempts() -> String {
    let mut step = String::from(
        "mkdir /planted; printf -- '-----BEGIN A PRIVATE KEY-----\\nplanted\\n' > /planted/key; touch /planted/id_rsa\n",
    );
    for (n, (_, command, _)) in WAYS_TO_THE_KEY.iter().enumerate() {
        step += &format!("echo \"wa\"\"y {n}: $( ( {command} ) 2>/dev/null | sort -u | tr '\\n' '|' )\"\n");
    }
    for (n, (_, command)) in REFUSED.iter().enumerate() {
        step += &format!(
            "if ( {command} ) >/dev/null 2>&1; then echo allow\"ed {n}\"; else echo refus\"ed {n}\"; fi\n"
        );
    }
    step + "ssh-add -L | cut -d ' ' -f 1 | sed 's/^/sti''ll there: /'\n"
}

#[test]
fn a_step_clones_a_private_repository_and_cannot_read_the_key() {
    run("ssh-step", async |test| {
        let sshd = Sshd::start(test.cluster)?;
        let (files, control) = (tempfile::tempdir()?, random_text()?);
        std::fs::write(files.path().join("recipe"), "a private recipe\n")?;
        let (url, commit) = sshd.repository("recipes", files.path())?;
        let keys = json!({ "ssh-privatekey": sshd.key()?, "known_hosts": sshd.known_hosts()? });
        secret(test, "deploy-key", "kubernetes.io/ssh-auth", keys).await?;
        secret(test, "plain", "Opaque", json!({ "id_ed25519": sshd.key()? })).await?;

        let dockerfile = format!(
            "ARG BASE\nFROM ${{BASE}}\nARG URL\nARG CONTROL\n\
             RUN --mount=type=ssh,required git clone -q $URL /src && git -C /src rev-parse HEAD && cat /src/recipe\n\
             RUN --mount=type=ssh,id=modules,required git clone -q $URL /again && ssh-add -l && ls -l $SSH_AUTH_SOCK\n\
             RUN --mount=type=ssh <<'END'\n{}END\n\
             RUN for f in /run/buildkit /etc/ssh/ssh_known_hosts; do [ ! -e $f ] || echo left \"behind:\" $f; done; \
             echo \"no agent: <$SSH_AUTH_SOCK>\"\n\
             RUN echo $CONTROL | tee /control; rm -rf /planted /tmp/*\n\
             CMD [\"sh\", \"-c\", \"cat /src/recipe; ls -d /run/buildkit /etc/ssh/ssh_known_hosts /root/.ssh/known_hosts\"]\n",
            attempts()
        );
        let manifest = Manifest::inline("build", &dockerfile, &test.image("build"))
            .arg("BASE", &ssh_client(test).await?)
            .arg("URL", &url)
            .arg("CONTROL", &control)
            .set(
                "/spec/ssh",
                json!([
                    { "id": "default", "secretRef": { "name": "deploy-key" } },
                    { "id": "modules", "secretRef": { "name": "plain", "keys": ["id_ed25519"] }, "knownHosts": sshd.known_hosts()? },
                ]),
            );
        let built = test.build(&manifest).await?;
        let log = test.log(&built).await?;
        for line in
            [commit.as_str(), "a private recipe", "srw-------", "no agent: <>", "still there: ssh-ed25519"]
        {
            assert!(log.contains(line), "{line:?} is not in the log:\n{log}");
        }
        assert!(!log.contains("left behind:"), "{log}");
        for (n, (name, _, planted)) in WAYS_TO_THE_KEY.iter().enumerate() {
            let line = log.lines().find_map(|line| line.split_once(&format!("way {n}: ")));
            let found = line.with_context(|| format!("{name} was not tried:\n{log}"))?.1;
            assert_eq!(found.trim().trim_end_matches('|'), *planted, "{name}\n{log}");
        }
        for (n, (name, _)) in REFUSED.iter().enumerate() {
            assert!(log.contains(&format!("refused {n}")), "{name}:\n{log}");
        }

        let private = private_half(&sshd.key()?)?;
        // In an object as a whole file: the search finds what is in it.
        let strange = sshd.strange_key()?;
        let planted = json!({ "metadata": { "name": "control" }, "data": { "key": strange } });
        test.create::<ConfigMap>(planted).await?;
        let strange = private_half(&strange)?;
        let values =
            [("private half", &private[..]), ("control", control.as_bytes()), ("another's", &strange)];
        let found = Search::new(&values)?.everywhere(test, &["deploy-key", "plain"]).await?;
        let (leaks, controls): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|leak| leak.value == "private half");
        assert_eq!(leaks, []);
        for place in [Place::Registry, Place::Volume, Place::Log, Place::Object] {
            let here = |leak: &Leak| leak.value == "control" && leak.place == place;
            assert!(!test.cluster.own || controls.iter().any(here), "{place:?} was searched: {controls:#?}");
        }
        assert!(controls.iter().any(|leak| leak.value == "another's" && leak.form == Form::Base64));

        let image = built.status.and_then(|status| status.image).context("an image")?;
        // What `ls` does not find fails the command: nothing of the agent is in the image.
        let printed = test.run_image("image", &image).await;
        let text = format!("{:#}", printed.expect_err("nothing is there to list"));
        assert!(text.contains("a private recipe"), "{text}");
        for gone in ["/run/buildkit", "/etc/ssh/ssh_known_hosts", "/root/.ssh/known_hosts"] {
            assert!(text.contains(&format!("cannot access '{gone}'")), "{text}");
        }
        Ok(())
    });
}

#[test]
fn an_agent_without_its_secret_is_waited_for_and_one_of_a_stranger_is_refused() {
    run("ssh-wrong", async |test| {
        let sshd = Sshd::start(test.cluster)?;
        let files = tempfile::tempdir()?;
        std::fs::write(files.path().join("recipe"), "a private recipe\n")?;
        let (url, _) = sshd.repository("recipes", files.path())?;
        let base = ssh_client(test).await?;
        let dockerfile = "ARG BASE\nFROM ${BASE}\nARG URL\n\
            RUN --mount=type=ssh,required git clone -q $URL /src && cat /src/recipe\n";
        let build = |name: &str, secret: &str, known_hosts: &str| {
            let agent =
                json!([{ "id": "default", "secretRef": { "name": secret }, "knownHosts": known_hosts }]);
            Manifest::inline(name, dockerfile, &test.image(name))
                .arg("BASE", &base)
                .arg("URL", &url)
                .set("/spec/ssh", agent)
        };
        secret(test, "key", "Opaque", json!({ "ssh-privatekey": sshd.key()? })).await?;
        secret(test, "stranger", "Opaque", json!({ "ssh-privatekey": sshd.strange_key()? })).await?;
        secret(test, "public", "Opaque", json!({ "ssh-privatekey": "ssh-ed25519 AAAA x" })).await?;
        for (name, key, hosts, wanted, told) in [
            ("other-key", "stranger", sshd.known_hosts()?, Reason::StepFailed, "Permission denied"),
            (
                "other-host",
                "key",
                sshd.wrong_known_hosts()?,
                Reason::StepFailed,
                "Host key verification failed",
            ),
            ("no-key", "public", sshd.known_hosts()?, Reason::SecretNotFound, "default"),
        ] {
            let failed = test.fails(&build(name, key, &hosts), wanted).await?;
            let failure =
                failed.status.as_ref().and_then(|status| status.failure.clone()).context("a failure")?;
            let text = format!("{} {}", failure.message, failure.excerpt.unwrap_or_default());
            assert!(text.contains(told), "{name}: {text}");
        }
        test.apply(&build("late", "late", &sshd.known_hosts()?)).await?;
        let waits = |build: &ImageBuild| {
            reason(build) == Reason::WaitingForSecret.as_str()
                && message(build).contains("Secret late does not exist (spec.ssh[default])")
        };
        test.until("late", "waiting for its key", waits).await?;
        secret(test, "late", "Opaque", json!({ "ssh-privatekey": sshd.key()? })).await?;
        test.ready("late").await?;
        Ok(())
    });
}

#[test]
fn a_private_repository_over_ssh_is_the_source_of_a_build() {
    run("ssh-source", async |test| {
        let sshd = Sshd::start(test.cluster)?;
        let files = tempfile::tempdir()?;
        let dockerfile = "ARG BASE\nFROM ${BASE}\nCOPY recipe /\nRUN cat /recipe; ls -d /root/.ssh /run/lapstrake || echo no key\n";
        std::fs::write(files.path().join("Dockerfile"), dockerfile)?;
        std::fs::write(files.path().join("recipe"), "a private recipe\n")?;
        let (url, commit) = sshd.repository("recipes", files.path())?;
        let build = |name: &str| {
            let source = json!({ "git": { "url": url, "branch": "main", "secretRef": { "name": name } } });
            let manifest = test.manifest(name, "").set("/spec/source", source);
            manifest.set("/spec/dockerfile", json!({}))
        };
        let kind = "kubernetes.io/ssh-auth";
        let (key, hosts) = (sshd.key()?, sshd.known_hosts()?);
        secret(test, "right", kind, json!({ "ssh-privatekey": key, "known_hosts": hosts })).await?;
        let wrong_hosts = sshd.wrong_known_hosts()?;
        secret(test, "other-host", kind, json!({ "ssh-privatekey": key, "known_hosts": wrong_hosts }))
            .await?;
        let strange = sshd.strange_key()?;
        secret(test, "other-key", kind, json!({ "ssh-privatekey": strange, "known_hosts": hosts })).await?;
        secret(test, "no-hosts", kind, json!({ "ssh-privatekey": key })).await?;
        test.apply(&build("no-hosts")).await?;

        let built = test.build(&build("right")).await?;
        let log = test.log(&built).await?;
        assert!(log.contains("a private recipe") && log.contains("no key"), "{log}");
        let revision = built.status.and_then(|status| status.source).map(|source| source.revision);
        assert!(revision.unwrap_or_default().contains(&commit));
        for (name, told) in
            [("other-host", "Host key verification failed"), ("other-key", "Permission denied")]
        {
            let failed = test.fails(&build(name), Reason::SourceDenied).await?;
            assert!(message(&failed).contains(told), "{name}: {}", message(&failed));
        }
        let waits = |build: &ImageBuild| {
            reason(build) == Reason::WaitingForSecret.as_str()
                && message(build)
                    .contains("Secret no-hosts has no key known_hosts (spec.source.git.secretRef)")
        };
        test.until("no-hosts", "waiting for the host's key", waits).await?;
        let private = private_half(&key)?;
        let secrets = ["right", "other-host", "no-hosts"];
        let found = Search::new(&[("private half", &private)])?.everywhere(test, &secrets).await?;
        assert_eq!(found, []);
        Ok(())
    });
}
