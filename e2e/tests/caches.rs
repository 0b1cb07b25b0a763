//! Package managers with cache mounts on a volume: what was downloaded once is not downloaded again by
//! another pod, and no image has the cache in it. What is built are the examples.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};
use kube::api::DeleteParams;
use lapstrake_crds::ImageBuild;
use lapstrake_e2e::{Manifest, Test, example, run, wait_until};
use serde_json::Value;

/// A package manager, and how it tells what it fetches.
struct Case {
    /// The example that is built.
    example: &'static str,
    /// Its files that are others in the second build: one more package is asked for.
    changed: &'static [(&'static str, &'static str)],
    /// Whether a line of the log tells that a package was fetched from the network.
    fetched: fn(line: &str, package: &str) -> bool,
    /// Packages of the first build, and those that only the second has.
    packages: [&'static str; 2],
    /// Where the caches are mounted.
    mounted: &'static [&'static str],
    /// The stage that has them mounted, where that is not the image itself.
    stage: Option<&'static str>,
}

/// The manifest with other contents in its files.
fn change(mut manifest: Manifest, changed: &[(&str, &str)]) -> Result<Manifest> {
    let files = manifest.0.pointer_mut("/spec/source/inline/files").and_then(Value::as_array_mut);
    let files = files.context("the example has its files in the manifest")?;
    for (path, content) in changed {
        let file = files.iter_mut().find(|file| file["path"] == *path);
        file.with_context(|| format!("the example has a file {path}"))?["content"] = (*content).into();
    }
    Ok(manifest)
}

/// The base image that an example is told to use.
fn base(manifest: &Manifest) -> Result<String> {
    let mut args = manifest.0["spec"]["args"].as_array().into_iter().flatten();
    let base = args.find(|arg| arg["name"] == "BASE").and_then(|arg| arg["value"].as_str());
    base.map(str::to_owned).context("the argument BASE")
}

fn pod(build: &ImageBuild) -> Result<String> {
    let status = build.status.as_ref().context("a status")?;
    status.platforms.iter().find_map(|one| one.pod.clone()).context("a pod")
}

/// Applies what is another spec than before, and waits for its image.
async fn rebuild(test: &Test, manifest: &Manifest) -> Result<ImageBuild> {
    test.apply(manifest).await?;
    let generation = test.builds.get(manifest.name()).await?.metadata.generation;
    let built = test.ready(manifest.name()).await?;
    assert_eq!(built.metadata.generation, generation);
    Ok(built)
}

/// How often a build's log tells of a download of this package.
fn downloads(log: &str, case: &Case, package: &str) -> usize {
    log.lines().filter(|line| (case.fetched)(line, package)).count()
}

