//! Which stages of a file scanners are given beside the result, as `BUILDKIT_SBOM_SCAN_STAGE` and `BUILDKIT_SBOM_SCAN_CONTEXT` say.

use std::collections::{BTreeMap, BTreeSet};

use lapstrake_dockerfile::Parsed;
use lapstrake_dockerfile::ast::Kind;
use lapstrake_llb::{head, pb};
use lapstrake_oci::{Digest, Platform};
use prost::Message as _;

const STAGE: &str = "BUILDKIT_SBOM_SCAN_STAGE";
const CONTEXT: &str = "BUILDKIT_SBOM_SCAN_CONTEXT";

/// What a file asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Scanned {
    /// Names of stages but the target, whether they are part of the result or not.
    pub(crate) stages: Vec<String>,
    /// Whether the target asks for the context.
    pub(crate) with_context: Option<bool>,
}

/// Something to be scanned beside a result.
pub(crate) enum What {
    /// The result of a stage.
    Stage(pb::Definition),
    /// The source of this name, as the result takes it.
    Source(String),
}

/// The same with its name, for a result of this platform.
pub(crate) struct Extra {
    pub(crate) platform: Platform,
    pub(crate) name: String,
    pub(crate) what: What,
}

/// What of `all` is part of a result, by its names, with the definitions that make it.
pub(crate) fn extras<'a>(
    of: &pb::Definition,
    all: impl Iterator<Item = &'a Extra>,
) -> BTreeMap<String, pb::Definition> {
    let mut extras = BTreeMap::new();
    let there: BTreeSet<String> = of.def.iter().map(|bytes| Digest::of(bytes).to_string()).collect();
    let own = head(of);
    for Extra { name, what, .. } in all {
        let definition = match what {
            What::Stage(definition) => {
                let head = head(definition);
                let part = head.as_ref().is_some_and(|head| there.contains(head)) && head != own;
                part.then(|| definition.clone())
            }
            What::Source(identifier) => source(of, identifier),
        };
        extras.extend(definition.map(|definition| (name.clone(), definition)));
    }
    extras
}

/// The definition of a source that another one takes.
fn source(of: &pb::Definition, identifier: &str) -> Option<pb::Definition> {
    let is_it = |bytes: &&Vec<u8>| {
        pb::Op::decode(bytes.as_slice()).is_ok_and(
            |op| matches!(op.op, Some(pb::op::Op::Source(source)) if source.identifier == identifier),
        )
    };
    let bytes = of.def.iter().find(is_it)?;
    let input = pb::Input { digest: Digest::of(bytes).to_string(), index: 0 };
    let pointer = pb::Op { inputs: vec![input], ..Default::default() };
    let metadata = of.metadata.clone();
    Some(pb::Definition { def: vec![bytes.clone(), pointer.encode_to_vec()], metadata, ..Default::default() })
}

/// Reads a file; `args` are those of the build, `target` the stage that it makes, the last one where none is named.
pub(crate) fn of(parsed: &Parsed, args: &BTreeMap<String, String>, target: Option<&str>) -> Scanned {
    let mut scanned = Scanned::default();
    let mut global: BTreeMap<&str, String> = BTreeMap::new();
    // The stage that is being read, and what it says.
    let mut stage: Option<(String, BTreeMap<&str, String>)> = None;
    let ends = |stage: Option<(String, BTreeMap<&str, String>)>, scanned: &mut Scanned| {
        let Some((name, said)) = stage else { return };
        let asks = |key: &str| said.get(key).is_some_and(|value| is_for(&name, value));
        if target.is_none_or(|target| target.eq_ignore_ascii_case(&name)) {
            // Without a name for it, the last stage is the target.
            scanned.with_context = Some(asks(CONTEXT));
        }
        if asks(STAGE) && !name.is_empty() && !target.is_some_and(|target| target.eq_ignore_ascii_case(&name))
        {
            scanned.stages.push(name);
        }
    };
    for instruction in &parsed.ast.instructions {
        match &instruction.kind {
            Kind::From(from) => {
                ends(stage.take(), &mut scanned);
                let name = from.name.as_ref().map(|name| name.text.to_lowercase()).unwrap_or_default();
                stage = Some((name, global.clone()));
            }
            Kind::Arg(all) => {
                for arg in all {
                    let key = match arg.name.text.as_str() {
                        STAGE => STAGE,
                        CONTEXT => CONTEXT,
                        _ => continue,
                    };
                    let default =
                        arg.default.as_ref().map(|word| word.text.trim_matches(['"', '\'']).to_owned());
                    let Some(value) = args.get(key).cloned().or(default) else { continue };
                    match &mut stage {
                        Some((_, said)) => said.insert(key, value),
                        None => global.insert(key, value),
                    };
                }
            }
            _ => {}
        }
    }
    ends(stage, &mut scanned);
    scanned
}

/// Whether a value is for a stage: yes or no, or names.
fn is_for(stage: &str, value: &str) -> bool {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
        "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
        names => names.split(',').any(|name| name == stage),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scanned(text: &str, args: &[(&str, &str)]) -> Scanned {
        let args = args.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        of(&lapstrake_dockerfile::parse("Dockerfile", text), &args, None)
    }

    #[test]
    fn stages_ask_for_themselves_or_are_named_before_all() {
        let text = "ARG BUILDKIT_SBOM_SCAN_STAGE=one,two\nFROM scratch AS one\nFROM scratch AS two\n\
                    ARG BUILDKIT_SBOM_SCAN_STAGE=false\nFROM scratch AS three\nARG BUILDKIT_SBOM_SCAN_CONTEXT=true\n";
        let found = scanned(text, &[]);
        assert_eq!(found.stages, ["one"]);
        assert_eq!(found.with_context, Some(true));
    }

    #[test]
    fn arguments_of_the_build_count_where_the_file_declares_them() {
        let text = "FROM scratch AS one\nARG BUILDKIT_SBOM_SCAN_STAGE\nFROM scratch AS two\n";
        assert!(scanned(text, &[]).stages.is_empty());
        assert_eq!(scanned(text, &[("BUILDKIT_SBOM_SCAN_STAGE", "true")]).stages, ["one"]);
    }
}
