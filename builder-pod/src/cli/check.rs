//! `lapstrake-builder check`, `outline`, `targets` and `llb`: what a Dockerfile says, without building it.
//!
//! Nothing is run and no registry is asked: what a base image sets is not known, and `llb` takes it for empty.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use lapstrake_dockerfile::lint;
use lapstrake_dockerfile::{
    Capabilities, ContextFacts, Diagnostics, Images, Options, Parsed, Plan, ResolvedImage, Style,
};
use lapstrake_handoff::Reason;
use lapstrake_oci::{Digest, ImageConfig, Platform};

use super::graph;

/// Dockerfiles and ignore files are no longer than this.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// More of a context is not counted.
const CONTEXT_BYTES_COUNTED: u64 = 1 << 30;
/// More files of a context are not counted.
const CONTEXT_FILES_COUNTED: usize = 200_000;

/// What all of these commands are told.
#[derive(Debug, Parser)]
pub(crate) struct Source {
    /// The context.
    #[arg(default_value = ".", value_name = "DIR")]
    dir: PathBuf,
    /// Dockerfile, relative to the working directory or the context; `-` reads it from standard input.
    #[arg(short, long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// Stage to look at; all of them when absent (for `outline` and `llb`: the last one).
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// Build argument; without a value it is taken from the environment.
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    build_args: Vec<String>,
    /// Platform to build for; this machine's when absent.
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,
}

/// Flags of `check`.
#[derive(Debug, Parser)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    source: Source,
    /// How findings are shown.
    #[arg(long, value_enum, default_value_t = Shown::Text)]
    format: Shown,
    /// Mend in the file what can be mended without a change of meaning, and show the rest.
    #[arg(long)]
    fix: bool,
}

/// How findings are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shown {
    /// With their lines, in colour on a terminal.
    Text,
    /// One on a line.
    Short,
    /// As a list of objects.
    Json,
    /// As a SARIF 2.1.0 log.
    Sarif,
    /// As clients of BuildKit are told.
    Buildkit,
}

/// Flags of `outline` and `targets`.
#[derive(Debug, Parser)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    source: Source,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Flags of `fmt`.
#[derive(Debug, Parser)]
pub(crate) struct FmtArgs {
    #[command(flatten)]
    source: Source,
    /// Write nothing; end with 1 where something would be written.
    #[arg(long)]
    check: bool,
}

/// Flags of `llb`.
#[derive(Debug, Parser)]
pub(crate) struct LlbArgs {
    #[command(flatten)]
    source: Source,
    /// How the graph is shown.
    #[arg(long, value_enum, default_value_t = graph::Format::Text)]
    format: graph::Format,
}

