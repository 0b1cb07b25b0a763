//! The test registry as a program.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use lapstrake_testkit::registry::{Auth, Options, Registry};
use lapstrake_testkit::rootfs;

/// A small image registry for tests.
#[derive(Debug, Parser)]
struct Args {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:5000")]
    addr: SocketAddr,
    /// Where to keep blobs; a temporary folder without it.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Ask for a user and password (`USER:PASSWORD`).
    #[arg(long)]
    htpasswd: Option<String>,
    /// Give out tokens for the user of --htpasswd instead of asking for the password each time.
    #[arg(long, requires = "htpasswd")]
    tokens: bool,
    /// Serve TLS for these names; the CA's certificate is printed.
    #[arg(long)]
    tls_name: Vec<String>,
    /// Keep a busybox image under this name (`repository:tag`).
    #[arg(long)]
    busybox: Option<String>,
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let args = Args::parse();
    let auth = match args.htpasswd.as_deref().map(|pair| pair.split_once(':')) {
        None => Auth::None,
        Some(Some((user, password))) if args.tokens => Auth::token(user, password),
        Some(Some((user, password))) => Auth::basic(user, password),
        Some(None) => return Err(std::io::Error::other("--htpasswd must be USER:PASSWORD")),
    };
    let options = Options {
        addr: Some(args.addr),
        dir: args.dir,
        auth,
        tls_names: args.tls_name,
        ..Options::default()
    };
    let registry = Registry::start(options).await?;
    if let Some(name) = args.busybox {
        let (repository, tag) = name.split_once(':').unwrap_or((&name, "latest"));
        registry.put_image(repository, tag, &rootfs::busybox_image()?)?;
    }
    let mut out = std::io::stdout();
    writeln!(out, "registry at {}", registry.host())?;
    if let Some(pem) = registry.ca_pem() {
        writeln!(out, "{pem}")?;
    }
    out.flush()?;
    tokio::signal::ctrl_c().await
}
