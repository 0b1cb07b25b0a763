//! BuildKit's own clients on a real node: `docker buildx` over its drivers `kubernetes` and `remote`, with all that its
//! users know.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Secret;
use lapstrake_e2e::{
    Buildx, Search, Sshd, Test, dockerfile_frontend, example, random_text, repository_root, run, ssh_client,
    values,
};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use serde_json::json;

const DOCKERFILE: &str = "\
ARG BASE
FROM ${BASE} AS base
ARG TARGETPLATFORM
RUN uname -m > /machine && echo ${TARGETPLATFORM} >> /machine
FROM base AS secret
RUN --mount=type=secret,id=word,required tr a-z A-Z < /run/secrets/word | wc -c > /length
RUN --mount=type=secret,id=word,env=WORD printf %s \"${WORD}\" | wc -c >> /length
FROM base AS cached
RUN --mount=type=cache,target=/var/cache/own echo line >> /var/cache/own/lines; wc -l < /var/cache/own/lines > /lines
FROM scratch AS files
COPY --from=base /machine /
COPY --from=secret /length /
COPY file /
FROM base
COPY file /
";

const BAKE: &str = r#"
group "default" { targets = ["upper", "other"] }
target "lower" {
  args = { BASE = "@base" }
}
target "upper" {
  contexts = { lower = "target:lower" }
  dockerfile-inline = "FROM lower\nRUN tr a-z A-Z < /file > /upper\n"
  tags = ["@image:upper"]
  output = ["type=registry"]
}
target "other" {
  args = { BASE = "@base" }
  target = "cached"
  tags = ["@image:other"]
  output = ["type=registry"]
}
"#;

/// A builder of buildx and what it builds.
struct Round<'a> {
    test: &'a Test,
    buildx: Buildx,
    base: String,
    word: String,
}

impl<'a> Round<'a> {
    fn new(test: &'a Test) -> Result<Self> {
        let buildx = Buildx::new(test.cluster)?;
        let word = random_text()?;
        buildx.write("Dockerfile", DOCKERFILE)?;
        buildx.write("file", "some text\n")?;
        buildx.write("word", &word)?;
        let registry = test.cluster.registry.split('/').next().unwrap_or_default();
        buildx.write("buildkitd.toml", &registry_config(registry, test.cluster.plain_http))?;
        Ok(Self { test, buildx, base: format!("BASE={}", test.base("debian-multi:bookworm")), word })
    }

    /// Builds with these options.
    fn build(&self, options: &[&str]) -> Result<String> {
        let always = ["build", "--builder", "here", "--build-arg", &self.base];
        self.buildx.run(&[&always, options, &["."]].concat())
    }

    /// All that is known of outputs, caches, secrets, platforms, progress and bake.
    fn all(&self) -> Result<()> {
        self.outputs()?;
        self.platforms()?;
        self.caches()?;
        self.progress()?;
        self.bake()?;
        self.rest()
    }

    fn outputs(&self) -> Result<()> {
        let files = ["--target", "files", "--secret", "id=word,src=word"];
        self.build(&[&files[..], &["--output", "type=local,dest=local"]].concat())?;
        let length = self.word.len();
        assert_eq!(self.buildx.read("local/length")?, format!("{length}\n{length}\n"));
        assert_eq!(self.buildx.read("local/file")?, "some text\n");
        for (output, path) in [
            ("type=tar,dest=files.tar", "files.tar"),
            ("type=oci,dest=oci.tar", "oci.tar"),
            ("type=oci,dest=layout,tar=false", "layout/index.json"),
            ("type=docker,dest=docker.tar", "docker.tar"),
        ] {
            self.build(&["--output", output]).with_context(|| output.to_owned())?;
            ensure!(self.buildx.folder().join(path).is_file(), "{output} made no {path}");
        }
        for kind in ["type=registry,name=", "type=image,push=true,name="] {
            let image = self.test.image("output");
            self.build(&["--output", &format!("{kind}{image}"), "--metadata-file", "metadata.json"])?;
            let metadata: serde_json::Value = serde_json::from_str(&self.buildx.read("metadata.json")?)?;
            assert_eq!(metadata["image.name"], json!(image));
            ensure!(metadata["containerimage.digest"].is_string(), "{metadata}");
        }
        self.build(&["--output", "type=cacheonly"]).map(drop)
    }

