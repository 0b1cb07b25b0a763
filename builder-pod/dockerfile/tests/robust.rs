//! No input makes the crate panic, recurse without end or need more than linear time.

#[path = "../../../fuzz/inputs.rs"]
#[allow(dead_code, reason = "the fuzzing targets use the rest")]
mod inputs;
#[path = "support/large.rs"]
mod large;
mod support;

use inputs::everything;
use lapstrake_dockerfile::{Capabilities, Options, parse, plan};
use proptest::prelude::*;

fn options() -> Options {
    Options { capabilities: Capabilities::ALL, ..Options::default() }
}

const PIECES: [&str; 78] = [
    "FROM",
    "FROM scratch\n",
    "FROM a AS b\n",
    "FROM b\n",
    "RUN",
    "COPY",
    "ADD",
    "ENV",
    "ARG",
    "LABEL",
    "WORKDIR",
    "USER",
    "VOLUME",
    "EXPOSE",
    "CMD",
    "ENTRYPOINT",
    "SHELL",
    "HEALTHCHECK",
    "ONBUILD",
    "STOPSIGNAL",
    "MAINTAINER",
    " ",
    " ",
    " ",
    "\n",
    "\n",
    "\r\n",
    "\t",
    "\\",
    "\\\n",
    "`",
    "\"",
    "'",
    "$",
    "${",
    "}",
    ":-",
    "${a:-",
    "#",
    "##",
    "/",
    "//",
    "%",
    "*",
    "?",
    "=",
    ",",
    "[",
    "]",
    "[\"a\"]",
    "<<",
    "<<EOF",
    "<<-EOF",
    "EOF\n",
    "--",
    "--from=",
    "--from=0",
    "--from=b",
    "--mount=type=",
    "cache",
    "bind",
    ",target=/x",
    "--chmod=",
    "755",
    "a",
    "b",
    "x=y",
    "é",
    "\u{feff}",
    "# escape=`\n",
    "# syntax=docker/dockerfile:1\n",
    "https://x/y",
    "# check=skip=all\n",
    "# check=experimental=lapstrake;error=true\n",
    "apt-get install",
    "&&",
    "|",
    "cd",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn texts_of_known_pieces_are_read_or_refused(indices in proptest::collection::vec(0..PIECES.len(), 0..60)) {
        let body: String = indices.iter().map(|i| PIECES[*i]).collect();
        everything(&body, &options());
        everything(&format!("FROM debian AS b\n{body}"), &options());
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,200}|[ -~\n\t]{0,200}") {
        everything(&text, &options());
        everything(&format!("FROM debian\nRUN {text}\nCOPY {text}\nENV {text}"), &options());
    }

    /// Adding comments, empty lines and other case of keywords changes no operation.
    #[test]
    fn what_has_no_meaning_changes_nothing(steps in proptest::collection::vec("[a-z][a-z ]{0,11}", 1..8)) {
        let plain: String = steps.iter().map(|s| format!("RUN x {s}\n")).collect();
        let noisy: String = steps.iter().map(|s| format!("# c\n\n  rUn x \\\n# d\n{s}\n")).collect();
        let digests = |text: &str| {
            let parsed = parse("Dockerfile", text);
            let plan = plan(&parsed, &options()).expect("valid");
            let definition = plan.lower(&support::resolve(&plan)).expect("valid").definition;
            definition.def
        };
        prop_assert_eq!(digests(&format!("FROM a\n{plain}")), digests(&format!("from a\n{noisy}")));
    }
}

/// Quadratic behaviour would make this run for minutes. How long 1 MB takes: `cargo xtask bench frontend`.
#[test]
fn much_of_anything_is_done_or_refused_at_once() {
    for (_, text) in large::texts(80_000) {
        everything(&text, &options());
    }
}

#[test]
fn more_instructions_than_an_engine_takes_are_refused_where_they_begin() {
    let max = lapstrake_dockerfile::limits::INSTRUCTIONS_MAX;
    let parsed = parse("Dockerfile", &format!("FROM a\n{}", "RUN x\n".repeat(max)));
    let first = parsed.diagnostics.first_error().expect("refused");
    assert_eq!(
        (first.code, parsed.diagnostics.position(first).line as usize),
        ("too-many-instructions", max + 1)
    );
    let parsed = parse("Dockerfile", &format!("FROM a\n{}", "RUN x\n".repeat(max - 1)));
    assert!(!parsed.diagnostics.has_errors());
}
