//! What a build is given for the world outside: credentials of registries, authorities, proxies, arguments.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use kube::api::{Api, Patch, PatchParams};
use lapstrake_crds::{ConditionType, ImageBuild, Reason};
use lapstrake_e2e::{Manifest, PrivateRegistry, Search, Server, Test, random_text, reason, run};
use serde_json::{Value, json};

/// The message of the condition `Ready`.
fn message(build: &ImageBuild) -> &str {
    let ready = build.status.as_ref().and_then(|s| s.condition(ConditionType::Ready));
    ready.map_or("", |condition| condition.message.as_str())
}

fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

async fn config_map(test: &Test, name: &str, data: Value) -> Result<()> {
    test.create::<ConfigMap>(json!({ "metadata": { "name": name }, "data": data })).await.map(drop)
}

/// A registry beside the cluster's; `None` where no program for it is known.
fn private_registry(test: &Test) -> Result<Option<PrivateRegistry>> {
    if !test.cluster.own {
        eprintln!("SKIPPED, CLUSTER=current: no program of a registry is known there");
        return Ok(None);
    }
    PrivateRegistry::start(test.cluster).map(Some)
}

#[test]
fn a_registry_with_a_password_and_an_own_authority_is_pulled_from_and_pushed_to() {
    run("private-registry", async |test| {
        let Some(registry) = private_registry(test)? else { return Ok(()) };
        let name = |image: &str| format!("{}/e2e/{}/{image}", registry.address, test.namespace);
        let password = random_text()?;
        config_map(test, "authority", json!({ "ca.crt": registry.ca })).await?;
        test.registry_secret("login", &registry.address, &registry.user, &registry.password).await?;
        test.registry_secret("wrong", &registry.address, &registry.user, &password).await?;
        let authority = json!({ "from": [{ "configMapRef": { "name": "authority" } }] });
        let to = |name_of_build: &str, secret: &str| {
            let output = json!({ "image": name(name_of_build), "secretRef": { "name": secret } });
            test.manifest(name_of_build, "ARG BASE\nFROM ${BASE}\nRUN echo inside > /file\n")
                .set("/spec/output", output)
        };
        // Nobody vouches for it.
        let unknown = to("unknown", "login").set("/spec/retries", 0);
        let failed = test.fails(&unknown, Reason::RegistryUnavailable).await?;
        has(message(&failed), &[&registry.address, "certificate"]);
        // It is trusted, and refuses.
        let wrong = to("wrong", "wrong").set("/spec/certificates", authority.clone());
        has(message(&test.fails(&wrong, Reason::PushDenied).await?), &[&registry.address]);
        // Pushed to …
        let pushed = to("base", "login").set("/spec/certificates", authority.clone());
        let built = test.build(&pushed).await?;
        let image = built.status.and_then(|status| status.image).context("an image")?;
        // … pulled from, with credentials for pulling only.
        let onto = |name: &str| {
            Manifest::inline(name, "ARG BASE\nFROM ${BASE}\nRUN cat /file\n", &test.image(name))
                .arg("BASE", &image)
                .set("/spec/certificates", authority.clone())
        };
        let failed = test.fails(&onto("denied"), Reason::PullDenied).await?;
        has(message(&failed), &[&registry.address]);
        let pulled =
            test.build(&onto("pulled").set("/spec/imagePullSecrets", json!([{ "name": "login" }]))).await?;
        has(&test.log(&pulled).await?, &["inside"]);

        // The password that works is the cluster's own, which is a file there: the other one must be nowhere.
        let secrets = ["wrong"];
        let found = Search::new(&[("password", password.as_bytes())])?.everywhere(test, &secrets).await?;
        assert_eq!(found, []);
        let authority = registry.ca.lines().nth(2).context("a line of the certificate")?;
        let search = Search::new(&[("password", password.as_bytes()), ("authority", authority.as_bytes())])?;
        let found = search.pushed(&registry.storage(), &format!("e2e/{}", test.namespace))?;
        assert!(found.is_empty(), "{found:#?}");
        Ok(())
    });
}

