//! Describes the services that the daemon serves, for its reflection: from the proto files in the published crate's package, and
//! our own of what that lacks. No file of the crate's is copied.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

use protox::Compiler;
use protox::file::{ChainFileResolver, GoogleFileResolver, IncludeFileResolver};

/// The crate that the messages come from.
const CRATE: &str = "bollard-buildkit-proto";
/// Its files with services that are served, below `resources`.
const SERVED: [&str; 3] = [
    "grpc/health/v1/health.proto",
    "moby/buildkit/v1/control.proto",
    "moby/buildkit/v1/frontend/gateway.proto",
];
const OWN: [&str; 2] = ["content.proto", "traces.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    // Another version of the crate lies elsewhere.
    println!("cargo::rerun-if-changed=../../Cargo.lock");
    let own = Path::new(&std::env::var("CARGO_MANIFEST_DIR")?).join("proto");
    let theirs = package()?.join("resources");
    // Google's own first: the package has newer ones of them than can be read.
    let mut files = ChainFileResolver::new();
    files.add(GoogleFileResolver::new());
    files.add(IncludeFileResolver::new(theirs));
    files.add(IncludeFileResolver::new(own));
    let mut compiler = Compiler::with_file_resolver(files);
    compiler.include_imports(true).open_files(SERVED.iter().chain(&OWN))?;
    let descriptors = compiler.file_descriptor_set();
    let out = Path::new(&std::env::var("OUT_DIR")?).join("services.bin");
    std::fs::write(out, prost::Message::encode_to_vec(&descriptors))?;
    Ok(())
}

/// Where the crate's package lies; only cargo knows.
fn package() -> Result<PathBuf, Box<dyn Error>> {
    let metadata = Command::new(std::env::var("CARGO")?)
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--filter-platform",
            &std::env::var("TARGET")?,
        ])
        .current_dir(std::env::var("CARGO_MANIFEST_DIR")?)
        .output()?;
    if !metadata.status.success() {
        return Err(String::from_utf8_lossy(&metadata.stderr).into_owned().into());
    }
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout)?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let manifest =
        packages.filter(|package| package["name"] == CRATE).find_map(|p| p["manifest_path"].as_str());
    let manifest = manifest.ok_or_else(|| format!("cargo knows no {CRATE}"))?;
    Ok(Path::new(manifest).parent().unwrap_or(Path::new("/")).to_owned())
}
