//! Where clients come in.
//!
//! Holds: a socket that somebody answers on is never taken away; a handshake never holds up other clients, and takes
//! bounded time; at most [`HANDSHAKES_MAX`] of them run.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::{Error, Grpc, Result};

/// Longest path that every kernel takes for a socket.
const SOCKET_PATH_MAX: usize = 104;
/// Connections that were taken and are not yet served.
const WAITING_MAX: usize = 64;
/// TLS handshakes at the same time.
const HANDSHAKES_MAX: usize = 256;
/// How long a TLS handshake may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Pause after the system had no descriptor left.
const PAUSE: Duration = Duration::from_millis(50);
/// The first descriptor that a service manager hands over.
const FIRST_FD: i32 = 3;

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// A process of this machine: its user and its id, where the kernel tells.
    Unix {
        /// User.
        uid: Option<u32>,
        /// Process.
        pid: Option<i32>,
    },
    /// Somebody on the network.
    Tcp {
        /// Its address.
        address: Option<SocketAddr>,
        /// Whether the line is encrypted.
        encrypted: bool,
        /// Whether it showed a certificate of the CA.
        certified: bool,
    },
}

/// A connection.
#[derive(Debug)]
pub struct Conn(Inner);

#[derive(Debug)]
enum Inner {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connected for Conn {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        match &self.0 {
            Inner::Unix(stream) => {
                let peer = stream.peer_cred().ok();
                Peer::Unix { uid: peer.as_ref().map(|p| p.uid()), pid: peer.and_then(|p| p.pid()) }
            }
            Inner::Tcp(stream) => {
                Peer::Tcp { address: stream.peer_addr().ok(), encrypted: false, certified: false }
            }
            Inner::Tls(stream) => {
                let (tcp, tls) = stream.get_ref();
                let certified = tls.peer_certificates().is_some_and(|chain| !chain.is_empty());
                Peer::Tcp { address: tcp.peer_addr().ok(), encrypted: true, certified }
            }
        }
    }
}

macro_rules! inner {
    ($self:expr, $stream:ident => $call:expr) => {
        match &mut $self.get_mut().0 {
            Inner::Unix($stream) => $call,
            Inner::Tcp($stream) => $call,
            Inner::Tls($stream) => $call,
        }
    };
}

impl AsyncRead for Conn {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        inner!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Conn {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        inner!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        inner!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.0 {
            Inner::Unix(stream) => stream.is_write_vectored(),
            Inner::Tcp(stream) => stream.is_write_vectored(),
            Inner::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        inner!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        inner!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

#[derive(Debug)]
enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener, Option<Arc<ServerConfig>>),
}

#[derive(Debug)]
struct Listener {
    /// As `buildkitd` shows it: a path, or `host:port`.
    shown: String,
    /// To be removed at the end.
    path: Option<PathBuf>,
    socket: Socket,
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            std::fs::remove_file(path).ok(); // a stale one is replaced
        }
    }
}

/// All listeners of the daemon.
#[derive(Debug)]
pub struct Listeners(Vec<Listener>);

impl Listeners {
    /// Listens on every address. Needs the runtime.
    ///
    /// # Errors
    /// Names the address that cannot be had.
    pub async fn bind(grpc: &Grpc) -> Result<Self> {
        if grpc.addresses.is_empty() {
            return Err(Error::Setting("--addr cannot be empty".into()));
        }
        let tls = grpc.tls.as_ref().map(crate::tls::server).transpose()?;
        let mut listeners = Vec::new();
        for address in &grpc.addresses {
            listeners.push(bind(address, grpc, tls.as_ref()).await?);
        }
        Ok(Self(listeners))
    }