    fn platforms(&self) -> Result<()> {
        let both = ["--platform", "linux/amd64,linux/arm64"];
        let image = self.test.image("both");
        self.build(&[&both[..], &["--tag", &image, "--push"]].concat())?;
        let target =
            ["--target", "files", "--secret", "id=word,src=word", "--output", "type=local,dest=both"];
        self.build(&[&both[..], &target].concat())?;
        for (folder, machine) in
            [("both/linux_amd64", "x86_64\nlinux/amd64\n"), ("both/linux_arm64", "aarch64\nlinux/arm64\n")]
        {
            assert_eq!(self.buildx.read(&format!("{folder}/machine"))?, machine);
        }
        Ok(())
    }

    fn caches(&self) -> Result<()> {
        let cache = format!("type=registry,ref={}", self.test.image("cache"));
        for (to, from) in [
            (format!("{cache},mode=max"), cache.clone()),
            ("type=local,dest=cache,mode=max".to_owned(), "type=local,src=cache".to_owned()),
        ] {
            self.build(&["--target", "cached", "--cache-to", &to])?;
            // A builder that has forgotten all, and has the step from elsewhere.
            self.buildx.run(&["prune", "--builder", "here", "--all", "--force"])?;
            let told = self.build(&["--target", "cached", "--cache-from", &from, "--progress", "plain"])?;
            ensure!(told.matches("CACHED").count() >= 2, "the cache {from} was not used:\n{told}");
        }
        let image = self.test.image("inline");
        self.build(&["--cache-to", "type=inline", "--tag", &image, "--push"])?;
        self.buildx.run(&["prune", "--builder", "here", "--all", "--force"])?;
        let told = self.build(&["--cache-from", &image, "--progress", "plain"])?;
        ensure!(told.contains("CACHED"), "the cache in the image was not used:\n{told}");
        Ok(())
    }

    fn progress(&self) -> Result<()> {
        for (kind, shown) in
            [("plain", "#5 "), ("auto", "#5 "), ("rawjson", "\"vertexes\""), ("quiet", ""), ("none", "")]
        {
            let told = self.build(&["--progress", kind])?;
            ensure!(told.contains(shown), "--progress {kind}:\n{told}");
        }
        let line = ["build", "--builder", "here", "--build-arg", &self.base, "--progress", "tty", "."];
        let told = self.buildx.run_in_terminal(&line)?;
        ensure!(told.contains("FINISHED"), "--progress tty:\n{told}");
        Ok(())
    }

    fn bake(&self) -> Result<()> {
        let image = self.test.image("bake");
        let base = self.base.trim_start_matches("BASE=");
        self.buildx.write("docker-bake.hcl", &BAKE.replace("@image", &image).replace("@base", base))?;
        let told = self.buildx.run(&["bake", "--builder", "here", "--progress", "plain"])?;
        ensure!(told.contains("[upper"), "{told}");
        let check = format!("FROM {image}:upper AS image\nFROM scratch\nCOPY --from=image /upper /\n");
        self.buildx.write("check.Dockerfile", &check)?;
        self.build(&["--file", "check.Dockerfile", "--output", "type=local,dest=baked"])?;
        assert_eq!(self.buildx.read("baked/upper")?, "SOME TEXT\n");
        Ok(())
    }

    fn rest(&self) -> Result<()> {
        let told = self.buildx.run(&["du", "--builder", "here"])?;
        ensure!(told.contains("Total:"), "{told}");
        let told = self.buildx.run(&["history", "ls", "--builder", "here"])?;
        ensure!(told.contains("Completed"), "{told}");
        let broken = "FROM scratch\nCOPPY a b\n";
        self.buildx.write("broken.Dockerfile", broken)?;
        let error =
            self.build(&["--file", "broken.Dockerfile"]).expect_err("it is no Dockerfile").to_string();
        ensure!(error.contains("broken.Dockerfile:2") && error.contains("COPPY"), "{error}");
        Ok(())
    }

