//! `# check=skip=…;error=…;experimental=…`.

use std::borrow::Cow;
use std::collections::BTreeSet;

use crate::ast::Word;
use crate::lint::{Rule, rule};

/// Which rules report, and whether what they find is an error.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Control {
    skip_all: bool,
    skip: BTreeSet<String>,
    experimental_all: bool,
    experimental: BTreeSet<String>,
    /// Findings are an error.
    pub(crate) error: bool,
}

/// More names in one setting are not read; there are fewer rules.
const NAMES_MAX: usize = 100;
/// Stands for all of our own rules in `experimental=`.
const OURS: &str = "lapstrake";

impl Control {
    /// Reads the value of a `check` directive; the error is a finding's text.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut control = Self::default();
        let text = text.trim();
        if text.is_empty() {
            return Ok(control);
        }
        for part in text.splitn(3, ';') {
            let Some((key, value)) = part.split_once('=') else {
                return Err(format!("invalid check option {part:?}"));
            };
            let value = value.trim();
            let names = || value.split(',').take(NAMES_MAX).map(|name| name.trim().to_owned()).collect();
            match key.trim() {
                "skip" if value == "all" => control.skip_all = true,
                "skip" => control.skip = names(),
                "experimental" if value == "all" => control.experimental_all = true,
                "experimental" => control.experimental = names(),
                "error" => match value {
                    "1" | "t" | "T" | "true" | "TRUE" | "True" => control.error = true,
                    "0" | "f" | "F" | "false" | "FALSE" | "False" => control.error = false,
                    _ => return Err(format!("failed to parse check option {part:?}: it is true or false")),
                },
                key => return Err(format!("invalid check option {key:?}")),
            }
        }
        Ok(control)
    }

    /// With what the comments above an instruction add.
    pub(crate) fn merged(&self, comments: &[Word]) -> Cow<'_, Self> {
        let check = |comment: &Word| {
            let (name, value) = comment.text.split_once('=')?;
            let value = value.trim();
            (name.trim().eq_ignore_ascii_case("check") && !value.is_empty())
                .then(|| value.split(' ').next().unwrap_or("").to_owned())
        };
        let Some(Ok(other)) = comments.iter().find_map(check).map(|text| Self::parse(&text)) else {
            return Cow::Borrowed(self);
        };
        let mut own = self.clone();
        own.skip_all |= other.skip_all;
        own.skip.extend(other.skip);
        own.experimental_all |= other.experimental_all;
        own.experimental.extend(other.experimental);
        Cow::Owned(own)
    }

    /// Whether a rule that is off by default is on.
    pub(crate) fn asks_for(&self, rule: &Rule) -> bool {
        self.experimental.contains(rule.name)
            || rule.of_buildkit && self.experimental_all
            || !rule.of_buildkit && self.experimental.contains(OURS)
    }

    /// Names that no rule has.
    pub(crate) fn unknown(&self) -> impl Iterator<Item = &str> {
        let names = self.skip.iter().chain(&self.experimental).map(String::as_str);
        names.filter(|name| rule(name).is_none() && !name.is_empty() && *name != OURS)
    }

    /// Whether findings of a rule are told.
    pub(crate) fn reports(&self, rule: &Rule) -> bool {
        let skipped = self.skip_all || self.skip.contains(rule.name);
        match (rule.of_buildkit, rule.by_default) {
            (_, true) => !skipped,
            // As BuildKit has it: what was asked for is not skipped.
            (true, false) => self.asks_for(rule),
            (false, false) => self.asks_for(rule) && !skipped,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Span;

    fn reports(control: &Control, name: &str) -> bool {
        control.reports(rule(name).unwrap_or_else(|| panic!("no rule {name}")))
    }

    #[test]
    fn rules_are_skipped_asked_for_and_made_errors() {
        let control = Control::parse("skip=UndefinedVar, JSONArgsRecommended;error=true").expect("valid");
        assert!(control.error && !reports(&control, "UndefinedVar"));
        assert!(!reports(&control, "JSONArgsRecommended") && reports(&control, "StageNameCasing"));
        let control = Control::parse("skip=all;experimental=all").expect("valid");
        assert!(!reports(&control, "StageNameCasing") && reports(&control, "InvalidDefinitionDescription"));
        assert!(!reports(&control, "UnpinnedBaseImage"), "ours are not among what BuildKit means by all");
        let control = Control::parse("experimental=lapstrake").expect("valid");
        assert!(reports(&control, "UnpinnedBaseImage") && !reports(&control, "InvalidDefinitionDescription"));
        let control = Control::parse("experimental=UnpinnedBaseImage;skip=UnpinnedBaseImage").expect("valid");
        assert!(!reports(&control, "UnpinnedBaseImage"));
    }

    #[test]
    fn a_comment_adds_to_what_the_file_says() {
        let comment = |text: &str| Word { text: text.to_owned(), span: Span::default() };
        let file = Control::parse("skip=UndefinedVar").expect("valid");
        let merged = file.merged(&[comment("why"), comment("check=skip=StageNameCasing since it is old")]);
        assert!(!reports(&merged, "UndefinedVar") && !reports(&merged, "StageNameCasing"));
        assert_eq!(*file.merged(&[comment("check=nonsense")]), file);
    }

    #[test]
    fn what_is_no_option_is_told() {
        for text in ["x", "skip", "error=maybe", "skips=all"] {
            assert!(Control::parse(text).is_err(), "{text}");
        }
    }
}
