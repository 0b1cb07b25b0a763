//! From a solved file system to where it was asked for.

mod files;
mod layers;
mod push;

use std::sync::Arc;
use std::time::Instant;

use lapstrake_handoff::{Compression, Timings};
use lapstrake_image::assemble::{Assembled, Spec, assemble};
use lapstrake_oci::{Descriptor, Digest};
use tokio_util::sync::CancellationToken;

use crate::build::Solved;
use crate::engine::Engine;
use crate::error::BuildError;
use crate::options::{BuildOptions, Image, Output};
use crate::progress::Progress;
use crate::time;

/// An image that was made.
#[derive(Debug, Clone)]
pub(crate) struct Exported {
    /// Its manifest.
    pub(crate) manifest: Descriptor,
    /// Digest of its config.
    pub(crate) config: Digest,
    /// Bytes of config and layers together.
    pub(crate) size_bytes: u64,
}

/// An image with its documents, ready to go anywhere.
pub(crate) struct Packed {
    pub(crate) documents: Assembled,
    pub(crate) layers: Vec<layers::Layer>,
}

impl Packed {
    fn exported(&self) -> Exported {
        let layers: u64 = self.layers.iter().map(|layer| layer.descriptor.size).sum();
        Exported {
            manifest: self.documents.manifest.1.clone(),
            config: self.documents.config.1.digest,
            size_bytes: layers + self.documents.config.1.size,
        }
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Writes every output of a build. The image that is returned is the last one that was made.
pub(crate) async fn export(
    engine: &Arc<Engine>,
    solved: &Solved,
    options: &BuildOptions,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<(Option<Exported>, Timings), BuildError> {
    let mut timings = Timings::default();
    let mut exported = None;
    for output in &options.outputs {
        let began = Instant::now();
        let image = match output {
            Output::Push(image) | Output::Image(image) => image,
            Output::Oci { image, .. } | Output::Docker { image, .. } => image,
            Output::Local(_) | Output::Tar(_) => {
                files::rootfs(engine, solved, output, progress, cancel).await?;
                timings.export_ms += millis(began);
                continue;
            }
        };
        let packed = Arc::new(pack(engine, solved, options, image, progress, cancel).await?);
        timings.export_ms += millis(began);
        let began = Instant::now();
        match output {
            Output::Push(image) => {
                push::push(engine, &packed, image, &solved.bases, progress, cancel).await?;
                timings.push_ms += millis(began);
            }
            Output::Image(_) => {}
            _ => {
                files::image(engine, &packed, output, progress, cancel).await?;
                timings.export_ms += millis(began);
            }
        }
        exported = Some(packed.exported());
    }
    Ok((exported, timings))
}

async fn pack(
    engine: &Arc<Engine>,
    solved: &Solved,
    options: &BuildOptions,
    image: &Image,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<Packed, BuildError> {
    let docker = image.docker_media_types || is_docker_archive(options, image);
    let step = progress.step("exporting to image");
    let made = layers::make(engine, solved, image, docker, options.source_date_epoch, &step, cancel).await;
    let packed = made.and_then(|layers| {
        let began = Instant::now();
        let base_history = solved.base.as_ref().map_or(0, |base| base.config.history.len());
        let spec = Spec {
            config: solved.config.clone(),
            layers: layers.iter().map(layers::Layer::for_assembly).collect(),
            docker_media_types: docker,
            annotations: options.annotations.clone(),
            created: options.source_date_epoch.map(time::rfc3339),
            base_history,
        };
        let documents = assemble(spec).map_err(|e| BuildError::internal(crate::error::chain(&e)))?;
        for (bytes, _) in [&documents.config, &documents.manifest] {
            engine.store().put_blob(bytes)?;
        }
        step.part(&format!("exporting config {}", documents.config.1.digest), began.elapsed());
        step.part(&format!("exporting manifest {}", documents.manifest.1.digest), began.elapsed());
        for name in &image.names {
            step.part(&format!("naming to {name}"), began.elapsed());
        }
        Ok(Packed { documents, layers })
    });
    step.close(packed)
}

fn is_docker_archive(options: &BuildOptions, image: &Image) -> bool {
    options.outputs.iter().any(|o| matches!(o, Output::Docker { image: i, .. } if std::ptr::eq(i, image)))
}

/// Layers compress as the user asks.
fn kind(compression: Compression) -> lapstrake_image::compress::Kind {
    use lapstrake_image::compress::Kind;
    match compression {
        Compression::Gzip => Kind::Gzip,
        Compression::Zstd => Kind::Zstd,
        Compression::Uncompressed => Kind::Uncompressed,
    }
}