    /// Neither registry nor daemon has the secret after all that.
    fn nothing_leaked(&self, deployment: &str) -> Result<()> {
        let look = format!("grep -rl {} /var/lib/buildkit /tmp /run || true", self.word);
        let pod = format!("deployment/{deployment}");
        let namespace = ["-n", &self.test.namespace];
        let found = self
            .test
            .cluster
            .kubectl(&[&namespace[..], &["exec", &pod, "--", "sh", "-c", &look]].concat())?;
        ensure!(found.trim().is_empty(), "the secret is in {found}");
        let log = self.test.cluster.kubectl(&[&namespace[..], &["logs", &pod]].concat())?;
        ensure!(!log.contains(&self.word), "the secret is in the log");
        if self.test.cluster.own {
            let search = Search::new(&[("word", self.word.as_bytes())])?;
            let pushed = self.test.cluster.state()?.join("registry");
            let leaks = search.pushed(&pushed, &format!("e2e/{}", self.test.namespace))?;
            ensure!(leaks.is_empty(), "{leaks:?}");
        }
        Ok(())
    }
}

fn registry_config(registry: &str, plain_http: bool) -> String {
    match plain_http {
        true => format!("[registry.\"{registry}\"]\n  http = true\n"),
        false => String::new(),
    }
}

/// The image of the builder that the release on the cluster has.
fn builder_image(test: &Test) -> Result<String> {
    let values = values(test)?;
    let image = &values["builder"]["image"];
    let text = |key: &str| image[key].as_str().with_context(|| format!("builder.image.{key}"));
    Ok(format!("{}:{}", text("repository")?, text("tag")?))
}

#[test]
fn buildx_deploys_the_image_as_it_would_buildkit_s_and_builds_with_it() {
    run("driver-kubernetes", async |test| {
        tokio::task::block_in_place(|| {
            let round = Round::new(test)?;
            let options = format!("image={},namespace={}", builder_image(test)?, test.namespace);
            round.buildx.run(&[
                "create",
                "--name",
                "here",
                "--driver",
                "kubernetes",
                "--driver-opt",
                &options,
                "--buildkitd-config",
                "buildkitd.toml",
                "--bootstrap",
            ])?;
            let told = round.buildx.run(&["inspect", "here"])?;
            ensure!(told.contains("running") && told.contains("linux/arm64"), "{told}");
            round.all()?;
            attested(&round)?;
            round.nothing_leaked("here0")?;
            round.buildx.run(&["rm", "here"]).map(drop)
        })
    });
}

/// What made an image is told beside it, and shown by the client's own tools.
fn attested(round: &Round<'_>) -> Result<()> {
    let image = round.test.image("attested");
    let options = ["--provenance", "mode=max", "--secret", "id=word,src=word", "--target", "secret"];
    round.build(&[&options[..], &["--tag", &image, "--push"]].concat())?;
    let inspect = |format: &str| {
        round.buildx.run(&["imagetools", "inspect", "--builder", "here", &image, "--format", format])
    };
    let provenance = inspect("{{json .Provenance}}")?;
    for part in ["buildDefinition", "pkg:docker/", "\"word\""] {
        ensure!(provenance.contains(part), "no {part} in {provenance}");
    }
    let told = round.buildx.run(&["history", "inspect", "--builder", "here"])?;
    ensure!(told.contains("pkg:docker/") && told.contains("https://slsa.dev/provenance/v1"), "{told}");
    Ok(())
}

/// Who signs, and what was signed for the daemon and for its client: certificates and keys.
struct Certificates {
    ca: String,
    daemon: (String, String),
    client: (String, String),
}

