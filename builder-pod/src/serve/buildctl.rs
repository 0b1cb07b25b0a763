//! As much of `buildctl` as drivers and probes call: `dial-stdio` and `debug workers`.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use hyper_util::rt::TokioIo;
use lapstrake_api::control::ListWorkersRequest;
use lapstrake_api::control::control_client::ControlClient;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use super::{personality, workers};

/// What is there instead of the rest.
const REST: &str = "this image has buildctl's dial-stdio and debug workers only: for builds, use the buildctl of a BuildKit release, or docker buildx";

/// Talks to the daemon: as much as drivers and probes need.
#[derive(Debug, Parser)]
#[command(name = "buildctl", disable_version_flag = true, args_override_self = true, after_help = REST)]
struct Program {
    #[command(flatten)]
    target: Target,
    /// Print the version.
    #[arg(long, short = 'v')]
    version: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Where the daemon is.
#[derive(Debug, Args)]
struct Target {
    /// Log more.
    #[arg(long)]
    debug: bool,
    /// Address of the daemon.
    #[arg(long, env = "BUILDKIT_HOST", default_value = "unix:///run/buildkit/buildkitd.sock")]
    addr: String,
    /// Form of the log: text or json.
    #[arg(long, default_value = "text")]
    log_format: String,
    /// Name that the server's certificate must have.
    #[arg(long, default_value = "")]
    tlsservername: String,
    /// CA of the server's certificate.
    #[arg(long)]
    tlscacert: Option<PathBuf>,
    /// Certificate of this client.
    #[arg(long)]
    tlscert: Option<PathBuf>,
    /// Key of this client.
    #[arg(long)]
    tlskey: Option<PathBuf>,
    /// Directory of the three: ca.pem, cert.pem, key.pem, or ca.crt, tls.crt, tls.key.
    #[arg(long)]
    tlsdir: Option<PathBuf>,
    /// Seconds that connecting may take; 0: no limit.
    #[arg(long, default_value_t = 5)]
    timeout: u64,
    /// Wait until the daemon is there.
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Connect standard input and output with the daemon.
    #[command(name = "dial-stdio", hide = true)]
    DialStdio,
    /// Look at the daemon.
    #[command(subcommand)]
    Debug(Debug),
    #[command(external_subcommand)]
    Other(Vec<OsString>),
}

#[derive(Debug, Subcommand)]
enum Debug {
    /// List workers.
    Workers(Workers),
    #[command(external_subcommand)]
    Other(Vec<OsString>),
}

#[derive(Debug, Args)]
struct Workers {
    /// Only what matches.
    #[arg(long, short)]
    filter: Vec<String>,
    /// All that is known.
    #[arg(long, short)]
    verbose: bool,
    /// "json" or "{{json .}}".
    #[arg(long)]
    format: Option<String>,
}

/// Runs the client with the arguments behind its name.
pub(crate) fn main(arguments: Vec<OsString>) -> ExitCode {
    let program = match Program::try_parse_from([OsString::from("buildctl")].into_iter().chain(arguments)) {
        Ok(program) => program,
        Err(error) => {
            error.print().ok(); // nobody listens
            return if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    if program.version {
        return personality::print(&personality::version("buildctl"));
    }
    let done = match program.command {
        Some(Command::DialStdio) => dial_stdio(&program.target),
        Some(Command::Debug(Debug::Workers(wanted))) => run(list(&program.target, &wanted)),
        Some(Command::Debug(Debug::Other(words))) => Err(unknown("debug ", &words)),
        Some(Command::Other(words)) => Err(unknown("", &words)),
        None => Err(REST.to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            writeln!(std::io::stderr(), "error: {why}").ok(); // nobody listens
            ExitCode::FAILURE
        }
    }
}

fn unknown(before: &str, words: &[OsString]) -> String {
    let word = words.first().map(|word| word.to_string_lossy()).unwrap_or_default();
    format!("no command {before}{word}: {REST}")
}

fn run(work: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("no runtime: {error}"))?;
    runtime.block_on(work)
}

/// Runs until the daemon closes its side: what it has to say is waited for, more input is not.
fn dial_stdio(target: &Target) -> Result<(), String> {
    let path = match target.addr.split_once("://") {
        Some(("unix", path)) => path,
        Some((kind, _)) => {
            return Err(format!("invalid address {} (expected unix://, got {kind}://)", target.addr));
        }
        None => return Err(format!("invalid address {}", target.addr)),
    };
    let stream = std::os::unix::net::UnixStream::connect(path);
    let stream = stream.map_err(|error| format!("dial unix {path}: connect: {}", words(&error)))?;
    let failed = |error: std::io::Error| format!("error while Copy (stream to stdout): {error}");
    let mut inwards = stream.try_clone().map_err(failed)?;
    // Ends with the program: nobody can be woken from reading a terminal.
    std::thread::spawn(move || {
        // The daemon may have closed first, and still have something to say.
        std::io::copy(&mut std::io::stdin().lock(), &mut inwards).ok();
        inwards.shutdown(std::net::Shutdown::Write).ok();
    });
    copy_out(stream).map_err(failed)
}

/// Copies without a buffer that waits for lines.
fn copy_out(mut stream: std::os::unix::net::UnixStream) -> std::io::Result<()> {
    use std::io::Read as _;
    let mut out = std::io::stdout().lock();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = match stream.read(&mut buffer) {
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { return Ok(()) };
        match out.write_all(bytes).and_then(|()| out.flush()) {
            // Whoever started this has gone.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            done => done?,
        }
    }
}

async fn list(target: &Target, wanted: &Workers) -> Result<(), String> {
    let as_json = match wanted.format.as_deref() {
        None | Some("") => false,
        Some("json" | "{{json .}}") => true,
        Some(other) => return Err(format!("--format {other}: only json is supported")),
    };
    let call = async {
        let mut client = ControlClient::new(channel(target).await?);
        let request = ListWorkersRequest { filter: wanted.filter.clone() };
        let answer = client.list_workers(request).await;
        answer.map_err(|status| format!("failed to list workers: {:?}: {}", status.code(), status.message()))
    };
    let workers = within(target, call).await?.into_inner().record;
    let text = match (as_json, wanted.verbose) {
        (true, _) => workers::json(&workers),
        (false, true) => workers::verbose(&workers),
        (false, false) => workers::table(&workers),
    };
    std::io::stdout().write_all(text.as_bytes()).ok(); // a closed pipe wants nothing more
    Ok(())
}

/// What `work` gives, unless it takes too long.
async fn within<T>(target: &Target, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    if target.timeout == 0 {
        return work.await;
    }
    let timeout = Duration::from_secs(target.timeout);
    let late = |_| Err(format!("{} did not answer within {} s", target.addr, target.timeout));
    tokio::time::timeout(timeout, work).await.unwrap_or_else(late)
}

async fn dial_unix(path: &str) -> Result<UnixStream, String> {
    UnixStream::connect(path).await.map_err(|error| format!("dial unix {path}: connect: {}", words(&error)))
}

/// An error in the words of Go's programs: scripts look for them.
fn words(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn dial(target: &Target) -> Result<Box<dyn Stream>, String> {
    match target.addr.split_once("://") {
        Some(("unix", path)) => Ok(Box::new(dial_unix(path).await?)),
        Some(("tcp", address)) => {
            let tcp = TcpStream::connect(address).await;
            let tcp = tcp.map_err(|error| format!("dial tcp {address}: connect: {}", words(&error)))?;
            let Some((ca, pair)) = tls_files(target)? else { return Ok(Box::new(tcp)) };
            let config = lapstrake_daemon::tls_client(&ca, pair).map_err(|error| error.to_string())?;
            let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let name = if target.tlsservername.is_empty() { host } else { &target.tlsservername };
            let name = ServerName::try_from(name.to_owned()).map_err(|error| format!("{name}: {error}"))?;
            let tls = TlsConnector::from(config).connect(name, tcp).await;
            Ok(Box::new(tls.map_err(|error| format!("TLS with {address}: {error}"))?))
        }
        _ => Err(format!("invalid address {}: give unix:// or tcp://", target.addr)),
    }
}

type Files = (PathBuf, Option<(PathBuf, PathBuf)>);

fn tls_files(target: &Target) -> Result<Option<Files>, String> {
    let (ca, cert, key) = (target.tlscacert.clone(), target.tlscert.clone(), target.tlskey.clone());
    if let Some(dir) = &target.tlsdir {
        if ca.is_some() || cert.is_some() || key.is_some() {
            return Err("cannot specify tlsdir and tlscacert/tlscert/tlskey at the same time".to_owned());
        }
        let one_of = |names: [&str; 2]| {
            let found = names.iter().map(|name| dir.join(name)).find(|path| path.exists());
            let why =
                || format!("directory did not contain one of the needed files: {} or {}", names[0], names[1]);
            found.ok_or_else(why)
        };
        let pair = (one_of(["cert.pem", "tls.crt"])?, one_of(["key.pem", "tls.key"])?);
        return Ok(Some((one_of(["ca.pem", "ca.crt"])?, Some(pair))));
    }
    match (ca, cert, key) {
        (None, None, None) => Ok(None),
        (Some(ca), None, None) => Ok(Some((ca, None))),
        (Some(ca), Some(cert), Some(key)) => Ok(Some((ca, Some((cert, key))))),
        (None, ..) => Err("a client's certificate needs the server's CA: give --tlscacert too".to_owned()),
        _ => Err("give --tlscert and --tlskey together".to_owned()),
    }
}

/// Pause between two tries, where the daemon is waited for.
const PAUSE: Duration = Duration::from_millis(100);

async fn channel(target: &Target) -> Result<Channel, String> {
    let stream = loop {
        match dial(target).await {
            Err(_) if target.wait => tokio::time::sleep(PAUSE).await,
            done => break done.map_err(|why| {
                format!("failed to list workers: Unavailable: connection error: desc = \"transport: Error while dialing: {why}\"")
            })?,
        }
    };
    let mut stream = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_: tonic::codegen::http::Uri| {
        let taken = stream.take().ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected));
        std::future::ready(taken)
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await;
    channel.map_err(|error| format!("failed to list workers: {error}"))
}
