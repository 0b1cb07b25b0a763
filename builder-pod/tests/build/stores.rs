//! Caches in object stores, of a single build: a second machine runs nothing.

use lapstrake_testkit::stores::{Actions, Azure, S3};

use crate::lab::Lab;

const APP: &str = "\
FROM @base AS made
COPY a /a
RUN cat /a >/made && echo more >>/made
FROM @base
COPY --from=made /made /made
RUN echo ran >/ran
";

/// Builds on one machine into a store, and on another one from it; `attributes` have credentials.
fn crosses(attributes: &str, secret: &str) {
    let lab = Lab::new();
    let dir = lab.context("app", &[("Dockerfile", APP), ("a", "a\n")]);
    let first = lab.build_in("one", &dir).args(["--cache-to", &format!("{attributes},mode=max")]).ok();
    assert!(!first.ran().is_empty(), "{}", first.stderr());
    let out = lab.path("files");
    let second =
        lab.build_in("two", &dir).args(["--cache-from", attributes, "-o", out.to_str().unwrap()]).ok();
    assert!(second.ran().is_empty(), "{}", second.stderr());
    assert_eq!(std::fs::read_to_string(out.join("made")).unwrap(), "a\nmore\n");
    for run in [first, second] {
        assert!(!run.stderr().contains(secret), "a credential is shown: {}", run.stderr());
    }
}

#[test]
fn a_second_machine_runs_nothing_with_a_cache_in_s3() {
    let dir = tempfile::tempdir().unwrap();
    let s3 = S3::start(dir.path()).unwrap();
    let attributes = format!(
        "type=s3,endpoint_url={},use_path_style=true,bucket={},region={},prefix=a/,access_key_id={},secret_access_key={}",
        s3.url,
        S3::BUCKET,
        S3::REGION,
        S3::KEY,
        S3::SECRET
    );
    crosses(&attributes, S3::SECRET);
}

#[test]
fn a_second_machine_runs_nothing_with_a_cache_in_azure_s_blob_storage() {
    let dir = tempfile::tempdir().unwrap();
    let azure = Azure::start(dir.path()).unwrap();
    let attributes = format!(
        "type=azblob,account_url={},account_name={},secret_access_key={}",
        azure.url,
        Azure::ACCOUNT,
        Azure::KEY
    );
    crosses(&attributes, Azure::KEY);
}

#[test]
fn a_second_machine_runs_nothing_with_a_cache_of_github_actions() {
    let dir = tempfile::tempdir().unwrap();
    let actions = Actions::start(dir.path()).unwrap();
    let token = Actions::token();
    crosses(&format!("type=gha,version=1,url={}/,token={token},scope=app", actions.url), &token);
}
