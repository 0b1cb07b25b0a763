//! The chart in its two modes beside each other: one release for all namespaces but one, which has an
//! operator of its own.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::ListParams;
use lapstrake_e2e::{AsItWas, RELEASE, SYSTEM_NAMESPACE, Test, install, run, wait_gone};
use serde_json::json;

/// The release of this test.
const ONLY_HERE: &str = "apart";
/// Kinds that the chart may make, beside those that lie in a namespace.
const CLUSTER_WIDE: &str = "clusterroles,clusterrolebindings,customresourcedefinitions";

fn helm(test: &Test, arguments: &[&str]) -> Result<String> {
    test.cluster.helm(arguments)
}

/// Takes the release of this test away, also when the test fails.
struct Gone<'a>(&'a Test);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        let namespace = &self.0.namespace;
        helm(self.0, &["uninstall", ONLY_HERE, "-n", namespace, "--wait", "--ignore-not-found"]).ok(); // The namespace goes with the test.
    }
}

fn objects(test: &Test, release: &str, kinds: &str, place: &[&str]) -> Result<Vec<String>> {
    let selector = format!("--selector=app.kubernetes.io/instance={release}");
    let arguments = [&["get", kinds, "-o", "name", &selector], place].concat();
    Ok(test.cluster.kubectl(&arguments)?.lines().map(str::to_owned).collect())
}

/// Operators that reported something on the ImageBuilds of a namespace.
async fn reporters(test: &Test, namespace: &str) -> Result<Vec<String>> {
    let events: Api<Event> = Api::namespaced(test.client.clone(), namespace);
    let about = ListParams::default().fields("regarding.kind=ImageBuild");
    let mut names: Vec<String> =
        events.list(&about).await?.items.into_iter().filter_map(|event| event.reporting_instance).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

fn may(test: &Test, verb: &str, resource: &str, namespace: &str) -> Result<bool> {
    // `kubectl auth can-i` ends with 1 when it says no, so the review itself is asked for.
    // A rule that names its object says yes only where the object is named.
    let name = if resource == "namespaces" { namespace } else { "" };
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {
            "user": format!("system:serviceaccount:{}:{ONLY_HERE}-lapstrake", test.namespace),
            "groups": ["system:serviceaccounts", "system:authenticated"],
            "resourceAttributes": {
                "verb": verb, "namespace": namespace, "name": name,
                "group": if resource == "imagebuilds" { "lapstrake.dev" } else { "" }, "resource": resource,
            },
        },
    });
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("review.json");
    std::fs::write(&file, review.to_string())?;
    let path = file.display().to_string();
    let answer = test.cluster.kubectl(&["create", "-f", &path, "-o", "jsonpath={.status.allowed}"])?;
    Ok(answer.trim() == "true")
}

async fn beside_each_other(test: &Test) -> Result<()> {
    let as_it_was = AsItWas::remember(test)?;
    let before = as_it_was.values.clone();
    let mut without = before.clone();
    without["watch"] = json!({ "except": [test.namespace] });
    let mut apart = before.clone();
    apart["watch"] = json!({ "mode": "namespaces" });
    apart["crds"] = json!({ "install": false });
    apart["rbac"] = json!({ "aggregate": false });
    let _gone = Gone(test);
    install(test, RELEASE, SYSTEM_NAMESPACE, &without)?;
    install(test, ONLY_HERE, &test.namespace, &apart)?;

    assert_eq!(objects(test, ONLY_HERE, CLUSTER_WIDE, &[])?, [""; 0], "nothing is cluster-wide");
    let roles = objects(test, ONLY_HERE, "roles,rolebindings", &["--all-namespaces"])?;
    assert_eq!(roles.len(), 4, "for builds and for its Lease, both in its namespace: {roles:?}");
    for (verb, resource) in [("create", "pods"), ("list", "imagebuilds"), ("get", "namespaces")] {
        assert!(may(test, verb, resource, &test.namespace)?, "{verb} {resource} here");
        assert!(!may(test, verb, resource, SYSTEM_NAMESPACE)?, "{verb} {resource} elsewhere");
    }
    assert!(!may(test, "get", "secrets", &test.namespace)?, "no operator reads Secrets");

    let elsewhere = test.beside("elsewhere").await?;
    let dockerfile = "ARG BASE\nFROM ${BASE}\nRUN true\n";
    test.build(&test.manifest("here", dockerfile)).await?;
    elsewhere.build(&elsewhere.manifest("there", dockerfile)).await?;
    for place in [test, &elsewhere] {
        let name = if place.namespace == test.namespace { "here" } else { "there" };
        place.until_event(name, "Succeeded").await?;
    }
    let here = reporters(test, &test.namespace).await?;
    let there = reporters(test, &elsewhere.namespace).await?;
    ensure!(here.iter().all(|name| name.starts_with(ONLY_HERE)), "{here:?} reported on the namespace apart");
    ensure!(
        !there.is_empty() && there.iter().all(|name| !name.starts_with(ONLY_HERE)),
        "{there:?} reported on the namespace of all others"
    );
    elsewhere.close().await?;

    helm(test, &["uninstall", ONLY_HERE, "-n", &test.namespace, "--wait"])?;
    // Deleted in the background: `--wait` does not wait for what the chart's objects own.
    let pods: Api<Pod> = Api::namespaced(test.client.clone(), &test.namespace);
    wait_gone(&pods, &format!("app.kubernetes.io/instance={ONLY_HERE}"), |_| false).await?;
    let kinds = "all,roles,rolebindings,configmaps,serviceaccounts,poddisruptionbudgets";
    assert_eq!(objects(test, ONLY_HERE, kinds, &["--all-namespaces"])?, [""; 0], "nothing is left");
    let place = ["get", "leases,roles,rolebindings,deployments", "-n", &test.namespace, "-o", "name"];
    let left = test.cluster.kubectl(&place)?;
    // The operator's own, not the chart's: it goes with the namespace.
    assert_eq!(left.trim(), format!("lease.coordination.k8s.io/{ONLY_HERE}-lapstrake"));
    test.cluster.kubectl(&["get", "crd", "imagebuilds.lapstrake.dev"]).context("the definition stays")?;
    // Without an operator too: owner references see to it.
    test.nothing_is_left().await
}

#[test]
fn a_namespace_has_an_operator_of_its_own_with_nothing_but_roles() {
    run("chart", async |test| beside_each_other(test).await);
}
