//! Policies as files have them: the JSON that `buildctl --source-policy-file` reads.

use std::collections::HashMap;
use std::path::Path;

use lapstrake_api::sourcepolicy::{
    AttrConstraint, AttrMatch, MatchType, Policy, PolicyAction, Rule, Selector, Update,
};
use lapstrake_handoff::Reason;
use serde::Deserialize;

use crate::error::BuildError;

/// Bytes of a file at most.
const FILE_BYTES_MAX: u64 = 4 << 20;

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    version: i64,
    #[serde(default)]
    rules: Vec<FileRule>,
}

#[derive(Deserialize)]
struct FileRule {
    #[serde(default)]
    action: Word,
    selector: Option<FileSelector>,
    updates: Option<FileUpdate>,
}

#[derive(Deserialize)]
struct FileSelector {
    #[serde(default)]
    identifier: String,
    #[serde(default, alias = "matchType", alias = "MatchType")]
    match_type: Word,
    #[serde(default)]
    constraints: Vec<FileConstraint>,
}

#[derive(Deserialize)]
struct FileConstraint {
    #[serde(default)]
    key: String,
    #[serde(default)]
    value: String,
    #[serde(default)]
    condition: Word,
}

#[derive(Deserialize)]
struct FileUpdate {
    #[serde(default)]
    identifier: String,
    #[serde(default)]
    attrs: HashMap<String, String>,
}

/// A word of an enumeration, or its number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Word {
    Text(String),
    Number(i32),
}

impl Default for Word {
    fn default() -> Self {
        Self::Number(0)
    }
}

impl Word {
    fn number(self, what: &str, of: impl Fn(&str) -> Option<i32>) -> Result<i32, String> {
        match self {
            Self::Number(number) => Ok(number),
            Self::Text(text) => of(&text).ok_or_else(|| format!("{text:?} is no {what}")),
        }
    }
}

impl FileRule {
    fn rule(self) -> Result<Rule, String> {
        let action =
            self.action.number("action", |text| PolicyAction::from_str_name(text).map(|one| one as i32))?;
        let updates = self.updates.map(|of| Update { identifier: of.identifier, attrs: of.attrs });
        Ok(Rule { action, selector: self.selector.map(FileSelector::selector).transpose()?, updates })
    }
}

impl FileSelector {
    fn selector(self) -> Result<Selector, String> {
        let kind = |text: &str| MatchType::from_str_name(text).map(|one| one as i32);
        let match_type = self.match_type.number("match type", kind)?;
        let constraints =
            self.constraints.into_iter().map(FileConstraint::constraint).collect::<Result<_, _>>()?;
        Ok(Selector { identifier: self.identifier, match_type, constraints })
    }
}

impl FileConstraint {
    fn constraint(self) -> Result<AttrConstraint, String> {
        let kind = |text: &str| AttrMatch::from_str_name(text).map(|one| one as i32);
        let condition = self.condition.number("condition", kind)?;
        Ok(AttrConstraint { key: self.key, value: self.value, condition })
    }
}

fn parse(text: &[u8]) -> Result<Policy, String> {
    let file: File = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    let rules = file.rules.into_iter().map(FileRule::rule).collect::<Result<_, _>>()?;
    Ok(Policy { version: file.version, rules })
}

/// Reads a policy. Blocking.
///
/// # Errors
/// The file can't be read, or is none.
pub(crate) fn read(path: &Path) -> Result<Policy, BuildError> {
    use std::io::Read as _;
    let wrong = |why: String| {
        BuildError::new(Reason::RequestInvalid, format!("source policy {}: {why}", path.display()))
    };
    let file = std::fs::File::open(path).map_err(|e| wrong(e.to_string()))?;
    let mut text = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut text).map_err(|e| wrong(e.to_string()))?;
    parse(&text).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_numbers_are_read_and_others_are_told() {
        let text = br#"{"version":1,"rules":[
            {"action":"CONVERT","selector":{"identifier":"docker-image://a:*","matchType":"WILDCARD",
              "constraints":[{"key":"k","value":"v","condition":"NOTEQUAL"}]},
             "updates":{"identifier":"docker-image://b:${1}","attrs":{"x":"y"}}},
            {"action":1,"selector":{"identifier":"http://x","match_type":"EXACT"}}]}"#;
        let policy = parse(text).expect("valid");
        let first = policy.rules.first().expect("two");
        assert_eq!(first.action, PolicyAction::Convert as i32);
        let selector = first.selector.as_ref().expect("one");
        assert_eq!(selector.constraints.first().map(|c| c.condition), Some(AttrMatch::Notequal as i32));
        let last = policy.rules.last().expect("two");
        assert_eq!(last.action, PolicyAction::Deny as i32);
        assert_eq!(last.selector.as_ref().map(|s| s.match_type), Some(MatchType::Exact as i32));
        let error = parse(br#"{"rules":[{"action":"FORBID"}]}"#).expect_err("unknown");
        assert_eq!(error, "\"FORBID\" is no action");
    }
}
