//! Names, annotations and labels that are filled in from what is known of the source. Pure.

use std::collections::BTreeMap;

use lapstrake_handoff::SourceFacts;
use lapstrake_oci::Reference;

use crate::time;

/// The placeholders that a tag may have.
const PLACEHOLDERS: [&str; 10] =
    ["commit", "shortCommit", "date", "time", "branch", "tag", "semver", "major", "minor", "patch"];
/// Digits of a short commit id.
const SHORT_COMMIT: usize = 7;

/// What names became.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Filled {
    /// Names without placeholders, each once, in the order given.
    pub(crate) names: Vec<Reference>,
    /// Names that were left out, and the placeholder that has no value.
    pub(crate) left_out: Vec<(String, String)>,
}

/// Whether a name has to be filled in.
pub(crate) fn is_template(name: &str) -> bool {
    name.contains('{')
}

/// Whether filling in needs the repository's tags or its branch.
pub(crate) fn asks_repository<'a>(names: impl IntoIterator<Item = &'a String>) -> bool {
    let asked = ["{branch}", "{tag}", "{semver}", "{major}", "{minor}", "{patch}"];
    names.into_iter().any(|name| asked.iter().any(|placeholder| name.contains(placeholder)))
}

/// Fills in names. One whose placeholder has no value is left out.
///
/// # Errors
/// A placeholder that is not known, a result that is no name, or names none of which is left.
pub(crate) fn fill(names: &[String], facts: &SourceFacts) -> Result<Filled, String> {
    let mut filled = Filled::default();
    for name in names {
        match fill_one(name, facts)? {
            Ok(full) => {
                let reference: Reference = full.parse().map_err(|e| format!("name {name}: {e}"))?;
                if !filled.names.contains(&reference) {
                    filled.names.push(reference);
                }
            }
            Err(placeholder) => filled.left_out.push((name.clone(), placeholder)),
        }
    }
    if filled.names.is_empty()
        && let Some((name, placeholder)) = filled.left_out.first()
    {
        return Err(format!(
            "no name is left for the image: {name} needs {{{placeholder}}}, which this source does not have; give \
             a name without placeholders beside it"
        ));
    }
    Ok(filled)
}

/// The full name, or the placeholder that has no value.
fn fill_one(name: &str, facts: &SourceFacts) -> Result<Result<String, String>, String> {
    let mut full = String::new();
    let mut rest = name;
    while let Some((before, after)) = rest.split_once('{') {
        let (placeholder, after) =
            after.split_once('}').ok_or_else(|| format!("name {name}: a {{ has no }}"))?;
        if !PLACEHOLDERS.contains(&placeholder) {
            let known = PLACEHOLDERS.map(|p| format!("{{{p}}}")).join(", ");
            return Err(format!("name {name}: {{{placeholder}}} is not known; there are {known}"));
        }
        let Some(value) = value(placeholder, facts) else { return Ok(Err(placeholder.to_owned())) };
        full.push_str(before);
        full.push_str(&value);
        rest = after;
    }
    full.push_str(rest);
    Ok(Ok(full))
}

fn value(placeholder: &str, facts: &SourceFacts) -> Option<String> {
    let version = || facts.tag.as_deref().and_then(Version::parse);
    // `1.2` stays where it is when `1.3.0-rc1` comes.
    let released = || version().filter(|v| v.pre.is_empty());
    let moment = |from: usize, to: usize| {
        let text = time::rfc3339(facts.time?);
        text.get(from..to).map(|part| part.replace([':', '-'], ""))
    };
    match placeholder {
        "commit" => facts.commit.clone(),
        "shortCommit" => facts.commit.as_ref().and_then(|c| c.get(..SHORT_COMMIT)).map(str::to_owned),
        "date" => moment(0, 10),
        "time" => moment(11, 19),
        "branch" => facts.branch.as_deref().and_then(as_tag),
        "tag" => facts.tag.as_deref().and_then(as_tag),
        "semver" => version().map(|v| v.to_string()),
        "major" => released().map(|v| v.numbers[0].to_string()),
        "minor" => released().map(|v| v.numbers[1].to_string()),
        "patch" => released().map(|v| v.numbers[2].to_string()),
        _ => None,
    }
}

/// A branch or tag of Git as a part of an image's tag: what can't stand there becomes `-`.
fn as_tag(name: &str) -> Option<String> {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "_.-".contains(c) { c } else { '-' };
    let name: String = name.chars().map(plain).collect();
    let name = name.trim_start_matches(['.', '-']);
    (!name.is_empty()).then(|| name.to_owned())
}

/// A version as semver.org has it, a `v` before it allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version {
    numbers: [u64; 3],
    pre: String,
}

impl Version {
    pub(crate) fn parse(tag: &str) -> Option<Self> {
        let text = tag.strip_prefix('v').unwrap_or(tag);
        let text = text.split_once('+').map_or(text, |(text, _)| text);
        let (core, pre) = text.split_once('-').unwrap_or((text, ""));
        let number = |part: &str| {
            let plain = part == "0" || !part.starts_with('0');
            plain.then(|| part.parse::<u64>().ok()).flatten()
        };
        let mut parts = core.split('.').map(number);
        let numbers = [parts.next()??, parts.next()??, parts.next()??];
        let fits = |c: char| c.is_ascii_alphanumeric() || ".-".contains(c);
        let whole = parts.next().is_none() && pre.chars().all(fits) && !text.ends_with('-');
        whole.then(|| Self { numbers, pre: pre.to_owned() })
    }
}

