//! ImageBuilds as a test writes them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cluster::Cluster;

/// An ImageBuild before it is applied.
#[derive(Clone, Debug)]
pub struct Manifest(pub Value);

impl Manifest {
    /// An inline Dockerfile, pushed to `image`.
    pub fn inline(name: &str, dockerfile: &str, image: &str) -> Self {
        Self(json!({
            "apiVersion": "lapstrake.dev/v1alpha1",
            "kind": "ImageBuild",
            "metadata": { "name": name },
            "spec": {
                "source": { "inline": {} },
                "dockerfile": { "inline": dockerfile },
                "output": { "image": image },
            },
        }))
    }

    /// The default branch of a Git repository, pushed to `image`.
    pub fn git(name: &str, url: &str, image: &str) -> Self {
        Self::inline(name, "", image)
            .set("/spec/source", json!({ "git": { "url": url } }))
            .set("/spec/dockerfile", json!({}))
    }

    /// Sets a field by its path, such as `/spec/pod/sandbox` or `/spec/contexts/0/image`; what is missing on the way is made.
    #[must_use]
    pub fn set(mut self, path: &str, value: impl Into<Value>) -> Self {
        let mut place = &mut self.0;
        for part in path.split('/').skip(1) {
            place = match part.parse::<usize>() {
                Ok(at) if place.is_array() => &mut place[at],
                _ => &mut place[part],
            };
        }
        *place = value.into();
        self
    }

    /// Adds a build argument.
    #[must_use]
    pub fn arg(mut self, name: &str, value: &str) -> Self {
        let args = &mut self.0["spec"]["args"];
        if args.is_null() {
            *args = json!([]);
        }
        let args = args.as_array_mut().expect("args are a list");
        args.push(json!({ "name": name, "value": value }));
        self
    }

    /// No volume: each run starts from nothing.
    #[must_use]
    pub fn without_cache(self) -> Self {
        self.set("/spec/cache", json!({ "emptyDir": {} }))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.0["metadata"]["name"].as_str().expect("a manifest has a name")
    }
}

/// The base image that an example is built from here.
const BASES: &[(&str, &str)] = &[
    ("hello", "busybox:1"),
    ("registry-cache", "busybox:1"),
    ("shared-cache", "busybox:1"),
    ("multi-platform", "debian-multi:bookworm"),
    ("multi-stage", "busybox:1"),
    ("git", "busybox:1"),
    ("follow", "busybox:1"),
    ("results", "busybox:1"),
    ("attestations", "busybox:1"),
    ("go", "golang:1"),
    ("rust", "rust:1"),
    ("python", "python:3"),
    ("cache-apt", "debian:bookworm"),
    ("cache-cargo", "rust:1"),
    ("cache-go", "golang:1"),
    ("cache-npm", "node:lts"),
    ("cache-pip", "python:3"),
    ("secrets", "busybox:1"),
    ("ssh", "busybox:1"),
    ("options", "busybox:1"),
    ("contexts", "busybox:1"),
    ("upon-build", "busybox:1"),
];

/// Names of the folders under `examples/` that have an ImageBuild, sorted.
pub fn examples() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(repository_root().join("examples"))? {
        let entry = entry?;
        if entry.path().join("imagebuild.yaml").is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// An example with the names that are this cluster's; a user would write the same by hand.
pub fn example(cluster: &Cluster, name: &str, image: &str) -> Result<Manifest> {
    example_file(cluster, name, "imagebuild.yaml", image)
}

/// The same of another file of an example, which goes along with its ImageBuild.
pub fn example_file(cluster: &Cluster, name: &str, file: &str, image: &str) -> Result<Manifest> {
    let file = repository_root().join("examples").join(name).join(file);
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let text = text.replace(&format!("registry.example/lapstrake/{name}"), image);
    let manifest: Value = serde_saphyr::from_str(&text).with_context(|| file.display().to_string())?;
    let base = BASES
        .iter()
        .find(|(example, _)| *example == name)
        .with_context(|| format!("say which base image the example {name} is built from"))?
        .1;
    Ok(Manifest(manifest).arg("BASE", &format!("{}/{base}", cluster.base)))
}

/// The repository's root.
pub fn repository_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the repository").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_set_where_nothing_was() {
        let manifest = Manifest::inline("a", "FROM scratch", "r/a").set("/spec/pod/sandbox", "Baseline");
        assert_eq!(manifest.0["spec"]["pod"], json!({ "sandbox": "Baseline" }));
        assert_eq!(manifest.0["spec"]["output"], json!({ "image": "r/a" }));
        assert_eq!(manifest.name(), "a");
    }

    #[test]
    fn every_example_has_its_base_image() {
        let known: Vec<&str> = BASES.iter().map(|(name, _)| *name).collect();
        for name in examples().unwrap() {
            assert!(known.contains(&name.as_str()), "{name}");
        }
    }
}
