//! What is asked to be attested, as `attest:provenance=…` and `attest:sbom=…` have it.

use std::collections::BTreeMap;

/// The scanner that is asked where none is named.
const SCANNER: &str = "docker/buildkit-syft-scanner:stable-1";

/// How much provenance tells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    /// What nobody puts a secret into.
    Min,
    /// Everything.
    #[default]
    Max,
}

/// Version of SLSA's predicate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Version {
    #[default]
    V1,
    V02,
}

/// How provenance is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ProvenanceAsked {
    pub(crate) mode: Mode,
    pub(crate) version: Version,
    pub(crate) builder_id: String,
    /// Who asks says that the build gives the same bits again.
    pub(crate) reproducible: bool,
    pub(crate) inline_only: bool,
    /// Fails where not everything is known that went in.
    pub(crate) complete_materials: bool,
    /// Name of the file where it becomes one.
    pub(crate) filename: Option<String>,
}

/// How a list of what is in an image is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SbomAsked {
    /// The image that makes it.
    pub(crate) generator: lapstrake_oci::Reference,
    /// What it is told.
    pub(crate) parameters: BTreeMap<String, String>,
}

/// All that is asked to be attested.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) provenance: Option<ProvenanceAsked>,
    pub(crate) sbom: Option<SbomAsked>,
}

impl Asked {
    /// Reads the attributes of a request's frontend.
    ///
    /// # Errors
    /// In BuildKit's words, of what it would refuse.
    pub(crate) fn of<'a>(
        attributes: impl IntoIterator<Item = (&'a String, &'a String)>,
    ) -> Result<Self, String> {
        let mut asked = Self::default();
        for (key, value) in attributes {
            let kind = key.strip_prefix("attest:").or_else(|| key.strip_prefix("build-arg:BUILDKIT_ATTEST_"));
            let Some(kind) = kind.map(str::to_lowercase) else { continue };
            let fields = fields(value).map_err(|why| format!("failed to parse {kind}: {why}"))?;
            match kind.as_str() {
                "provenance" => asked.provenance = Some(provenance(fields)?),
                "sbom" => asked.sbom = Some(sbom(fields)?),
                other => return Err(format!("unknown attestation type {other:?}")),
            }
        }
        Ok(asked)
    }
}

fn provenance(fields: BTreeMap<String, String>) -> Result<ProvenanceAsked, String> {
    let mut asked = ProvenanceAsked::default();
    for (key, value) in fields {
        let flag = || {
            boolean(&value).ok_or_else(|| {
                format!("failed to parse {key} flag {value:?}: strconv.ParseBool: parsing {value:?}: invalid syntax")
            })
        };
        match key.as_str() {
            "mode" => {
                asked.mode = match value.as_str() {
                    "min" => Mode::Min,
                    "max" | "full" => Mode::Max,
                    other => return Err(format!("invalid mode {other:?}")),
                }
            }
            "version" => {
                asked.version = match value.as_str() {
                    "v1" => Version::V1,
                    "v0.2" => Version::V02,
                    "" => return Err("provenance SLSA version cannot be empty".to_owned()),
                    other => return Err(format!("invalid provenance SLSA version: {other}")),
                }
            }
            "builder-id" => asked.builder_id = value,
            "reproducible" => asked.reproducible = flag()?,
            "complete-materials" => asked.complete_materials = flag()?,
            "inline-only" => asked.inline_only = boolean(&value) == Some(true),
            "filename" => asked.filename = Some(value),
            // Others are passed over, `capture-usage` among them: what steps use is not measured.
            _ => {}
        }
    }
    Ok(asked)
}