impl Certificates {
    fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let ca = params.self_signed(&key)?.pem();
        let issuer = Issuer::new(params, key);
        let signed = |name: &str, purpose: ExtendedKeyUsagePurpose| -> Result<(String, String)> {
            let mut params = CertificateParams::new(vec![name.to_owned()])?;
            params.extended_key_usages = vec![purpose];
            let key = KeyPair::generate()?;
            Ok((params.signed_by(&key, &issuer)?.pem(), key.serialize_pem()))
        };
        Ok(Self {
            ca,
            daemon: signed("lapstrake-daemon", ExtendedKeyUsagePurpose::ServerAuth)?,
            client: signed("somebody", ExtendedKeyUsagePurpose::ClientAuth)?,
        })
    }
}

/// The example with this cluster's image and registry, and with certificates.
fn daemon(test: &Test, config: &str) -> Result<Vec<serde_json::Value>> {
    let text = std::fs::read_to_string(repository_root().join("examples/daemon/daemon.yaml"))?;
    let mut objects: Vec<serde_json::Value> = serde_saphyr::from_multiple(&text)?;
    for object in &mut objects {
        object["metadata"]["namespace"] = json!(test.namespace);
        if object["kind"] == "ConfigMap" {
            object["data"]["buildkitd.toml"] = json!(config);
            continue;
        }
        let pod = &mut object["spec"]["template"]["spec"];
        let container = &mut pod["containers"][0];
        container["image"] = json!(builder_image(test)?);
        // Other tests want the node's processors too.
        container["resources"] = json!({});
        for (flag, key) in [("--tlscacert", "ca"), ("--tlscert", "cert"), ("--tlskey", "key")] {
            let args = container["args"].as_array_mut().context("arguments")?;
            args.extend([json!(flag), json!(format!("/certificates/{key}"))]);
        }
        let mounts = container["volumeMounts"].as_array_mut().context("mounts")?;
        mounts.push(json!({ "name": "certificates", "mountPath": "/certificates" }));
        let volumes = pod["volumes"].as_array_mut().context("volumes")?;
        volumes.push(json!({ "name": "certificates", "secret": { "secretName": "certificates" } }));
    }
    Ok(objects)
}

/// A port of this machine that leads to the daemon, as long as it lives.
struct Forwarded {
    child: Child,
    port: String,
    /// It writes a line for each connection, and would end where nobody may read them.
    _told: BufReader<ChildStdout>,
}

impl Drop for Forwarded {
    fn drop(&mut self) {
        self.child.kill().ok(); // It may have ended.
        self.child.wait().ok();
    }
}

impl Forwarded {
    fn to(test: &Test, target: &str) -> Result<Self> {
        let kubectl = match test.cluster.own {
            true => test.cluster.state()?.join("bin/kubectl"),
            false => "kubectl".into(),
        };
        let mut command = Command::new(kubectl);
        if let Ok(kubeconfig) = test.cluster.variable("KUBECONFIG") {
            command.env("KUBECONFIG", kubeconfig);
        }
        command.args(["-n", &test.namespace, "port-forward", target, ":1234"]).stdout(Stdio::piped());
        let mut child = command.spawn().context("kubectl port-forward")?;
        let stdout = child.stdout.take().context("its output")?;
        let (mut told, mut line) = (BufReader::new(stdout), String::new());
        told.read_line(&mut line)?;
        let port = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next());
        let Some(port) = port.map(str::to_owned) else {
            child.kill().ok(); // It may have ended.
            bail!("kubectl port-forward said {line:?}");
        };
        Ok(Self { child, port, _told: told })
    }
}

