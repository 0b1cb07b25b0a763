#![allow(clippy::unwrap_used, reason = "tests")]

use lapstrake_oci::Platform;

use super::*;

fn layer(name: &str, media_type: &str, created: &str) -> Layer {
    Layer {
        descriptor: Descriptor::of(media_type, name.as_bytes()),
        diff_id: Digest::of(format!("tar {name}").as_bytes()),
        created: Some(created.to_owned()),
        about: None,
    }
}

fn entry(by: &str, empty_layer: bool) -> History {
    History { created_by: Some(by.to_owned()), empty_layer, ..History::default() }
}

fn spec() -> Spec {
    let mut config = ImageConfig::of_platform(&Platform::new("linux", "arm", Some("v7")));
    config.history = vec![
        History { created: Some("2020-01-01T00:00:00Z".to_owned()), ..entry("base", false) },
        entry("ENV a=b", true),
        entry("RUN one", false),
        entry("LABEL x=y", true),
    ];
    let layers = vec![
        layer("base", media_type::DOCKER_LAYER_GZIP, "2021-01-01T00:00:00Z"),
        layer("one", media_type::OCI_LAYER_GZIP, "2022-01-01T00:00:00Z"),
    ];
    Spec { config, layers, base_history: 1, ..Spec::default() }
}

fn read(made: &Assembled) -> (ImageConfig, Manifest) {
    let config = serde_json::from_slice(&made.config.0).unwrap();
    (config, serde_json::from_slice(&made.manifest.0).unwrap())
}

fn times(config: &ImageConfig) -> Vec<&str> {
    config.history.iter().map(|h| h.created.as_deref().unwrap_or("-")).collect()
}

#[test]
fn entries_without_a_time_take_their_layers_or_that_of_a_layer_of_ours() {
    let made = assemble(spec()).unwrap();
    let (config, manifest) = read(&made);
    let (base, one) = ("2020-01-01T00:00:00Z", "2022-01-01T00:00:00Z");
    assert_eq!(times(&config), [base, one, one, one]);
    assert_eq!(config.created.as_deref(), Some(one));
    assert_eq!(config.rootfs.diff_ids, [Digest::of(b"tar base"), Digest::of(b"tar one")]);
    assert_eq!(manifest.config, made.config.1);
    assert!(manifest.layers.iter().all(|l| l.media_type == media_type::OCI_LAYER_GZIP));
    assert_eq!(made.manifest.1.platform.as_ref().map(ToString::to_string).as_deref(), Some("linux/arm/v7"));
}

#[test]
fn source_date_epoch_dates_what_is_ours_and_leaves_the_base() {
    let epoch = "1970-01-02T00:00:00Z";
    let (config, _) = read(&assemble(Spec { created: Some(epoch.to_owned()), ..spec() }).unwrap());
    assert_eq!(times(&config), ["2020-01-01T00:00:00Z", epoch, epoch, epoch]);
    assert_eq!(config.created.as_deref(), Some(epoch));
}

#[test]
fn a_layer_without_history_is_told_by_what_made_it_and_is_no_later_than_the_epoch() {
    let mut spec = spec();
    let made = |created| Layer {
        about: Some("RUN two".to_owned()),
        ..layer("two", media_type::OCI_LAYER_GZIP, created)
    };
    spec.layers.insert(1, made("2021-06-01T00:00:00.5Z"));
    for (epoch, expected) in
        [("2021-06-01T00:00:00Z", "2021-06-01T00:00:00Z"), ("2021-06-01T00:00:01Z", "2021-06-01T00:00:00.5Z")]
    {
        let (config, _) = read(&assemble(Spec { created: Some(epoch.to_owned()), ..spec.clone() }).unwrap());
        let added = &config.history[1];
        assert_eq!(added.created.as_deref(), Some(expected));
        assert_eq!(added.created_by.as_deref(), Some("RUN two"));
        assert_eq!(added.comment.as_deref(), Some("buildkit.exporter.image.v0"));
        assert_eq!(
            config.history[3].created.as_deref(),
            Some(epoch),
            "what speaks of itself has the image's time"
        );
    }
}

