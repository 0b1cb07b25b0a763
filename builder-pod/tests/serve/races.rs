//! Contexts that change what their paths lead to: nothing that is outside of the daemon's root is read or written by that.

use lapstrake_api::control::{Exporter, SolveRequest};
use lapstrake_api::fsutil::{self, packet::PacketType};
use lapstrake_api::pb;

use super::hostile::{Scene, chain};
use super::lost::{Until, copy_all, local, open, packet};

/// Go's bits of modes.
const DIRECTORY: u32 = 1 << 31;
const SYMLINK: u32 = 1 << 27;

const CONTENT: &[u8] = b"of a stranger";
/// Clients that build at the same time, and builds of each.
const CLIENTS: usize = 4;
const ROUNDS: usize = 12;

fn entry(path: &str, mode: u32, link: &str) -> Vec<u8> {
    let size = if mode < SYMLINK && link.is_empty() { CONTENT.len() as i64 } else { 0 };
    let (path, linkname) = (path.to_owned(), link.to_owned());
    let stat = fsutil::Stat { path, mode, size, linkname, ..fsutil::Stat::default() };
    packet(PacketType::PacketStat, Some(stat), 0, &[])
}

fn serves(mut listed: Vec<Vec<u8>>) -> Until {
    listed.push(packet(PacketType::PacketStat, None, 0, &[]));
    Until::Serves { listed, content: CONTENT }
}

/// A copy of one path of the context, which may lead through a link.
fn copy(src: &str) -> pb::op::Op {
    let copy = pb::FileActionCopy {
        src: src.to_owned(),
        dest: "/copied".to_owned(),
        mode: -1,
        timestamp: -1,
        follow_symlink: true,
        create_dest_path: true,
        allow_wildcard: true,
        allow_empty_wildcard: true,
        ..pb::FileActionCopy::default()
    };
    let action = pb::file_action::Action::Copy(copy);
    pb::op::Op::File(pb::FileOp {
        actions: vec![pb::FileAction { input: -1, secondary_input: 0, output: 0, action: Some(action) }],
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_that_leads_out_is_refused() {
    let scene = Scene::new().await;
    let place = scene.folder();
    let outside = format!("{place}/outside");
    let dir = || entry("a", DIRECTORY | 0o755, "");
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("a file in a link", vec![entry("a", SYMLINK | 0o777, &place), entry("a/outside", 0o644, "")]),
        (
            "a folder that becomes a link",
            vec![dir(), entry("a", SYMLINK | 0o777, &place), entry("a/outside", 0o644, "")],
        ),
        ("dots", vec![dir(), entry("a/../../outside", 0o644, "")]),
        ("many dots", vec![entry(&format!("{}{outside}", "../".repeat(20)), 0o644, "")]),
        ("a path from the root", vec![entry(&outside, 0o644, "")]),
        ("a hard link out", vec![entry("a", 0o644, &outside)]),
        ("a hard link by dots", vec![dir(), entry("a/b", 0o644, "../../../outside")]),
        (
            "a hard link through a link",
            vec![entry("a", SYMLINK | 0o777, &place), entry("b", 0o644, "a/outside")],
        ),
        ("a file twice", vec![entry("a", 0o644, ""), entry("a", 0o644, "")]),
        ("no name", vec![entry("", 0o644, "")]),
    ];
    for (what, listed) in cases {
        open(&scene, what, &serves(listed)).await;
        let definition = Some(chain(vec![local(), copy_all()]));
        let exporters = vec![Exporter { r#type: "image".to_owned(), ..Exporter::default() }];
        let request =
            SolveRequest { session: what.to_owned(), definition, exporters, ..SolveRequest::default() };
        let error = scene.control().solve(request).await.expect_err(what);
        assert!(error.message().contains("transfer of \"context\": "), "{what}: {error:?}");
        scene.lives(what).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_of_the_context_that_becomes_a_link_while_others_build_leads_nowhere() {
    let scene = Scene::new().await;
    let place = scene.folder();
    let turns = [
        vec![entry("dir", DIRECTORY | 0o755, ""), entry("dir/outside", 0o644, "")],
        vec![entry("dir", SYMLINK | 0o777, &place)],
        vec![entry("dir", SYMLINK | 0o777, &format!("{}{place}", "../".repeat(20)))],
        vec![entry("dir", 0o644, "")],
    ];
    let clients = (0..CLIENTS).map(|client| {
        let (scene, turns) = (&scene, &turns);
        async move {
            let mut built = 0;
            for round in 0..ROUNDS {
                let listed = turns[(client + round) % turns.len()].clone();
                let id = format!("{client}-{round}");
                open(scene, &id, &serves(listed)).await;
                // Each asks for the same folder of the daemon, since they all have the same key.
                let ops = if round % 2 == 0 { copy("/dir/out*") } else { copy_all() };
                let definition = Some(chain(vec![local(), ops]));
                let exporters = vec![Exporter { r#type: "image".to_owned(), ..Exporter::default() }];
                let request =
                    SolveRequest { session: id.clone(), definition, exporters, ..SolveRequest::default() };
                // Another connection, so that they do not wait for each other.
                let outcome = scene.another().await.solve(request).await;
                match outcome {
                    Ok(_) => built += 1,
                    Err(error) => {
                        let told = ["no such file", "not found", "not a directory"];
                        assert!(told.iter().any(|word| error.message().contains(word)), "{id}: {error:?}");
                    }
                }
            }
            built
        }
    });
    let built: usize = futures::future::join_all(clients).await.into_iter().sum();
    assert!(built > CLIENTS * ROUNDS / 2, "{built} were built");
    scene.lives("contexts that change").await;
    assert!(!scene.holds(b"untouched"), "what is outside was copied");
}