/// Files that lie where the caches were mounted, in any layer of an image that its base has not.
fn cached_files(test: &Test, case: &Case, base: &str, build: &ImageBuild) -> Result<Vec<String>> {
    let verify = format!("--tls-verify={}", !test.cluster.plain_http);
    let base = output(Command::new("skopeo").args(["inspect", &verify, &format!("docker://{base}")]))?;
    let base: Value = serde_json::from_str(&base)?;
    let base = base["Layers"].as_array().context("layers of the base")?;
    let image = build.status.as_ref().and_then(|status| status.image.as_ref()).context("an image")?;
    let folder = tempfile::tempdir()?;
    let destination = format!("dir:{}", folder.path().display());
    let check = format!("--src-tls-verify={}", !test.cluster.plain_http);
    let image = format!("docker://{image}");
    output(Command::new("skopeo").args(["copy", "--quiet", &check, &image, &destination]))?;
    let manifest: Value = serde_json::from_str(&fs::read_to_string(folder.path().join("manifest.json"))?)?;
    let mut found = Vec::new();
    let layers = manifest["layers"].as_array().context("layers")?;
    for layer in layers.iter().filter(|layer| !base.contains(&layer["digest"])) {
        let digest =
            layer["digest"].as_str().and_then(|digest| digest.split(':').nth(1)).context("a digest")?;
        let names = output(Command::new("tar").arg("-tf").arg(folder.path().join(digest)))?;
        let inside = |name: &&str| {
            let name = name.trim_start_matches("./");
            let below = |place: &&str| name.strip_prefix(place).is_some_and(|rest| rest.starts_with('/'));
            case.mounted.iter().any(below) && !name.ends_with('/')
        };
        found.extend(names.lines().filter(inside).map(str::to_owned));
    }
    Ok(found)
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn downloads_only_what_is_new(case: &Case) {
    run(case.example, async |test| {
        let [old, new] = case.packages;
        let manifest = example(test.cluster, case.example, &test.image(case.example))?;
        let first = test.build(&manifest).await?;
        let log = test.log(&first).await?;
        assert!(downloads(&log, case, old) > 0, "the first build fetches {old}:\n{log}");
        assert_eq!(downloads(&log, case, new), 0, "{new} is not asked for yet:\n{log}");
        test.pods.delete(&pod(&first)?, &DeleteParams::default()).await?;
        wait_until(&test.pods, &pod(&first)?, "gone", |pod| pod.is_none()).await?;

        let manifest = change(manifest, case.changed)?;
        let second = rebuild(test, &manifest).await?;
        assert_ne!(pod(&first)?, pod(&second)?, "another pod");
        let log = test.log(&second).await?;
        assert_eq!(downloads(&log, case, old), 0, "{old} is in the cache:\n{log}");
        assert!(downloads(&log, case, new) > 0, "only {new} is new:\n{log}");

        let base = base(&manifest)?;
        let nothing: Vec<String> = Vec::new();
        assert_eq!(cached_files(test, case, &base, &second)?, nothing, "the image has nothing of the cache");
        if let Some(stage) = case.stage {
            let stage = rebuild(test, &manifest.set("/spec/dockerfile/target", stage)).await?;
            assert_eq!(cached_files(test, case, &base, &stage)?, nothing, "nor has the stage that used it");
        }
        Ok(())
    });
}

#[test]
fn npm() {
    downloads_only_what_is_new(&Case {
        example: "cache-npm",
        changed: &[
            (
                "package.json",
                r#"{
  "name": "hello",
  "version": "1.0.0",
  "private": true,
  "dependencies": {
    "ms": "2.1.3",
    "picocolors": "1.1.1"
  }
}
"#,
            ),
            (
                "package-lock.json",
                r#"{
  "name": "hello",
  "version": "1.0.0",
  "lockfileVersion": 3,
  "requires": true,
  "packages": {
    "": {
      "name": "hello",
      "version": "1.0.0",
      "dependencies": {
        "ms": "2.1.3",
        "picocolors": "1.1.1"
      }
    },
    "node_modules/ms": {
      "version": "2.1.3",
      "integrity": "sha512-6FlzubTLZG3J2a/NVCAleEhjzq5oxgHyaCU9yYXvcLsvoVaHJq/s5xXI6/XXP6tz7R9xAOtHnSO/tXtF3WRTlA==",
      "license": "MIT"
    },
    "node_modules/picocolors": {
      "version": "1.1.1",
      "integrity": "sha512-xceH2snhtb5M9liqDsmEw56le376mTZkEX/jEb/RxNFyegNul7eNslCXP9FDj/Lcu0X8KEyMceP2ntpaHrDEVA==",
      "license": "ISC"
    }
  }
}
"#,
            ),
        ],
        // `npm http fetch GET 200 https://…/ms/-/ms-2.1.3.tgz 68ms (cache miss)`; what comes from the cache
        // without a question is `(cache hit)` or `(cache stale)`.
        fetched: |line, package| {
            let local = line.contains("(cache hit)") || line.contains("(cache stale)");
            line.contains("http fetch GET") && line.contains(package) && !local
        },
        packages: ["/picocolors", "/ms"],
        mounted: &["root/.npm"],
        stage: None,
    });
}

#[test]
fn pip() {
    downloads_only_what_is_new(&Case {
        example: "cache-pip",
        changed: &[(
            "requirements.txt",
            "cowsay==6.1 --hash=sha256:274b1e6fc1b966d53976333eb90ac94cb07a450a700b455af9fbdf882244b30a\n\
             iniconfig==2.1.0 --hash=sha256:9deba5723312380e77435581c6bf4935c94cbfab9b1ed33ef8d238ea168eb760\n",
        )],
        fetched: |line, package| line.contains("Downloading") && line.contains(package),
        packages: ["cowsay-", "iniconfig-"],
        mounted: &["root/.cache/pip"],
        stage: None,
    });
}

