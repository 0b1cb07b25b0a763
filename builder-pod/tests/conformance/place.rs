//! Where a test builds: a registry with a base image, a context, state and outputs.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use lapstrake_testkit::registry::Registry;
use lapstrake_testkit::{TempDir, rootfs, tempdir};
use serde_json::Value;

use crate::original;

/// A registry with a base image, and a build context whose archive holds the original tree.
pub(crate) struct Place {
    pub(crate) dir: TempDir,
    /// The tree that the archive `tree.tar` of the context was made of.
    pub(crate) original: PathBuf,
    registry: Registry,
    _runtime: tokio::runtime::Runtime,
}

impl Place {
    /// `{base}` in `from` becomes the base image; the archive has all of the original tree but `left_out`.
    pub(crate) fn new(from: &str, steps: &str, left_out: &[&str]) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "this test makes devices and runs steps: run it as root"
        );
        let dir = tempdir().unwrap();
        let (original, context) = (dir.path().join("original"), dir.path().join("context"));
        fs::create_dir_all(&original).unwrap();
        fs::create_dir_all(&context).unwrap();
        original::write(&original);
        // A copy, which other users can reach wherever the target directory is. Not by ourselves: a program
        // that somebody has open for writing does not start, and a fork in another thread would have it open.
        run(Command::new("cp").arg(env!("CARGO_BIN_EXE_lapstrake-builder")).arg(dir.path()));
        let archive = context.join("tree.tar");
        run(tar()
            .args(left_out.iter().map(|pattern| format!("--exclude={pattern}")))
            .args(["--create", "--sparse", "--format=pax", "--sort=name", "--file"])
            .arg(&archive)
            .arg("--directory")
            .arg(&original)
            .arg("."));
        fs::write(context.join("plain"), "plain\n").unwrap();

        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let registry = runtime.block_on(Registry::open());
        registry.put_image("base", "1", &rootfs::busybox_image().unwrap()).unwrap();
        let base = format!("{}/base:1", registry.host());
        fs::write(context.join("Dockerfile"), from.replace("{base}", &base) + steps).unwrap();
        Self { dir, original, registry, _runtime: runtime }
    }

    pub(crate) fn image(&self) -> String {
        format!("{}/app:1", self.registry.host())
    }

    /// Builds with a state directory of that name, `before` in front of the command; the image's digest.
    pub(crate) fn build(&self, before: &[&str], state: &str, outputs: &[String]) -> String {
        let metadata = self.dir.path().join(format!("{state}.json"));
        let program = self.dir.path().join("lapstrake-builder").display().to_string();
        let words: Vec<&str> = before.iter().copied().chain([program.as_str()]).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).env_remove("SOURCE_DATE_EPOCH");
        command
            .args(["build", "--progress=plain", "--tag", &self.image(), "--root"])
            .arg(self.dir.path().join(state));
        command.arg("--metadata-file").arg(&metadata);
        for output in outputs {
            command.args(["--output", output]);
        }
        run(command.arg(self.dir.path().join("context")));
        let metadata: Value = serde_json::from_slice(&fs::read(metadata).unwrap()).unwrap();
        metadata["containerimage.digest"].as_str().unwrap_or_default().to_owned()
    }
}

/// Runs a program to its end; shows what it printed where it failed.
pub(crate) fn run(command: &mut Command) -> Output {
    let program = command.get_program().to_string_lossy().into_owned();
    let hint = match program.as_str() {
        "go" => "install it from https://go.dev/dl/ and put it on the PATH",
        "taskset" => "apt-get install util-linux",
        _ => &format!("apt-get install {program}"),
    };
    let output = command.output().unwrap_or_else(|e| panic!("{program}: {e}; {hint}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    output
}

pub(crate) fn tar() -> Command {
    let mut tar = Command::new("tar");
    tar.args(["--numeric-owner", "--xattrs", "--xattrs-include=*"]).env("LC_ALL", "C");
    tar
}
