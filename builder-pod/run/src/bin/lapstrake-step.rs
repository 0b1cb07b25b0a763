//! Runs one step: its description as JSON on standard input, its output on standard output and
//! error, its exit as JSON in the file that `--exit` names.
//!
//! `lapstrake-step [--preflight] [--mode Auto|Root|UserNamespace|Baseline] --state DIR [--exit FILE]`

use std::io::{Read, Write};
use std::path::PathBuf;

use lapstrake_run::sandbox::{self, Mode};
use lapstrake_run::{Executor, RunError, StepExit, StepSpec, Stream};
use tokio_util::sync::CancellationToken;

struct Options {
    mode: Mode,
    state: PathBuf,
    exit: Option<PathBuf>,
    preflight: bool,
}

fn options() -> Result<Options, String> {
    let mut options = Options { mode: Mode::Auto, state: PathBuf::new(), exit: None, preflight: false };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--mode" => options.mode = value()?.parse()?,
            "--state" => options.state = value()?.into(),
            "--exit" => options.exit = Some(value()?.into()),
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
    let exit = runtime.block_on(step(options, &spec)).map_err(|error| error.to_string())?;
    if let Some(file) = &options.exit {
        let json = serde_json::to_vec(&exit).map_err(|error| error.to_string())?;
        std::fs::write(file, json).map_err(|error| error.to_string())?;
    }
    Ok(exit.code)
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
