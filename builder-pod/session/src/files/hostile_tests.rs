//! Clients that break the rules, or stop in the middle.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::fake::{Client, Sender, listing};
use super::sync_tests::{dir, entry, file, link, request, sync};
use super::wire::{Packet, kind};
use crate::Error;

/// A directory with a neighbour that nobody may touch.
struct Place {
    around: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let around = tempfile::tempdir().expect("dir");
        fs::create_dir(around.path().join("into")).expect("mkdir");
        fs::create_dir(around.path().join("outside")).expect("mkdir");
        fs::write(around.path().join("outside/file"), "untouched").expect("write");
        Self { around }
    }

    fn target(&self) -> std::path::PathBuf {
        self.around.path().join("into")
    }

    fn assert_untouched(&self, case: &str) {
        let outside = self.around.path().join("outside");
        let names = |path: &Path| fs::read_dir(path).expect("read").count();
        assert_eq!((names(&outside), names(self.around.path())), (1, 2), "{case}");
        assert_eq!(fs::read_to_string(outside.join("file")).expect("read"), "untouched", "{case}");
    }
}

fn data(id: u32, bytes: &'static [u8]) -> Packet {
    Packet { id, data: Bytes::from_static(bytes), ..Packet::of(kind::DATA) }
}

/// What a transfer fails with, and what the sender is told.
async fn failure(sender: Sender, place: &Place) -> (String, Option<String>) {
    let me = Client::new(sender);
    let client = me.connect().await;
    let error = sync(&client, request(), &place.target()).await.expect_err("fails").to_string();
    let told = async {
        while me.seen.lock().expect("lock").error.is_none() {
            me.said.notified().await;
        }
    };
    let _ = tokio::time::timeout(std::time::Duration::from_secs(5), told).await;
    let told = me.seen.lock().expect("lock").error.clone();
    (error, told)
}

#[tokio::test]
async fn a_listing_that_cannot_be_is_refused_by_its_fault_and_nothing_outside_is_touched() {
    let raw = |path: &str| file(path, "x");
    let mut negative = file("negative", "");
    negative.stat.size = -1;
    let mut nowhere = file("nowhere", "");
    nowhere.stat.linkname = b"../outside/file".to_vec();
    let mut later = file("later", "");
    later.stat.linkname = b"z".to_vec();
    let mut blank = link("blank", "");
    blank.stat.linkname = b"a\0b".to_vec();
    let mut device = entry("device", 0o020_644, "");
    device.stat.devmajor = -1;
    for (case, tree, fault) in [
        ("dots", vec![raw("../outside/file")], "\"../outside/file\": a path that leads out"),
        ("dots inside", vec![dir("a"), raw("a/../../outside/file")], "a path that leads out"),
        ("absolute", vec![raw("/etc/passwd")], "\"/etc/passwd\": an absolute path"),
        ("NUL", vec![raw("a\0b")], "a path with a NUL byte"),
        ("empty", vec![raw("")], "\"\": an empty path"),
        ("order", vec![raw("b"), raw("a")], "\"a\" comes out of order: after \"b\""),
        ("twice", vec![raw("a"), raw("a")], "\"a\" comes out of order: after \"a\""),
        ("no directory", vec![raw("a/b")], "\"a/b\" comes out of order: its directory was not listed before"),
        (
            "below a symlink",
            vec![link("a", "../outside"), raw("a/file")],
            "\"a/file\" comes out of order: its directory was not listed before",
        ),
        ("symlink and directory", vec![link("a", "../outside"), dir("a")], "comes out of order: after \"a\""),
        ("size", vec![negative], "\"negative\": a size below zero"),
        ("link out", vec![nowhere], "invalid link \"nowhere\" to unknown path: \"../outside/file\""),
        ("link ahead", vec![later, raw("z")], "invalid link \"later\" to unknown path: \"z\""),
        ("symlink to NUL", vec![blank], "\"blank\": a symlink to what cannot be a path"),
        ("device", vec![device], "\"device\": no device has such numbers"),
    ] {
        let place = Place::new();
        let (error, told) = failure(Sender::Script(listing(&tree)), &place).await;
        assert!(error.starts_with("transfer of \"context\": ") && error.ends_with(fault), "{case}: {error}");
        assert_eq!(told.as_deref(), Some(error.as_str()), "{case}");
        place.assert_untouched(case);
    }
}

#[tokio::test]
async fn packets_that_do_not_belong_are_refused_by_their_fault() {
    let one = || listing(&[file("a", "x")]);
    let after = |packets: &[Packet]| [one(), packets.to_vec()].concat();
    for (packets, fault) in [
        (vec![data(7, b"x")], "data of entry 7, which was not asked for"),
        (after(&[data(0, b"x"), data(0, b""), data(0, b"y")]), "data of entry 0, which was not asked for"),
        (after(&one()), "an entry after the end of the listing"),
        (after(&[Packet::of(kind::FIN)]), "the sender ended it before everything was sent"),
        (vec![Packet::request(0)], "the sender asked for a file, which is the receiver's part"),
        (vec![Packet::of(9)], "a packet of the unknown kind 9"),
    ] {
        let place = Place::new();
        // Another file keeps the transfer open.
        let mut script = packets;
        if script.len() == 5 {
            script = [listing(&[file("a", "x"), file("b", "y")]), script.split_off(2)].concat();
        }
        let (error, _) = failure(Sender::Script(script), &place).await;
        assert_eq!(error, format!("transfer of \"context\": {fault}"));
    }
}

