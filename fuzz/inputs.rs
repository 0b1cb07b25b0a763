//! What is done with an input, by libFuzzer (`fuzz/targets`) and by the tests that replay the corpus
//! (`builder-pod/dockerfile/tests/fuzz.rs`).
//!
//! Holds of any input: no panic, findings lie in the text, what is lowered is a valid graph, formatting and mending
//! change no operation.

use std::collections::BTreeMap;

use lapstrake_dockerfile::{
    Capabilities, Images, NoCache, Options, Parsed, Plan, ResolvedImage, Style, Subrequest, fixed, formatted,
    lint, parse as parse_text, plan, targets_text,
};
use lapstrake_fileop::Patterns;
use lapstrake_llb::Graph;
use lapstrake_oci::{Digest, ImageConfig};

/// Lexer, parser, directives, findings, rules, formatting.
pub(crate) fn parse(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let parsed = parse_text("Dockerfile", &text);
    for finding in &parsed.diagnostics {
        assert!(finding.span.start <= finding.span.end && finding.span.end <= text.len(), "{finding:?}");
    }
    let _ = (parsed.diagnostics.render(Style::Color), parsed.diagnostics.to_json());
    let checked = lint::check(&parsed, &options(), &Images::new());
    let _ = (checked.to_client_json(), checked.findings.to_sarif(), checked.findings.render(Style::Plain));
    let _ = targets_text(&lapstrake_dockerfile::targets(&parsed));
    let _ = Subrequest::named(&text);
    if let Some(first) = formatted(&parsed) {
        let again = parse_text("Dockerfile", &first);
        assert_eq!(formatted(&again).as_deref(), Some(first.as_str()), "formatting is done at once");
    }
}

/// Words with variables, in each place that expands them.
pub(crate) fn expand(data: &[u8]) {
    let text = String::from_utf8_lossy(data).replace(['\n', '\r'], " ");
    let file = format!(
        "ARG G={text}\nFROM scratch AS s\nARG a=1 b=two\nENV c=\"x y\" path=/usr/lib/a.so.1 empty=\n\
         ENV v={text}\nENV w=\"{text}\"\nENV x='{text}'\nLABEL l={text}\nWORKDIR {text}\nUSER {text}\nEXPOSE {text}\n\
         COPY {text} /\nRUN --mount=type=cache,target={text} true\nARG z={text}\nADD {text} [\"{text}\"]\n"
    );
    everything(&file, &options());
    // One at a time: the others' errors end a build before the rest is looked at.
    for line in ["ENV v=", "LABEL l=", "WORKDIR ", "STOPSIGNAL ", "VOLUME ", "COPY /x ", "RUN --mount="] {
        everything(
            &format!("FROM scratch\nARG a=1 b=two c\nENV path=/usr/lib/a.so.1\n{line}{text}\n"),
            &options(),
        );
    }
}

/// Ignore files: the first line is a path, the others are patterns.
pub(crate) fn ignore(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (path, rest) = text.split_once('\n').unwrap_or(("", &text));
    let Ok(patterns) = Patterns::new(rest.lines()) else { return };
    let whole = patterns.matches(path);
    let _ = (patterns.may_match_below(path, false), patterns.may_match_below(path, true));
    // What is said of a path is the same when it is said folder by folder. With exceptions it is not, as in BuildKit:
    // one that names a folder counts for what is in it only where the folder itself was left out.
    let clean = !path.is_empty() && path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if clean && path.len() < 200 && !patterns.has_negations() {
        let mut state = lapstrake_fileop::MatchState::default();
        let mut matched = false;
        for end in path.match_indices('/').map(|(at, _)| at).chain([path.len()]) {
            (matched, state) = patterns.matches_below(&path[..end], &state);
        }
        assert_eq!(matched, whole, "{path:?} by {rest:?}");
    }
}

/// A whole file: planning, lowering, outline. The first line says how it is built.
pub(crate) fn lower(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (first, rest) = text.split_once('\n').unwrap_or(("", &text));
    let mut options = options();
    for word in first.split(' ') {
        match word.split_once('=') {
            Some(("target", name)) => options.target = Some(name.to_owned()),
            Some(("platform", name)) => options.target_platform = name.parse().ok(),
            Some(("no-cache", name)) => options.no_cache = NoCache::Stages(vec![name.to_owned()]),
            Some((name, value)) => drop(options.build_args.insert(name.to_owned(), value.to_owned())),
            None if word == "multi" => options.multi_platform = true,
            None if word == "small" => options.capabilities = Capabilities::default(),
            None => {}
        }
    }
    everything(rest, &options);
}

fn options() -> Options {
    Options {
        capabilities: Capabilities::ALL,
        build_args: BTreeMap::from([("b".to_owned(), "given".to_owned())]),
        ignore_patterns: vec!["*.log".to_owned(), "sub/".to_owned()],
        ..Options::default()
    }
}

/// Does all there is to do with a text.
pub(crate) fn everything(text: &str, options: &Options) {
    let parsed = parse_text("Dockerfile", text);
    for finding in &parsed.diagnostics {
        assert!(finding.span.start <= finding.span.end && finding.span.end <= text.len(), "{finding:?}");
    }
    let _ = (parsed.diagnostics.render(Style::Color), parsed.diagnostics.to_json());
    let checked = lint::check(&parsed, options, &Images::new());
    let before = meaning(&parsed, options);
    if let Some(text) = formatted(&parsed) {
        let again = parse_text("Dockerfile", &text);
        assert_eq!(meaning(&again, options), before, "{text:?}");
        assert_eq!(formatted(&again).as_deref(), Some(text.as_str()));
    }
    if let Some((text, _)) = fixed(&parsed, options, &Images::new()) {
        assert_eq!(meaning(&parse_text("Dockerfile", &text), options), before, "{text:?}");
    }
    let _ = (checked.to_client_json(), checked.findings.to_sarif(), checked.findings.render(Style::Plain));
    match plan(&parsed, options) {
        Err(findings) => assert!(findings.has_errors() && findings.len() <= 300),
        Ok(plan) => match plan.lower(&resolve(&plan)) {
            Ok(lowered) => {
                let _ = plan.outline(&Images::new()).to_text();
                Graph::decode(&lowered.definition).expect("a valid graph");
            }
            Err(findings) => {
                assert!(findings.has_errors());
                let _ = (findings.render(Style::Plain), findings.to_string());
            }
        },
    }
}

/// The operations and the config that come of a file; none where it is refused.
fn meaning(parsed: &Parsed, options: &Options) -> Option<(Vec<Vec<u8>>, ImageConfig)> {
    let plan = plan(parsed, options).ok()?;
    let lowered = plan.lower(&resolve(&plan)).ok()?;
    Some((lowered.definition.def, lowered.config))
}

/// A config for each image that is asked for: one with triggers where its name begins with `o`.
fn resolve(plan: &Plan) -> Images {
    plan.images_assumed(Images::new(), |request| {
        let mut config = ImageConfig::of_platform(&request.key.platform);
        config.config.env = vec!["PATH=/bin".to_owned(), "base=1".to_owned()];
        config.rootfs.diff_ids = vec![Digest::of(b"layer")];
        if request.key.reference.repository().contains("/o") {
            config.config.on_build = vec!["COPY . /app".to_owned(), "RUN make $base".to_owned()];
        }
        ResolvedImage { digest: Some(Digest::of(b"image")), config, instead: None }
    })
}
