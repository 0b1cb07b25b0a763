//! What the API server itself says of ImageBuilds: what it refuses, what it takes, what it adds.

use std::fs;

use anyhow::{Context, Result, bail};
use kube::api::{Api, PostParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use lapstrake_e2e::{Test, repository_root, run};
use serde_json::{Value, json};

struct Case {
    file: String,
    text: String,
    object: DynamicObject,
}

fn cases(kind: &str) -> Result<Vec<Case>> {
    let folder = repository_root().join("crds/tests/manifests").join(kind);
    let mut cases = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let text = fs::read_to_string(&path)?;
        let object: Value = serde_saphyr::from_str(&text).with_context(|| path.display().to_string())?;
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        cases.push(Case { file, text, object: serde_json::from_value(object)? });
    }
    Ok(cases)
}

fn untyped(test: &Test) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("lapstrake.dev", "v1alpha1", "ImageBuild");
    let resource = ApiResource::from_gvk_with_plural(&kind, "imagebuilds");
    Api::namespaced_with(test.client.clone(), &test.namespace, &resource)
}

const DRY: PostParams = PostParams { dry_run: true, field_manager: None };

#[test]
fn a_bad_manifest_is_refused_with_the_field_and_the_way_out() {
    run("api-bad", async |test| {
        let mut wrong = Vec::new();
        let cases = cases("bad")?;
        for Case { file, text, object } in &cases {
            let expected = text.lines().next().and_then(|line| line.strip_prefix("# expect: "));
            let expected = expected.with_context(|| format!("{file} does not say what it expects"))?;
            match untyped(test).create(&DRY, object).await {
                Ok(_) => wrong.push(format!("{file}: taken")),
                Err(kube::Error::Api(status)) if status.message.contains(expected) => {}
                Err(error) => wrong.push(format!("{file}: expected {expected:?}, got {error}")),
            }
        }
        if !wrong.is_empty() {
            bail!("{}", wrong.join("\n"));
        }
        assert!(cases.len() >= 12, "twelve kinds of mistakes are shown");
        Ok(())
    });
}

#[test]
fn a_good_manifest_is_taken() {
    run("api-good", async |test| {
        for Case { file, object, .. } in cases("good")? {
            untyped(test).create(&DRY, &object).await.with_context(|| file)?;
        }
        Ok(())
    });
}

#[test]
fn an_object_that_nobody_has_seen_does_not_read_as_done() {
    run("api-unseen", async |test| {
        // As stored: a dry run never reaches the operator.
        let smallest = cases("good")?.into_iter().find(|case| case.file == "smallest.yaml");
        let created = untyped(test).create(&DRY, &smallest.context("smallest.yaml")?.object).await?;
        assert_eq!(created.data["status"], json!({ "observedGeneration": -1 }));
        assert_eq!(created.data["spec"]["timeout"], "1h", "defaults are written out");
        Ok(())
    });
}

#[test]
fn explain_reads_well_for_every_field_of_the_spec() {
    run("api-explain", async |test| {
        let explain = |field: &str| test.cluster.kubectl(&["explain", field]);
        for field in
            ["imagebuild", "imagebuild.spec.output.image", "ib.spec.pod.sandbox", "ib.status.conditions"]
        {
            let text = explain(field)?;
            let about = text.split_once("DESCRIPTION:").context("a description")?.1.trim();
            assert!(about.len() > 40 && !about.starts_with("<empty>"), "{field}:\n{text}");
        }
        let fields = explain("imagebuild.spec")?;
        assert!(!fields.contains("<no description>"), "{fields}");
        Ok(())
    });
}

#[test]
fn columns_are_those_that_a_user_looks_for() {
    run("api-columns", async |test| {
        let manifest = test.manifest("shown", "FROM scratch").set("/spec/suspend", true);
        test.apply(&manifest).await?;
        let table = test.cluster.kubectl(&["get", "ib", "-n", &test.namespace])?;
        let head: Vec<&str> = table.lines().next().unwrap_or_default().split_whitespace().collect();
        let wanted = ["NAME", "READY", "STATUS", "IMAGE", "DIGEST", "PLATFORMS", "DURATION", "AGE"];
        assert_eq!(head, wanted, "{table}");
        let image = test.image("shown");
        let selector = format!("--field-selector=spec.output.image={image}");
        let found = test.cluster.kubectl(&["get", "ib", "-n", &test.namespace, "-o", "name", &selector])?;
        assert_eq!(found.trim(), "imagebuild.lapstrake.dev/shown");
        Ok(())
    });
}
