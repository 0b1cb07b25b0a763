//! Outputs that are files: image layouts, archives, root file systems.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lapstrake_handoff::Reason;
use lapstrake_image::export::{self, BlobSource};
use lapstrake_oci::Digest;
use lapstrake_store::Store;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use tokio_util::sync::CancellationToken;

use super::Packed;
use crate::build::{Solved, abortable};
use crate::client::{Client, OutputFile, Tree};
use crate::engine::{Engine, Watch};
use crate::error::{BuildError, chain, is_no_space};
use crate::options::{Destination, Directory, Files, Image, Output};
use crate::progress::{Progress, Step};

/// Blobs out of the store.
pub(super) struct Blobs(pub(super) Store);

impl BlobSource for Blobs {
    fn open(&self, digest: &Digest) -> io::Result<Box<dyn Read>> {
        Ok(Box::new(self.0.open_blob(digest).map_err(|e| io::Error::other(chain(&e)))?))
    }
}

pub(super) fn failed(error: lapstrake_image::Error) -> BuildError {
    match error.is_no_space() || is_no_space(&error) {
        true => BuildError::new(Reason::DiskFull, chain(&error)),
        false => BuildError::internal(chain(&error)),
    }
}

/// Fails once the build is canceled, so that a long output ends and what was written of it goes.
struct Cancelable<W>(W, CancellationToken);

impl<W: Write> Write for Cancelable<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.1.is_cancelled() {
            true => Err(io::Error::other("the build was canceled")),
            false => self.0.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// A file that appears whole or not at all, standard output, or a client's file.
struct Target {
    out: Out,
    rename: Option<(PathBuf, PathBuf)>,
}

enum Out {
    Here(Box<dyn Write + Send>),
    There(BufWriter<Cancelable<Box<dyn OutputFile>>>),
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.out {
            Out::Here(out) => out.write(bytes),
            Out::There(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.out {
            Out::Here(out) => out.flush(),
            Out::There(out) => out.flush(),
        }
    }
}

impl Target {
    /// Opens it; `None` where a client has what would be written.
    async fn open(
        dest: &Destination,
        about: &BTreeMap<String, String>,
        cancel: &CancellationToken,
    ) -> Result<Option<Self>, BuildError> {
        let here = |out| Out::Here(Box::new(out));
        Ok(Some(match dest {
            Destination::Client(client) => {
                let Some(file) = client.receiver.file(client.exporter, about).await? else { return Ok(None) };
                let out = BufWriter::with_capacity(1 << 20, Cancelable(file, cancel.clone()));
                Self { out: Out::There(out), rename: None }
            }
            Destination::Stdout => {
                Self { out: here(BufWriter::new(Cancelable(io::stdout(), cancel.clone()))), rename: None }
            }
            Destination::Path(path) => {
                let mut partial = path.clone().into_os_string();
                partial.push(".partial");
                let partial = PathBuf::from(partial);
                let file = File::create(&partial).map_err(|e| cannot_write(&partial, &e))?;
                let out = BufWriter::with_capacity(1 << 20, Cancelable(file, cancel.clone()));
                let out = Out::Here(Box::new(out));
                Self { out, rename: Some((partial, path.clone())) }
            }
        }))
    }

