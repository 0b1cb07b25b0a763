//! `--cache-from` and `--cache-to` as `docker buildx build` has them.

use std::collections::BTreeMap;

use lapstrake_handoff::{CacheExport, CacheImport, CacheMode, CacheStore, CacheTarget, Compression};

use super::output::{boolean, compression, fields, level};

/// Reads `type=registry,ref=NAME`, `type=local,src=DIR`, or a bare name.
pub(super) fn import(text: &str) -> Result<CacheImport, String> {
    const FLAG: &str = "--cache-from";
    let (kind, mut fields) = kind(FLAG, text)?;
    let import = match kind.as_str() {
        "registry" => CacheImport::Registry {
            reference: needed(FLAG, &kind, "ref", &mut fields)?,
            insecure: boolean(&mut fields, "registry.insecure")?.unwrap_or(false),
        },
        "local" => CacheImport::Local {
            src: needed(FLAG, &kind, "src", &mut fields)?,
            tag: fields.remove("tag"),
            digest: fields.remove("digest"),
        },
        "s3" | "azblob" | "gha" => return store(FLAG, kind, fields).map(CacheImport::Store),
        other => return Err(unknown(FLAG, other, "registry, local, s3, azblob and gha")),
    };
    nothing_left(FLAG, &kind, &fields)?;
    Ok(import)
}

/// Reads `type=registry,ref=NAME`, `type=local,dest=DIR`, `type=inline`, or a bare name.
pub(super) fn export(text: &str) -> Result<CacheExport, String> {
    const FLAG: &str = "--cache-to";
    let (kind, mut fields) = kind(FLAG, text)?;
    let to = match kind.as_str() {
        "registry" => CacheTarget::Registry {
            reference: needed(FLAG, &kind, "ref", &mut fields)?,
            insecure: boolean(&mut fields, "registry.insecure")?.unwrap_or(false),
        },
        "local" => {
            CacheTarget::Local { dest: needed(FLAG, &kind, "dest", &mut fields)?, tag: fields.remove("tag") }
        }
        "inline" => CacheTarget::Inline,
        "s3" | "azblob" | "gha" => CacheTarget::Store(store(FLAG, kind.clone(), fields.clone())?),
        other => return Err(unknown(FLAG, other, "registry, local, s3, azblob, gha and inline")),
    };
    let mut export = CacheExport::new(to);
    export.mode = match fields.remove("mode").as_deref() {
        None | Some("min") => CacheMode::Min,
        // As BuildKit: an image has its own layers only, so its cache is never more.
        Some("max") => CacheMode::Max,
        Some(other) => return Err(format!("{FLAG}: mode={other} is not known; the modes are min and max")),
    };
    export.oci_media_types = boolean(&mut fields, "oci-mediatypes")?.unwrap_or(true);
    export.image_manifest = boolean(&mut fields, "image-manifest")?.unwrap_or(export.oci_media_types);
    if export.image_manifest && !export.oci_media_types {
        return Err(format!("{FLAG}: image-manifest=true needs oci-mediatypes=true"));
    }
    export.compression = compression(&mut fields)?.unwrap_or(Compression::Gzip);
    export.compression_level = level(&mut fields)?;
    export.force_compression = boolean(&mut fields, "force-compression")?.unwrap_or(false);
    export.ignore_error = boolean(&mut fields, "ignore-error")?.unwrap_or(false);
    // As BuildKit: what a store does not know is passed over.
    if !matches!(export.to, CacheTarget::Store(_)) {
        nothing_left(FLAG, &kind, &fields)?;
    }
    Ok(export)
}

fn store(flag: &str, kind: String, attributes: BTreeMap<String, String>) -> Result<CacheStore, String> {
    let read = lapstrake_bucket::Settings::read(&kind, &attributes, |name| std::env::var(name).ok());
    read.map_err(|e| format!("{flag} type={kind}: {e}"))?;
    Ok(CacheStore { kind, attributes })
}

fn kind(flag: &str, text: &str) -> Result<(String, BTreeMap<String, String>), String> {
    // As buildx: what has no `=` is the name of a cache in a registry.
    if !text.contains('=') {
        let fields = BTreeMap::from([("ref".to_owned(), text.to_owned())]);
        return Ok(("registry".to_owned(), fields));
    }
    let mut fields = fields(flag, text)?;
    let kind = fields.remove("type").ok_or_else(|| format!("{flag} {text}: type=… is missing"))?;
    Ok((kind, fields))
}

fn needed(
    flag: &str,
    kind: &str,
    key: &str,
    fields: &mut BTreeMap<String, String>,
) -> Result<String, String> {
    let value = fields.remove(key).filter(|value| !value.is_empty());
    value.ok_or_else(|| format!("{flag} type={kind} needs {key}=…"))
}

fn unknown(flag: &str, kind: &str, known: &str) -> String {
    format!("{flag} type={kind} is not known; the types are {known}")
}

fn nothing_left(flag: &str, kind: &str, fields: &BTreeMap<String, String>) -> Result<(), String> {
    match fields.keys().next() {
        Some(key) => Err(format!("{flag} type={kind} has no option {key}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_short_form_is_a_name_in_a_registry() {
        let import = import("registry.example/app/cache:main").unwrap();
        let reference = "registry.example/app/cache:main".to_owned();
        assert_eq!(import, CacheImport::Registry { reference: reference.clone(), insecure: false });
        let export = export(&reference).unwrap();
        assert_eq!(export, CacheExport::new(CacheTarget::Registry { reference, insecure: false }));
    }

    #[test]
    fn every_option_is_read() {
        let text = "type=registry,ref=r.example/c,mode=max,image-manifest=false,oci-mediatypes=false,\
                    compression=zstd,compression-level=7,force-compression=true,ignore-error=true,registry.insecure=true";
        let export = export(text).unwrap();
        let expected = CacheExport {
            to: CacheTarget::Registry { reference: "r.example/c".into(), insecure: true },
            mode: CacheMode::Max,
            image_manifest: false,
            oci_media_types: false,
            compression: Compression::Zstd,
            compression_level: Some(7),
            force_compression: true,
            ignore_error: true,
        };
        assert_eq!(export, expected);
        let import = import("type=local,src=/c,tag=t,digest=sha256:00").unwrap();
        let (src, tag, digest) = ("/c".into(), Some("t".into()), Some("sha256:00".into()));
        assert_eq!(import, CacheImport::Local { src, tag, digest });
    }

    #[test]
    fn mistakes_are_named() {
        for (result, says) in [
            (import("type=tape").map(drop), "type=tape is not known"),
            (import("type=gha").map(drop), "type=gha: token not set"),
            (import("type=registry").map(drop), "needs ref="),
            (import("type=local,src=/c,mode=max").map(drop), "no option mode"),
            (import("ref=x").map(drop), "type=… is missing"),
            (export("type=local").map(drop), "needs dest="),
            (export("type=inline,scope=x").map(drop), "no option scope"),
            (export("type=registry,ref=x,mode=all").map(drop), "mode=all is not known"),
            (
                export("type=registry,ref=x,image-manifest=true,oci-mediatypes=false").map(drop),
                "needs oci-mediatypes",
            ),
        ] {
            let error = result.unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