#[test]
fn buildx_builds_with_a_daemon_without_privileges_that_knows_its_clients() {
    run("driver-remote", async |test| {
        let certificates = Certificates::new()?;
        let (cert, key) = &certificates.daemon;
        test.create::<Secret>(json!({
            "metadata": { "name": "certificates" },
            "stringData": { "ca": certificates.ca, "cert": cert, "key": key },
        }))
        .await?;
        let ssh = ssh_client(test).await?;
        let frontend = test.image("frontend");
        tokio::task::block_in_place(|| {
            let round = Round::new(test)?;
            let config = round.buildx.read("buildkitd.toml")?;
            let objects = json!({ "apiVersion": "v1", "kind": "List", "items": daemon(test, &config)? });
            round.buildx.write("daemon.json", &objects.to_string())?;
            let file = round.buildx.folder().join("daemon.json").display().to_string();
            let namespace = ["-n", &test.namespace];
            let kubectl = |arguments: &[&str]| test.cluster.kubectl(&[&namespace[..], arguments].concat());
            kubectl(&["apply", "-f", &file])?;
            kubectl(&["rollout", "status", "deployment/lapstrake-daemon", "--timeout", "120s"])?;

            let forwarded = Forwarded::to(test, "deployment/lapstrake-daemon")?;
            for (name, text) in [
                ("ca.pem", &certificates.ca),
                ("cert.pem", &certificates.client.0),
                ("key.pem", &certificates.client.1),
            ] {
                round.buildx.write(name, text)?;
            }
            let address = format!("tcp://127.0.0.1:{}", forwarded.port);
            let folder = round.buildx.folder().display();
            let options = format!(
                "servername=lapstrake-daemon,cacert={folder}/ca.pem,cert={folder}/cert.pem,key={folder}/key.pem"
            );
            round.buildx.run(&[
                "create",
                "--name",
                "here",
                "--driver",
                "remote",
                "--driver-opt",
                &options,
                &address,
            ])?;
            round.all()?;
            clones_with_the_client_s_agent(&round, &ssh)?;
            packages_are_fetched_once(&round)?;
            round.nothing_leaked("lapstrake-daemon")?;
            push_frontend(&round, &frontend)?;

            let stranger = format!("servername=lapstrake-daemon,cacert={folder}/ca.pem");
            round.buildx.run(&[
                "create",
                "--name",
                "stranger",
                "--driver",
                "remote",
                "--driver-opt",
                &stranger,
                &address,
            ])?;
            let refused = round.buildx.run(&["build", "--builder", "stranger", "."]);
            ensure!(refused.is_err(), "who has no certificate was let in");
            kubectl(&["delete", "--wait", "-f", &file]).map(drop)
        })?;
        // What a daemon's client pushed is a frontend for an ImageBuild.
        let dockerfile = format!(
            "# syntax={frontend}\nARG BASE\nFROM ${{BASE}}\nRUN echo asked > /word\nCMD [\"cat\", \"/word\"]\n"
        );
        let built = test.build(&test.manifest("asked", &dockerfile)).await?;
        let image = built.status.and_then(|status| status.image).context("an image")?;
        assert_eq!(test.run_image("asked-runs", &image).await?, "asked\n");
        Ok(())
    });
}

/// Pushes BuildKit's Dockerfile frontend as an image.
fn push_frontend(round: &Round<'_>, image: &str) -> Result<()> {
    let folder = round.buildx.folder().join("frontend");
    std::fs::create_dir(&folder)?;
    std::fs::copy(dockerfile_frontend()?, folder.join("dockerfile-frontend"))?;
    let dockerfile =
        "FROM scratch\nCOPY dockerfile-frontend /bin/\nENTRYPOINT [\"/bin/dockerfile-frontend\"]\n";
    std::fs::write(folder.join("Dockerfile"), dockerfile)?;
    round.buildx.run(&["build", "--builder", "here", "--tag", image, "--push", "frontend"]).map(drop)
}