/// Why there is nothing to show.
enum Failed {
    /// Something of the machine's or the command line's.
    Input(String),
    /// The file can't be built.
    Findings(Diagnostics),
    /// Nobody reads on.
    Output(io::Error),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

type Outcome = Result<ExitCode, Failed>;

/// `check`.
pub(crate) fn check(args: &CheckArgs) -> ExitCode {
    finish(look(args, &mut io::stdout()))
}

/// `fmt`: the file as it should be written, into its place or, for standard input, to standard output.
pub(crate) fn fmt(args: &FmtArgs) -> ExitCode {
    finish(read(&args.source).and_then(|parsed| {
        let Some(text) = lapstrake_dockerfile::formatted(&parsed) else {
            return Err(Failed::Findings(parsed.diagnostics));
        };
        let same = text == parsed.source().text();
        match dockerfile(&args.source) {
            _ if args.check => Ok(if same { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
            None => io::stdout().write_all(text.as_bytes()).map(|()| ExitCode::SUCCESS).map_err(Failed::from),
            Some(_) if same => Ok(ExitCode::SUCCESS),
            Some(path) => write(&path, &text).map(|()| ExitCode::SUCCESS),
        }
    }))
}

/// Puts a text in the place of a file, whole or not at all: somebody's work is in it, and the disk may be full.
fn write(path: &Path, text: &str) -> Result<(), Failed> {
    let replace = || -> io::Result<()> {
        // Where a link leads to, so that it stays one.
        let path = path.canonicalize()?;
        let mut new = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new("/")))?;
        new.write_all(text.as_bytes())?;
        new.as_file().set_permissions(std::fs::metadata(&path)?.permissions())?;
        new.as_file().sync_all()?;
        new.persist(&path)?;
        Ok(())
    };
    replace().map_err(|e| Failed::Input(format!("{} stays as it is: {e}", path.display())))
}

/// `outline`.
pub(crate) fn outline(args: &ListArgs) -> ExitCode {
    finish(with_plan(&args.source, |plan| {
        let outline = plan.outline(&Images::new());
        list(args, &outline.to_text(), &outline)
    }))
}

/// `targets`.
pub(crate) fn targets(args: &ListArgs) -> ExitCode {
    let listed = read(&args.source).and_then(|parsed| {
        if parsed.diagnostics.has_errors() {
            return Err(Failed::Findings(parsed.diagnostics));
        }
        let targets = lapstrake_dockerfile::targets(&parsed);
        list(args, &lapstrake_dockerfile::targets_text(&targets), &targets)
    });
    finish(listed)
}

/// `llb`.
pub(crate) fn llb(args: &LlbArgs) -> ExitCode {
    finish(with_plan(&args.source, |plan| {
        let lowered = plan.lower(&assumed(plan)).map_err(Failed::Findings)?;
        let graph =
            lapstrake_llb::Graph::decode(&lowered.definition).map_err(|e| Failed::Input(e.to_string()))?;
        io::stdout().write_all(graph::show(&graph, &lowered.definition, args.format).as_bytes())?;
        Ok(ExitCode::SUCCESS)
    }))
}

fn finish(outcome: Outcome) -> ExitCode {
    let invalid = Reason::DockerfileInvalid.class().exit_code();
    let (text, code) = match outcome {
        Ok(code) => return code,
        Err(Failed::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
        Err(Failed::Output(error)) => (format!("error: {error}\n"), 1),
        Err(Failed::Input(text)) => (format!("error: {text}\n"), 2),
        Err(Failed::Findings(findings)) => {
            (findings.render(style(console::colors_enabled_stderr())), invalid)
        }
    };
    io::stderr().write_all(text.as_bytes()).ok(); // nobody listens
    code.into()
}

fn style(colors: bool) -> Style {
    if colors { Style::Color } else { Style::Plain }
}

fn list(args: &ListArgs, text: &str, value: &impl serde::Serialize) -> Outcome {
    let json = || serde_json::to_string_pretty(value).map_err(|e| Failed::Input(e.to_string()));
    let text = if args.json { format!("{}\n", json()?) } else { text.to_owned() };
    io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn look(args: &CheckArgs, out: &mut dyn Write) -> Outcome {
    let (mut parsed, options) = (read(&args.source)?, options(&args.source)?);
    if args.fix {
        let Some(path) = dockerfile(&args.source) else {
            return Err(Failed::Input("--fix needs a file to write to".to_owned()));
        };
        if let Some((text, count)) = lapstrake_dockerfile::fixed(&parsed, &options, &Images::new()) {
            write(&path, &text)?;
            io::stderr().write_all(format!("{}: mended {count} findings\n", path.display()).as_bytes())?;
            parsed = lapstrake_dockerfile::parse(parsed.source().name(), &text);
        }
    }
    let checked = lint::check(&parsed, &options, &Images::new());
    let findings = &checked.findings;
    let pretty = |value: serde_json::Value| {
        serde_json::to_string_pretty(&value).map(|text| text + "\n").map_err(|e| Failed::Input(e.to_string()))
    };
    let text = match args.format {
        Shown::Text if findings.is_empty() => "Check complete, no warnings found.\n".to_owned(),
        Shown::Text => findings.render(style(console::colors_enabled())),
        Shown::Short => findings.iter().map(|finding| format!("{}\n", findings.short(finding))).collect(),
        Shown::Json => pretty(findings.to_json())?,
        Shown::Sarif => pretty(findings.to_sarif())?,
        Shown::Buildkit => pretty(checked.to_client_json())?,
    };
    out.write_all(text.as_bytes())?;
    let code = if checked.failed() { Reason::DockerfileInvalid.class().exit_code() } else { 0 };
    Ok(code.into())
}

fn with_plan(source: &Source, then: impl FnOnce(&Plan) -> Outcome) -> Outcome {
    let parsed = read(source)?;
    let plan = lapstrake_dockerfile::plan(&parsed, &options(source)?).map_err(Failed::Findings)?;
    then(&plan)
}

/// The Dockerfile, from where `build` would take it.
fn read(source: &Source) -> Result<Parsed, Failed> {
    let path = dockerfile(source);
    let text = match &path {
        None => io::read_to_string(io::stdin()).map_err(|e| Failed::Input(format!("standard input: {e}")))?,
        Some(path) => text(path).map_err(|e| Failed::Input(format!("{}: {e}", path.display())))?,
    };
    let name = match (&source.file, &path) {
        (Some(file), Some(_)) => file.display().to_string(),
        _ => "Dockerfile".to_owned(),
    };
    Ok(lapstrake_dockerfile::parse(&name, &text))
}

fn text(path: &Path) -> io::Result<String> {
    if std::fs::metadata(path)?.len() > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("it is larger than {FILE_BYTES_MAX} bytes")));
    }
    std::fs::read_to_string(path)
}

