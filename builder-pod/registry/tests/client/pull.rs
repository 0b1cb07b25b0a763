use std::sync::{Arc, Mutex};
use std::time::Duration;

use lapstrake_oci::Digest;
use lapstrake_registry::{Class, Client, Config, Kind, Limits, Progress};
use lapstrake_testkit::image::reference;
use lapstrake_testkit::registry::{Ask, Fault, Gate, Options, Registry, What};
use tokio_util::sync::CancellationToken;

use crate::{app, client, config, image, noise, pull, quick, registry_with};

#[tokio::test]
async fn a_tag_resolves_by_one_head() {
    let image = image();
    let registry = registry_with(&image).await;
    let found = client().resolve(&app(&registry)).await.unwrap();
    assert_eq!(found.digest, image.digest);
    assert_eq!((found.media_type, found.size), (image.media_type, image.manifest.len() as u64));
    assert_eq!(registry.log().iter().map(|e| e.ask).collect::<Vec<_>>(), [Ask::ManifestHead]);
}

#[tokio::test]
async fn a_registry_without_head_is_asked_by_get() {
    let image = image();
    let registry = Registry::start(Options { refuse_heads: true, ..Options::default() }).await.unwrap();
    registry.put_image("app", "1", &image).unwrap();
    assert_eq!(client().resolve(&app(&registry)).await.unwrap().digest, image.digest);
    assert_eq!(registry.count(Ask::ManifestGet), 1);
}

#[tokio::test]
async fn a_manifest_comes_with_its_very_bytes_by_tag_and_by_digest() {
    let image = image();
    let registry = registry_with(&image).await;
    let by_tag = client().manifest(&app(&registry)).await.unwrap();
    assert_eq!(by_tag.bytes, image.manifest);
    let by_digest = client().manifest(&app(&registry).with_digest(image.digest)).await.unwrap();
    assert_eq!(by_digest, by_tag);
}

#[tokio::test]
async fn a_changed_manifest_is_refused() {
    let image = image();
    let registry = registry_with(&image).await;
    registry.inject(Fault::always(Ask::ManifestGet, What::Corrupt));
    for name in [app(&registry), app(&registry).with_digest(image.digest)] {
        let error = client().manifest(&name).await.unwrap_err();
        assert_eq!(error.class(), Class::Corrupt, "{error}");
    }
}

#[tokio::test]
async fn a_manifest_that_breaks_off_is_read_again() {
    let image = image();
    let registry = registry_with(&image).await;
    registry.inject(Fault::next(Ask::ManifestGet, What::Cut(10)));
    assert_eq!(client().manifest(&app(&registry)).await.unwrap().bytes, image.manifest);
    assert_eq!(registry.count(Ask::ManifestGet), 2);
}

#[tokio::test]
async fn a_missing_image_says_what_is_missing() {
    let registry = registry_with(&image()).await;
    let host = registry.host();
    for (name, code, hint) in [
        ("app:2", "MANIFEST_UNKNOWN", "check its name and tag"),
        ("nope:1", "NAME_UNKNOWN", "no repository nope"),
    ] {
        let error = client().resolve(&reference(&host, name)).await.unwrap_err();
        assert_eq!((error.class(), error.status(), error.code()), (Class::NotFound, Some(404), Some(code)));
        assert!(
            error.to_string().starts_with(&format!("resolve {host}/{name}: not found (HTTP 404: {code}"))
        );
        assert!(error.hint().unwrap().contains(hint), "{error:#}");
        assert!(!error.is_retryable());
    }
}

#[tokio::test]
async fn a_blob_arrives_whole_with_progress() {
    let registry = Registry::open().await;
    let (bytes, blob) = noise(300_000);
    registry.storage().put_blob("app", &bytes).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let progress = Progress::new({
        let seen = Arc::clone(&seen);
        move |done, total| seen.lock().unwrap().push((done, total))
    });
    let mut got = Vec::new();
    let write = |piece: &[u8]| {
        got.extend_from_slice(piece);
        Ok(())
    };
    client().pull_blob_with(&app(&registry), &blob, write, &progress).await.unwrap();
    assert!(got == bytes);
    let seen = seen.lock().unwrap();
    assert!(seen.is_sorted() && seen.len() > 1);
    assert_eq!(seen.last(), Some(&(300_000, 300_000)));
}

