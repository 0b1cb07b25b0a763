//! Every example, built on the cluster in both sandboxes, and its image run as a pod.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use lapstrake_crds::{Sandbox, label};
use lapstrake_e2e::{
    Manifest, Server, Sshd, Test, example, example_file, examples, repository_root, run_in, ssh_client,
};
use serde_json::{Value, json};

/// What the image of an example prints.
const PRINTS: &[(&str, &str)] = &[
    ("attestations", "Built of: keel of oak, mast of spruce"),
    ("cache-apt", "Hello, world!"),
    ("cache-cargo", "Hello from Cargo! 1.9.0 comes before 1.10.0: true"),
    ("cache-go", "Hello from Go!"),
    ("cache-npm", "Hello from Node.js!"),
    ("cache-pip", "Hello from pip!"),
    ("follow", "Hello!\nThis page was built from a directory of a repository."),
    ("git", "Hello from a Git repository!\nThis page was built from a directory of a repository."),
    ("go", "Hello from Go!"),
    ("hello", "Hello from Lapstrake! This boat has:\na hull of four planks\na sail of four seams"),
    ("multi-platform", "Built for amd64 by a shell of amd64"),
    ("multi-stage", "one\ntwo\nthree\nfour\nfive"),
    ("python", "Hello from Python!"),
    ("registry-cache", "Harbour: The tide table was computed on "),
    ("results", "Hello!\nThis page was built from a directory of a repository."),
    ("shared-cache", "Lines in the log when this was built: 1"),
    ("secrets", "A plank that overlaps keeps the water out."),
    (
        "options",
        "build-box builds a ketch, with 512 files at a time\n10.1.2.3\ttide.example\n128.0M of shared memory\nlaunched on a ",
    ),
    ("contexts", "This page was built from a directory of a repository."),
    ("upon-build", "a keel of oak\nplanks upon it"),
    ("ssh", "Flour, water, salt and a day."),
    ("rust", "Hello from Rust! In order: 1.9.0 < 1.10.0-rc.1 < 1.10.0"),
];

/// A namespace that enforces Pod Security `baseline` gets the sandbox that is admitted there.
fn in_sandbox(name: &str, sandbox: Sandbox, test: impl AsyncFnOnce(&Test) -> Result<()>) {
    let mut labels = BTreeMap::new();
    if sandbox == Sandbox::Baseline {
        labels.insert(label::POD_SECURITY_ENFORCE.to_owned(), "baseline".to_owned());
    }
    run_in(&format!("{name}-{}", sandbox.as_str().to_lowercase()), labels, test);
}

async fn secret(test: &Test, name: &str, keys: Value) -> Result<()> {
    test.create::<Secret>(json!({ "metadata": { "name": name }, "stringData": keys })).await.map(drop)
}

/// A scanner that finds one file, as an image.
fn scanner(test: &Test) -> Manifest {
    let found = json!({
        "_type": "https://in-toto.io/Statement/v0.1",
        "predicateType": "https://spdx.dev/Document",
        "predicate": { "spdxVersion": "SPDX-2.3", "SPDXID": "SPDXRef-DOCUMENT", "name": "timber" },
    });
    let script = format!(
        "test -f $BUILDKIT_SCAN_SOURCE/timber && echo '{found}' > $BUILDKIT_SCAN_DESTINATION/found.spdx.json"
    );
    let dockerfile = format!("ARG BASE\nFROM ${{BASE}}\nENTRYPOINT {}\n", json!(["sh", "-c", script]));
    test.manifest("scanner", &dockerfile)
}

/// Provenance and the scanner's find stand beside the image in its index.
fn is_attested(pushed: &str) -> Result<()> {
    let index: Value = serde_json::from_slice(&raw(pushed)?)?;
    let entries = index["manifests"].as_array().context("an index")?;
    let (image, beside) = (&entries[0], &entries[1]);
    assert_eq!(beside["annotations"]["vnd.docker.reference.digest"], image["digest"], "{index:#}");
    let (repository, _) = pushed.split_once('@').context("a digest")?;
    let digest = beside["digest"].as_str().context("a digest")?;
    let manifest: Value = serde_json::from_slice(&raw(&format!("{repository}@{digest}"))?)?;
    let mut kinds: Vec<_> = manifest["layers"]
        .as_array()
        .context("layers")?
        .iter()
        .map(|layer| layer["annotations"]["in-toto.io/predicate-type"].as_str().unwrap_or_default())
        .collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["https://slsa.dev/provenance/v1", "https://spdx.dev/Document"]);
    Ok(())
}

