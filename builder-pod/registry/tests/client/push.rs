use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lapstrake_oci::Digest;
use lapstrake_registry::{BlobReader, BlobSource, Class, Progress, Pushed};
use lapstrake_testkit::image::{Image, Layer, reference};
use lapstrake_testkit::registry::{Ask, Fault, Options, Registry, What};

use crate::{app, client, image, noise, pull, registry_with};

/// Larger than what goes into one PUT.
const BIG: usize = 3 << 20;

fn asks(registry: &Registry) -> Vec<Ask> {
    registry.log().iter().map(|entry| entry.ask).collect()
}

#[tokio::test]
async fn an_image_makes_the_round_trip_under_several_tags() {
    let registry = Registry::open().await;
    let (client, image, name) = (client(), image(), app(&registry));
    for (blob, bytes) in image.blobs() {
        let source = BlobSource::bytes(bytes.to_vec());
        let pushed = client.push_blob(&name, blob, &source, &[], &Progress::none()).await.unwrap();
        assert_eq!(pushed, Pushed::Uploaded);
    }
    let tags = ["1".to_owned(), "latest".to_owned()];
    let digest = client.push_tags(&name, &tags, &image.media_type, image.manifest.clone()).await.unwrap();
    assert_eq!(digest, image.digest);
    for tag in &tags {
        assert_eq!(client.resolve(&name.with_tag(tag).unwrap()).await.unwrap().digest, digest);
    }
    for (blob, bytes) in image.blobs() {
        assert_eq!(pull(&client, &name, blob).await.unwrap(), bytes);
    }
}

