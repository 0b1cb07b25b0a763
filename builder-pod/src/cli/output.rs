//! `--output` as `docker buildx build` has it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use lapstrake_handoff::Compression;

use crate::options::{Destination, Directory, Files, Image, Output};

/// Reads `type=oci,dest=image.tar`, or a bare path, which is a directory (`-` a tar on standard output).
///
/// `named` has the names of `--tag`.
pub(super) fn parse(text: &str, named: &Image) -> Result<Output, String> {
    if text == "-" {
        return Ok(Output::Tar(Destination::Stdout, Files::default()));
    }
    if !text.contains('=') {
        return Ok(Output::Local(Directory::Path(text.into()), Files::default()));
    }
    let mut fields = fields("--output", text)?;
    let kind = fields.remove("type").unwrap_or_else(|| "local".to_owned());
    let dest = fields.remove("dest");
    let file = |dest: Option<String>| match dest.as_deref() {
        None | Some("-") => Destination::Stdout,
        Some(path) => Destination::Path(PathBuf::from(path)),
    };
    let output = match kind.as_str() {
        "local" => {
            let dest = dest.ok_or("--output type=local needs dest=DIRECTORY")?;
            Output::Local(Directory::Path(dest.into()), Files::default())
        }
        "tar" => Output::Tar(file(dest), Files::default()),
        "oci" => {
            let tar = boolean(&mut fields, "tar")?.unwrap_or(true);
            let image = image(&mut fields, named)?;
            match (tar, file(dest)) {
                (false, Destination::Stdout | Destination::Client(_)) => {
                    return Err("--output type=oci,tar=false needs dest=DIRECTORY".to_owned());
                }
                (tar, dest) => Output::Oci { image, dest, tar },
            }
        }
        "docker" => {
            let image = Image { docker_media_types: true, ..image(&mut fields, named)? };
            Output::Docker { image, dest: file(dest) }
        }
        "image" | "registry" => {
            let push = boolean(&mut fields, "push")?.unwrap_or(kind == "registry");
            let image = image(&mut fields, named)?;
            if push && image.names.is_empty() && image.templates.is_empty() {
                return Err(
                    "an image that is pushed needs a name: --tag NAME or name=NAME in --output".to_owned()
                );
            }
            if push { Output::Push(image) } else { Output::Image(image) }
        }
        other => {
            return Err(format!(
                "--output type={other} is not known; the types are image, registry, oci, docker, local and tar"
            ));
        }
    };
    match fields.keys().next() {
        Some(key) => Err(format!("--output type={kind} has no option {key}")),
        None => Ok(output),
    }
}

/// Comma-separated `key=value` fields; a field may be quoted as a whole, as in CSV.
pub(super) fn fields(flag: &str, text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut fields = BTreeMap::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (field, after) = match rest.strip_prefix('"') {
            Some(quoted) => {
                let (field, after) =
                    quoted.split_once('"').ok_or_else(|| format!("{flag} {text}: a quote is not closed"))?;
                (field, after.strip_prefix(',').unwrap_or(after))
            }
            None => rest.split_once(',').unwrap_or((rest, "")),
        };
        let (key, value) =
            field.split_once('=').ok_or_else(|| format!("{flag} {text}: \"{field}\" is not key=value"))?;
        fields.insert(key.trim().to_ascii_lowercase(), value.to_owned());
        rest = after;
    }
    Ok(fields)
}

pub(super) fn boolean(fields: &mut BTreeMap<String, String>, key: &str) -> Result<Option<bool>, String> {
    match fields.remove(key).as_deref() {
        None => Ok(None),
        Some("true" | "1") => Ok(Some(true)),
        Some("false" | "0") => Ok(Some(false)),
        Some(other) => Err(format!("{key}={other}: it is true or false")),
    }
}

/// How layers are compressed.
pub(super) fn compression(fields: &mut BTreeMap<String, String>) -> Result<Option<Compression>, String> {
    Ok(Some(match fields.remove("compression").as_deref() {
        None => return Ok(None),
        Some("gzip") => Compression::Gzip,
        Some("zstd") => Compression::Zstd,
        Some("uncompressed") => Compression::Uncompressed,
        Some(other) => return Err(format!("compression={other}: it is gzip, zstd or uncompressed")),
    }))
}

/// The level of that.
pub(super) fn level(fields: &mut BTreeMap<String, String>) -> Result<Option<i32>, String> {
    let Some(text) = fields.remove("compression-level") else { return Ok(None) };
    text.parse().map(Some).map_err(|_| format!("compression-level={text}: it is a number"))
}

fn image(fields: &mut BTreeMap<String, String>, named: &Image) -> Result<Image, String> {
    let mut image =
        Image { names: named.names.clone(), templates: named.templates.clone(), ..Image::default() };
    if let Some(list) = fields.remove("name") {
        for name in list.split(',') {
            image.add_name(name)?;
        }
    }
    let compression = compression(fields)?.unwrap_or_default();
    let level = level(fields)?;
    let oci = boolean(fields, "oci-mediatypes")?.unwrap_or(true);
    let by_digest = boolean(fields, "push-by-digest")?.unwrap_or(false);
    Ok(Image { by_digest, compression, level, docker_media_types: !oci, ..image })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_read_as_buildx_reads_them() {
        let tags = Image { names: vec!["registry.example/a:1".parse().expect("valid")], ..Image::default() };
        let none = Image::default();
        assert!(
            matches!(parse("out", &none), Ok(Output::Local(Directory::Path(p), _)) if p.as_os_str() == "out")
        );
        assert!(matches!(parse("-", &none), Ok(Output::Tar(Destination::Stdout, _))));
        assert!(matches!(parse("type=oci,dest=a.tar", &none), Ok(Output::Oci { tar: true, .. })));
        assert!(matches!(parse("type=image,push=true", &tags), Ok(Output::Push(i)) if i.names.len() == 1));
        assert!(
            matches!(parse("type=image,\"name=a,b\"", &none), Ok(Output::Image(i)) if i.names.len() == 2)
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (text, why) in [
            ("type=floppy", "types are"),
            ("type=oci,destt=x", "no option destt"),
            ("type=registry", "needs a name"),
            ("type=local", "needs dest"),
            ("type=image,compression=lzma,name=a", "gzip, zstd"),
        ] {
            let error = parse(text, &Image::default()).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