    /// Listens on a debug address: `host:port`, `:port`, or with `tcp://` or `unix://` before it. Needs the runtime.
    ///
    /// # Errors
    /// Names the address where it cannot be had.
    pub async fn debug(address: &str) -> Result<Self> {
        let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let address = if address.contains("://") { address.to_owned() } else { format!("tcp://{address}") };
        let grpc = Grpc { addresses: Vec::new(), uid: user, gid: group, tls: None };
        let listener = match address.strip_prefix("tcp://") {
            // Nobody expects TLS there, so nothing is said of it.
            Some(rest) => {
                let socket = tcp(rest).await.map_err(|why| Error::listen(&address, why))?;
                let shown = socket.local_addr().map_or_else(|_| rest.to_owned(), |a| a.to_string());
                Listener { shown, path: None, socket: Socket::Tcp(socket, None) }
            }
            None => bind(&address, &grpc, None).await?,
        };
        Ok(Self(vec![listener]))
    }

    /// The addresses, as `buildkitd` logs them: a path, or `host:port` with the port that was got.
    pub fn addresses(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|listener| listener.shown.as_str())
    }

    /// Says that clients may come: the lines that others wait for, and a word to the service manager.
    pub fn announce(&self) {
        crate::notify::notify("READY=1");
        for address in self.addresses() {
            tracing::info!("running server on {address}");
        }
    }

    /// The connections, as they come, until `stop`. Sockets are gone once the stream has ended.
    pub fn incoming(self, stop: &CancellationToken) -> ReceiverStream<io::Result<Conn>> {
        let (send, receive) = mpsc::channel(WAITING_MAX);
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        for listener in self.0 {
            let accept = accept(listener, send.clone(), Arc::clone(&handshakes));
            let stop = stop.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = accept => {}
                }
            });
        }
        ReceiverStream::new(receive)
    }
}

