//! Media types of layers, in Docker's names and in OCI's.

use lapstrake_oci::media_type as m;

use crate::compress::Kind;

/// Layers that Docker and OCI once asked not to be pushed. We push what we pull, so they become plain.
const FOREIGN: [(&str, Kind); 4] = [
    ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Kind::Gzip),
    ("application/vnd.oci.image.layer.nondistributable.v1.tar", Kind::Uncompressed),
    ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Kind::Gzip),
    ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", Kind::Zstd),
];

/// Documents: Docker's name beside OCI's.
const DOCUMENTS: [(&str, &str); 3] = [
    (m::DOCKER_MANIFEST, m::OCI_MANIFEST),
    (m::DOCKER_INDEX, m::OCI_INDEX),
    (m::DOCKER_CONFIG, m::OCI_CONFIG),
];

/// The media type of a layer, as Docker or as OCI calls it.
pub fn layer_media_type(kind: Kind, docker: bool) -> &'static str {
    match (kind, docker) {
        (Kind::Uncompressed, false) => m::OCI_LAYER,
        (Kind::Gzip, false) => m::OCI_LAYER_GZIP,
        (Kind::Zstd, false) => m::OCI_LAYER_ZSTD,
        (Kind::Uncompressed, true) => m::DOCKER_LAYER,
        (Kind::Gzip, true) => m::DOCKER_LAYER_GZIP,
        (Kind::Zstd, true) => m::DOCKER_LAYER_ZSTD,
    }
}

/// How a layer of this media type is compressed; `None` where it is no layer that we know.
pub fn kind_of(media_type: &str) -> Option<Kind> {
    let foreign = FOREIGN.iter().find(|(name, _)| *name == media_type).map(|(_, kind)| *kind);
    foreign.or_else(|| {
        [Kind::Uncompressed, Kind::Gzip, Kind::Zstd]
            .into_iter()
            .find(|kind| [false, true].iter().any(|docker| layer_media_type(*kind, *docker) == media_type))
    })
}

/// The other family's name of the same thing: a layer of the same compression, a manifest, index or
/// config. What is in neither family stays as it is.
pub fn convert(media_type: &str, docker: bool) -> String {
    if let Some(kind) = kind_of(media_type) {
        return layer_media_type(kind, docker).to_owned();
    }
    let pair = DOCUMENTS.iter().find(|(a, b)| *a == media_type || *b == media_type);
    match pair {
        Some((docker_name, oci_name)) => (if docker { *docker_name } else { *oci_name }).to_owned(),
        None => media_type.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversion_keeps_the_compression_and_comes_back() {
        for kind in [Kind::Uncompressed, Kind::Gzip, Kind::Zstd] {
            for docker in [false, true] {
                let name = layer_media_type(kind, docker);
                assert_eq!(kind_of(name), Some(kind));
                assert_eq!(convert(&convert(name, !docker), docker), name);
            }
        }
        assert_eq!(convert(m::DOCKER_CONFIG, false), m::OCI_CONFIG);
        assert_eq!(convert(m::OCI_MANIFEST, true), m::DOCKER_MANIFEST);
    }

    #[test]
    fn foreign_layers_become_plain_and_unknown_types_stay() {
        assert_eq!(convert(FOREIGN[0].0, false), m::OCI_LAYER_GZIP);
        assert_eq!(convert("application/vnd.in-toto+json", true), "application/vnd.in-toto+json");
        assert_eq!(kind_of("application/vnd.in-toto+json"), None);
    }
}