#[tokio::test]
async fn an_existing_blob_costs_one_head_and_is_not_opened() {
    let image = image();
    let registry = registry_with(&image).await;
    let opened = Arc::new(AtomicUsize::new(0));
    let source = BlobSource::new({
        let opened = Arc::clone(&opened);
        move |_| {
            opened.fetch_add(1, Ordering::Relaxed);
            Box::pin(async { Ok(Box::pin(tokio::io::empty()) as BlobReader) })
        }
    });
    let blob = &image.parsed.layers[0];
    let from = ["other".to_owned()];
    let pushed = client().push_blob(&app(&registry), blob, &source, &from, &Progress::none()).await.unwrap();
    assert_eq!(pushed, Pushed::Existed);
    assert_eq!(asks(&registry), [Ask::BlobHead]);
    assert_eq!(opened.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_big_blob_is_one_patch_and_a_small_one_no_patch() {
    let registry = Registry::open().await;
    for (len, wanted) in [
        (1000, &[Ask::BlobHead, Ask::UploadStart, Ask::UploadPut][..]),
        (BIG, &[Ask::BlobHead, Ask::UploadStart, Ask::UploadPatch, Ask::UploadPut]),
        (0, &[Ask::BlobHead, Ask::UploadStart, Ask::UploadPut]),
    ] {
        registry.clear_log();
        let (bytes, blob) = noise(len);
        let source = BlobSource::bytes(bytes.clone());
        client().push_blob(&app(&registry), &blob, &source, &[], &Progress::none()).await.unwrap();
        assert_eq!(asks(&registry), wanted, "{len} bytes");
        assert!(std::fs::read(registry.storage().blob_path(&blob.digest)).unwrap() == bytes);
    }
}

#[tokio::test]
async fn a_file_is_streamed() {
    let registry = Registry::open().await;
    let (bytes, blob) = noise(BIG);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes).unwrap();
    let source = BlobSource::file(file.path());
    client().push_blob(&app(&registry), &blob, &source, &[], &Progress::none()).await.unwrap();
    assert!(pull(&client(), &app(&registry), &blob).await.unwrap() == bytes);
}

#[tokio::test]
async fn a_mount_saves_the_upload() {
    let image = image();
    let registry = registry_with(&image).await;
    let (name, source) = (reference(&registry.host(), "copy:1"), BlobSource::bytes(Vec::new()));
    let from = ["nothing/here".to_owned(), "app".to_owned()];
    let blob = &image.parsed.layers[0];
    let pushed = client().push_blob(&name, blob, &source, &from, &Progress::none()).await.unwrap();
    assert_eq!(pushed, Pushed::Mounted { from: "app".to_owned() });
    assert!(registry.storage().find_blob("copy", &blob.digest).is_some());
    assert_eq!(asks(&registry), [Ask::BlobHead, Ask::Mount, Ask::Mount]);
}

#[tokio::test]
async fn a_refused_mount_goes_on_with_the_session_that_it_opened() {
    let registry = Registry::start(Options { refuse_mounts: true, ..Options::default() }).await.unwrap();
    let (bytes, blob) = noise(1000);
    let source = BlobSource::bytes(bytes);
    let from = ["other".to_owned()];
    let pushed = client().push_blob(&app(&registry), &blob, &source, &from, &Progress::none()).await.unwrap();
    assert_eq!(pushed, Pushed::Uploaded);
    assert_eq!(asks(&registry), [Ask::BlobHead, Ask::Mount, Ask::UploadPut]);
    registry.clear_log();
    let (bytes, blob) = noise(2000);
    let from = ["other".to_owned(), "third".to_owned()];
    let source = BlobSource::bytes(bytes);
    client().push_blob(&app(&registry), &blob, &source, &from, &Progress::none()).await.unwrap();
    assert_eq!(asks(&registry), [Ask::BlobHead, Ask::Mount, Ask::Mount, Ask::UploadCancel, Ask::UploadPut]);
}

#[tokio::test]
async fn a_broken_upload_goes_on_where_it_broke() {
    let registry = Registry::open().await;
    let (bytes, blob) = noise(BIG);
    registry.inject(Fault::next(Ask::UploadPatch, What::Drop(1 << 20)).times(2));
    let source = BlobSource::bytes(bytes.clone());
    client().push_blob(&app(&registry), &blob, &source, &[], &Progress::none()).await.unwrap();
    assert!(pull(&client(), &app(&registry), &blob).await.unwrap() == bytes);
    let ranges: Vec<_> =
        registry.log().into_iter().filter(|e| e.ask == Ask::UploadPatch).map(|e| e.range).collect();
    let last = BIG - 1;
    let at = |start: usize| Some(format!("{start}-{last}"));
    assert_eq!(ranges, [None, at(1 << 20), at(2 << 20)]);
    assert_eq!(registry.count(Ask::UploadStart), 1);
}

#[tokio::test]
async fn an_upload_survives_failing_answers_at_each_step() {
    for ask in [Ask::BlobHead, Ask::UploadStart, Ask::UploadPatch, Ask::UploadPut] {
        for what in [What::Status(503, None), What::Drop(0)] {
            let registry = Registry::open().await;
            let (bytes, blob) = noise(BIG);
            registry.inject(Fault::next(ask, what.clone()).times(2));
            let source = BlobSource::bytes(bytes.clone());
            let result = client().push_blob(&app(&registry), &blob, &source, &[], &Progress::none()).await;
            assert!(result.is_ok(), "{ask:?} {what:?}: {result:?}");
            let stored = std::fs::read(registry.storage().blob_path(&blob.digest)).unwrap();
            assert!(stored == bytes, "{ask:?} {what:?}");
        }
    }
}

#[tokio::test]
async fn an_upload_whose_session_is_lost_starts_again() {
    let registry = Registry::open().await;
    let (bytes, blob) = noise(BIG);
    registry.inject(Fault::next(Ask::UploadPatch, What::Drop(1 << 20)));
    registry.inject(Fault::next(Ask::UploadStatus, What::Status(404, None)));
    let source = BlobSource::bytes(bytes.clone());
    client().push_blob(&app(&registry), &blob, &source, &[], &Progress::none()).await.unwrap();
    assert_eq!(registry.count(Ask::UploadStart), 2);
    assert!(std::fs::read(registry.storage().blob_path(&blob.digest)).unwrap() == bytes);
}

#[tokio::test]
async fn an_upload_that_was_accepted_although_the_answer_broke_is_done() {
    let registry = Registry::open().await;
    let (bytes, blob) = noise(BIG);
    registry.inject(Fault::next(Ask::UploadPut, What::Drop(u64::MAX)));
    let source = BlobSource::bytes(bytes);
    client().push_blob(&app(&registry), &blob, &source, &[], &Progress::none()).await.unwrap();
    assert_eq!((registry.count(Ask::UploadPatch), registry.count(Ask::UploadPut)), (1, 1));
}

#[tokio::test]
async fn a_registry_that_stays_down_is_unavailable() {
    let registry = Registry::open().await;
    let (bytes, blob) = noise(BIG);
    registry.inject(Fault::always(Ask::UploadPatch, What::Status(503, None)));
    let source = BlobSource::bytes(bytes);
    let error =
        client().push_blob(&app(&registry), &blob, &source, &[], &Progress::none()).await.unwrap_err();
    assert_eq!((error.class(), error.status()), (Class::Unavailable, Some(503)), "{error}");
    assert_eq!(registry.count(Ask::UploadPatch), 4);
}

#[tokio::test]
async fn bytes_that_are_not_the_descriptors_are_corrupt_or_local() {
    let registry = Registry::open().await;
    let (bytes, blob) = noise(1000);
    let push = |bytes: Vec<u8>| {
        let (client, name, blob) = (client(), app(&registry), blob.clone());
        async move {
            let source = BlobSource::bytes(bytes);
            client.push_blob(&name, &blob, &source, &[], &Progress::none()).await.unwrap_err()
        }
    };
    let mut other = bytes.clone();
    other[0] ^= 1;
    let error = push(other).await;
    assert_eq!(error.class(), Class::Corrupt, "{error}");
    for wrong in [bytes[..999].to_vec(), [bytes.as_slice(), b"x"].concat()] {
        let error = push(wrong).await;
        assert_eq!(error.class(), Class::Local, "{error}");
    }
    assert_eq!(registry.storage().find_blob("app", &blob.digest), None);
}

#[tokio::test]
async fn an_upload_reports_its_progress() {
    let registry = Registry::open().await;
    let (bytes, blob) = noise(BIG);
    let last = Arc::new(AtomicUsize::new(0));
    let progress = Progress::new({
        let last = Arc::clone(&last);
        move |done, total| {
            assert_eq!(total as usize, BIG);
            last.store(done as usize, Ordering::Relaxed);
        }
    });
    let source = BlobSource::bytes(bytes);
    client().push_blob(&app(&registry), &blob, &source, &[], &progress).await.unwrap();
    assert_eq!(last.load(Ordering::Relaxed), BIG);
}

#[tokio::test]
async fn a_manifest_without_its_blobs_is_refused_in_the_registrys_words() {
    let registry = Registry::open().await;
    let image = Image::new(&[Layer::new().file("x", "y")]);
    let error = client().push_manifest(&app(&registry), &image.media_type, image.manifest).await.unwrap_err();
    assert_eq!(error.code(), Some("MANIFEST_BLOB_UNKNOWN"));
    assert!(error.to_string().contains("is not in the repository"), "{error}");
}

#[tokio::test]
async fn a_manifest_is_pushed_by_digest_and_only_with_that_digest() {
    let image = image();
    let registry = registry_with(&image).await;
    let name = reference(&registry.host(), "app");
    let by_digest = name.with_digest(image.digest);
    let digest = client().push_manifest(&by_digest, &image.media_type, image.manifest.clone()).await.unwrap();
    assert_eq!(digest, image.digest);
    assert!(registry.log()[0].path.ends_with(&image.digest.to_string()));
    let wrong = name.with_digest(Digest::of(b"other"));
    let error = client().push_manifest(&wrong, &image.media_type, image.manifest).await.unwrap_err();
    assert_eq!(error.class(), Class::Corrupt);
}