#[tokio::test]
async fn links_of_the_previous_copy_lead_nowhere() {
    // Left by an earlier transfer, when each was fine.
    let place = Place::new();
    let first = vec![link("a", "../outside"), link("b", "../outside/file"), link("c", "../outside")];
    let me = Client::new(Sender::Tree(first));
    let client = me.connect().await;
    sync(&client, request(), &place.target()).await.expect("sync");
    me.becomes(vec![dir("a"), file("a/file", "inside"), file("b", "inside")]);
    sync(&client, request(), &place.target()).await.expect("sync");
    assert_eq!(fs::read_to_string(place.target().join("a/file")).expect("read"), "inside");
    assert_eq!(fs::read_to_string(place.target().join("b")).expect("read"), "inside");
    assert!(!place.target().join("c").exists());
    place.assert_untouched("links");
}

#[tokio::test]
async fn a_backslash_is_a_letter_like_others() {
    let place = Place::new();
    let me = Client::new(Sender::Tree(vec![file("..\\outside\\file", "x")]));
    sync(&me.connect().await, request(), &place.target()).await.expect("sync");
    assert_eq!(fs::read_to_string(place.target().join("..\\outside\\file")).expect("read"), "x");
    place.assert_untouched("backslash");
}

#[tokio::test]
async fn data_without_end_is_cut_off() {
    let place = Place::new();
    let (error, _) = failure(Sender::Endless(listing(&[file("log", "12")]), 0), &place).await;
    assert_eq!(
        error,
        "transfer of \"context\": \"log\" was listed with 2 bytes, and does not end after that"
    );
    assert!(fs::metadata(place.target().join("log")).expect("stat").len() <= 65 << 20);
}

#[tokio::test]
async fn a_file_that_was_cut_off_is_sent_again() {
    let place = Place::new();
    let content: String = "y".repeat(1 << 20);
    let tree = vec![file("a", "x"), file("large", &content)];
    let part: &'static [u8] = Box::leak(content.clone().into_bytes().into_boxed_slice());
    let script =
        [listing(&tree), vec![data(0, b"x"), data(0, b""), data(1, &part[..part.len() - 1])]].concat();
    let me = Client::new(Sender::Ends(script));
    let client = me.connect().await;
    let error = sync(&client, request(), &place.target()).await.expect_err("cut off").to_string();
    assert_eq!(error, "transfer of \"context\": the sender closed the stream before everything was sent");
    me.becomes(tree);
    sync(&client, request(), &place.target()).await.expect("sync");
    assert_eq!(fs::read_to_string(place.target().join("large")).expect("read"), content);
    assert!(me.requested().contains(&1));
}

#[tokio::test]
async fn a_sender_gives_its_reason() {
    let place = Place::new();
    let script = vec![Packet::error("open secret: permission denied")];
    let (error, _) = failure(Sender::Script(script), &place).await;
    assert_eq!(error, "error from sender: open secret: permission denied");
    let refused = tonic::Status::not_found("no access allowed to dir \"context\"");
    let (error, _) = failure(Sender::Refuses(refused), &place).await;
    assert_eq!(error, "sync files: no access allowed to dir \"context\"");
}

#[tokio::test]
async fn a_client_that_vanishes_in_the_middle_ends_the_transfer_with_that_reason() {
    // In the listing, before data, in the middle of data.
    let whole = listing(&[file("a", "12")]);
    for script in [whole[..1].to_vec(), whole.clone(), [whole, vec![data(0, b"1")]].concat()] {
        let place = Place::new();
        let me = Client::new(Sender::Script(script));
        let client = me.connect().await;
        let session = Arc::clone(&client.session);
        let into = place.target();
        let syncing = tokio::spawn(async move {
            session.sync(request(), into.as_path(), &mut |_| {}, &CancellationToken::new()).await
        });
        me.said.notified().await;
        client.vanish();
        let error = syncing.await.expect("join").expect_err("gone");
        assert!(matches!(error, Error::Ended { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_transfer_that_is_canceled_ends_and_the_sender_knows() {
    let place = Place::new();
    let me = Client::new(Sender::Script(listing(&[file("a", "12")])));
    let client = me.connect().await;
    let cancel = CancellationToken::new();
    let into = place.target();
    let mut progress = |_| {};
    let syncing = client.session.sync(request(), into.as_path(), &mut progress, &cancel);
    let cancelling = async {
        me.said.notified().await;
        cancel.cancel();
    };
    let (error, ()) = tokio::join!(syncing, cancelling);
    assert!(matches!(error, Err(Error::Canceled)));
    while me.seen.lock().expect("lock").error.is_none() {
        me.said.notified().await;
    }
    assert_eq!(me.seen.lock().expect("lock").error.as_deref(), Some("canceled"));
}

#[tokio::test]
async fn a_hundred_thousand_entries_are_taken_in_order() {
    let place = Place::new();
    let tree: Vec<_> = (0..100_000).map(|n| link(&format!("{n:06}"), "x")).collect();
    let me = Client::new(Sender::Tree(tree));
    let synced = sync(&me.connect().await, request(), &place.target()).await.expect("sync");
    assert_eq!(synced.entries, 100_000);
    assert_eq!(fs::read_dir(place.target()).expect("read").count(), 100_000);
}
