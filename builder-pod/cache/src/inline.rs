//! A cache within the config of the image that it is of: its layers are the image's.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use lapstrake_oci::{Descriptor, Digest, Manifest};
use serde::Deserialize;

use crate::doc::{Chain, Config, Layer, Outcome, Record};
use crate::{Draft, Error, Records};

/// The annotation that tells the digest of a layer's tar.
pub const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// The annotation that tells when a layer was made.
pub const CREATED_AT: &str = "buildkit/createdat";
/// The annotation that tells what made a layer.
pub const DESCRIPTION: &str = "buildkit/description";

/// What goes into the image's config under `moby.buildkit.cache.v0`, for an image of these layers, lowest first.
/// `None` where no record has a result that the image contains.
///
/// # Errors
/// None that records cause.
pub fn write(draft: &Draft, layers: &[Digest]) -> Result<Option<String>, Error> {
    let records = draft.records(|result, created| {
        let places = result.iter().map(|layer| layers.iter().position(|l| *l == layer.digest));
        let Some(places) = places.collect::<Option<Vec<usize>>>() else { return Record::default() };
        let bottom = result.len() <= layers.len()
            && result.iter().zip(layers).all(|(layer, of_image)| layer.digest == *of_image);
        if bottom {
            let layer = result.len() as i64 - 1;
            return Record { results: vec![Outcome { layer, created }], ..Record::default() };
        }
        let layers = places.into_iter().map(|at| at as i64).collect();
        Record { chains: vec![Chain { layers, created }], ..Record::default() }
    });
    if !records.iter().any(|record| !record.results.is_empty() || !record.chains.is_empty()) {
        return Ok(None);
    }
    let json = serde_json::to_vec(&records).map_err(|source| Error::Malformed { what: "records", source })?;
    Ok(Some(BASE64_STANDARD.encode(json)))
}

#[derive(Deserialize)]
struct Image {
    #[serde(default)]
    rootfs: RootFs,
    #[serde(rename = "moby.buildkit.cache.v0")]
    cache: Option<String>,
    #[serde(default)]
    history: Option<Vec<History>>,
}

#[derive(Default, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

#[derive(Deserialize)]
struct History {
    created: Option<String>,
    created_by: Option<String>,
    #[serde(default)]
    empty_layer: bool,
}

/// The cache in an image's config; `None` where it has none.
///
/// # Errors
/// [`Error::Malformed`] and [`Error::Damaged`] of what is there.
pub fn read(config: &[u8], manifest: &Manifest) -> Result<Option<Records>, Error> {
    let malformed = |what| move |source| Error::Malformed { what, source };
    let image: Image = serde_json::from_slice(config).map_err(malformed("image config"))?;
    let Some(cache) = image.cache.filter(|text| !text.is_empty()) else { return Ok(None) };
    let diff_ids = image.rootfs.diff_ids.unwrap_or_default();
    if diff_ids.len() != manifest.layers.len() {
        return Err(Error::Damaged("the image's manifest and config name different layers".to_owned()));
    }
    let json = BASE64_STANDARD
        .decode(cache)
        .map_err(|e| Error::Damaged(format!("its inline cache is not base64: {e}")))?;
    let records: Vec<Record> = serde_json::from_slice(&json).map_err(malformed("inline cache"))?;
    let history = image.history.unwrap_or_default();
    let mut history = history.into_iter().filter(|entry| !entry.empty_layer);
    let mut layers = Vec::with_capacity(diff_ids.len());
    for (layer, diff_id) in manifest.layers.iter().zip(&diff_ids) {
        let mut layer: Descriptor = layer.clone();
        layer.annotations.insert(UNCOMPRESSED.to_owned(), diff_id.to_string());
        let (created, by) = history.next().map_or((None, None), |entry| (entry.created, entry.created_by));
        for (name, told) in [(CREATED_AT, created), (DESCRIPTION, by.filter(|text| !text.is_empty()))] {
            layer.annotations.extend(told.map(|told| (name.to_owned(), told)));
        }
        layers.push(layer);
    }
    let chain = layers.iter().enumerate();
    let chain = chain
        .map(|(at, layer)| Layer { blob: layer.digest, parent: at as i64 - 1, annotations: None })
        .collect();
    Records::new(&Config { layers: chain, records }, &layers).map(Some)
}
