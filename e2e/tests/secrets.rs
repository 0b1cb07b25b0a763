//! Secrets in steps: what a step sees, what holds a build, and that nothing of a value is anywhere afterwards.
//!
//! Each test that looks for values has a control beside them: a value that is no secret and went the same ways. What
//! does not find the control has not looked.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::{Context, Result};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, Patch, PatchParams};
use lapstrake_crds::{ConditionType, ImageBuild, Reason, Sandbox, annotation, label};
use lapstrake_e2e::{
    BuilderPods, Form, Leak, Place, Search, Test, random_bytes, random_text, reason, run, run_in,
};
use serde_json::json;
use sha2::{Digest, Sha256};

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes all");
        text
    })
}

/// The message of the condition `Ready`.
fn message(build: &ImageBuild) -> &str {
    let ready = build.status.as_ref().and_then(|s| s.condition(ConditionType::Ready));
    ready.map_or("", |condition| condition.message.as_str())
}

/// Makes a Secret of these keys.
async fn secret(test: &Test, name: &str, keys: &[(&str, &[u8])]) -> Result<()> {
    let data: BTreeMap<_, _> = keys.iter().map(|(key, value)| (key, BASE64_STANDARD.encode(value))).collect();
    test.create::<Secret>(json!({ "metadata": { "name": name }, "data": data })).await.map(drop)
}

/// Changes keys of a Secret.
async fn change(test: &Test, name: &str, keys: &[(&str, &[u8])]) -> Result<()> {
    let data: BTreeMap<_, _> = keys.iter().map(|(key, value)| (key, BASE64_STANDARD.encode(value))).collect();
    let secrets: Api<Secret> = Api::namespaced(test.client.clone(), &test.namespace);
    secrets.patch(name, &PatchParams::default(), &Patch::Merge(json!({ "data": data }))).await?;
    Ok(())
}

/// What a step does with the control: it is in its output, in the image and in its history.
const CONTROL_STEP: &str = "ARG CONTROL\n\
    RUN printf 'control %s\\n' \"$CONTROL\" | tee /control; printf %s \"$CONTROL\" | base64 | tee -a /control; \
    printf %s \"$CONTROL\" | xxd -p -c 256 | tee -a /control\n";

/// Puts the control into objects as well, in all forms.
async fn plant(test: &Test, control: &str) -> Result<()> {
    let data = json!({
        "plain": control, "base64": BASE64_STANDARD.encode(control), "hex": hex(control.as_bytes()),
    });
    test.create::<ConfigMap>(json!({ "metadata": { "name": "control" }, "data": data })).await?;
    test.create::<Event>(json!({
        "metadata": { "name": "control" },
        "eventTime": "2026-01-01T00:00:00.000000Z", "action": "Plant", "reason": "Planted", "type": "Normal",
        "reportingController": "lapstrake.dev/e2e", "reportingInstance": "e2e", "note": control,
        "regarding": { "apiVersion": "v1", "kind": "ConfigMap", "name": "control", "namespace": test.namespace },
    }))
    .await
    .map(drop)
}

/// Searches everywhere, sees that the control is found in each form in each place, and gives what else was found.
async fn leaks(test: &Test, control: &str, values: &[(&str, &[u8])], secrets: &[&str]) -> Result<Vec<Leak>> {
    let metric = b"lapstrake_builds";
    let wanted = [&[("control", control.as_bytes()), ("metric", metric)], values].concat();
    let found = Search::new(&wanted)?.everywhere(test, secrets).await?;
    let (controls, leaks): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|leak| ["control", "metric"].contains(&leak.value.as_str()));
    let seen: BTreeSet<_> = controls.iter().map(|leak| (leak.place, leak.form)).collect();
    let mut places = vec![Place::Object];
    if test.cluster.own {
        places.extend([Place::Registry, Place::Volume, Place::Log]);
    }
    let mut expected = BTreeSet::from([(Place::Metrics, Form::Plain)]);
    for place in places {
        expected.extend([Form::Plain, Form::Base64, Form::Hex].map(|form| (place, form)));
    }
    assert_eq!(seen, expected, "where the control was found: {controls:#?}");
    let at = |part: &str| controls.iter().any(|leak| leak.at.contains(part));
    assert!(at("imagebuilds.") && at("events.") && at("configmaps."), "{controls:#?}");
    if test.cluster.own {
        assert!(controls.iter().any(|l| l.place == Place::Registry && l.at.ends_with("(unpacked)")));
        assert!(controls.iter().any(|l| l.place == Place::Registry && !l.at.ends_with("(unpacked)")));
    }
    Ok(leaks)
}

