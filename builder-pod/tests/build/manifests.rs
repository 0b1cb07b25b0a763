//! An ImageBuild on a laptop: what the cluster would give comes by flags, and what does not come is said.

use std::path::PathBuf;

use crate::lab::{Lab, tool};
use crate::sources::repository;

/// Writes an ImageBuild of an inline Dockerfile with more fields of its spec.
pub(crate) fn manifest(lab: &Lab, dockerfile: &str, spec: &str) -> PathBuf {
    let dockerfile: String = dockerfile.lines().map(|line| format!("      {line}\n")).collect();
    let text = format!(
        "apiVersion: lapstrake.dev/v1alpha1\nkind: ImageBuild\nmetadata: {{name: app}}\nspec:\n  source: {{inline: {{}}}}\n  \
         dockerfile:\n    inline: |\n{}  output: {{image: {}}}\n{spec}",
        dockerfile.replace("@base", &lab.base()),
        lab.name("app:1")
    );
    let path = lab.path("imagebuild.yaml");
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn secrets_agents_and_arguments_of_the_cluster_come_by_flags_and_are_missed_aloud() {
    let lab = Lab::new();
    let dockerfile = "FROM @base\nARG EDITION=none\n\
        RUN --mount=type=secret,id=npm wc -c < /run/secrets/npm; echo edition $EDITION\n\
        RUN --mount=type=ssh cat /etc/ssh/ssh_known_hosts; ls $SSH_AUTH_SOCK || true\n";
    let file = manifest(
        &lab,
        dockerfile,
        "  args: [{name: EDITION, valueFrom: {configMapKeyRef: {name: editions, key: app}}}]\n  \
         secrets: [{id: npm, secretRef: {name: npm, key: token}}]\n  \
         ssh: [{id: default, secretRef: {name: deploy}, knownHosts: 'git.example ssh-ed25519 AAAA'}]\n  \
         cache: {volume: {size: 1Gi}}\n",
    );
    lab.build(&file).ok().says(&[
        "give it by --build-arg EDITION=",
        "secret npm is in the cluster (Secret npm, key token)",
        "--secret id=npm,src=FILE",
        "give one by --ssh default",
        "edition none",
    ]);
    let (token, key) = (lab.path("token"), lab.path("key"));
    std::fs::write(&token, "seven..").unwrap();
    tool("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", key.to_str().unwrap()]);
    let secret = format!("id=npm,src={}", token.display());
    let agent = format!("default={}", key.display());
    let given = ["--secret", &secret, "--ssh", &agent, "--build-arg", "EDITION=big", "--no-cache"];
    let ran = lab.build(&file).args(given).ok();
    ran.says(&["edition big", "git.example ssh-ed25519 AAAA", "/run/buildkit/ssh_agent.0"]);
    assert!(!ran.stderr().contains("in the cluster"), "{}", ran.stderr());
}

#[test]
fn metadata_of_the_source_is_filled_in_as_the_manifest_says() {
    let lab = Lab::new();
    let repository = repository(&lab);
    let text = format!(
        "apiVersion: lapstrake.dev/v1alpha1\nkind: ImageBuild\nmetadata: {{name: app}}\nspec:\n  \
         source: {{git: {{url: 'file://{}/.git', path: app}}}}\n  output: {{image: {}, sourceMetadata: true}}\n",
        repository.display(),
        lab.name("app:1")
    );
    let file = lab.path("imagebuild.yaml");
    std::fs::write(&file, text).unwrap();
    lab.build(&file).args(["--push"]).ok();
    let commit = tool("git", &["-C", repository.to_str().unwrap(), "rev-parse", "HEAD"]);
    let (manifest, _) = lab.image("app", "1");
    assert_eq!(manifest.annotations["org.opencontainers.image.revision"], commit.trim());
}