fn sbom(mut fields: BTreeMap<String, String>) -> Result<SbomAsked, String> {
    let generator = fields.remove("generator").unwrap_or_else(|| SCANNER.to_owned());
    if generator.is_empty() {
        return Err("sbom generator cannot be empty".to_owned());
    }
    let failed = |why: String| format!("failed to parse sbom generator {generator}: {why}");
    let mut named: lapstrake_oci::Reference = generator.parse().map_err(|e| failed(format!("{e}")))?;
    if named.tag().is_none() && named.digest().is_none() {
        named = named.with_tag("latest").map_err(|e| failed(format!("{e}")))?;
    }
    let generator = named;
    Ok(SbomAsked { generator, parameters: fields })
}

fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// A line of comma-separated `key=value`, quoted as CSV has it.
fn fields(line: &str) -> Result<BTreeMap<String, String>, String> {
    let mut all = BTreeMap::new();
    let mut rest = line;
    while !rest.is_empty() {
        let (field, after) = match rest.strip_prefix('"') {
            None => match rest.split_once(',') {
                Some((field, after)) => (field.to_owned(), after),
                None => (rest.to_owned(), ""),
            },
            Some(quoted) => quoted_field(quoted)?,
        };
        let (key, value) = field.split_once('=').unwrap_or((&field, ""));
        all.insert(key.to_owned(), value.to_owned());
        rest = after;
    }
    Ok(all)
}

/// What stands up to the closing quote, of which two stand for one; and what comes after the comma.
fn quoted_field(quoted: &str) -> Result<(String, &str), String> {
    let mut field = String::new();
    let mut rest = quoted;
    loop {
        let (before, after) =
            rest.split_once('"').ok_or_else(|| "extraneous or missing \" in quoted-field".to_owned())?;
        field.push_str(before);
        match after.strip_prefix('"') {
            Some(more) => {
                field.push('"');
                rest = more;
            }
            None => {
                let after = match after {
                    "" => "",
                    after => after
                        .strip_prefix(',')
                        .ok_or_else(|| "extraneous or missing \" in quoted-field".to_owned())?,
                };
                return Ok((field, after));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(pairs: &[(&str, &str)]) -> Result<Asked, String> {
        let pairs: Vec<_> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Asked::of(pairs.iter().map(|(k, v)| (k, v)))
    }

    #[test]
    fn attributes_and_arguments_ask_for_provenance() {
        let all = asked(&[("attest:provenance", "mode=min,version=v0.2,builder-id=x,inline-only=true")]);
        let provenance = all.expect("valid").provenance.expect("asked for");
        assert_eq!((provenance.mode, provenance.version), (Mode::Min, Version::V02));
        assert!(provenance.inline_only && provenance.builder_id == "x");
        let all = asked(&[("build-arg:BUILDKIT_ATTEST_PROVENANCE", "")]).expect("valid");
        assert_eq!(all.provenance, Some(ProvenanceAsked::default()));
        assert_eq!(asked(&[("build-arg:X", "1")]), Ok(Asked::default()));
    }

    #[test]
    fn what_nobody_knows_is_refused() {
        for (key, value, why) in [
            ("attest:other", "", "unknown attestation type \"other\""),
            ("attest:provenance", "mode=all", "invalid mode \"all\""),
            ("attest:provenance", "version=v2", "invalid provenance SLSA version: v2"),
            ("attest:provenance", "reproducible=x", "failed to parse reproducible flag"),
            ("attest:sbom", "generator=", "sbom generator cannot be empty"),
            ("attest:sbom", "\"a", "failed to parse sbom"),
        ] {
            let refused = asked(&[(key, value)]).expect_err(value);
            assert!(refused.contains(why), "{refused}");
        }
    }

    #[test]
    fn what_is_not_the_generator_is_told_to_it() {
        let all = asked(&[("attest:sbom", "generator=h.example/s:1,\"X=a,b\"\"c\",EMPTY")]).expect("valid");
        let sbom = all.sbom.expect("asked for");
        assert_eq!(sbom.generator.to_string(), "h.example/s:1");
        assert_eq!(sbom.parameters["X"], "a,b\"c");
        assert_eq!(sbom.parameters["EMPTY"], "");
    }
}
