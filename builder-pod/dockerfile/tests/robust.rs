//! No input makes the crate panic, recurse without end or need more than linear time.

mod support;

use lapstrake_dockerfile::{
    Capabilities, Images, Options, Parsed, Style, fixed, formatted, limits, lint, parse, plan,
};
use proptest::prelude::*;

/// Does all there is to do with a text.
fn everything(text: &str, options: &Options) {
    let parsed = parse("Dockerfile", text);
    let size = text.len();
    for finding in &parsed.diagnostics {
        assert!(finding.span.start <= finding.span.end && finding.span.end <= size, "{finding:?}");
    }
    let _ = (parsed.diagnostics.render(Style::Color), parsed.diagnostics.to_json());
    let checked = lint::check(&parsed, options, &Images::new());
    let before = meaning(&parsed, options);
    if let Some(text) = formatted(&parsed) {
        let again = parse("Dockerfile", &text);
        assert_eq!(meaning(&again, options), before, "{text:?}");
        assert_eq!(formatted(&again).as_deref(), Some(text.as_str()));
    }
    if let Some((text, _)) = fixed(&parsed, options, &Images::new()) {
        assert_eq!(meaning(&parse("Dockerfile", &text), options), before, "{text:?}");
    }
    let _ = (checked.to_client_json(), checked.findings.to_sarif(), checked.findings.render(Style::Plain));
    match plan(&parsed, options) {
        Err(findings) => assert!(findings.has_errors() && findings.len() <= 300),
        Ok(plan) => match plan.lower(&support::resolve(&plan)) {
            Ok(lowered) => {
                let _ = plan.outline(&Images::new()).to_text();
                lapstrake_llb::Graph::decode(&lowered.definition).expect("a valid graph");
            }
            Err(findings) => {
                assert!(findings.has_errors());
                let _ = (findings.render(Style::Plain), findings.to_string());
            }
        },
    }
}

/// The operations and the config that come of a file; none where it is refused.
fn meaning(parsed: &Parsed, options: &Options) -> Option<(Vec<Vec<u8>>, lapstrake_oci::ImageConfig)> {
    let plan = plan(parsed, options).ok()?;
    let lowered = plan.lower(&support::resolve(&plan)).ok()?;
    Some((lowered.definition.def, lowered.config))
}

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

/// Quadratic behaviour would make this run for minutes.
#[test]
fn much_of_anything_is_done_or_refused_at_once() {
    let size = 80_000;
    let fill = |unit: &str| unit.repeat(size / unit.len());
    let counted = |unit: &dyn Fn(usize) -> String| {
        let mut text = String::from("FROM debian AS s0\n");
        let mut count = 0;
        while text.len() < size {
            count += 1;
            text.push_str(&unit(count));
        }
        text
    };
    let line = |unit: &str| unit.repeat(limits::LINE_BYTES_MAX * 9 / 10 / unit.len());
    let texts = [
        fill("\n"),
        fill("x\n"),
        fill("#\n"),
        fill("FROM a\n"),
        fill("\\\n"),
        fill("RUN \\\n"),
        fill("RUN <<a\n"),
        format!("FROM a\n{}", fill("RUN x\n")),
        format!("FROM a\n{}", fill("COPY --from=$x a b\n")),
        format!("FROM a\nCOPY {} /x\n{}", line("<<a "), fill("a\n")),
        format!("FROM a\nENV {}\n{}", line("a=b "), fill("RUN x\n")),
        format!("FROM a\nENV x={}\n", line("${a:-")),
        format!("FROM a\nENV x={}\n", line("$aa")),
        format!("FROM a\nEXPOSE {}\n", line("0-65535 ")),
        format!("ARG a={}\n{}FROM a\n", line("y"), fill("ARG b=$a$a$a$a\n")),
        format!("FROM a\nENV a={}\n{}", line("y"), fill("ENV b$a=$a$a$a$a\n")),
        format!("FROM a\nENV a={}\n{}", line("y"), fill("RUN $a\n")),
        format!("FROM a AS b\n{}FROM b\n", fill("ONBUILD RUN x\n")),
        format!("FROM a\nCOPY {}{} /x\n", line("--exclude=x "), "s ".repeat(2000)),
        format!("FROM a\nENV d={}\nCOPY {} $d\n", line("y"), "s ".repeat(20_000)),
        format!("FROM a\nRUN {} x\n", line("--mount=target=/x ")),
        counted(&|n| format!("FROM s{} AS s{n}\n", n - 1)),
        counted(&|n| format!("FROM s{} AS s{n}\nENV a{n}=1\n", n - 1)),
        counted(&|n| format!("FROM s0 AS s{n}\nCOPY --from=s{} a b\n", n - 1)),
        counted(&|n| format!("FROM i{n} AS s{n}\nCOPY --from=s{} a b\n", n - 1)),
        counted(&|n| format!("FROM s0 AS s{n}\nCOPY --from=s{} a b\n", n + 1)),
        counted(&|n| format!("ENV a{n}=1\n")),
        counted(&|n| format!("LABEL a{n}=1\nRUN {n}\n")),
        counted(&|n| format!("ARG a{n}=1\nRUN {n}\n")),
        format!("ARG a0=1\n{}", counted(&|n| format!("ARG a{n}=1\nRUN echo $a0 $a{n} $b{n}\n"))),
        counted(&|n| format!("FROM $a{n} AS t{n}\nCOPY a{n} /x{n}\nRUN chown -R a /x{n}\n")),
        counted(&|n| format!("# check=skip=R{n}\nRUN cd /x{n} | apt-get install {n} && apk add {n}\n")),
        format!("# check=skip={}\nFROM a\n{}", line("Rule,"), fill("# check=skip=a\nENV a b\n")),
        format!("FROM a\nRUN {}\n", line("apt-get install a && ")),
        format!("FROM a\nRUN {}\n", line("$a'\"")),
        counted(&|n| format!("ONBUILD RUN x\nFROM s{} AS s{n}\n", n - 1)),
    ];
    for text in texts {
        everything(&text, &options());
    }
}