#[test]
fn layers_without_history_get_plain_entries_before_ours() {
    let mut spec = spec();
    spec.layers.insert(1, layer("silent", media_type::OCI_LAYER_GZIP, "2021-06-01T00:00:00Z"));
    let (config, _) = read(&assemble(spec).unwrap());
    assert_eq!(config.history.len(), 5);
    let plain = &config.history[1];
    assert!(!plain.empty_layer && plain.created_by.is_none());
    assert_eq!(plain.created.as_deref(), Some("2021-06-01T00:00:00Z"));
    assert_eq!(config.history[3].created.as_deref(), Some("2022-01-01T00:00:00Z"), "RUN one keeps its layer");
}

#[test]
fn a_base_with_more_history_than_layers_gives_up_its_first_entries() {
    let mut short = spec();
    short.layers.remove(0);
    let (config, _) = read(&assemble(short).unwrap());
    let empty: Vec<bool> = config.history.iter().map(|h| h.empty_layer).collect();
    assert_eq!(empty, [true, true, false, true], "RUN one keeps its layer");
}

#[test]
fn more_history_of_ours_than_layers_is_an_error_that_counts() {
    let mut short = Spec { base_history: 0, ..spec() };
    short.layers.pop();
    assert!(assemble(short).unwrap_err().to_string().contains("2 layers, but there are 1"));
    assert!(assemble(Spec { base_history: 9, ..spec() }).is_err());
}

#[test]
fn docker_types_are_used_unless_something_exists_in_oci_only() {
    let types = |spec: Spec| {
        let (_, manifest) = read(&assemble(spec).unwrap());
        let layers: Vec<_> = manifest.layers.iter().map(|l| l.media_type.clone()).collect();
        (manifest.media_type.unwrap(), manifest.config.media_type, layers)
    };
    let docker = Spec { docker_media_types: true, ..spec() };
    let (manifest, config, layers) = types(docker.clone());
    assert_eq!(
        (manifest.as_str(), config.as_str()),
        (media_type::DOCKER_MANIFEST, media_type::DOCKER_CONFIG)
    );
    assert!(layers.iter().all(|l| l == media_type::DOCKER_LAYER_GZIP));

    let annotations = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
    assert_eq!(types(Spec { annotations, ..docker.clone() }).0, media_type::OCI_MANIFEST);
    let mut zstd = docker;
    zstd.layers[1].descriptor.media_type = media_type::OCI_LAYER_ZSTD.to_owned();
    let (manifest, _, layers) = types(zstd);
    assert_eq!(manifest, media_type::DOCKER_MANIFEST);
    assert_eq!(layers, [media_type::DOCKER_LAYER_GZIP, media_type::DOCKER_LAYER_ZSTD]);
}

/// The bytes are the cache's and the registry's identity: a change here changes every image's digest.
#[test]
fn the_documents_bytes_are_pinned() {
    let made = assemble(spec()).unwrap();
    assert_eq!(made, assemble(spec()).unwrap());
    let config = String::from_utf8(made.config.0.clone()).unwrap();
    assert_eq!(
        config,
        format!(
            concat!(
                r#"{{"architecture":"arm","config":{{}},"created":"2022-01-01T00:00:00Z","history":["#,
                r#"{{"created":"2020-01-01T00:00:00Z","created_by":"base"}},"#,
                r#"{{"created":"2022-01-01T00:00:00Z","created_by":"ENV a=b","empty_layer":true}},"#,
                r#"{{"created":"2022-01-01T00:00:00Z","created_by":"RUN one"}},"#,
                r#"{{"created":"2022-01-01T00:00:00Z","created_by":"LABEL x=y","empty_layer":true}}],"#,
                r#""os":"linux","rootfs":{{"type":"layers","diff_ids":["{}","{}"]}},"variant":"v7"}}"#,
            ),
            Digest::of(b"tar base"),
            Digest::of(b"tar one")
        )
    );
    let (bytes, descriptor) = index(vec![made.manifest.1.clone()], BTreeMap::new(), false).unwrap();
    assert_eq!(descriptor, Descriptor::of(media_type::OCI_INDEX, &bytes));
    let read: Index = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(read.manifests, [made.manifest.1]);
}
