//! The release that all tests use, with other values for as long as a test needs them.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::manifest::repository_root;
use crate::{SYSTEM_NAMESPACE, Test};

/// Name of the release that all tests use.
pub const RELEASE: &str = "lapstrake";

/// The values of the release that all tests use, as its user gave them.
pub fn values(test: &Test) -> Result<Value> {
    let text = test.cluster.helm(&["get", "values", RELEASE, "-n", SYSTEM_NAMESPACE, "-o", "json"])?;
    serde_json::from_str(&text).with_context(|| text.clone())
}

/// Installs or upgrades a release with these values and waits until its operator is ready.
pub fn install(test: &Test, release: &str, namespace: &str, values: &Value) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("values.json");
    std::fs::write(&file, values.to_string())?;
    let chart = repository_root().join("charts/lapstrake");
    let paths = [chart.display().to_string(), file.display().to_string()];
    let wait = ["--wait", "--timeout", "3m"];
    let start = ["upgrade", "--install", release, &paths[0], "--namespace", namespace, "--values", &paths[1]];
    test.cluster.helm(&[&start[..], &wait].concat()).map(drop)
}

/// Puts the release that all tests use back to how it was when this is dropped, also when the test fails.
pub struct AsItWas<'a> {
    test: &'a Test,
    /// The values that it had, and will have.
    pub values: Value,
}

impl<'a> AsItWas<'a> {
    /// Remembers the release's values.
    pub fn remember(test: &'a Test) -> Result<Self> {
        Ok(Self { test, values: values(test)? })
    }
}

impl Drop for AsItWas<'_> {
    fn drop(&mut self) {
        install(self.test, RELEASE, SYSTEM_NAMESPACE, &self.values).expect("the release as it was");
    }
}