/// Where the Dockerfile is; nowhere for standard input.
fn dockerfile(source: &Source) -> Option<PathBuf> {
    match &source.file {
        Some(file) if file.as_os_str() == "-" => None,
        Some(file) if file.exists() => Some(file.clone()),
        Some(file) => Some(source.dir.join(file)),
        None => {
            let upper = source.dir.join("Dockerfile");
            let lower = source.dir.join("dockerfile");
            Some(if !upper.exists() && lower.exists() { lower } else { upper })
        }
    }
}

fn options(source: &Source) -> Result<Options, Failed> {
    let mut build_args = BTreeMap::new();
    for arg in &source.build_args {
        match arg.split_once('=') {
            Some((name, value)) => drop(build_args.insert(name.to_owned(), value.to_owned())),
            None => {
                if let Ok(value) = std::env::var(arg) {
                    build_args.insert(arg.clone(), value);
                }
            }
        }
    }
    let ignore = ignore_file(source);
    let native = crate::engine::native_platform();
    let (bytes, files) = survey(&source.dir);
    Ok(Options {
        target: source.target.clone(),
        build_args,
        target_platform: Some(source.platform.clone().unwrap_or_else(|| native.clone())),
        build_platform: native,
        ignore_patterns: ignore.iter().flat_map(|text| patterns(text)).collect(),
        context_files: files,
        context_facts: Some(ContextFacts { bytes, has_ignore_file: ignore.is_some() }),
        capabilities: Capabilities::ALL,
        ..Options::default()
    })
}

/// The ignore file that counts for the Dockerfile.
fn ignore_file(source: &Source) -> Option<String> {
    let own = dockerfile(source).map(|path| {
        let mut name = path.into_os_string();
        name.push(".dockerignore");
        PathBuf::from(name)
    });
    own.into_iter().chain([source.dir.join(".dockerignore")]).find_map(|path| text(&path).ok())
}

fn patterns(text: &str) -> Vec<String> {
    let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

/// How large a context is, and what is in it; nothing of the latter where that is too much. What can't be read counts
/// nothing.
fn survey(root: &Path) -> (u64, Option<BTreeSet<String>>) {
    let (mut bytes, mut files, mut open) = (0_u64, BTreeSet::new(), vec![root.to_owned()]);
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if let Some(relative) = path.strip_prefix(root).ok().and_then(Path::to_str) {
                files.insert(relative.to_owned());
            }
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push(path),
                Ok(kind) if kind.is_file() => bytes += entry.metadata().map_or(0, |meta| meta.len()),
                // What a link leads to is not looked at, nor whether what lies behind it is there.
                Ok(kind) if kind.is_symlink() && path.is_dir() => return (bytes, None),
                _ => {}
            }
        }
        if files.len() > CONTEXT_FILES_COUNTED || bytes > CONTEXT_BYTES_COUNTED {
            return (bytes, None);
        }
    }
    (bytes, Some(files))
}