/// In a namespace of each kind.
fn in_both(name: &str, test: impl AsyncFn(&Test) -> Result<()>) {
    for sandbox in [Sandbox::UserNamespace, Sandbox::Baseline] {
        let mut labels = BTreeMap::new();
        if sandbox == Sandbox::Baseline {
            labels.insert(label::POD_SECURITY_ENFORCE.to_owned(), "baseline".to_owned());
        }
        run_in(&format!("{name}-{}", sandbox.as_str().to_lowercase()), labels, async |here| test(here).await);
    }
}

#[test]
fn a_secret_of_any_kind_is_seen_by_its_step_and_is_nowhere_afterwards() {
    in_both("secrets", async |test| {
        let (token, user, control) = (random_text()?, random_text()?, random_text()?);
        let large = random_bytes(400 * 1024)?;
        let mut binary = random_bytes(4096)?;
        binary.splice(..4, [0, 0xff, b'\n', 0]);
        secret(test, "first", &[("token", token.as_bytes()), ("large", &large)]).await?;
        secret(test, "second", &[("user", user.as_bytes()), ("binary", &binary)]).await?;
        plant(test, &control).await?;

        let dockerfile = "ARG BASE\nFROM ${BASE}\n\
            RUN --mount=type=secret,id=token echo file $(sha256sum < /run/secrets/token) $(stat -c '%a %u:%g' /run/secrets/token)\n\
            RUN --mount=type=secret,id=token,env=TOKEN echo variable $(printf %s \"$TOKEN\" | sha256sum); ! ls /run/secrets\n\
            RUN --mount=type=secret,id=token,env=TOKEN,target=/etc/token,mode=0440,uid=7 \
                echo both $(printf %s \"$TOKEN\" | sha256sum) $(sha256sum < /etc/token) $(stat -c '%a %u:%g' /etc/token)\n\
            RUN --mount=type=secret,id=large,required echo large $(sha256sum < /run/secrets/large)\n\
            RUN --mount=type=secret,id=all-binary,required echo binary $(sha256sum < /run/secrets/all-binary)\n\
            RUN --mount=type=secret,id=all-user,env=WHO,required echo user $(printf %s \"$WHO\" | sha256sum)\n\
            RUN --mount=type=secret,id=token,env=TOKEN --mount=type=cache,target=/cache \
                cat /run/secrets/* 2>/dev/null; echo \"said: $TOKEN\"; printf %s \"$TOKEN\" | base64; \
                printf 'x%s' \"$TOKEN\" | base64; printf %s \"$TOKEN\" | xxd -p -c 256; date > /cache/date\n\
            RUN ls /run/secrets /etc/token 2>&1 || echo nothing \"is left\"\n";
        let manifest = test
            .manifest("build", &format!("{dockerfile}{CONTROL_STEP}"))
            .arg("CONTROL", &control)
            .set(
                "/spec/secrets",
                json!([
                    { "id": "token", "secretRef": { "name": "first", "key": "token" } },
                    { "id": "large", "secretRef": { "name": "first", "key": "large" } },
                ]),
            )
            .set("/spec/secretsFrom", json!([{ "secretRef": { "name": "second" }, "prefix": "all-" }]));
        let built = test.build(&manifest).await?;
        let log = test.log(&built).await?;
        let token_sum = sha256(token.as_bytes());
        for line in [
            format!("file {token_sum} - 400 0:0"),
            format!("variable {token_sum} -"),
            format!("both {token_sum} - {token_sum} - 440 7:0"),
            format!("large {} -", sha256(&large)),
            format!("binary {} -", sha256(&binary)),
            format!("user {} -", sha256(user.as_bytes())),
            "said: ***".to_owned(),
            "nothing is left".to_owned(),
        ] {
            assert!(log.contains(&line), "{line:?} is not in the log:\n{log}");
        }
        let values =
            [("token", token.as_bytes()), ("user", user.as_bytes()), ("large", &large), ("binary", &binary)];
        let leaks = leaks(test, &control, &values, &["first", "second"]).await?;
        assert_eq!(leaks, []);
        Ok(())
    });
}