    fn finish(mut self, written: Result<(), BuildError>) -> Result<(), BuildError> {
        let failed = |e: &io::Error| {
            let reason = if is_no_space(e) { Reason::DiskFull } else { Reason::Internal };
            BuildError::new(reason, format!("writing the output: {e}"))
        };
        let flushed = written.and_then(|()| self.flush().map_err(|e| failed(&e)));
        match self.out {
            Out::Here(out) => drop(out),
            Out::There(out) => {
                flushed?;
                let Cancelable(file, _) = out.into_inner().map_err(|e| failed(e.error()))?;
                return file.finish().map_err(|e| failed(&e));
            }
        }
        match (flushed, self.rename) {
            (Ok(()), Some((partial, path))) => {
                std::fs::rename(&partial, &path).map_err(|e| cannot_write(&path, &e))
            }
            (Err(error), Some((partial, _))) => {
                std::fs::remove_file(partial).ok(); // the write's own error says more
                Err(error)
            }
            (result, None) => result,
        }
    }
}

fn cannot_write(path: &Path, error: &io::Error) -> BuildError {
    use io::ErrorKind::{IsADirectory, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem};
    let reason = match error.kind() {
        _ if is_no_space(error) => Reason::DiskFull,
        // The place is the user's choice.
        NotFound | PermissionDenied | NotADirectory | IsADirectory | ReadOnlyFilesystem => {
            Reason::RequestInvalid
        }
        _ => Reason::Internal,
    };
    BuildError::new(reason, format!("can't write the output {}: {error}", path.display()))
}

/// Writes an image as a layout or archive.
pub(super) async fn image(
    engine: &Arc<Engine>,
    packed: &Arc<Packed>,
    output: &Output,
    epoch: Option<i64>,
    step: &Step,
    cancel: &CancellationToken,
) -> Result<(), BuildError> {
    for layer in &packed.layers {
        layer.fetch(engine, cancel).await?;
    }
    let about = super::response::of(packed, output, epoch);
    let work = async {
        let (image, dest) = match output {
            Output::Oci { image, dest: Destination::Client(client), tar: false } => {
                return to_store(engine, packed, image, client, cancel).await;
            }
            Output::Oci { image, dest, .. } | Output::Docker { image, dest } => (image.clone(), dest),
            _ => return Err(BuildError::internal("not an image output")),
        };
        let blobs = Blobs(engine.store().clone());
        let mut documents = packed.documents.clone();
        if let Destination::Client(_) = dest {
            // As BuildKit: readers that look for the newest image go by it.
            super::response::date(&mut documents.manifest.1, epoch);
        }
        if let Output::Oci { dest: Destination::Path(path), tar: false, .. } = output {
            let path = path.clone();
            let write = move || export::oci_layout_dir(&path, &documents, &image.names, &blobs);
            let written = tokio::task::spawn_blocking(write).await.map_err(BuildError::internal)?;
            return written.map_err(failed);
        }
        let Some(mut target) = Target::open(dest, &about, cancel).await? else { return Ok(()) };
        // With what is attested of it, it is an index, which Docker's form has no place for.
        let docker = matches!(output, Output::Docker { .. }) && documents.joined.is_empty();
        let write = move || {
            let written = match docker {
                true => export::docker_archive(&mut target, &documents, &image.names, &blobs),
                false => export::oci_layout_tar(&mut target, &documents, &image.names, &blobs),
            };
            target.finish(written.map_err(failed))
        };
        tokio::task::spawn_blocking(write).await.map_err(BuildError::internal)?
    };
    match output {
        Output::Oci { tar: false, .. } => abortable(cancel, work).await,
        _ => step.does("sending tarball", abortable(cancel, work)).await,
    }
}

/// Writes an image into the content store that a client has for its exports: what is named before what names it.
async fn to_store(
    engine: &Arc<Engine>,
    packed: &Arc<Packed>,
    image: &Image,
    client: &Client,
    cancel: &CancellationToken,
) -> Result<(), BuildError> {
    const STORE: &str = "export";
    tracing::debug!("writing an image of {} names to a client's store", image.names.len());
    for blob in &packed.blobs {
        let layer = packed.layers.iter().find(|layer| layer.descriptor.digest == blob.digest);
        let source = match layer {
            Some(layer) => super::push::source(engine, layer, cancel),
            None => super::push::stored(engine.store(), blob.digest),
        };
        client.receiver.blob(STORE, blob, &source).await?;
    }
    let joined = packed.documents.joined.iter().map(|image| &image.manifest.1);
    let of_platforms = joined.chain(packed.documents.beside.iter().map(|one| &one.manifest.1));
    for document in of_platforms.chain([&packed.documents.manifest.1]) {
        let source = super::push::stored(engine.store(), document.digest);
        client.receiver.blob(STORE, document, &source).await?;
    }
    Ok(())
}

/// Writes the file system itself.
pub(super) async fn rootfs(
    engine: &Arc<Engine>,
    solved: &[Solved],
    index: bool,
    output: &Output,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<(), BuildError> {
    let name = match output {
        Output::Local(..) => "exporting to client directory",
        _ => "exporting to client tarball",
    };
    let files = match output {
        Output::Local(_, files) | Output::Tar(_, files) => files.clone(),
        _ => return Err(BuildError::internal("not a file system output")),
    };
    let step = progress.step(name);
    let several = solved.len() > 1 || index;
    let split = match output {
        Output::Local(..) => files.platform_split.unwrap_or(several),
        // As BuildKit: of several, a tar has a directory of each.
        _ => several,
    };
    // Several stand beside each other, as buildx names them.
    let name = |solved: &Solved| if split { solved.directory() } else { String::new() };
    let work = async {
        let (mut roots, mut held) = (Vec::with_capacity(solved.len()), Vec::new());
        let mut attested = Vec::new();
        for solved in solved {
            let snapshot = match &solved.lazy {
                Some(lazy) => engine.realise(lazy, &Watch::silent(cancel)).await?,
                None => solved.snapshot,
            };
            let root = engine.mount(snapshot)?;
            let part = files.source.as_deref().map(|path| part(&root, path)).transpose()?;
            let from = part.unwrap_or(root.try_clone().map_err(BuildError::internal)?);
            if solved.attestations.iter().any(|one| !one.inline_only) {
                let named = (several && !split).then(|| solved.directory());
                attested.push((name(solved), attestations(solved, &from, &files, named).await?));
            }
            roots.push((name(solved), from));
            held.push(root);
        }
        let dirs: Vec<_> = add(attested, &mut roots)?;
        if matches!(output, Output::Local(..)) && !split && solved.len() > 1 {
            check_clash(&mut roots, solved).await?;
        }
        let told = if matches!(output, Output::Local(..)) { "copying files" } else { "sending tarball" };
        let written = step.does(told, write(output, &files, roots, held, cancel)).await;
        drop(dirs);
        written
    };
    let done = abortable(cancel, work).await;
    step.close(done)
}

/// What is attested of a file system, as files.
async fn attestations(
    solved: &Solved,
    root: &OwnedFd,
    files: &Files,
    named: Option<String>,
) -> Result<Vec<Attached>, BuildError> {
    let root = root.try_clone().map_err(BuildError::internal)?;
    let (all, files) = (solved.attestations.clone(), files.clone());
    let work = move || super::attested::files(&all, root.as_fd(), &files, named.as_deref());
    tokio::task::spawn_blocking(work).await.map_err(BuildError::internal)?
}

/// Name and content of a file.
type Attached = (String, Vec<u8>);

/// Puts files beside what is written below a name; they are there as long as what is returned.
fn add(
    files: Vec<(String, Vec<Attached>)>,
    roots: &mut Vec<(String, OwnedFd)>,
) -> Result<Vec<tempfile::TempDir>, BuildError> {
    let mut dirs = Vec::new();
    for (name, files) in files {
        let (dir, fd) = super::attested::placed(&files).map_err(BuildError::internal)?;
        // After the file system itself, below the same directory.
        let at = roots.iter().rposition(|(of, _)| *of == name).map_or(roots.len(), |at| at + 1);
        roots.insert(at, (name, fd));
        dirs.push(dir);
    }
    Ok(dirs)
}

/// Refuses file systems that hold a file of one name, where they shall be one.
async fn check_clash(roots: &mut Vec<(String, OwnedFd)>, solved: &[Solved]) -> Result<(), BuildError> {
    let taken = std::mem::take(roots);
    let work = move || (export::clash(taken.iter().map(|(_, root)| root.as_fd())), taken);
    let (clash, back) = tokio::task::spawn_blocking(work).await.map_err(BuildError::internal)?;
    *roots = back;
    let Some((path, first, second)) = clash.map_err(failed)? else { return Ok(()) };
    let of = |at: usize| solved.get(at).map(|solved| solved.platform.to_string()).unwrap_or_default();
    let (path, first, second) = (String::from_utf8_lossy(&path), of(first), of(second));
    let text = format!("cannot overwrite {path} from {first} with {second} when split option is disabled");
    Err(BuildError::new(Reason::RequestInvalid, text))
}

/// A directory of a root file system; links in it lead nowhere else.
fn part(root: &OwnedFd, path: &str) -> Result<OwnedFd, BuildError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let path_in = if path.trim_start_matches('/').is_empty() { "." } else { path.trim_start_matches('/') };
    rustix::fs::openat2(root, path_in, flags, Mode::empty(), ResolveFlags::IN_ROOT).map_err(|e| {
        // As Go words it, which is what clients look for.
        let text = io::Error::from(e).to_string().to_lowercase();
        let text = text.split(" (os error").next().unwrap_or_default();
        BuildError::new(Reason::RequestInvalid, format!("src={path}: {text}"))
    })
}

async fn write(
    output: &Output,
    files: &Files,
    roots: Vec<(String, OwnedFd)>,
    held: Vec<OwnedFd>,
    cancel: &CancellationToken,
) -> Result<(), BuildError> {
    match output {
        Output::Local(Directory::Client(client), _) => {
            let tree = Tree { roots, mtime: files.mtime, delete: files.delete, held };
            client.receiver.tree(client.exporter, tree).await
        }
        Output::Local(Directory::Path(dest), _) => {
            let dest = dest.clone();
            let work = move || {
                for (name, root) in &roots {
                    let dest = dest.join(name);
                    std::fs::create_dir_all(&dest).map_err(|e| cannot_write(&dest, &e))?;
                    export::rootfs_dir(root.as_fd(), &dest).map_err(failed)?;
                }
                drop(held);
                Ok(())
            };
            tokio::task::spawn_blocking(work).await.map_err(BuildError::internal)?
        }
        Output::Tar(dest, files) => {
            let Some(mut target) = Target::open(dest, &BTreeMap::new(), cancel).await? else { return Ok(()) };
            let mtime = files.mtime;
            let work = move || {
                let roots: Vec<_> = roots.iter().map(|(name, root)| (name.clone(), root.as_fd())).collect();
                let written = export::rootfs_tar_of(&roots, mtime, &mut target);
                drop(held);
                target.finish(written.map_err(failed))
            };
            tokio::task::spawn_blocking(work).await.map_err(BuildError::internal)?
        }
        _ => Err(BuildError::internal("not a file system output")),
    }
}
