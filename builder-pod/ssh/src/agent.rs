//! Serving the agent protocol on a socket that one step has.

use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::limits::{CONNECTIONS_MAX, MESSAGE_BYTES_MAX};
use crate::wire::{self, Request};
use crate::{Error, Key};

/// Who signs.
#[derive(Debug)]
pub enum Agent {
    /// Keys of our own.
    Keys(Vec<Key>),
    /// Another agent, by its socket.
    Forward(PathBuf),
    /// Another agent, reached in some other way.
    Remote(Box<dyn Connect>),
}

/// A connection that is being opened.
pub type Connecting<'a> = Pin<Box<dyn Future<Output = std::io::Result<Box<dyn Connection>>> + Send + 'a>>;

/// A way to another agent.
pub trait Connect: std::fmt::Debug + Send + Sync {
    /// Opens a connection.
    fn connect(&self) -> Connecting<'_>;
}

/// A connection to another agent.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// A socket that an agent serves, until this is dropped.
#[derive(Debug)]
pub struct Socket {
    dir: PathBuf,
    task: tokio::task::JoinHandle<()>,
}

/// The socket's name in its directory.
const NAME: &str = "agent";

impl Socket {
    /// Serves `agent` on a socket in `dir`, which is made for it and goes with it. Needs a runtime.
    ///
    /// The directory is closed to all others: whoever shall use the socket is shown the socket alone.
    ///
    /// # Errors
    /// The socket could not be made, or not be given to that owner.
    pub fn serve(agent: Arc<Agent>, dir: PathBuf, mode: u32, uid: u32, gid: u32) -> Result<Self, Error> {
        let listener = bind(&dir, mode, uid, gid).inspect_err(|_| {
            std::fs::remove_dir_all(&dir).ok(); // It is empty, or was never made.
        });
        let listener = listener.map_err(Error::Socket)?;
        let task = tokio::spawn(accept(listener, agent));
        Ok(Self { dir, task })
    }

    /// Its path.
    pub fn path(&self) -> PathBuf {
        self.dir.join(NAME)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.task.abort();
        std::fs::remove_dir_all(&self.dir).ok(); // What stays is a socket that nobody serves.
    }
}

/// The name of a socket may have 108 bytes, that of a directory more: it is reached by its descriptor.
fn bind(dir: &Path, mode: u32, uid: u32, gid: u32) -> std::io::Result<UnixListener> {
    std::fs::create_dir_all(dir)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
    let open = std::fs::File::open(dir)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{NAME}", open.as_raw_fd()));
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode & 0o777))?;
    std::os::unix::fs::chown(&path, Some(uid), Some(gid))?;
    Ok(listener)
}

async fn accept(listener: UnixListener, agent: Arc<Agent>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Connections end with this task.
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((client, _)) => {
                let agent = Arc::clone(&agent);
                connections.spawn(async move {
                    let _place = place;
                    // A client that breaks off has its own message.
                    match agent.as_ref() {
                        Agent::Keys(keys) => answer(client, keys).await.ok(),
                        Agent::Forward(socket) => {
                            let behind = UnixStream::connect(socket).await.ok();
                            forward(client, behind.map(|behind| Box::new(behind) as Box<dyn Connection>))
                                .await
                                .ok()
                        }
                        Agent::Remote(way) => forward(client, way.connect().await.ok()).await.ok(),
                    }
                });
            }
            // Out of descriptors, as a rule: those that are open end some time.
            Err(_) => drop(connections.join_next().await),
        }
    }
}

/// The next message without its length; `None` at the end.
async fn next(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length).await {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    };
    let length = u32::from_be_bytes(length) as usize;
    if length > MESSAGE_BYTES_MAX {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length];
    from.read_exact(&mut message).await?;
    Ok(Some(message))
}

async fn answer(mut client: UnixStream, keys: &[Key]) -> std::io::Result<()> {
    while let Some(message) = next(&mut client).await? {
        let refused = || wire::REFUSED.to_vec();
        let reply = match wire::read(&message) {
            Request::Identities => wire::identities(keys.iter().map(|key| (key.public(), key.comment()))),
            Request::Sign { key, data, flags } => {
                let signature = keys.iter().find(|k| k.public() == key).and_then(|key| key.sign(data, flags));
                signature.map_or_else(refused, |signature| wire::signed(&signature))
            }
            Request::Other => refused(),
        };
        client.write_all(&reply).await?;
    }
    Ok(())
}

async fn forward(mut client: UnixStream, mut behind: Option<Box<dyn Connection>>) -> std::io::Result<()> {
    while let Some(message) = next(&mut client).await? {
        let reply = match (&mut behind, wire::read(&message)) {
            (Some(behind), Request::Identities | Request::Sign { .. }) => {
                behind.write_all(&wire::message(&message)).await?;
                next(behind).await?.filter(|reply| wire::is_answer(reply))
            }
            // Nobody is there, or it is none of the two.
            _ => None,
        };
        match reply {
            Some(reply) => client.write_all(&wire::message(&reply)).await?,
            None => client.write_all(&wire::REFUSED).await?,
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "agent_tests.rs"]
mod tests;
