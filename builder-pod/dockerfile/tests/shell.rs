//! Variables are expanded as a shell expands them: the forms of POSIX beside `sh`, those of bash beside `bash`, both really
//! run.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::io::Write as _;
use std::process::{Command, Stdio};

use lapstrake_dockerfile::{Options, parse, plan};
use proptest::prelude::*;

/// What is set, for the shell and for the file. Nothing in it is a pattern or a quote.
const VARIABLES: [(&str, &str); 4] =
    [("a", "one"), ("empty", ""), ("path", "/usr/lib/libx.so.1"), ("two", "x.y/x.y")];
/// What an error comes out as.
const REFUSED: &str = "(refused)";

/// The value that we give to a variable; a text that is refused has none.
fn ours(text: &str) -> String {
    let set: String = VARIABLES.iter().map(|(name, value)| format!("ENV {name}=\"{value}\"\n")).collect();
    let file = format!("FROM scratch\n{set}ENV result={text}\n");
    let parsed = parse("Dockerfile", &file);
    let lowered = plan(&parsed, &Options::default()).and_then(|plan| plan.lower(&support::resolve(&plan)));
    let Ok(lowered) = lowered else { return REFUSED.to_owned() };
    let value = lowered.config.config.env.iter().find_map(|line| line.strip_prefix("result="));
    value.unwrap_or_else(|| panic!("{text}: the variable is not set")).to_owned()
}

/// The values that a shell gives, one process for all.
fn theirs(shell: &str, texts: &[String]) -> Vec<String> {
    let set: String = VARIABLES.iter().map(|(name, value)| format!("{name}='{value}'\n")).collect();
    // Each in a shell of its own: an error ends it.
    let each = |text: &String| {
        format!("( result={text}\nprintf '%s\\0' \"$result\" ) 2>/dev/null || printf '{REFUSED}\\0'\n")
    };
    let script: String = std::iter::once(set).chain(texts.iter().map(each)).collect();
    let mut child = Command::new(shell)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("LC_ALL", "C")
        .arg("-s")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{shell} can't be started ({error}): apt-get install dash bash"));
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    let out = String::from_utf8(out.stdout).unwrap();
    out.split_terminator('\0').map(str::to_owned).collect()
}

#[track_caller]
fn same(shell: &str, texts: &[String]) {
    let theirs = theirs(shell, texts);
    assert_eq!(theirs.len(), texts.len(), "{shell} gave {theirs:?} for {texts:?}");
    for (text, theirs) in texts.iter().zip(theirs) {
        assert_eq!(ours(text), theirs, "{text} in {shell}");
    }
}

fn name() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["a", "empty", "path", "two", "none"])
}

fn literal() -> impl Strategy<Value = String> {
    "[a-z0-9./_,:@+-]{1,4}"
}

fn pattern() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        3 => prop::sample::select(vec!["*", "?", "/", ".", "x", "lib", "o", "1", "\\*"]).prop_map(str::to_owned),
        1 => name().prop_map(|name| format!("${name}")),
    ];
    prop::collection::vec(part, 1..4).prop_map(|parts| parts.concat())
}

/// Words of POSIX, with quotes at their outside.
fn word() -> impl Strategy<Value = String> {
    let simple = prop_oneof![
        literal(),
        name().prop_map(|name| format!("${{{name}}}")),
        prop::sample::select(vec!["\\$", "\\\\", "\\\"", "\\x"]).prop_map(str::to_owned),
        (name(), prop::sample::select(vec!["#", "##", "%", "%%"]), pattern())
            .prop_map(|(name, operator, pattern)| format!("${{{name}{operator}{pattern}}}")),
    ];
    let nested = simple.prop_recursive(3, 24, 3, |inner| {
        // An error in a word that is not taken is none in a shell, and one in BuildKit: `:?` stands outside only.
        let operators = vec![":-", "-", ":+", "+"];
        let inner = prop::collection::vec(inner, 0..3).prop_map(|parts| parts.concat());
        (name(), prop::sample::select(operators), inner)
            .prop_map(|(name, operator, word)| format!("${{{name}{operator}{word}}}"))
    });
    let quoted = prop::collection::vec(
        prop_oneof![
            literal(),
            name().prop_map(|name| format!("${{{name}}} ")),
            prop::sample::select(vec!["\\$", "\\\"", "\\x", "'"]).prop_map(str::to_owned),
        ],
        0..4,
    );
    let single = "[a-z$\\\\\" {}]{0,6}";
    let piece = prop_oneof![
        4 => nested,
        1 => (name(), prop::sample::select(vec!["?", ":?"]), literal())
            .prop_map(|(name, operator, word)| format!("${{{name}{operator}{word}}}")),
        1 => quoted.prop_map(|parts| format!("\"{}\"", parts.concat())),
        1 => single.prop_map(|text| format!("'{text}'")),
    ];
    prop::collection::vec(piece, 1..5).prop_map(|parts| parts.concat())
}

proptest! {
    // Each case is many words.
    #![proptest_config(ProptestConfig { cases: 30, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn forms_of_posix_give_what_sh_gives(texts in prop::collection::vec(word(), 40)) {
        same("sh", &texts);
    }

    /// Of nothing, and of an empty pattern, bash replaces nothing; BuildKit puts the new text there.
    #[test]
    fn replacements_give_what_bash_gives(
        parts in prop::collection::vec(
            (
                prop::sample::select(vec!["a", "path", "two"]),
                prop::sample::select(vec!["/", "//"]),
                "(\\*|\\?|x|lib|o|1|[.]|\\\\\\*){1,3}",
                "[a-z0-9._,:@+-]{0,3}",
            ),
            40,
        ),
    ) {
        let text = |(name, operator, pattern, new): (&str, &str, String, String)| {
            format!("${{{name}{operator}{pattern}/{new}}}")
        };
        same("bash", &parts.into_iter().map(text).collect::<Vec<_>>());
    }
}