/// A manifest as it is in the registry.
fn raw(name: &str) -> Result<Vec<u8>> {
    let output = Command::new("skopeo")
        .args(["inspect", "--raw", "--tls-verify=false"])
        .arg(format!("docker://{name}"))
        .output()?;
    ensure!(output.status.success(), "skopeo: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

fn builds_and_runs(name: &str, sandbox: Sandbox) {
    in_sandbox(name, sandbox, async |test| {
        let image = test.image(name);
        let mut manifest = example(test.cluster, name, &image)?;
        // What is ours in place of a user's: servers that live as long as the test.
        let (server, sshd, files);
        if ["follow", "git", "results"].contains(&name) {
            server = Server::start(test.cluster).await?;
            let (url, _) = server.repository("site", &repository_root().join("examples/git/repository"))?;
            manifest = manifest.set("/spec/source/git/url", url);
        } else if name == "attestations" {
            let scanner = test.build(&scanner(test)).await?.status.unwrap_or_default();
            let scanner = scanner.image.unwrap_or_default();
            manifest = manifest.set("/spec/output/attestations/sbom/generator", scanner);
        } else if name == "contexts" {
            server = Server::start(test.cluster).await?;
            let (url, _) = server.repository("site", &repository_root().join("examples/git/repository"))?;
            let base = test.base("busybox:1");
            manifest = manifest.set("/spec/contexts/0/image", base).set("/spec/contexts/1/git/url", url);
        } else if name == "upon-build" {
            test.apply(&example_file(test.cluster, name, "keel.yaml", &image)?).await?;
        } else if name == "secrets" {
            server = Server::start(test.cluster).await?;
            let motto = b"A plank that overlaps keeps the water out.\n";
            let url = server.private_file("motto", motto, "a-token-of-the-server")?;
            secret(test, "downloads", json!({ "token": "a-token-of-the-server" })).await?;
            manifest = manifest.arg("FILE", &url);
        } else if name == "ssh" {
            (sshd, files) = (Sshd::start(test.cluster)?, tempfile::tempdir()?);
            std::fs::write(files.path().join("bread"), "Flour, water, salt and a day.\n")?;
            let (url, _) = sshd.repository("recipes", files.path())?;
            let keys = json!({ "ssh-privatekey": sshd.key()?, "known_hosts": sshd.known_hosts()? });
            secret(test, "deploy-key", keys).await?;
            manifest = manifest.arg("REPOSITORY", &url).arg("CLIENT", &ssh_client(test).await?);
        }
        let build = test.build(&manifest).await?;
        let status = build.status.unwrap_or_default();
        assert_eq!(status.sandbox, Some(sandbox), "Auto takes what the namespace admits");
        let pushed = status.image.unwrap_or_default();
        assert!(pushed.starts_with(&format!("{image}@sha256:")), "{pushed}");
        if name == "attestations" {
            is_attested(&pushed)?;
        }
        let printed = test.run_image("image", &pushed).await?;
        let wanted = PRINTS.iter().find(|(example, _)| *example == name).expect("what it prints").1;
        assert!(printed.contains(wanted), "{name} printed:\n{printed}");
        Ok(())
    });
}

macro_rules! examples {
    ($($test:ident: $name:literal,)+) => {
        const TESTED: &[&str] = &[$($name),+];

        mod user_namespace {
            $(#[test] fn $test() { super::builds_and_runs($name, super::Sandbox::UserNamespace); })+
        }

        mod baseline {
            $(#[test] fn $test() { super::builds_and_runs($name, super::Sandbox::Baseline); })+
        }
    };
}

examples! {
    attestations: "attestations",
    cache_apt: "cache-apt",
    cache_cargo: "cache-cargo",
    cache_go: "cache-go",
    cache_npm: "cache-npm",
    cache_pip: "cache-pip",
    contexts: "contexts",
    follow: "follow",
    git: "git",
    go: "go",
    hello: "hello",
    multi_platform: "multi-platform",
    multi_stage: "multi-stage",
    options: "options",
    python: "python",
    registry_cache: "registry-cache",
    results: "results",
    rust: "rust",
    secrets: "secrets",
    shared_cache: "shared-cache",
    ssh: "ssh",
    upon_build: "upon-build",
}

#[test]
fn no_example_is_left_out() {
    assert_eq!(examples().expect("the examples"), TESTED);
}
