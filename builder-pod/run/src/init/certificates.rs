//! Authorities that a step trusts beside those of the image.
//!
//! They stand behind the image's own bundle for the length of the step, and are taken out again when it has
//! ended (`stubs.rs`). The bundle is not covered by a mount: a package that brings certificates writes it
//! anew and renames it into place, which a mount point refuses. For programs that look elsewhere, or when
//! the bundle was written anew, there are two files at places of our own, named by variables.

use std::path::Path;

use lapstrake_sys::mount::attach;

use super::rootfs::{Scratch, read_own};
use super::stubs::Places;
use super::{Failure, kernel};
use crate::protocol::Stage;
use crate::spec::{StepCertificates, StepSpec};

/// Where distributions keep their bundle; the first is made where an image has none of them.
const BUNDLES: [&str; 6] = [
    "etc/ssl/certs/ca-certificates.crt",
    "etc/pki/tls/certs/ca-bundle.crt",
    "etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "etc/ssl/ca-bundle.pem",
    "etc/pki/tls/cacert.pem",
    "etc/ssl/cert.pem",
];

/// The usual authorities and ours, for programs that take one file in place of all others.
const WHOLE: &str = "/run/lapstrake/ca-certificates.crt";
/// Ours alone.
const EXTRA: &str = "/run/lapstrake/extra-ca-certificates.crt";
/// Ours once more, where Debian's and Alpine's `update-ca-certificates` look for those of the machine: a bundle that
/// a step writes anew has them then, for the rest of the step.
const LOCAL: &str = "/usr/local/share/ca-certificates/lapstrake.crt";
/// Where that program makes links to it.
const LINKS: &str = "etc/ssl/certs";

/// Variables that name a file in place of the usual ones.
const IN_PLACE: [&str; 6] = [
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
];
/// Variables that name a file beside the usual ones.
const BESIDE: [&str; 1] = ["NODE_EXTRA_CA_CERTS"];

/// What is put behind a bundle; empty where the step asks for nothing.
///
/// It begins with a line's end, so that a bundle without one at its end is not damaged.
pub(crate) fn block(spec: &StepSpec) -> Vec<u8> {
    let Some(certificates) = &spec.certificates else { return Vec::new() };
    let text = certificates.extra.trim();
    format!("\n# Shown to this step only; no part of the image.\n{text}\n").into_bytes()
}

/// What may be in a bundle after the step and is not the image's: the block, and what a program put there itself.
pub(crate) fn texts(spec: &StepSpec) -> Vec<Vec<u8>> {
    match &spec.certificates {
        None => Vec::new(),
        Some(_) => vec![block(spec), local(spec)],
    }
}

/// Ours, as the file of [`LOCAL`] has them.
fn local(spec: &StepSpec) -> Vec<u8> {
    let extra = spec.certificates.as_ref().map_or("", |certificates| certificates.extra.trim());
    format!("{extra}\n").into_bytes()
}

/// Takes links to our file out of an upper directory.
pub(crate) fn remove_links(upper: &Path) {
    for entry in std::fs::read_dir(upper.join(LINKS)).into_iter().flatten().flatten() {
        let ours = std::fs::read_link(entry.path()).is_ok_and(|target| {
            let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
            matches!(name.as_str(), "lapstrake.crt" | "lapstrake.pem" | "ca-cert-lapstrake.pem")
        });
        if ours {
            std::fs::remove_file(entry.path()).ok(); // A dead link is a blemish, not a failure.
        }
    }
}

/// Files of our own that need a place.
pub(super) fn files(spec: &StepSpec) -> impl Iterator<Item = &'static str> {
    let shown = if spec.certificates.is_some() { &[WHOLE, EXTRA, LOCAL][..] } else { &[] };
    shown.iter().map(|path| path.trim_start_matches('/'))
}

/// Shows them; the variables that name the files.
pub(super) fn show(
    spec: &StepSpec,
    scratch: &Scratch,
    places: &mut Places<'_>,
) -> Result<Vec<(&'static str, &'static str)>, Failure> {
    let Some(certificates) = &spec.certificates else { return Ok(Vec::new()) };
    let block = block(spec);
    let own = amend(spec, &block, scratch, places)?;
    let whole = whole(own, certificates, &block);
    let mut env: Vec<_> = BESIDE.iter().map(|name| (*name, EXTRA)).collect();
    if let Some(whole) = whole {
        show_file("ca", &whole, WHOLE, scratch, places)?;
        env.extend(IN_PLACE.iter().map(|name| (*name, WHOLE)));
    }
    show_file("ca-extra", certificates.extra.as_bytes(), EXTRA, scratch, places)?;
    // Where the image has something else at that place, there is no such program.
    show_file("ca-local", &local(spec), LOCAL, scratch, places).ok();
    Ok(env)
}

/// All that is trusted; `None` where the usual authorities are not known, so that nothing can replace them.
fn whole(own: Option<Vec<u8>>, certificates: &StepCertificates, block: &[u8]) -> Option<Vec<u8>> {
    let usual = own.or_else(|| Some(certificates.usual.clone().into_bytes()))?;
    if usual.trim_ascii().is_empty() {
        return None;
    }
    let mut whole = usual;
    whole.extend(block);
    Some(whole)
}

/// Puts them behind the image's own; the first bundle as it was.
fn amend(
    spec: &StepSpec,
    block: &[u8],
    scratch: &Scratch,
    places: &mut Places<'_>,
) -> Result<Option<Vec<u8>>, Failure> {
    let fail = kernel(Stage::Tree);
    let mut own = None;
    if spec.rootfs.upper.is_none() {
        // What can't be written is covered: nobody can write it anew either.
        for (number, bundle) in BUNDLES.iter().map(Path::new).enumerate() {
            let Some(before) = read_own(places.root(), bundle).map_err(&fail)? else { continue };
            let name = format!("ca-bundle{number}");
            show_file(&name, &[&before[..], block].concat(), BUNDLES[number], scratch, places)?;
            own.get_or_insert(before);
        }
        return Ok(own);
    }
    for bundle in BUNDLES {
        if let Some(before) = places.append(Path::new(bundle), block).map_err(&fail)? {
            own.get_or_insert(before);
        }
    }
    if own.is_none() {
        // A dead link on the way is the image's own affair: then there are the variables.
        places.make_filled(Path::new(BUNDLES[0]), block).ok();
    }
    Ok(own)
}

fn show_file(
    name: &str,
    contents: &[u8],
    place: &str,
    scratch: &Scratch,
    places: &mut Places<'_>,
) -> Result<(), Failure> {
    let tree = scratch.file(name, contents)?;
    let target = places.place(Path::new(place), true).map_err(kernel(Stage::Tree))?;
    attach(&tree, &target).map_err(kernel(Stage::Tree))
}

/// The step's variables and those that name our files; who set one knows better.
pub(super) fn with_variables(spec: &StepSpec, more: &[(&str, &str)]) -> Vec<String> {
    let mut env = spec.env.clone();
    for (name, value) in more {
        let set = env.iter().any(|entry| entry.split_once('=').is_some_and(|(n, _)| n == *name));
        if !set {
            env.push(format!("{name}={value}"));
        }
    }
    env
}
