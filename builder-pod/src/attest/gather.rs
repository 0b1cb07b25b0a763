//! What the sources of a graph were found to be in this build.

use std::collections::BTreeMap;
use std::path::Path;

use lapstrake_handoff::Reason;
use lapstrake_llb::{Graph, pb};
use serde_json::{Map, Value};

use super::asked::SbomAsked;
use super::capture::{Capture, ImageSource, Pin};
use super::sbom::Scanner;
use crate::engine::{Engine, SourceFacts, native_platform, platform_of};
use crate::error::BuildError;
use crate::options::Context;
use crate::progress::Progress;

/// What a context is called in the graphs of builds whose context is no directory of a client.
const CONTEXT: &str = "context";

/// Images that are made of definitions that came along with a request have names of this registry; nobody else knows them.
const OWN: &str = "localhost/input";

/// What goes into the result of a graph.
pub(crate) async fn of_graph(engine: &Engine, graph: &Graph) -> Capture {
    let native = native_platform();
    let mut capture = Capture::default();
    for vertex in graph.vertices() {
        let platform = platform_of(vertex, &native);
        let pin = match &vertex.op {
            pb::op::Op::Source(source) => match source.identifier.strip_prefix("docker-image://") {
                Some(name) if name.starts_with(OWN) => continue,
                Some(name) => engine.images().known(name, &platform).map(|image| Pin::Digest(image.digest)),
                None => outside(engine, source).await,
            },
            _ => None,
        };
        capture.add(vertex, &platform, pin);
    }
    capture
}

/// What a repository or a file was found to be: it was asked for when the graph was worked out.
async fn outside(engine: &Engine, source: &pb::SourceOp) -> Option<Pin> {
    match engine.facts_of(source, false).await.ok().flatten()? {
        SourceFacts::Commit { commit, .. } => Some(Pin::Commit(commit)),
        SourceFacts::File { digest, .. } => Some(Pin::Digest(digest)),
    }
}

/// The definition of what a scanner writes about the result of another one; nothing is worked out.
pub(crate) async fn scan(
    engine: &Engine,
    asked: &SbomAsked,
    id: &str,
    of: &pb::Definition,
    extras: &BTreeMap<String, pb::Definition>,
    ignore_cache: bool,
    progress: &Progress,
) -> Result<pb::Definition, BuildError> {
    let native = native_platform();
    let name = &asked.generator;
    let step = progress.step(&format!("resolve image config for docker-image://{name}"));
    let found = step.close(engine.images().resolve(name, &native).await)?;
    let scanner = Scanner {
        name,
        config: &found.config.config,
        platform: pb::Platform {
            architecture: native.architecture.clone(),
            os: native.os.clone(),
            ..Default::default()
        },
        parameters: &asked.parameters,
    };
    let scanned = scanner.scan(id, of, extras, ignore_cache);
    scanned.map_err(|why| BuildError::new(Reason::RequestInvalid, why))
}

/// Images whose tags were looked up in this build, by whoever worked for it.
pub(crate) fn known_images(engine: &Engine) -> Vec<ImageSource> {
    let all = engine.images().all_known().into_iter();
    let named = all.filter(|(name, ..)| name.digest().is_none());
    named
        .map(|(reference, platform, found)| ImageSource {
            reference,
            platform: Some(platform),
            digest: Some(found.digest),
            local: false,
            blob: false,
        })
        .collect()
}

/// What a context brings in that no graph tells: the file of the build, what a repository was found to be.
pub(crate) fn of_context(context: &Context, revision: Option<&str>) -> Capture {
    let mut capture = Capture::default();
    match context {
        Context::Client(dir) => {
            capture.add_local(&dir.name);
            if let Some(files) = &dir.dockerfiles {
                capture.add_local(files);
            }
        }
        Context::Directory(_) | Context::Inline(_) => {
            capture.add_local(CONTEXT);
            capture.add_local("dockerfile");
        }
        Context::Git { url, reference, .. } => {
            capture.instead_of(CONTEXT);
            let reference = match reference {
                lapstrake_source::GitRef::Any(name) => name.as_str(),
                _ => "",
            };
            match revision {
                Some(commit) => capture.add_git(url, reference, commit, None),
                None => capture.incomplete = true,
            }
        }
        Context::Http { url, .. } => {
            capture.instead_of(CONTEXT);
            match revision.and_then(|digest| digest.parse().ok()) {
                Some(digest) => capture.add_http(url, digest),
                None => capture.incomplete = true,
            }
        }
    }
    capture
}

/// What provenance itself says, and no administrator in its place.
const BUILTIN: [&str; 3] = ["buildConfig", "builderPlatform", "platform"];

/// What an administrator adds to all provenance of a builder: the objects in the JSON files of a directory, later names over
/// earlier ones. Blocking.
///
/// # Errors
/// Where a file can't be read, or holds no object.
pub(crate) fn environment(dir: &Path) -> Result<Map<String, Value>, String> {
    let mut all = Map::new();
    let failed = |e: std::io::Error| format!("provenance environment {}: {e}", dir.display());
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(all),
        entries => entries.map_err(failed)?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !is_dir && entry.path().extension().is_some_and(|end| end == "json") {
            paths.push(entry.path());
        }
    }
    paths.sort();
    for path in paths {
        let failed = |why: String| format!("provenance environment {}: {why}", path.display());
        let bytes = std::fs::read(&path).map_err(|e| failed(e.to_string()))?;
        let map: Map<String, Value> = serde_json::from_slice(&bytes).map_err(|e| failed(e.to_string()))?;
        all.extend(map);
    }
    match BUILTIN.iter().find(|key| all.contains_key(**key)) {
        Some(key) => {
            Err(format!("key {key:?} is builtin and not allowed to be modified in provenance config"))
        }
        None => Ok(all),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_administrator_says_is_that_of_all_files_and_nothing_that_is_ours() {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("written");
        assert_eq!(environment(&dir.path().join("none")), Ok(Map::new()));
        write("a.json", r#"{"one": 1, "both": "a"}"#);
        write("b.json", r#"{"both": {"of": "b"}}"#);
        write("c.txt", "no JSON");
        std::fs::create_dir(dir.path().join("d.json")).expect("made");
        let told = environment(dir.path()).expect("valid");
        assert_eq!(Value::Object(told), serde_json::json!({"one": 1, "both": {"of": "b"}}));
        write("e.json", r#"{"platform": "mine"}"#);
        let error = environment(dir.path()).expect_err("one of ours");
        assert!(error.contains("\"platform\" is builtin and not allowed"), "{error}");
        write("e.json", "[]");
        assert!(environment(dir.path()).expect_err("a list").contains("e.json"));
        write("e.json", "{}");
        assert!(environment(&dir.path().join("a.json")).is_err(), "a file is no directory");
    }
}
