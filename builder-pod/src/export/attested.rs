//! What is attested of images, as manifests beside them; of file systems, as files in them.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use lapstrake_handoff::Reason;
use lapstrake_image::assemble::Beside;
use lapstrake_image::export;
use lapstrake_oci::{Descriptor, Digest, to_json};

use super::OfPlatform;
use crate::attest::{self, Attestation, Statement, Subject};
use crate::build::Solved;
use crate::engine::Engine;
use crate::error::BuildError;
use crate::options::{BuildOptions, Files, Image};
use crate::progress::Step;

/// Whether what is attested goes along with an image: an image of one platform becomes an index by it.
pub(super) fn goes_along(solved: &[Solved], options: &BuildOptions, image: &Image) -> bool {
    let wanted = |one: &Attestation| !one.inline_only || image.attestations.inline;
    let several = solved.len() > 1 || options.index;
    solved.iter().flat_map(|of| &of.attestations).any(|one| several || wanted(one))
}

/// The manifest of what is attested of a platform's image; none where that is nothing.
pub(super) fn pack(
    engine: &Arc<Engine>,
    solved: &Solved,
    of: &OfPlatform,
    image: &Image,
    step: &Step,
) -> Result<Option<Beside>, BuildError> {
    if solved.attestations.is_empty() {
        return Ok(None);
    }
    let began = Instant::now();
    let digest = BTreeMap::from([("sha256".to_owned(), of.manifest.digest.hex().to_string())]);
    let own: Vec<Subject> = image
        .names
        .iter()
        .map(|name| Subject { name: attest::subject_name(name, &of.platform), digest: digest.clone() })
        .collect();
    let mut statements = Vec::new();
    for one in &solved.attestations {
        let mut predicate = one.predicate(&of.layers);
        if one.core && one.predicate_type == attest::SPDX {
            let dirs = match solved.snapshot {
                Some(snapshot) => engine.store().lowers_top_first(snapshot)?,
                None => Vec::new(),
            };
            attest::supplement(&mut predicate, &mut |name| layer_of(&dirs, &of.layers, name));
        }
        statements.push(Statement::new(&one.predicate_type, &one.subjects, &own, predicate));
    }
    let made = attest::manifest(&of.manifest, &statements, image.attestations.artifact);
    let made = made.map_err(BuildError::internal)?;
    for (bytes, _) in made.blobs.iter().chain([&made.manifest]) {
        engine.store().put_blob(bytes)?;
    }
    step.part(&format!("exporting attestation manifest {}", made.manifest.1.digest), began.elapsed());
    Ok(Some(made))
}

/// The layer that a file is in: of the directories of a snapshot, topmost first, and its layers, lowest first.
fn layer_of(dirs: &[PathBuf], layers: &[Descriptor], name: &str) -> Option<Digest> {
    let path = Path::new(name.trim_start_matches('/'));
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if dirs.len() != layers.len() || path.as_os_str().is_empty() || !path.components().all(plain) {
        return None;
    }
    let there = |dir: &PathBuf| {
        // What a layer takes away is a device there.
        let meta = std::fs::symlink_metadata(dir.join(path));
        meta.is_ok_and(|meta| !std::os::unix::fs::FileTypeExt::is_char_device(&meta.file_type()))
    };
    let (_, layer) = dirs.iter().zip(layers.iter().rev()).find(|(dir, _)| there(dir))?;
    Some(layer.digest)
}

/// What is attested of a file system as files: their names and what is in them. `named`: the platform stands in their names.
/// Blocking: everything below `root` is read.
pub(super) fn files(
    attestations: &[Attestation],
    root: BorrowedFd<'_>,
    files: &Files,
    named: Option<&str>,
) -> Result<Vec<(String, Vec<u8>)>, BuildError> {
    let subjects = export::digests(root).map_err(super::files::failed)?;
    let own: Vec<Subject> = subjects
        .into_iter()
        .map(|(path, digest): (Vec<u8>, Digest)| Subject {
            name: String::from_utf8_lossy(&path).into_owned(),
            digest: BTreeMap::from([("sha256".to_owned(), digest.hex().to_string())]),
        })
        .collect();
    let (mut all, mut names) = (Vec::new(), BTreeSet::new());
    for one in attestations.iter().filter(|one| !one.inline_only) {
        let statement = Statement::new(&one.predicate_type, &one.subjects, &own, one.predicate(&[]));
        let base = one.path.rsplit('/').next().unwrap_or_default();
        let mut name = format!("{}{base}", files.attestation_prefix);
        if let Some(platform) = named {
            let (stem, end) = name.rsplit_once('.').unwrap_or((&name, ""));
            let end = if name.contains('.') { format!(".{end}") } else { String::new() };
            name = format!("{stem}.{platform}{end}");
        }
        if name.contains('/') || matches!(name.as_str(), "" | "." | "..") || !names.insert(name.clone()) {
            let what =
                if names.contains(&name) { "duplicate attestation path name" } else { "no file name:" };
            return Err(BuildError::new(Reason::RequestInvalid, format!("{what} {name}")));
        }
        all.push((name, to_json(&statement, true).map_err(BuildError::internal)?));
    }
    Ok(all)
}

/// These files in a directory of their own, that only their owner reads; it goes when the first part is dropped.
pub(super) fn placed(files: &[(String, Vec<u8>)]) -> std::io::Result<(tempfile::TempDir, OwnedFd)> {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir()?;
    for (name, bytes) in files {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    }
    let fd = std::fs::File::open(dir.path())?.as_fd().try_clone_to_owned()?;
    Ok((dir, fd))
}
