//! Outputs that are files: image layouts, archives, root file systems.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lapstrake_handoff::Reason;
use lapstrake_image::export::{self, BlobSource};
use lapstrake_oci::Digest;
use lapstrake_store::Store;
use tokio_util::sync::CancellationToken;

use super::Packed;
use crate::build::{Solved, abortable};
use crate::engine::{Engine, Watch};
use crate::error::{BuildError, chain, is_no_space};
use crate::options::{Destination, Output};
use crate::progress::Progress;

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

/// A file that appears whole or not at all, or standard output.
struct Target {
    out: Box<dyn Write + Send>,
    rename: Option<(PathBuf, PathBuf)>,
}

impl Target {
    fn open(dest: &Destination, cancel: &CancellationToken) -> Result<Self, BuildError> {
        let Destination::Path(path) = dest else {
            return Ok(Self {
                out: Box::new(BufWriter::new(Cancelable(io::stdout(), cancel.clone()))),
                rename: None,
            });
        };
        let mut partial = path.clone().into_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let file = File::create(&partial).map_err(|e| cannot_write(&partial, &e))?;
        let file = Cancelable(file, cancel.clone());
        Ok(Self {
            out: Box::new(BufWriter::with_capacity(1 << 20, file)),
            rename: Some((partial, path.clone())),
        })
    }

    fn finish(mut self, written: Result<(), BuildError>) -> Result<(), BuildError> {
        let flushed = written.and_then(|()| {
            self.out.flush().map_err(|e| {
                let reason = if is_no_space(&e) { Reason::DiskFull } else { Reason::Internal };
                BuildError::new(reason, format!("writing the output: {e}"))
            })
        });
        drop(self.out);
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
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<(), BuildError> {
    let name = match output {
        Output::Docker { .. } => "exporting to docker image format",
        _ => "exporting to oci image format",
    };
    let step = progress.step(name);
    for layer in &packed.layers {
        layer.fetch(engine, cancel).await?;
    }
    let (blobs, packed, output) = (Blobs(engine.store().clone()), Arc::clone(packed), output.clone());
    let stop = cancel.clone();
    let work = move || match &output {
        Output::Oci { image, dest: Destination::Path(path), tar: false } => {
            export::oci_layout_dir(path, &packed.documents, &image.names, &blobs).map_err(failed)
        }
        Output::Oci { image, dest, .. } => {
            let mut target = Target::open(dest, &stop)?;
            let written = export::oci_layout_tar(&mut target.out, &packed.documents, &image.names, &blobs);
            target.finish(written.map_err(failed))
        }
        Output::Docker { image, dest } => {
            let mut target = Target::open(dest, &stop)?;
            let written = export::docker_archive(&mut target.out, &packed.documents, &image.names, &blobs);
            target.finish(written.map_err(failed))
        }
        _ => Err(BuildError::internal("not an image output")),
    };
    let work = async { tokio::task::spawn_blocking(work).await.map_err(BuildError::internal)? };
    step.close(abortable(cancel, work).await)
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
        Output::Local(_) => "exporting to client directory",
        _ => "exporting to client tarball",
    };
    let step = progress.step(name);
    let several = solved.len() > 1 || index;
    // Several stand beside each other, as buildx names them.
    let name = |solved: &Solved| match solved.platform.to_string().replace('/', "_") {
        name if several => name,
        _ => String::new(),
    };
    let mut roots = Vec::with_capacity(solved.len());
    for solved in solved {
        let snapshot = match &solved.lazy {
            Some(lazy) => engine.realise(lazy, &Watch::silent(cancel)).await?,
            None => solved.snapshot,
        };
        roots.push((name(solved), engine.mount(snapshot)?));
    }
    let (output, stop) = (output.clone(), cancel.clone());
    let work = async move {
        let work = move || match &output {
            Output::Local(dest) => {
                for (name, root) in &roots {
                    let dest = dest.join(name);
                    std::fs::create_dir_all(&dest).map_err(|e| cannot_write(&dest, &e))?;
                    export::rootfs_dir(root.as_fd(), &dest).map_err(failed)?;
                }
                Ok(())
            }
            Output::Tar(dest) => {
                let mut target = Target::open(dest, &stop)?;
                let roots: Vec<_> = roots.iter().map(|(name, root)| (name.clone(), root.as_fd())).collect();
                let written = export::rootfs_tar_of(&roots, &mut target.out);
                target.finish(written.map_err(failed))
            }
            _ => Err(BuildError::internal("not a file system output")),
        };
        tokio::task::spawn_blocking(work).await.map_err(BuildError::internal)?
    };
    step.close(abortable(cancel, work).await)
}