async fn accept(listener: Listener, send: mpsc::Sender<io::Result<Conn>>, handshakes: Arc<Semaphore>) {
    loop {
        let conn = match &listener.socket {
            Socket::Unix(socket) => socket.accept().await.map(|(stream, _)| (Inner::Unix(stream), None)),
            Socket::Tcp(socket, tls) => socket.accept().await.map(|(stream, _)| {
                stream.set_nodelay(true).ok(); // slower, no more
                (Inner::Tcp(stream), tls.clone())
            }),
        };
        match conn {
            Ok((Inner::Tcp(stream), Some(tls))) => {
                let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else { return };
                let send = send.clone();
                tokio::spawn(async move {
                    if let Some(conn) = handshake(stream, tls).await {
                        send.send(Ok(conn)).await.ok(); // the daemon ends
                    }
                    drop(permit);
                });
            }
            Ok((inner, _)) => {
                if send.send(Ok(Conn(inner))).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!("no connection taken on {}: {error}", listener.shown);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn handshake(stream: TcpStream, tls: Arc<ServerConfig>) -> Option<Conn> {
    let peer = stream.peer_addr().map_or_else(|_| "a client".to_owned(), |address| address.to_string());
    match tokio::time::timeout(HANDSHAKE_MAX, TlsAcceptor::from(tls).accept(stream)).await {
        Ok(Ok(stream)) => Some(Conn(Inner::Tls(Box::new(stream)))),
        Ok(Err(error)) => {
            tracing::warn!("TLS with {peer} failed: {error}");
            None
        }
        Err(_) => {
            tracing::warn!("TLS with {peer} took more than {} s", HANDSHAKE_MAX.as_secs());
            None
        }
    }
}

async fn bind(address: &str, grpc: &Grpc, tls: Option<&Arc<ServerConfig>>) -> Result<Listener> {
    let Some((kind, rest)) = address.split_once("://") else {
        let why = format!("address {address} does not contain proto, you meant unix://{address} ?");
        return Err(Error::Setting(why));
    };
    match kind {
        "unix" => {
            if tls.is_some() {
                tracing::warn!("TLS is disabled for {address}");
            }
            let path = PathBuf::from(rest);
            let socket = unix(&path, grpc).map_err(|why| Error::listen(address, why))?;
            Ok(Listener { shown: rest.to_owned(), path: Some(path), socket: Socket::Unix(socket) })
        }
        "tcp" => {
            let socket = tcp(rest).await.map_err(|why| Error::listen(address, why))?;
            if tls.is_none() {
                tracing::warn!(
                    "TLS is not enabled for {address}. enabling mutual TLS authentication is highly recommended"
                );
            }
            let shown = socket.local_addr().map_or_else(|_| rest.to_owned(), |a| a.to_string());
            Ok(Listener { shown, path: None, socket: Socket::Tcp(socket, tls.cloned()) })
        }
        "fd" if rest.is_empty() => activated(tls),
        "fd" => Err(Error::listen(address, "only the first descriptor is supported: give fd://")),
        _ => Err(Error::Setting(format!("addr {address} not supported"))),
    }
}

/// `host:port`; without a host, every address of the machine.
async fn tcp(address: &str) -> io::Result<TcpListener> {
    if let Some(port) = address.strip_prefix(':') {
        return match TcpListener::bind(format!("[::]:{port}")).await {
            Ok(socket) => Ok(socket),
            // A machine without IPv6.
            Err(_) => TcpListener::bind(format!("0.0.0.0:{port}")).await,
        };
    }
    TcpListener::bind(address).await
}

fn unix(path: &Path, grpc: &Grpc) -> io::Result<UnixListener> {
    if path.as_os_str().len() > SOCKET_PATH_MAX {
        return Err(io::Error::other(format!("unix socket path too long (> {SOCKET_PATH_MAX})")));
    }
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty() && !dir.exists()) {
        std::fs::DirBuilder::new().recursive(true).mode(0o770).create(dir)?;
        own(dir, grpc)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(io::Error::other("another process answers there: stop it, or give another path"));
            }
            std::fs::remove_file(path)?;
        }
        Ok(_) => {
            return Err(io::Error::other(
                "there is a file that is no socket: remove it, or give another path",
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let socket = UnixListener::bind(path)?;
    let opened =
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).and_then(|()| own(path, grpc));
    opened.inspect_err(|_| {
        std::fs::remove_file(path).ok(); // the first error is the one to tell
    })?;
    Ok(socket)
}

fn own(path: &Path, grpc: &Grpc) -> io::Result<()> {
    std::os::unix::fs::chown(path, Some(grpc.uid), Some(grpc.gid))
}

/// The socket that a service manager opened.
fn activated(tls: Option<&Arc<ServerConfig>>) -> Result<Listener> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    // The sandbox may have put a process between us and the service manager.
    let parent = std::os::unix::process::parent_id();
    let ours = number("LISTEN_PID").is_some_and(|pid| pid == std::process::id() || pid == parent);
    let descriptor = (ours && number("LISTEN_FDS").is_some_and(|count| count > 0))
        .then(|| lapstrake_sys::fs::inherited(FIRST_FD));
    let why = "no sockets found via socket activation: make sure the service was started by systemd";
    let descriptor = descriptor.flatten().ok_or_else(|| Error::Setting(why.into()))?;
    let socket = adopt(descriptor, tls).map_err(|error| Error::listen("fd://", error))?;
    let shown = match &socket {
        Socket::Unix(socket) => {
            let path = socket.local_addr().ok().and_then(|a| a.as_pathname().map(Path::to_owned));
            path.unwrap_or_else(|| "@".into()).display().to_string()
        }
        Socket::Tcp(socket, tls) => {
            let shown = socket.local_addr().map_or_else(|_| "fd://".to_owned(), |a| a.to_string());
            if tls.is_none() {
                tracing::warn!(
                    "TLS is not enabled for {shown}. enabling mutual TLS authentication is highly recommended"
                );
            }
            shown
        }
    };
    Ok(Listener { shown, path: None, socket })
}

fn adopt(descriptor: OwnedFd, tls: Option<&Arc<ServerConfig>>) -> io::Result<Socket> {
    if rustix::net::sockopt::socket_domain(&descriptor)? == rustix::net::AddressFamily::UNIX {
        let socket = std::os::unix::net::UnixListener::from(descriptor);
        socket.set_nonblocking(true)?;
        return Ok(Socket::Unix(UnixListener::from_std(socket)?));
    }
    let socket = std::net::TcpListener::from(descriptor);
    socket.set_nonblocking(true)?;
    Ok(Socket::Tcp(TcpListener::from_std(socket)?, tls.cloned()))
}

#[cfg(test)]
mod tests;