#[tokio::test]
async fn a_broken_blob_goes_on_with_a_range_request() {
    let registry = Registry::open().await;
    let (bytes, blob) = noise(400_000);
    registry.storage().put_blob("app", &bytes).unwrap();
    // More breaks than attempts: each made progress, so none of them counts as the last.
    registry.inject(Fault::next(Ask::BlobGet, What::Cut(50_000)).times(6));
    assert!(pull(&client(), &app(&registry), &blob).await.unwrap() == bytes);
    let log = registry.log();
    assert_eq!(log.len(), 7);
    assert_eq!(log[0].range, None);
    assert!(log[1..].iter().all(|e| e.range.is_some() && e.status == 206), "{log:?}");
    let starts: Vec<u64> = log[1..]
        .iter()
        .map(|e| e.range.as_deref().unwrap().trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap())
        .collect();
    assert!(starts.is_sorted() && starts.iter().all(|start| *start > 0), "{starts:?}");
}

#[tokio::test]
async fn a_server_that_ignores_ranges_is_read_past_what_is_known() {
    let registry = Registry::start(Options { ignore_ranges: true, ..Options::default() }).await.unwrap();
    let (bytes, blob) = noise(300_000);
    registry.storage().put_blob("app", &bytes).unwrap();
    registry.inject(Fault::next(Ask::BlobGet, What::Cut(100_000)));
    assert!(pull(&client(), &app(&registry), &blob).await.unwrap() == bytes);
    assert_eq!(registry.count(Ask::BlobGet), 2);
}

#[tokio::test]
async fn a_blob_that_never_gets_on_is_given_up() {
    let registry = Registry::open().await;
    let (bytes, blob) = noise(100_000);
    registry.storage().put_blob("app", &bytes).unwrap();
    registry.inject(Fault::always(Ask::BlobGet, What::Drop(0)));
    let error = pull(&client(), &app(&registry), &blob).await.unwrap_err();
    assert_eq!(error.class(), Class::Unavailable, "{error}");
    assert_eq!(registry.count(Ask::BlobGet), quick().attempts_max as usize);
}

#[tokio::test]
async fn wrong_bytes_and_wrong_sizes_are_corrupt() {
    let registry = Registry::open().await;
    let (bytes, blob) = noise(1000);
    registry.storage().put_blob("app", &bytes).unwrap();
    registry.inject(Fault::next(Ask::BlobGet, What::Corrupt));
    let error = pull(&client(), &app(&registry), &blob).await.unwrap_err();
    assert!(matches!(error.kind(), Kind::Digest { .. }), "{error}");
    for size in [999, 1001] {
        let wrong = lapstrake_oci::Descriptor { size, ..blob.clone() };
        let error = pull(&client(), &app(&registry), &wrong).await.unwrap_err();
        assert_eq!(error.class(), Class::Corrupt, "{size}: {error}");
    }
}

#[tokio::test]
async fn a_failing_sink_is_a_failure_of_this_side() {
    let registry = Registry::open().await;
    let (bytes, blob) = noise(1000);
    registry.storage().put_blob("app", &bytes).unwrap();
    let full = |_: &[u8]| Err(std::io::Error::from(std::io::ErrorKind::StorageFull));
    let result = client().pull_blob_with(&app(&registry), &blob, full, &Progress::none()).await;
    assert_eq!(result.unwrap_err().class(), Class::Local);
    assert_eq!(registry.count(Ask::BlobGet), 1);
}

#[tokio::test]
async fn failing_answers_are_asked_again_and_the_rest_is_not() {
    let image = image();
    for (status, wanted) in [(500, 3), (503, 3), (429, 3), (408, 3), (400, 1), (501, 1)] {
        let registry = registry_with(&image).await;
        registry.inject(Fault::next(Ask::ManifestGet, What::Status(status, None)).times(2));
        let result = client().manifest(&app(&registry)).await;
        assert_eq!(registry.count(Ask::ManifestGet), wanted, "{status}");
        assert_eq!(result.is_ok(), wanted == 3, "{status}");
    }
}

