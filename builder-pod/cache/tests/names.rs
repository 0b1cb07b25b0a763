//! What buildkitd 0.34.2 called the operations of `recorded/Dockerfile`: the `digest` of each record in what
//! `buildctl build --export-cache type=local,mode=max` wrote (linux/amd64).
#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

use std::collections::BTreeSet;

use lapstrake_cache::{op, record_digest};
use lapstrake_dockerfile::{Images, Options};
use lapstrake_llb::{Graph, pb};
use lapstrake_oci::Platform;

#[test]
fn operations_have_the_names_that_buildkitd_gave_them() {
    let text = include_str!("recorded/Dockerfile");
    let recorded: BTreeSet<&str> = include_str!("recorded/records").lines().collect();
    let platform = Platform::new("linux", "amd64", None);
    let options = Options {
        target_platform: Some(platform.clone()),
        build_platform: platform.clone(),
        capabilities: lapstrake_dockerfile::Capabilities::ALL,
        ..Options::default()
    };
    let parsed = lapstrake_dockerfile::parse("Dockerfile", text);
    let plan = lapstrake_dockerfile::plan(&parsed, &options).unwrap();
    let lowered = plan.lower(&Images::new()).unwrap();
    let graph = Graph::decode(&lowered.definition).unwrap();
    let mut named = 0;
    for vertex in graph.vertices() {
        let name = match &vertex.op {
            pb::op::Op::Exec(exec) => op::exec(exec, &platform),
            pb::op::Op::File(file) => op::file(file, vertex.inputs.len()),
            _ => continue,
        };
        let record = record_digest(&name, 0).to_string();
        assert!(recorded.contains(record.as_str()), "{}: {:?}", vertex.name(), vertex.op);
        named += 1;
    }
    assert!(named > 20, "{named} operations only");
}