impl Ord for Version {
    /// A release comes after its candidates; these by their text, with numbers as numbers.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let parts = |pre: &str| -> Vec<(bool, u64, String)> {
            let part =
                |p: &str| p.parse().map_or_else(|_| (true, 0, p.to_owned()), |n| (false, n, String::new()));
            pre.split('.').map(part).collect()
        };
        let by_pre = || match (self.pre.is_empty(), other.pre.is_empty()) {
            (false, false) => parts(&self.pre).cmp(&parts(&other.pre)),
            (mine, theirs) => mine.cmp(&theirs),
        };
        self.numbers.cmp(&other.numbers).then_with(by_pre)
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [major, minor, patch] = self.numbers;
        write!(f, "{major}.{minor}.{patch}")?;
        if self.pre.is_empty() { Ok(()) } else { write!(f, "-{}", self.pre) }
    }
}

/// OCI's standard annotations, as far as the source tells them.
pub(crate) fn standard(
    url: Option<&str>,
    facts: &SourceFacts,
    created: Option<i64>,
) -> BTreeMap<String, String> {
    let version = match facts.tag.as_deref() {
        Some(tag) => Some(Version::parse(tag).map_or_else(|| tag.to_owned(), |v| v.to_string())),
        None => facts.branch.clone(),
    };
    let all = [
        ("source", url.map(str::to_owned)),
        ("revision", facts.commit.clone()),
        ("version", version),
        ("created", created.or(facts.time).map(time::rfc3339)),
    ];
    let named =
        |(key, value): (&str, Option<String>)| Some((format!("org.opencontainers.image.{key}"), value?));
    all.into_iter().filter_map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> SourceFacts {
        SourceFacts {
            commit: Some("0123456789abcdef0123456789abcdef01234567".to_owned()),
            time: Some(1_700_000_000),
            branch: Some("feature/new+thing".to_owned()),
            tag: Some("v1.2.3".to_owned()),
        }
    }

    fn filled(name: &str, facts: &SourceFacts) -> Option<String> {
        fill_one(&format!("r.test/a:{name}"), facts)
            .expect("known placeholders")
            .ok()?
            .strip_prefix("r.test/a:")
            .map(str::to_owned)
    }

    #[test]
    fn each_placeholder_has_its_value() {
        for (name, wanted) in [
            ("{shortCommit}", "0123456"),
            ("{date}-{time}", "20231114-221320"),
            ("{branch}", "feature-new-thing"),
            ("{tag}", "v1.2.3"),
            ("{semver}", "1.2.3"),
            ("v{major}.{minor}", "v1.2"),
            ("{patch}x", "3x"),
        ] {
            assert_eq!(filled(name, &facts()).as_deref(), Some(wanted), "{name}");
        }
        assert_eq!(filled("{commit}", &facts()), facts().commit);
    }

    #[test]
    fn a_release_candidate_moves_no_shorter_version() {
        let facts = SourceFacts { tag: Some("v2.0.0-rc.1+build5".to_owned()), ..facts() };
        assert_eq!(filled("{semver}", &facts).as_deref(), Some("2.0.0-rc.1"));
        assert_eq!(filled("{tag}", &facts).as_deref(), Some("v2.0.0-rc.1-build5"));
        assert_eq!(filled("{major}", &facts), None);
        for no_version in ["1.2", "v1.2.3.4", "01.2.3", "release", "1.2.3-", "1.2.x"] {
            assert_eq!(Version::parse(no_version), None, "{no_version}");
        }
    }

    #[test]
    fn versions_are_ordered_as_numbers_and_a_release_comes_last() {
        let sorted = ["1.9.0", "1.10.0-rc.2", "1.10.0-rc.10", "1.10.0", "2.0.0-a"];
        let versions: Vec<_> = sorted.iter().map(|v| Version::parse(v).expect("a version")).collect();
        assert!(versions.is_sorted(), "{versions:?}");
    }

    #[test]
    fn a_name_without_a_value_is_left_out_and_none_left_is_an_error() {
        let facts = SourceFacts { tag: None, ..facts() };
        let names = ["r.test/a:{semver}", "r.test/a:{shortCommit}", "r.test/a:0123456"].map(str::to_owned);
        let filled = fill(&names, &facts).expect("one is left");
        assert_eq!(filled.names, ["r.test/a:0123456".parse().expect("valid")]);
        assert_eq!(filled.left_out, [("r.test/a:{semver}".to_owned(), "semver".to_owned())]);
        let error = fill(&names[..1], &facts).expect_err("none is left");
        assert!(error.contains("{semver}"), "{error}");
        assert!(fill(&["r.test/a:{color}".to_owned()], &facts).expect_err("unknown").contains("{patch}"));
        assert!(fill(&["r.test/a:{tag".to_owned()], &facts).is_err());
    }

    #[test]
    fn standard_annotations_say_what_is_known() {
        let all = standard(Some("https://git.example/a"), &facts(), None);
        let get = |key: &str| all.get(&format!("org.opencontainers.image.{key}")).map(String::as_str);
        assert_eq!(get("version"), Some("1.2.3"));
        assert_eq!(get("created"), Some("2023-11-14T22:13:20Z"));
        assert_eq!(standard(None, &SourceFacts::default(), None).len(), 0);
    }
}