#[test]
fn the_service_accounts_secrets_pull_where_the_spec_names_none() {
    run("account", async |test| {
        let Some(registry) = private_registry(test)? else { return Ok(()) };
        config_map(test, "authority", json!({ "ca.crt": registry.ca })).await?;
        test.registry_secret("login", &registry.address, &registry.user, &registry.password).await?;
        let authority = json!({ "from": [{ "configMapRef": { "name": "authority" } }] });
        let account = |name: &str, secrets: Value| {
            test.create::<ServiceAccount>(
                json!({ "metadata": { "name": name }, "imagePullSecrets": secrets }),
            )
        };
        account("puller", json!([{ "name": "not-there" }, { "name": "login" }])).await?;
        account("nobody", json!([])).await?;
        let of = |name: &str, account: &str, base: &str, image: &str| {
            Manifest::inline(name, "ARG BASE\nFROM ${BASE}\nRUN echo inside > /file\n", image)
                .arg("BASE", base)
                .set("/spec/certificates", authority.clone())
                .set("/spec/pod", json!({ "serviceAccountName": account }))
        };
        let image = format!("{}/e2e/{}/base", registry.address, test.namespace);
        // The same credentials push and pull.
        let built = test.build(&of("push", "puller", &test.base("busybox:1"), &image)).await?;
        let image = built.status.and_then(|status| status.image).context("an image")?;
        test.build(&of("pull", "puller", &image, &test.image("pull"))).await?;
        test.fails(&of("denied", "nobody", &image, &test.image("denied")), Reason::PullDenied).await?;
        Ok(())
    });
}

#[test]
fn steps_trust_an_authority_by_choice_and_the_image_does_not_have_it() {
    run("step-certificates", async |test| {
        let Some(registry) = private_registry(test)? else { return Ok(()) };
        config_map(test, "authority", json!({ "bundle": registry.ca })).await?;
        let dockerfile = "ARG BASE\nFROM ${BASE}\nARG PLACE\nRUN python3 <<'END'\n\
            import os, urllib.request, urllib.error\n\
            try:\n    urllib.request.urlopen('https://' + os.environ['PLACE'] + '/v2/')\n\
            except urllib.error.HTTPError as answer:\n    print('answered with', answer.code)\n\
            except urllib.error.URLError as problem:\n    print('not trusted:', problem.reason)\n\
            END\n";
        let build = |name: &str, in_steps: bool| {
            let key = json!({ "configMapRef": { "name": "authority", "key": "bundle" } });
            Manifest::inline(name, dockerfile, &test.image(name))
                .arg("BASE", &test.base("python:3"))
                .arg("PLACE", &registry.address)
                .set("/spec/certificates", json!({ "from": [key], "inSteps": in_steps }))
        };
        let plain = test.build(&build("plain", false)).await?;
        has(&test.log(&plain).await?, &["not trusted: [SSL: CERTIFICATE_VERIFY_FAILED]"]);
        let trusted = test.build(&build("trusted", true)).await?;
        has(&test.log(&trusted).await?, &["answered with 401"]);
        let line = registry.ca.lines().nth(2).context("a line of the certificate")?;
        let search = Search::new(&[("authority", line.as_bytes())])?;
        let pushed =
            search.pushed(&test.cluster.state()?.join("registry"), &format!("e2e/{}", test.namespace))?;
        assert!(pushed.is_empty(), "{pushed:#?}");
        let known = search.everywhere(test, &[]).await?;
        assert!(known.iter().any(|leak| leak.at.contains("configmaps")), "the search finds it: {known:#?}");
        Ok(())
    });
}

