//! Clients and steps that never come to an end: each costs bounded memory, and a word says where the end is.

use std::collections::HashMap;

use lapstrake_api::control::{SolveRequest, StatusRequest};
use lapstrake_api::frontend::{self, ExecMessage, InitMessage, NewContainerRequest, exec_message};
use lapstrake_api::fsutil::packet::PacketType;
use lapstrake_api::fsutil::{self};
use lapstrake_api::pb;
use prost::Message as _;
use tokio_stream::StreamExt as _;
use tonic::Code;

use super::hostile::{Scene, chain, serve, source};
use super::lost::{Until, build, copy_all, file, local, packet};

/// What a daemon may have beside what it has anyway, KiB.
const MORE_KIB_MAX: u64 = 96 << 10;
/// The queue of a listing has a bound of its own, KiB.
const LISTING_KIB_MAX: u64 = 1 << 20;

/// Programs that are asked for at once.
const PROGRAMS: u32 = 400;
/// Those that may be told as started and not as ended: what waits for its start, and what is just being told.
const BEGUN_MAX: u32 = 40;

/// A file that has to be asked for, with a long attribute.
fn next_file(number: u64) -> Vec<u8> {
    let stat = fsutil::Stat {
        path: format!("{number:020}"),
        mode: 0o644,
        size: 1,
        xattrs: HashMap::from([("user.long".to_owned(), vec![7; 32 << 10])]),
        ..fsutil::Stat::default()
    };
    fsutil::Packet { r#type: PacketType::PacketStat as i32, stat: Some(stat), id: 0, data: Vec::new() }
        .encode_to_vec()
}

fn next_piece(_: u64) -> Vec<u8> {
    packet(PacketType::PacketData, None, 0, &[7; 32 << 10])
}

fn context() -> SolveRequest {
    SolveRequest { definition: Some(chain(vec![local(), copy_all()])), ..SolveRequest::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_context_without_end_is_cut_off() {
    let scene = Scene::new().await;
    let before = scene.memory_kib();
    let listed = vec![file("a", 10), packet(PacketType::PacketStat, None, 0, &[])];
    let grows = Until::Endless { first: listed, asked: true, then: next_piece };
    build(&scene, "a file without end", &grows, context()).await;
    let more = scene.memory_kib() - before;
    assert!(more < MORE_KIB_MAX, "a file cost {more} KiB");
    let lists = Until::Endless { first: Vec::new(), asked: false, then: next_file };
    build(&scene, "a listing without end", &lists, context()).await;
    let more = scene.memory_kib() - before;
    assert!(more < LISTING_KIB_MAX, "a listing cost {more} KiB");
    println!("{more} KiB more than the {before} before");
}

/// The beginning of an archive with a root of busybox in a folder.
fn busybox(folder: &str) -> tar::Builder<Vec<u8>> {
    let root = lapstrake_testkit::rootfs::busybox().unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    tar.follow_symlinks(false);
    tar.append_dir_all(folder, root.path()).unwrap();
    tar
}

/// A context with a program that writes half a gigabyte.
fn talkative() -> Vec<u8> {
    let mut tar = busybox("root");
    let dockerfile = "FROM scratch\nCOPY root /\nRUN yes abcdefghijklmnopqrstuvwxyz | head -c 512m\n";
    let mut header = tar::Header::new_gnu();
    header.set_size(dockerfile.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    tar.append_data(&mut header, "Dockerfile", dockerfile.as_bytes()).unwrap();
    tar.into_inner().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_without_end_costs_little_though_nobody_reads_it() {
    let scene = Scene::new().await;
    let before = scene.memory_kib();
    let port = serve(talkative());
    let request = SolveRequest {
        r#ref: "talkative".to_owned(),
        frontend: "dockerfile.v0".to_owned(),
        frontend_attrs: [("context".to_owned(), format!("http://127.0.0.1:{port}/context.tar"))].into(),
        ..SolveRequest::default()
    };
    let mut control = scene.control();
    let solve = tokio::spawn(async move { control.solve(request).await });
    // They ask, each over a connection of its own, and never look at the answer.
    let mut asked = Vec::new();
    for _ in 0..8 {
        let status = scene.another().await.status(StatusRequest { r#ref: "talkative".to_owned() }).await;
        asked.push(status.unwrap().into_inner());
    }
    solve.await.unwrap().unwrap();
    let more = scene.memory_kib() - before;
    assert!(more < MORE_KIB_MAX, "{more} KiB");
    println!("{more} KiB more than the {before} before");
    let (mut bytes, mut clipped) = (0, false);
    let mut late =
        scene.control().status(StatusRequest { r#ref: "talkative".to_owned() }).await.unwrap().into_inner();
    while let Some(told) = late.message().await.unwrap() {
        for log in told.logs {
            bytes += log.msg.len();
            clipped |= String::from_utf8_lossy(&log.msg).contains("output clipped, log limit 2MiB reached");
        }
    }
    assert!(clipped && bytes < 3 << 20, "{bytes} bytes");
    drop(asked);
    scene.lives("a log without end").await;
}

/// The message that begins a program.
fn program(number: u32, meta: pb::Meta) -> ExecMessage {
    let init = InitMessage {
        container_id: "c".to_owned(),
        meta: Some(meta),
        fds: vec![0],
        ..InitMessage::default()
    };
    ExecMessage { process_id: number.to_string(), input: Some(exec_message::Input::Init(init)) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_without_end_are_begun_no_faster_than_they_start() {
    let scene = Scene::new().await;
    let port = serve(busybox(".").into_inner().unwrap());
    let mut control = scene.control();
    let parked = SolveRequest { r#ref: "parked".to_owned(), ..SolveRequest::default() };
    let solve = tokio::spawn(async move { control.solve(parked).await.map(drop) });
    let mut copy = copy_all();
    if let pb::op::Op::File(op) = &mut copy
        && let Some(pb::file_action::Action::Copy(copy)) = &mut op.actions[0].action
    {
        (copy.src, copy.attempt_unpack_docker_compatibility) = ("/root.tar".to_owned(), true);
    }
    let definition = chain(vec![source(&format!("http://127.0.0.1:{port}/root.tar"), &[]), copy]);
    let mut bridge = scene.bridge();
    let ask = || frontend::SolveRequest {
        definition: Some(definition.clone()),
        allow_result_return: true,
        ..Default::default()
    };
    // The build is there a moment after it was asked for.
    let solved = loop {
        match bridge.solve(of_build(ask())).await {
            Err(error) if error.code() == Code::NotFound => tokio::task::yield_now().await,
            solved => break solved.unwrap().into_inner(),
        }
    };
    let Some(frontend::result::Result::Ref(root)) = solved.result.unwrap().result else {
        panic!("no result")
    };
    let mount = pb::Mount { dest: "/".to_owned(), result_id: root.id, ..pb::Mount::default() };
    let container =
        NewContainerRequest { container_id: "c".to_owned(), mounts: vec![mount], ..Default::default() };
    bridge.new_container(of_build(container)).await.unwrap();

    let meta = |name: &str| pb::Meta { args: vec![name.to_owned()], ..pb::Meta::default() };
    let all = std::iter::once(program(0, meta("/bin/cat")))
        .chain((1..=PROGRAMS).map(|number| program(number, meta("/bin/none"))));
    let messages = tokio_stream::iter(all.collect::<Vec<_>>()).chain(tokio_stream::pending());
    let mut told = bridge.exec_process(of_build(messages)).await.unwrap().into_inner();
    let (mut begun, mut ended, mut most) = (0, 0, 0);
    while ended < PROGRAMS {
        let message = told.message().await.unwrap().expect("the first goes on");
        assert!(message.process_id != "0" || begun == 0, "the first has ended: {message:?}");
        begun += u32::from(matches!(message.input, Some(exec_message::Input::Started(_))));
        ended += u32::from(matches!(message.input, Some(exec_message::Input::Done(_))));
        most = most.max(begun - ended);
    }
    assert!(most < BEGUN_MAX, "{most} at the same time");
    drop(told);
    solve.abort();
    scene.lives("programs without end").await;
}

/// A request that is about the parked build.
fn of_build<T>(request: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(request);
    request.metadata_mut().insert("buildkit-controlapi-buildid", "parked".parse().unwrap());
    request
}
