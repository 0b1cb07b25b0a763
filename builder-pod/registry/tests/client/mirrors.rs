use lapstrake_registry::{Class, Client, Config, HostConfig, HostsConfig};
use lapstrake_testkit::registry::{Ask, Fault, Registry, What};

use crate::{app, config, image, noise, pull, registry_with};

fn with_mirrors(registry: &Registry, mirrors: &[&Registry]) -> Client {
    let mirrors = mirrors.iter().map(|mirror| format!("http://{}", mirror.host())).collect();
    let hosts = HostsConfig::default().with(registry.host(), HostConfig { mirrors, ..HostConfig::default() });
    Client::new(Config { hosts, ..config() })
}

#[tokio::test]
async fn a_mirror_is_asked_before_the_registry_and_told_what_it_stands_for() {
    let image = image();
    let (registry, mirror) = (registry_with(&image).await, registry_with(&image).await);
    let client = with_mirrors(&registry, &[&mirror]);
    client.resolve(&app(&registry)).await.unwrap();
    pull(&client, &app(&registry), &image.parsed.layers[0]).await.unwrap();
    assert!(registry.log().is_empty());
    assert!(
        mirror
            .log()
            .iter()
            .all(|e| e.path.ends_with(&format!("?ns={}", registry.host().replace(':', "%3A"))))
    );
}

#[tokio::test]
async fn mirrors_that_fail_are_passed_over_and_named_when_all_fail() {
    let image = image();
    let (registry, empty, down) =
        (registry_with(&image).await, Registry::open().await, Registry::open().await);
    down.inject(Fault::always(Ask::ManifestHead, What::Status(503, None)));
    down.inject(Fault::always(Ask::ManifestGet, What::Status(503, None)));
    let client = with_mirrors(&registry, &[&empty, &down]);
    assert_eq!(client.resolve(&app(&registry)).await.unwrap().digest, image.digest);
    assert_eq!((empty.count(Ask::ManifestHead), registry.count(Ask::ManifestHead)), (1, 1));
    let error = client.manifest(&app(&registry).with_tag("2").unwrap()).await.unwrap_err();
    assert_eq!(error.class(), Class::NotFound);
    assert!(error.to_string().contains(&format!("mirror {} failed", down.host())), "{error}");
}

#[tokio::test]
async fn a_blob_that_breaks_at_a_mirror_goes_on_at_the_registry() {
    let (registry, mirror) = (Registry::open().await, Registry::open().await);
    let (bytes, blob) = noise(300_000);
    registry.storage().put_blob("app", &bytes).unwrap();
    mirror.storage().put_blob("app", &bytes).unwrap();
    mirror.inject(Fault::next(Ask::BlobGet, What::Cut(100_000)));
    mirror.inject(Fault::always(Ask::BlobGet, What::Drop(0)));
    let client = with_mirrors(&registry, &[&mirror]);
    assert!(pull(&client, &app(&registry), &blob).await.unwrap() == bytes);
    let log = registry.log();
    assert_eq!(log.len(), 1);
    assert!(log[0].range.is_some(), "{log:?}");
}

#[tokio::test]
async fn pushes_never_go_to_a_mirror() {
    let image = image();
    let (registry, mirror) = (registry_with(&image).await, Registry::open().await);
    let client = with_mirrors(&registry, &[&mirror]);
    client.push_manifest(&app(&registry), &image.media_type, image.manifest).await.unwrap();
    assert!(mirror.log().is_empty());
}