#[test]
fn arguments_come_from_keys_and_one_of_a_secret_is_warned_of() {
    run("args-from", async |test| {
        config_map(test, "versions", json!({ "app": "1.2.3\n" })).await?;
        test.create::<Secret>(json!({ "metadata": { "name": "kept" }, "stringData": { "channel": "beta" } }))
            .await?;
        let dockerfile = "ARG BASE\nFROM ${BASE}\nARG APP\nARG CHANNEL\nARG EDITION=community\n\
            RUN printf 'app <%s> channel <%s> edition <%s>\\n' \"$APP\" \"$CHANNEL\" \"$EDITION\"\n";
        let from = |kind: &str, name: &str, key: &str, optional: bool| json!({ kind: { "name": name, "key": key, "optional": optional } });
        let base = json!({ "name": "BASE", "value": test.base("busybox:1") });
        let manifest = |app: Value| {
            let args = json!([
                base,
                { "name": "APP", "valueFrom": app },
                { "name": "CHANNEL", "valueFrom": from("secretKeyRef", "kept", "channel", false) },
                { "name": "EDITION", "valueFrom": from("configMapKeyRef", "versions", "edition", true) },
            ]);
            test.manifest("build", dockerfile).set("/spec/args", args)
        };
        let built = test.build(&manifest(from("configMapKeyRef", "versions", "app", false))).await?;
        let log = test.log(&built).await?;
        has(&log, &["app <1.2.3", "> channel <beta> edition <community>", "CHANNEL"]);
        let warned = log.lines().any(|line| line.contains("CHANNEL") && line.to_lowercase().contains("warn"));
        assert!(warned, "an argument out of a Secret is warned of:\n{log}");

        test.apply(&manifest(from("configMapKeyRef", "versions", "next", false))).await?;
        let waits = |build: &ImageBuild| {
            reason(build) == Reason::WaitingForSecret.as_str()
                && message(build).contains("ConfigMap versions has no key next (spec.args[APP].valueFrom)")
        };
        test.until("build", "waiting for the key", waits).await?;
        let maps: Api<ConfigMap> = Api::namespaced(test.client.clone(), &test.namespace);
        let patch = json!({ "data": { "next": "2.0.0" } });
        maps.patch("versions", &PatchParams::default(), &Patch::Merge(patch)).await?;
        let built = test.ready("build").await?;
        has(&test.log(&built).await?, &["app <2.0.0> channel <beta>"]);
        Ok(())
    });
}

#[test]
fn a_proxy_is_used_by_the_builder_and_by_steps_and_its_password_is_kept() {
    run("proxy", async |test| {
        // It answers whatever host is asked for, as a proxy does.
        let server = Server::start(test.cluster).await?;
        let password = random_text()?;
        let dockerfile = "ARG BASE\nFROM ${BASE}\n\
            RUN wget -q -O - http://no-such-host.example/files/page && echo \"by <$http_proxy> not <$NO_PROXY>\"\n";
        server.file("page", b"a page from behind the proxy\n")?;
        server.file("Dockerfile", dockerfile.as_bytes())?;
        let address = server.nothing("").trim_end_matches('/').to_owned();
        let with_password = address.replace("http://", &format!("http://robot:{password}@"));
        let secret = json!({ "http": with_password, "noProxy": "10.244.0.0/16" });
        test.create::<Secret>(json!({ "metadata": { "name": "proxy" }, "stringData": secret })).await?;
        let build = |name: &str, proxy: Value| {
            let source = json!({ "http": { "url": "http://no-such-host.example/files/Dockerfile" } });
            let manifest =
                test.manifest(name, "").set("/spec/dockerfile", json!({})).set("/spec/source", source);
            manifest.set("/spec/proxy", proxy)
        };
        let plain = build("plain", json!({ "http": address, "noProxy": "10.244.0.0/16", "inSteps": true }));
        let built = test.build(&plain).await?;
        let log = test.log(&built).await?;
        has(&log, &["a page from behind the proxy", &format!("by <{address}> not <10.244.0.0/16>")]);

        let from = json!({ "secretRef": { "name": "proxy" } });
        let built = test.build(&build("secret", json!({ "from": from, "inSteps": true }))).await?;
        has(&test.log(&built).await?, &["a page from behind the proxy", "not <10.244.0.0/16>"]);
        // Only the builder: the step finds no host of that name.
        let failed = test.fails(&build("builder-only", json!({ "from": from })), Reason::StepFailed).await?;
        has(message(&failed), &["wget"]);
        let found = Search::new(&[("password", password.as_bytes())])?.everywhere(test, &["proxy"]).await?;
        assert_eq!(found, []);
        Ok(())
    });
}
