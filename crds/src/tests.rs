//! The definition as an API server would take it, and manifests that it refuses or takes.
//!
//! The manifests lie under `tests/manifests`; the first line of a bad one says what the refusal says.
//! What no CEL rule but the schema itself refuses (a missing field, a key twice) is only seen with a
//! real API server, to which the end-to-end tests send the same files.

use std::fs;
use std::path::Path;

use kube::core::cel::Validator;
use serde_json::{Value, json};

use crate::{ImageBuild, Sandbox, SourceKind, crd};

const SERVER_ONLY: &str = "# refused by the schema itself";

fn schema() -> Value {
    let crd = serde_json::to_value(crd()).expect("plain data");
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

struct Case {
    name: String,
    text: String,
    manifest: Value,
}

fn cases(kind: &str) -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/manifests").join(kind);
    let mut cases: Vec<Case> = fs::read_dir(&folder)
        .expect("the folder of manifests")
        .map(|entry| {
            let path = entry.expect("a readable folder").path();
            let text = fs::read_to_string(&path).expect("a readable manifest");
            let manifest =
                serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            Case { name: path.display().to_string(), text, manifest }
        })
        .collect();
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(!cases.is_empty());
    cases
}

/// What the API server does first: fields that are null and not nullable are dropped.
fn prune_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(prune_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(prune_nulls),
        _ => {}
    }
}

fn refusals(manifest: &Value, old: Option<&Value>) -> Vec<String> {
    let mut manifest = manifest.clone();
    prune_nulls(&mut manifest);
    match Validator::new().validate(&schema(), &manifest, old) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.into_vec().into_iter().map(|error| error.to_string()).collect(),
    }
}

#[test]
fn a_bad_manifest_is_refused_with_its_way_out() {
    let mut seen = 0;
    for Case { name, text, manifest } in cases("bad") {
        let expected = text.lines().next().and_then(|line| line.strip_prefix("# expect: ")).expect(&name);
        if text.contains(SERVER_ONLY) {
            continue;
        }
        let refusals = refusals(&manifest, None);
        assert_eq!(refusals.len(), 1, "{name}: exactly one thing is wrong: {refusals:#?}");
        assert!(refusals[0].contains(expected), "{name}: {refusals:#?}");
        seen += 1;
    }
    assert!(seen >= 15, "only {seen} manifests");
}

#[test]
fn a_good_manifest_is_taken_and_read() {
    for Case { name, manifest, .. } in cases("good") {
        assert_eq!(refusals(&manifest, None), Vec::<String>::new(), "{name}");
        let mut manifest = manifest;
        prune_nulls(&mut manifest);
        let build: ImageBuild = serde_json::from_value(manifest).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(build.spec.source.kind().is_some(), "{name}");
    }
}

#[test]
fn the_examples_are_good() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut seen = 0;
    for entry in fs::read_dir(folder).expect("the examples") {
        // One of them shows the daemon, and has none.
        let path = entry.expect("a readable folder").path().join("imagebuild.yaml");
        if !path.is_file() {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(text.starts_with("# Shows: "), "{}: says what it shows", path.display());
        let manifest: Value =
            serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!(refusals(&manifest, None), Vec::<String>::new(), "{}", path.display());
        serde_json::from_value::<ImageBuild>(manifest).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        seen += 1;
    }
    assert!(seen >= 6, "only {seen} examples");
}

fn smallest() -> ImageBuild {
    let case =
        cases("good").into_iter().find(|case| case.name.ends_with("smallest.yaml")).expect("the smallest");
    serde_json::from_value(case.manifest).expect("an ImageBuild")
}

#[test]
fn the_smallest_manifest_has_a_users_defaults() {
    let spec = smallest().spec;
    assert!(matches!(spec.source.kind(), Some(SourceKind::Git(git)) if git.branch.is_none()));
    assert_eq!(spec.dockerfile.path(), "Dockerfile");
    assert_eq!(spec.timeout(), std::time::Duration::from_secs(3600));
    assert_eq!((spec.retries, spec.history.limit), (2, 5));
    assert_eq!(spec.pod.sandbox, Sandbox::Auto);
    assert!(spec.platforms.is_empty() && spec.cache.is_unset() && !spec.suspend && !spec.cancel);
    assert_eq!(spec.output.all_tags().into_iter().collect::<Vec<_>>(), ["latest"]);
}

#[test]
fn a_status_that_nobody_wrote_says_that_nobody_looked() {
    assert_eq!(schema()["properties"]["status"]["default"], json!({ "observedGeneration": -1 }));
}

#[test]
fn defaults_in_the_schema_are_those_of_the_types() {
    let schema = schema();
    let spec = &schema["properties"]["spec"]["properties"];
    let ours = smallest().spec;
    let theirs: kube::core::Duration =
        spec["timeout"]["default"].as_str().expect("a default").parse().expect("a duration");
    assert_eq!(theirs, ours.timeout);
    assert_eq!(spec["retries"]["default"], json!(ours.retries));
    assert_eq!(spec["history"]["properties"]["limit"]["default"], json!(ours.history.limit));
    assert_eq!(spec["pod"]["properties"]["sandbox"]["default"], json!(ours.pod.sandbox));
}