/// A package manager with a cache mount: its example, how a line tells that it fetched something, where its caches are
/// mounted, and the stage that has them mounted.
type Manager = (&'static str, fn(&str) -> bool, &'static [&'static str], Option<&'static str>);

const MANAGERS: [Manager; 4] = [
    (
        "cache-apt",
        |line| line.contains(" Get:") && line.contains(" hello "),
        &["var/cache/apt/", "var/lib/apt/lists/"],
        None,
    ),
    (
        "cache-npm",
        |line| line.contains("http fetch GET") && line.contains("(cache miss)"),
        &["root/.npm/"],
        None,
    ),
    (
        "cache-pip",
        |line| line.contains("Downloading") && line.contains("cowsay-"),
        &["root/.cache/pip/"],
        None,
    ),
    (
        "cache-go",
        |line| line.contains("go: downloading"),
        &["go/pkg/mod/", "root/.cache/go-build/"],
        Some("build"),
    ),
];

/// What was fetched from the package registries once is not fetched again, and the image has nothing of it.
fn packages_are_fetched_once(round: &Round<'_>) -> Result<()> {
    for (name, fetched, mounted, stage) in MANAGERS {
        let manifest = example(round.test.cluster, name, &round.test.image(name))?;
        let folder = round.buildx.folder().join(name);
        std::fs::create_dir(&folder)?;
        for file in manifest.0["spec"]["source"]["inline"]["files"].as_array().context("files")? {
            let text = |key: &str| file[key].as_str().with_context(|| key.to_owned());
            std::fs::write(folder.join(text("path")?), text("content")?)?;
        }
        let args = manifest.0["spec"]["args"].as_array().context("arguments")?;
        let base = args.iter().find(|arg| arg["name"] == "BASE").and_then(|arg| arg["value"].as_str());
        let base = format!("BASE={}", base.context("a base image")?);
        let output = format!("type=tar,dest={name}.tar");
        let build = || {
            let mut line = vec!["build", "--builder", "here", "--progress", "plain"];
            line.extend(["--build-arg", &base, "--output", &output]);
            line.extend(stage.iter().flat_map(|stage| ["--target", *stage]));
            round.buildx.run(&[&line[..], &[name]].concat())
        };
        let first = build()?;
        ensure!(first.lines().any(fetched), "{name}: nothing was fetched:\n{first}");
        // With `--no-cache` cache mounts would begin empty, as with buildkitd.
        let filter = "type!=exec.cachemount";
        round.buildx.run(&["prune", "--builder", "here", "--all", "--force", "--filter", filter])?;
        let second = build()?;
        ensure!(!second.contains("CACHED"), "{name}: what was pruned is there:\n{second}");
        ensure!(!second.lines().any(fetched), "{name}: fetched again:\n{second}");
        let archive = round.buildx.folder().join(format!("{name}.tar"));
        let list = Command::new("tar").arg("-tf").arg(&archive).output()?;
        ensure!(list.status.success(), "tar: {}", String::from_utf8_lossy(&list.stderr));
        let list = String::from_utf8_lossy(&list.stdout).into_owned();
        // The directory that it is mounted on may be there, and what the base image has in it.
        let inside =
            |line: &&str| mounted.iter().any(|place| line.starts_with(place) && !line.ends_with('/'));
        let found: Vec<&str> = list.lines().filter(inside).filter(|line| !line.contains("lock")).collect();
        ensure!(found.is_empty(), "{name}: the image has of the cache: {found:?}");
    }
    Ok(())
}

/// A private repository, by a key that only the client has.
fn clones_with_the_client_s_agent(round: &Round<'_>, image: &str) -> Result<()> {
    let sshd = Sshd::start(round.test.cluster)?;
    let (url, _) = sshd.repository("private", &repository_root().join("examples/git/repository"))?;
    round.buildx.write("key", &sshd.key()?)?;
    round.buildx.write("known_hosts", &sshd.known_hosts()?)?;
    let dockerfile = format!(
        "FROM {image} AS clone\n\
         COPY known_hosts /etc/ssh/ssh_known_hosts\n\
         RUN --mount=type=ssh git clone {url} /clone\n\
         FROM scratch\n\
         COPY --from=clone /clone /\n"
    );
    round.buildx.write("ssh.Dockerfile", &dockerfile)?;
    let key = round.buildx.folder().join("key");
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let agent = format!("default={}", key.display());
    let output = "type=local,dest=cloned";
    round.build(&["--file", "ssh.Dockerfile", "--ssh", &agent, "--output", output])?;
    ensure!(round.buildx.folder().join("cloned/.git").is_dir(), "nothing was cloned");
    let without = round.build(&["--file", "ssh.Dockerfile", "--no-cache", "--output", output]);
    ensure!(without.is_err(), "the repository is not private");
    Ok(())
}