#[tokio::test]
async fn a_dropped_connection_is_tried_again() {
    let registry = registry_with(&image()).await;
    registry.inject(Fault::next(Ask::ManifestHead, What::Drop(0)).times(2));
    client().resolve(&app(&registry)).await.unwrap();
}

#[tokio::test]
async fn a_retry_after_is_kept_and_a_too_long_one_is_an_error_at_once() {
    let registry = registry_with(&image()).await;
    // The client would wait for minutes by itself; the registry says that it need not.
    let limits =
        Limits { backoff_first: Duration::from_secs(600), backoff_max: Duration::from_secs(600), ..quick() };
    let patient = Client::new(Config { limits, ..config() });
    registry.inject(Fault::next(Ask::ManifestHead, What::Status(429, Some(0))));
    patient.resolve(&app(&registry)).await.unwrap();
    registry.inject(Fault::next(Ask::ManifestHead, What::Status(503, Some(3600))));
    let error = patient.resolve(&app(&registry)).await.unwrap_err();
    assert_eq!((error.class(), error.status()), (Class::Unavailable, Some(503)));
}

#[tokio::test]
async fn an_unreachable_registry_is_unavailable() {
    let gone = Registry::open().await;
    let name = app(&gone);
    drop(gone);
    let error = client().resolve(&name).await.unwrap_err();
    assert_eq!(error.class(), Class::Unavailable, "{error}");
    assert!(error.to_string().contains("cannot reach the registry"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn at_most_four_transfers_run_at_a_registry() {
    let registry = Registry::open().await;
    let (bytes, blob) = noise(1000);
    registry.storage().put_blob("app", &bytes).unwrap();
    let gate = Gate::closed();
    registry.inject(Fault::always(Ask::BlobGet, What::Hold(gate.clone())));
    let (client, name) = (client(), app(&registry));
    let pulls: Vec<_> = (0..12)
        .map(|_| {
            let (client, name, blob) = (client.clone(), name.clone(), blob.clone());
            tokio::spawn(async move { pull(&client, &name, &blob).await })
        })
        .collect();
    while registry.running(Ask::BlobGet) < 4 {
        tokio::task::yield_now().await;
    }
    gate.open();
    for pull in pulls {
        assert!(pull.await.unwrap().unwrap() == bytes);
    }
    assert_eq!(registry.running_max(Ask::BlobGet), 4);
}

#[tokio::test]
async fn a_cancelled_token_ends_a_transfer() {
    let registry = Registry::open().await;
    let (bytes, blob) = noise(1000);
    registry.storage().put_blob("app", &bytes).unwrap();
    registry.inject(Fault::always(Ask::BlobGet, What::Hold(Gate::closed())));
    let token = CancellationToken::new();
    let (client, name) = (client().with_cancel(token.clone()), app(&registry));
    let (result, ()) = tokio::join!(pull(&client, &name, &blob), async {
        while registry.running(Ask::BlobGet) == 0 {
            tokio::task::yield_now().await;
        }
        token.cancel();
    });
    assert_eq!(result.unwrap_err().class(), Class::Canceled);
}

#[tokio::test]
async fn all_pages_of_a_tag_list_are_read() {
    let registry = registry_with(&image()).await;
    for tag in ["2", "3", "4", "5"] {
        registry.put_image("app", tag, &image()).unwrap();
    }
    assert_eq!(client().tags(&app(&registry)).await.unwrap(), ["1", "2", "3", "4", "5"]);
    assert_eq!(registry.count(Ask::Tags), 3);
}

#[tokio::test]
async fn existence_is_one_head() {
    let image = image();
    let registry = registry_with(&image).await;
    let digest = image.parsed.layers[0].digest;
    assert!(client().blob_exists(&app(&registry), &digest).await.unwrap());
    assert!(!client().blob_exists(&app(&registry), &Digest::of(b"other")).await.unwrap());
    assert_eq!(registry.log().len(), 2);
}