/// Images of which nothing is known but that they have a layer.
fn assumed(plan: &Plan) -> Images {
    plan.images_assumed(Images::new(), |request| {
        let mut config = ImageConfig::of_platform(&request.key.platform);
        config.rootfs.diff_ids = vec![Digest::of(b"")];
        ResolvedImage { digest: None, config, instead: None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(dir: &Path) -> Source {
        Source { dir: dir.to_owned(), file: None, target: None, build_args: Vec::new(), platform: None }
    }

    fn shown(dir: &Path, format: Shown) -> String {
        let mut out = Vec::new();
        let args = CheckArgs { source: source(dir), format, fix: false };
        assert!(look(&args, &mut out).is_ok());
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn findings_come_in_every_format() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("Dockerfile"), "FROM alpine:3\nCOPY a.log /\n").expect("write");
        assert!(shown(dir.path(), Shown::Text).contains("The context has no a.log"));
        std::fs::write(dir.path().join("a.log"), "").expect("write");
        assert_eq!(shown(dir.path(), Shown::Text), "Check complete, no warnings found.\n");
        std::fs::write(dir.path().join(".dockerignore"), "# logs\n*.log\n").expect("write");
        assert!(shown(dir.path(), Shown::Text).contains("2 | COPY a.log /"));
        assert!(shown(dir.path(), Shown::Short).starts_with("Dockerfile:2:6: Attempting to Copy file"));
        for (format, key) in [(Shown::Json, "code"), (Shown::Sarif, "ruleId"), (Shown::Buildkit, "ruleName")]
        {
            let text = shown(dir.path(), format);
            serde_json::from_str::<serde_json::Value>(&text).expect("JSON");
            assert!(text.contains(&format!("\"{key}\": \"CopyIgnoredFile\"")), "{text}");
        }
    }

    #[test]
    fn a_file_is_mended_in_its_place() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("Dockerfile");
        std::fs::write(&file, "FROM alpine:3 as A\nENV a b\nCMD x\n").expect("write");
        let args = CheckArgs { source: source(dir.path()), format: Shown::Short, fix: true };
        let mut out = Vec::new();
        assert!(look(&args, &mut out).is_ok());
        assert_eq!(std::fs::read_to_string(&file).expect("read"), "FROM alpine:3 AS a\nENV a=b\nCMD x\n");
        let rest = String::from_utf8(out).expect("text");
        assert!(rest.lines().count() == 1 && rest.contains("JSON arguments recommended"), "{rest}");
    }

    #[test]
    fn what_is_written_anew_keeps_its_mode_and_the_link_to_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("a folder");
        let (file, link) = (dir.path().join("real"), dir.path().join("Dockerfile"));
        std::fs::write(&file, "old").expect("write");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).expect("its mode");
        std::os::unix::fs::symlink("real", &link).expect("a link");
        assert!(write(&link, "new").is_ok());
        assert_eq!(std::fs::read_to_string(&file).expect("read"), "new");
        assert_eq!(std::fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o640);
        assert!(link.is_symlink());
        assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 2, "nothing is left beside it");
        assert!(write(&dir.path().join("absent"), "new").is_err());
    }

    #[test]
    fn the_graph_is_drawn_without_asking_for_images() {
        let parsed = lapstrake_dockerfile::parse("D", "FROM a AS b\nRUN x\nFROM c\nCOPY --from=b / /\n");
        let plan = lapstrake_dockerfile::plan(&parsed, &Options::default()).expect("valid");
        let lowered = plan.lower(&assumed(&plan)).expect("valid");
        let graph = lapstrake_llb::Graph::decode(&lowered.definition).expect("a graph");
        let dot = graph::show(&graph, &lowered.definition, graph::Format::Dot);
        assert_eq!(dot.matches(" -> ").count(), 3, "{dot}");
        let svg = graph::show(&graph, &lowered.definition, graph::Format::Svg);
        assert!(
            svg.starts_with("<svg") && svg.ends_with("</svg>\n") && svg.matches("<rect").count() == 4,
            "{svg}"
        );
        assert!(graph::show(&graph, &lowered.definition, graph::Format::Text).contains("RUN x"));
        serde_json::from_str::<serde_json::Value>(&graph::show(
            &graph,
            &lowered.definition,
            graph::Format::Json,
        ))
        .expect("JSON");
    }
}