#[test]
fn tags_come_from_the_image_and_the_list_each_once() {
    let mut output = smallest().spec.output;
    output.image = "localhost:5000/shop/web:1.2".into();
    output.tags = vec!["latest".into(), "1.2".into()];
    assert_eq!(output.repository(), "localhost:5000/shop/web");
    assert_eq!(output.all_tags().into_iter().collect::<Vec<_>>(), ["1.2", "latest"]);
    output.image = "localhost:5000/shop/web".into();
    assert_eq!(output.repository(), "localhost:5000/shop/web");
}

#[test]
fn a_cache_volume_grows_and_never_shrinks_or_moves() {
    let with = |volume: Value| {
        let mut manifest = serde_json::to_value(smallest()).expect("plain data");
        manifest["spec"]["cache"] = json!({ "volume": volume });
        manifest
    };
    let old = with(json!({ "size": "10Gi", "storageClassName": "fast" }));
    let change = |volume: Value| refusals(&with(volume), Some(&old)).join("\n");
    assert_eq!(change(json!({ "size": "20Gi", "storageClassName": "fast" })), "");
    assert!(change(json!({ "size": "5Gi", "storageClassName": "fast" })).contains("can only grow"));
    assert!(change(json!({ "storageClassName": "fast" })).contains("can only grow"));
    assert!(change(json!({ "size": "10Gi", "storageClassName": "slow" })).contains("cannot be changed"));
    assert!(change(json!({ "size": "10Gi" })).contains("cannot be changed"));
}

/// Walks the schema; `path` is the place in it.
fn walk(schema: &Value, path: &str, visit: &mut dyn FnMut(&str, &Value)) {
    visit(path, schema);
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        walk(property, &format!("{path}.{name}"), visit);
    }
    if schema["items"].is_object() {
        walk(&schema["items"], &format!("{path}[]"), visit);
    }
    if schema["additionalProperties"].is_object() {
        walk(&schema["additionalProperties"], &format!("{path}{{}}"), visit);
    }
}

#[test]
fn every_field_is_structural_documented_and_bounded() {
    let schema = schema();
    for root in ["spec", "status"] {
        walk(&schema["properties"][root], root, &mut |path, field| {
            assert!(
                field["type"].is_string() || field["x-kubernetes-int-or-string"] == true,
                "{path}: no type"
            );
            assert!(field.get("nullable").is_none(), "{path}: nullable");
            for word in ["$ref", "oneOf", "not", "allOf", "uniqueItems"] {
                assert!(field.get(word).is_none(), "{path}: {word}");
            }
            let named = !path.ends_with("[]") && !path.ends_with("{}");
            let a_pods_own = ["pod.affinity.", ".tolerations[]"].iter().any(|own| path.contains(own));
            assert!(!named || a_pods_own || field["description"].is_string(), "{path}: no description");
            // What is a Pod's own, or everybody's, has bounds of its own.
            let ours = !a_pods_own && !path.contains("conditions[]");
            if ours && field["type"] == "array" {
                assert!(field["maxItems"].is_u64(), "{path}: no maxItems");
                assert!(field["x-kubernetes-list-type"].is_string(), "{path}: no list type");
            }
            if ours && field["additionalProperties"].is_object() {
                assert!(field["maxProperties"].is_u64(), "{path}: no maxProperties");
            }
            let bounded =
                field["maxLength"].is_u64() || field["enum"].is_array() || field["format"] == "date-time";
            if ours && field["type"] == "string" {
                assert!(bounded, "{path}: no maxLength");
            }
            for rule in field["x-kubernetes-validations"].as_array().into_iter().flatten() {
                let message = rule["message"].as_str().unwrap_or_default();
                assert!(
                    message.len() > 40 && !message.contains('\n'),
                    "{path}: a message that helps: {message:?}"
                );
            }
        });
    }
}

#[test]
fn lists_that_several_may_write_are_merged_by_key() {
    let schema = schema();
    let keys = |path: &str| {
        let field = path.split('.').fold(&schema, |at, name| &at["properties"][name]);
        assert_eq!(field["x-kubernetes-list-type"], "map", "{path}");
        let keys = field["x-kubernetes-list-map-keys"].as_array().expect(path).clone();
        for key in &keys {
            assert!(
                field["items"]["required"].as_array().is_some_and(|all| all.contains(key)),
                "{path}: {key}"
            );
        }
        keys
    };
    assert_eq!(keys("spec.args"), [json!("name")]);
    assert_eq!(keys("spec.source.inline.files"), [json!("path")]);
    assert_eq!(keys("status.conditions"), [json!("type")]);
    assert_eq!(keys("status.platforms"), [json!("platform")]);
    assert_eq!(keys("status.baseImages"), [json!("image")]);
}

#[test]
fn columns_print_what_design_promises() {
    let crd = crd();
    let version = &crd.spec.versions[0];
    let columns = version.additional_printer_columns.as_deref().unwrap_or_default();
    let names = |wide| {
        let of = columns.iter().filter(|column| (column.priority.unwrap_or(0) > 0) == wide);
        of.map(|column| column.name.to_uppercase()).collect::<Vec<_>>()
    };
    assert_eq!(names(false), ["READY", "STATUS", "IMAGE", "DIGEST", "PLATFORMS", "DURATION", "AGE"]);
    assert_eq!(names(true), ["REVISION", "MESSAGE"]);
    assert!(version.subresources.as_ref().is_some_and(|sub| sub.status.is_some()));
    assert_eq!(crd.spec.names.short_names.as_deref(), Some(&["ib".to_owned()][..]));
    assert_eq!(crd.spec.names.categories.as_deref(), Some(&["lapstrake".to_owned()][..]));
}