#[test]
fn go() {
    downloads_only_what_is_new(&Case {
        example: "cache-go",
        changed: &[
            (
                "go.mod",
                "module example.org/hello\n\ngo 1.24.0\n\nrequire (\n\trsc.io/quote/v3 v3.1.0\n\trsc.io/sampler v1.3.0\n)\n\n\
                 require golang.org/x/text v0.30.0 // indirect\n",
            ),
            (
                "go.sum",
                "golang.org/x/text v0.0.0-20170915032832-14c0d48ead0c/go.mod h1:NqM8EUOU14njkJ3fqMW+pc6Ldnwhi/IjpwHt7yyuwOQ=\n\
                 golang.org/x/text v0.30.0 h1:yznKA/E9zq54KzlzBEAWn1NXSQ8DIp/NYMy88xJjl4k=\n\
                 golang.org/x/text v0.30.0/go.mod h1:yDdHFIX9t+tORqspjENWgzaCVXgk0yYnYuSZ8UzzBVM=\n\
                 rsc.io/quote/v3 v3.1.0 h1:9JKUTTIUgS6kzR9mK1YuGKv6Nl+DijDNIc0ghT58FaY=\n\
                 rsc.io/quote/v3 v3.1.0/go.mod h1:yEA65RcK8LyAZtP9Kv3t0HmxON59tX3rD+tICJqUlj0=\n\
                 rsc.io/sampler v1.3.0 h1:7uVkIFmeBqHfdjD+gZwtXXI+RODJ2Wc4O7MPEh/QiW4=\n\
                 rsc.io/sampler v1.3.0/go.mod h1:T1hPZKmBbMNahiBKFy5HrXp6adAjACjK9JXDnKaTXpA=\n",
            ),
            (
                "main.go",
                "package main\n\nimport (\n\t\"fmt\"\n\n\t\"rsc.io/quote/v3\"\n\t\"rsc.io/sampler\"\n)\n\n\
                 func main() {\n\tfmt.Println(\"Hello from Go!\", sampler.Hello(), quote.GoV3())\n}\n",
            ),
        ],
        fetched: |line, package| line.contains("go: downloading") && line.contains(package),
        packages: [" rsc.io/sampler ", " rsc.io/quote/v3 "],
        mounted: &["go/pkg/mod", "root/.cache/go-build"],
        stage: Some("build"),
    });
}

#[test]
fn apt() {
    downloads_only_what_is_new(&Case {
        example: "cache-apt",
        changed: &[("packages", "hello\ntree\n")],
        // `Get:1 http://… bookworm/main amd64 hello amd64 2.10-3 [53.0 kB]`; the lists have no package's name.
        fetched: |line, package| line.contains(" Get:") && line.contains(package),
        packages: [" hello ", " tree "],
        mounted: &["var/cache/apt", "var/lib/apt/lists"],
        stage: None,
    });
}

#[test]
fn cargo() {
    downloads_only_what_is_new(&Case {
        example: "cache-cargo",
        changed: &[
            (
                "Cargo.toml",
                "[package]\nname = \"hello\"\nversion = \"0.1.0\"\nedition = \"2021\"\n\n\
                 [dependencies]\nitoa = \"=1.0.15\"\nsemver = \"=1.0.27\"\n\n[profile.release]\nstrip = true\n",
            ),
            (
                "Cargo.lock",
                r#"version = 4

[[package]]
name = "hello"
version = "0.1.0"
dependencies = [
 "itoa",
 "semver",
]

[[package]]
name = "itoa"
version = "1.0.15"
source = "registry+https://github.com/rust-lang/crates.io-index"
checksum = "4a5f13b858c8d314ee3e8f639011f7ccefe71f97f96e50151fb991f267928e2c"

[[package]]
name = "semver"
version = "1.0.27"
source = "registry+https://github.com/rust-lang/crates.io-index"
checksum = "d767eb0aabc880b29956c35734170f26ed551a859dbd361d140cdbeca61ab1e2"
"#,
            ),
        ],
        // Cargo tells by `Downloaded` what it fetched and by `Compiling` what it had not compiled yet.
        fetched: |line, package| {
            (line.contains(" Downloaded ") || line.contains(" Compiling ")) && line.contains(package)
        },
        packages: [" semver v", " itoa v"],
        mounted: &["usr/local/cargo/registry", "src/target"],
        stage: Some("build"),
    });
}