#[test]
fn a_step_that_fails_with_its_secret_on_its_lips_tells_nobody() {
    run("secret-fails", async |test| {
        let (token, control) = (random_text()?, random_text()?);
        secret(test, "first", &[("token", format!("{token}\n").as_bytes())]).await?;
        plant(test, &control).await?;
        // What is pushed here is another build's.
        let pushed = test.manifest("control", &format!("ARG BASE\nFROM ${{BASE}}\n{CONTROL_STEP}"));
        test.build(&pushed.arg("CONTROL", &control)).await?;
        let dockerfile = "ARG BASE\nFROM ${BASE}\n\
            RUN --mount=type=secret,id=token,env=TOKEN cat /run/secrets/* 2>/dev/null; echo \"the token is: $TOKEN\" >&2; \
            printf %s \"$TOKEN\" | base64; printf %s \"$TOKEN\" | xxd -p -c 256; exit 9\n";
        let secrets = json!([{ "id": "token", "secretRef": { "name": "first", "key": "token" } }]);
        let failing = test.manifest("build", dockerfile).set("/spec/secrets", secrets);
        let failed = test.fails(&failing, Reason::StepFailed).await?;
        let failure = failed.status.and_then(|status| status.failure).context("a failure")?;
        let excerpt = failure.excerpt.unwrap_or_default();
        assert!(excerpt.contains("the token is: ***"), "{excerpt}");
        test.until_event("build", Reason::StepFailed.as_str()).await?;
        let leaks = leaks(test, &control, &[("token", token.as_bytes())], &["first"]).await?;
        assert_eq!(leaks, []);
        Ok(())
    });
}

#[test]
fn a_secret_that_is_missing_holds_the_build_by_name_until_it_is_there() {
    run("secret-missing", async |test| {
        let pods = BuilderPods::watch(test.pods.clone());
        let (token, other) = (random_text()?, random_text()?);
        let dockerfile = "ARG BASE\nFROM ${BASE}\n\
            RUN --mount=type=secret,id=npm,required echo npm $(sha256sum < /run/secrets/npm)\n\
            RUN --mount=type=secret,id=user,required echo user $(sha256sum < /run/secrets/user)\n";
        let manifest = test
            .manifest("build", dockerfile)
            .set("/spec/secrets", json!([{ "id": "npm", "secretRef": { "name": "npm", "key": "token" } }]))
            .set("/spec/secretsFrom", json!([{ "secretRef": { "name": "more" } }]));
        secret(test, "more", &[("user", other.as_bytes())]).await?;
        test.apply(&manifest).await?;
        let waits = |parts: &'static [&'static str]| {
            move |build: &ImageBuild| {
                reason(build) == Reason::WaitingForSecret.as_str()
                    && parts.iter().all(|part| message(build).contains(part))
            }
        };
        let absent = waits(&["Secret npm does not exist", "spec.secrets[npm]"]);
        test.until("build", "waiting for the Secret", absent).await?;
        secret(test, "npm", &[("password", b"of another key")]).await?;
        let keyless = waits(&["Secret npm has no key token", "spec.secrets[npm]"]);
        test.until("build", "waiting for the key", keyless).await?;
        change(test, "npm", &[("token", token.as_bytes())]).await?;
        let built = test.ready("build").await?;
        let log = test.log(&built).await?;
        assert!(log.contains(&format!("npm {} -", sha256(token.as_bytes()))), "{log}");
        assert!(log.contains(&format!("user {} -", sha256(other.as_bytes()))), "{log}");
        assert_eq!(pods.names().len(), 1, "it waited, and was not tried again: {:?}", pods.names());
        Ok(())
    });
}

