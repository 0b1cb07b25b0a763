//! Runs one step: its description as JSON on standard input, its output on standard output and
//! error, its exit as JSON in the file that `--exit` names.
//!
//! With `--beside`, the step is spoken with: a script runs beside its program, which is sent SIGTERM then.
//!
//! `lapstrake-step [--preflight] [--mode Auto|Root|UserNamespace|Baseline] --state DIR [--exit FILE] [--beside SCRIPT]`

use std::io::{Read, Write};
use std::path::PathBuf;

use lapstrake_run::sandbox::{self, Mode};
use lapstrake_run::{Executor, RunError, StepExit, StepSpec, Stream, Streams};
use tokio::io::AsyncReadExt as _;
use tokio_util::sync::CancellationToken;

struct Options {
    mode: Mode,
    state: PathBuf,
    exit: Option<PathBuf>,
    preflight: bool,
    beside: Option<String>,
}

fn options() -> Result<Options, String> {
    let mut options =
        Options { mode: Mode::Auto, state: PathBuf::new(), exit: None, preflight: false, beside: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--mode" => options.mode = value()?.parse()?,
            "--state" => options.state = value()?.into(),
            "--exit" => options.exit = Some(value()?.into()),
            "--beside" => options.beside = Some(value()?),
            "--preflight" => options.preflight = true,
            other => return Err(format!("unknown argument: {other}")),
        }
    }
    if options.state.as_os_str().is_empty() {
        return Err("--state DIR is missing".to_owned());
    }
    Ok(options)
}

fn main() {
    lapstrake_run::helper_main();
    let code = match options().and_then(|options| run(&options)) {
        Ok(code) => code,
        Err(message) => {
            eprintln!("lapstrake-step: {message}");
            125
        }
    };
    std::process::exit(code);
}

fn run(options: &Options) -> Result<i32, String> {
    let sandbox = sandbox::enter(options.mode).map_err(|error| error.to_string())?;
    if options.preflight {
        let report = sandbox.preflight(&options.state).map_err(|error| error.to_string())?;
        writeln!(std::io::stdout(), "{report:?}").map_err(|error| error.to_string())?;
        return Ok(0);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(|error| error.to_string())?;
    let spec: StepSpec =
        serde_json::from_str(&text).map_err(|error| format!("the step's description: {error}"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let exit = runtime.block_on(async {
        match &options.beside {
            Some(script) => live(options, &spec, script).await,
            None => step(options, &spec).await,
        }
    });
    let exit = exit.map_err(|error| error.to_string())?;
    if let Some(file) = &options.exit {
        let json = serde_json::to_vec(&exit).map_err(|error| error.to_string())?;
        std::fs::write(file, json).map_err(|error| error.to_string())?;
    }
    Ok(exit.code)
}

/// Runs a step that is spoken with, and a script beside its program.
async fn live(options: &Options, spec: &StepSpec, script: &str) -> Result<StepExit, RunError> {
    let executor = Executor::new(&options.state.join("run"))?;
    let cancel = CancellationToken::new();
    let (first, streams) = executor.start(spec, None, &cancel).await?;
    let args = ["sh", "-c", script].map(str::to_owned).to_vec();
    let beside = StepSpec { args, ..spec.clone() };
    let (second, its_streams) = executor.start(&beside, first.inside().as_ref(), &cancel).await?;
    show(its_streams).await;
    second.wait().await?;
    first.handle().signal(15);
    show(streams).await;
    first.wait().await
}

/// Passes on what a program prints, to its end.
async fn show(streams: Streams) {
    let mut text = Vec::new();
    match streams {
        Streams::Pipes { mut stdout, .. } => drop(stdout.read_to_end(&mut text).await),
        Streams::Terminal(terminal) => {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = terminal.read(&mut buffer).await {
                text.extend_from_slice(buffer.get(..count).unwrap_or_default());
            }
        }
    }
    std::io::stdout().write_all(&text).ok(); // A reader that is gone wants no output.
}

async fn step(options: &Options, spec: &StepSpec) -> Result<StepExit, RunError> {
    let executor = Executor::new(&options.state.join("run"))?;
    let cancel = CancellationToken::new();
    let canceled = cancel.clone();
    tokio::spawn(async move {
        let Ok(mut term) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) else {
            return;
        };
        term.recv().await;
        canceled.cancel();
    });
    let mut sink = |stream: Stream, bytes: &[u8]| {
        let written = match stream {
            Stream::Stdout => std::io::stdout().write_all(bytes).and_then(|()| std::io::stdout().flush()),
            Stream::Stderr => std::io::stderr().write_all(bytes),
        };
        written.ok(); // A reader that is gone wants no output.
    };
    executor.run(spec, &mut sink, &cancel).await
}
