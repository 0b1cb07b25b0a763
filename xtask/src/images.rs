//! Our own images, built by Lapstrake itself.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cluster::{Cluster, cache, target};
use crate::process::{output, run};

/// `RUSTFLAGS` of what goes into images.
const STATIC: &str = "-C target-feature=+crt-static";

/// Names of our images, as the chart wants them.
#[derive(Debug)]
pub(crate) struct Images {
    /// Repository and tag of the operator's.
    pub(crate) operator: (String, String),
    /// Repository and tag of the builder's.
    pub(crate) builder: (String, String),
}

/// Builds and pushes both images; what did not change is neither built nor pushed again.
pub(crate) fn make(root: &Path, cluster: &Cluster) -> Result<Images> {
    let programs = programs(root)?;
    let builder = image(root, cluster, &programs, "builder")?;
    let operator = image(root, cluster, &programs, "operator")?;
    Ok(Images { operator, builder })
}

/// Compiles the release binaries, static so that they need nothing of the image around them.
pub(crate) fn programs(root: &Path) -> Result<PathBuf> {
    let triple = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    // For quick turns while one works on them; what is measured or shipped is always `release`.
    let profile = env::var("LAPSTRAKE_PROFILE").unwrap_or_else(|_| "release".into());
    println!("compiling the operator and the builder ({profile})");
    run(Command::new("cargo")
        .args(["build", "--locked"])
        .args(selection(&profile))
        .args(["--profile", &profile, "--target", &triple])
        .env("RUSTFLAGS", STATIC)
        .current_dir(root))?;
    let folder = if profile == "dev" { "debug" } else { &profile };
    Ok(target(root).join(triple).join(folder))
}

/// What is compiled. Features of crates depend on what else is: in the profile of the tests it is what these are of, so that where
/// they are compiled for the same target with the same flags nothing is compiled twice.
fn selection(profile: &str) -> &'static [&'static str] {
    match profile {
        "dev" => &["--workspace", "--exclude", "lapstrake-e2e", "--bins", "--tests"],
        _ => &["--package", "lapstrake-operator", "--package", "lapstrake-builder"],
    }
}

fn image(root: &Path, cluster: &Cluster, programs: &Path, name: &str) -> Result<(String, String)> {
    let program = programs.join(format!("lapstrake-{name}"));
    let dockerfile = root.join("images").join(name).join("Dockerfile");
    let repository = format!("{}/lapstrake/{name}", cluster.registry);
    let tag = tag(&[&program, &dockerfile])?;
    let reference = format!("{repository}:{tag}");

    let state = cache().join("builder-state");
    fs::create_dir_all(&state).with_context(|| state.display().to_string())?;
    let done = state.join(format!("pushed-{}", reference.replace(['/', ':'], "_")));
    if done.exists() && !cluster.own {
        return Ok((repository, tag));
    }
    let context = target(root).join("images").join(name);
    fs::create_dir_all(&context).with_context(|| context.display().to_string())?;
    fs::copy(&program, context.join(format!("lapstrake-{name}")))
        .with_context(|| program.display().to_string())?;
    let registries = state.join("registries.json");
    fs::write(&registries, cluster.registries.to_string())
        .with_context(|| registries.display().to_string())?;

    println!("building {reference} with Lapstrake");
    let mut build = Command::new(programs.join("lapstrake-builder"));
    build.arg("build");
    build.args([OsString::from("--root"), state.join("root").into()]);
    build.args([OsString::from("--registries"), registries.into()]);
    build.args([OsString::from("--file"), dockerfile.into()]);
    build.arg("--build-arg").arg(format!("BASE={}/debian:bookworm", cluster.base));
    build.args(["--progress", "plain", "--tag", &reference, "--push"]).arg(&context);
    run(&mut build)?;
    fs::write(&done, "").with_context(|| done.display().to_string())?;
    Ok((repository, tag))
}

/// A tag that stands for the content of files.
fn tag(files: &[&Path]) -> Result<String> {
    let sums = output(Command::new("sha256sum").args(files))?;
    // The sums alone: the names differ from machine to machine.
    let sums: Vec<&str> = sums.lines().filter_map(|line| line.split_whitespace().next()).collect();
    Ok(sums.iter().map(|sum| &sum[..sum.len().min(12)]).collect::<Vec<_>>().join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_changes_with_the_content_and_not_with_the_place() {
        let folder = env::temp_dir().join(format!("xtask-images-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| folder.join(name));
        fs::write(&a, "one").unwrap();
        fs::write(&b, "one").unwrap();
        fs::write(&c, "two").unwrap();
        assert_eq!(tag(&[&a]).unwrap(), tag(&[&b]).unwrap());
        assert_ne!(tag(&[&a]).unwrap(), tag(&[&c]).unwrap());
        fs::remove_dir_all(folder).unwrap();
    }
}