#[test]
fn an_optional_secret_may_be_missing_unless_the_step_requires_it() {
    run("secret-optional", async |test| {
        secret(test, "there", &[("other", b"of another key")]).await?;
        let secrets = json!([
            { "id": "absent", "secretRef": { "name": "nowhere", "key": "token" }, "optional": true },
            { "id": "keyless", "secretRef": { "name": "there", "key": "token" }, "optional": true },
        ]);
        let from = json!([{ "secretRef": { "name": "nowhere-too" }, "optional": true }]);
        let with = |name: &str, step: &str| {
            let manifest = test.manifest(name, &format!("ARG BASE\nFROM ${{BASE}}\n{step}\n"));
            manifest.set("/spec/secrets", secrets.clone()).set("/spec/secretsFrom", from.clone())
        };
        let without = "RUN --mount=type=secret,id=absent --mount=type=secret,id=keyless,env=KEYLESS \
            ls /run/secrets/* 2>/dev/null || echo \"runs without <$KEYLESS>\"";
        let built = test.build(&with("without", without)).await?;
        let log = test.log(&built).await?;
        assert!(log.contains("runs without <>"), "{log}");

        for (name, id) in [("required", "absent"), ("not-given", "unheard-of")] {
            let step = format!("RUN --mount=type=secret,id={id},required cat /run/secrets/{id}");
            let failed = test.fails(&with(name, &step), Reason::SecretNotFound).await?;
            assert!(message(&failed).contains(id), "{}", message(&failed));
            assert_eq!(failed.status.and_then(|s| s.failure).and_then(|f| f.line), Some(3));
        }
        Ok(())
    });
}

/// The line of a step's output that begins so.
fn said<'a>(log: &'a str, start: &str) -> Option<&'a str> {
    log.lines().find_map(|line| line.split_once(start)).map(|(_, rest)| rest.trim())
}

#[test]
fn a_new_value_counts_from_the_next_run_on_for_the_steps_that_run() {
    run("secret-rotated", async |test| {
        let (old, new, control) = (random_text()?, random_text()?, random_text()?);
        secret(test, "rotated", &[("token", old.as_bytes())]).await?;
        plant(test, &control).await?;
        let dockerfile = format!(
            "ARG BASE\nFROM ${{BASE}}\nARG ROUND\n\
             RUN --mount=type=secret,id=token,env=TOKEN echo \"round $ROUND\"; \
             printf %s \"$TOKEN\" | sha256sum | tee /seen | sed 's/^/sa''w: /'\n{CONTROL_STEP}"
        );
        let manifest = |round: &str| {
            let secrets = json!([{ "id": "token", "secretRef": { "name": "rotated", "key": "token" } }]);
            let manifest = test.manifest("build", &dockerfile).set("/spec/secrets", secrets);
            manifest.arg("ROUND", round).arg("CONTROL", &control)
        };
        let first = test.build(&manifest("1")).await?;
        let log = test.log(&first).await?;
        assert_eq!(said(&log, "saw: "), Some(format!("{}  -", sha256(old.as_bytes())).as_str()), "{log}");

        // A value is in no cache key: what ran with the old one is taken from the cache.
        change(test, "rotated", &[("token", new.as_bytes())]).await?;
        let pod = |build: &ImageBuild| {
            let platforms = build.status.as_ref().map(|status| status.platforms.clone()).unwrap_or_default();
            platforms.into_iter().find_map(|platform| platform.pod)
        };
        test.annotate("build", annotation::REBUILD, "once more").await?;
        let again = |build: &ImageBuild| {
            lapstrake_e2e::ready(build) && pod(build).is_some() && pod(build) != pod(&first)
        };
        let second = test.until("build", "built once more", again).await?;
        let log = test.log(&second).await?;
        assert_eq!(said(&log, "saw: "), None, "{log}");
        let digest = |build: &ImageBuild| build.status.as_ref().and_then(|status| status.digest.clone());
        assert_eq!(digest(&second), digest(&first));

        // A step that runs has the new one.
        let third = test.build(&manifest("2")).await?;
        let log = test.log(&third).await?;
        assert_eq!(said(&log, "saw: "), Some(format!("{}  -", sha256(new.as_bytes())).as_str()), "{log}");
        let values = [("old", old.as_bytes()), ("new", new.as_bytes())];
        assert_eq!(leaks(test, &control, &values, &["rotated"]).await?, []);
        Ok(())
    });
}
