//! Clients that vanish in the middle of a call that the daemon makes to them: each build ends with a word of why, and nothing of
//! it stays.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use lapstrake_api::control::{BytesMessage, DiskUsageRequest, Exporter, SolveRequest};
use lapstrake_api::{fsutil, pb};
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::bytes::{BufMut as _, Bytes, BytesMut};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::server::NamedService;

use super::hostile::{Scene, chain, file_op, mkfile, serve_once, source};

/// What the daemon calls.
const SERVICES: [&str; 8] = [
    "moby.filesync.v1.FileSync",
    "moby.filesync.v1.FileSend",
    "moby.buildkit.secrets.v1.Secrets",
    "moby.sshforward.v1.SSH",
    "moby.filesync.v1.Auth",
    "containerd.services.content.v1.Content",
    "moby.upload.v1.Upload",
    "moby.exporter.v1.Exporter",
];
const METHODS: [&str; 11] = [
    "/moby.filesync.v1.FileSync/DiffCopy",
    "/moby.filesync.v1.FileSend/DiffCopy",
    "/moby.buildkit.secrets.v1.Secrets/GetSecret",
    "/moby.sshforward.v1.SSH/CheckAgent",
    "/moby.sshforward.v1.SSH/ForwardAgent",
    "/moby.filesync.v1.Auth/Credentials",
    "/moby.filesync.v1.Auth/FetchToken",
    "/containerd.services.content.v1.Content/Info",
    "/containerd.services.content.v1.Content/Read",
    "/moby.upload.v1.Upload/Pull",
    "/moby.exporter.v1.Exporter/FindExporters",
];
/// A build whose client is gone ends sooner.
const ENDS_MAX: Duration = Duration::from_secs(60);

/// How far a client goes before it vanishes.
#[derive(Debug, Clone)]
pub(super) enum Until {
    /// Never: what it says after this, once it was sent something where `asked`, has no end.
    Endless { first: Vec<Vec<u8>>, asked: bool, then: fn(u64) -> Vec<u8> },
    /// Never: it lists these files, and gives each that is asked for this content.
    Serves { listed: Vec<Vec<u8>>, content: &'static [u8] },
    /// It is called.
    Called,
    /// It answered, with these messages.
    Said(Vec<Vec<u8>>),
    /// It answered nothing, and was sent something.
    Heard,
}

#[derive(Clone)]
struct Vanishing<const N: usize> {
    until: Until,
    called: CancellationToken,
    gone: CancellationToken,
}

impl<const N: usize> NamedService for Vanishing<N> {
    const NAME: &'static str = SERVICES[N];
}

type Frames = Pin<Box<dyn Stream<Item = Result<Bytes, tonic::Status>> + Send>>;

impl<const N: usize> tower::Service<http::Request<Body>> for Vanishing<N> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: http::Request<Body>) -> Self::Future {
        let Self { until, called, gone } = self.clone();
        called.cancel();
        Box::pin(async move {
            let frames: Frames = match until {
                Until::Called => {
                    gone.cancel();
                    return std::future::pending().await;
                }
                Until::Said(messages) => {
                    let said = futures::stream::iter(messages.into_iter().map(|message| Ok(frame(&message))));
                    // What was said is on its way before the line is cut.
                    let cut = async move {
                        tokio::time::sleep(Duration::from_millis(200)).await;
                        gone.cancel();
                        std::future::pending().await
                    };
                    said.chain(futures::stream::once(cut)).boxed()
                }
                Until::Endless { first, asked, then } => {
                    let (heard, hears) = tokio::sync::oneshot::channel();
                    tokio::spawn(async move {
                        let mut body = axum::body::Body::new(call.into_body()).into_data_stream();
                        body.next().await.map(|_| heard.send(()).ok());
                        while body.next().await.is_some() {}
                    });
                    let waits = async move {
                        if asked {
                            hears.await.ok();
                        }
                        futures::stream::iter((0..).map(move |n| Ok(frame(&then(n)))))
                    };
                    let first = futures::stream::iter(first.into_iter().map(|message| Ok(frame(&message))));
                    first.chain(futures::stream::once(waits).flatten()).boxed()
                }
                Until::Serves { listed, content } => {
                    let first = futures::stream::iter(listed.into_iter().map(|message| Ok(frame(&message))));
                    let body = axum::body::Body::new(call.into_body()).into_data_stream();
                    first.chain(answers(body, content)).boxed()
                }
                Until::Heard => {
                    tokio::spawn(async move {
                        let mut body = axum::body::Body::new(call.into_body()).into_data_stream();
                        body.next().await.map(|_| gone.cancel())
                    });
                    futures::stream::pending().boxed()
                }
            };
            let answer = http::Response::builder().header("content-type", "application/grpc");
            Ok(answer.body(Body::new(axum::body::Body::from_stream(frames))).unwrap())
        })
    }
}

/// What a client says to what it is asked: the same content for each file, and a farewell for a farewell.
fn answers(
    mut body: axum::body::BodyDataStream,
    content: &'static [u8],
) -> impl Stream<Item = Result<Bytes, tonic::Status>> {
    use fsutil::packet::PacketType;
    let (sender, receiver) = mpsc::channel(8);
    tokio::spawn(async move {
        let mut unread = BytesMut::new();
        while let Some(Ok(bytes)) = body.next().await {
            unread.extend_from_slice(&bytes);
            while unread.len() >= 5 {
                let length = u32::from_be_bytes(unread[1..5].try_into().unwrap()) as usize;
                if unread.len() < 5 + length {
                    break;
                }
                let message = unread.split_to(5 + length);
                let asked = fsutil::Packet::decode(&message[5..]).unwrap();
                let said = match asked.r#type() {
                    PacketType::PacketReq => [content, &[]]
                        .map(|data| packet(PacketType::PacketData, None, asked.id, data))
                        .to_vec(),
                    PacketType::PacketFin => vec![packet(PacketType::PacketFin, None, 0, &[])],
                    _ => Vec::new(),
                };
                for message in said {
                    if sender.send(Ok(frame(&message))).await.is_err() {
                        return;
                    }
                }
            }
        }
    });
    ReceiverStream::new(receiver)
}

/// A message as gRPC frames it.
fn frame(message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.len()).unwrap());
    bytes.put_slice(message);
    bytes.freeze()
}

/// Opens a session of a client that vanishes; whether it was called.
pub(super) async fn open(scene: &Scene, id: &str, until: &Until) -> CancellationToken {
    let (called, gone) = (CancellationToken::new(), CancellationToken::new());
    let (near, far) = tokio::io::duplex(64 << 10);
    let (mut reader, mut writer) = tokio::io::split(near);
    let (sender, receiver) = mpsc::channel(8);
    let mut request = tonic::Request::new(ReceiverStream::new(receiver));
    request.metadata_mut().insert("x-docker-expose-session-uuid", id.parse().unwrap());
    for method in METHODS {
        request.metadata_mut().append("x-docker-expose-session-grpc-method", method.parse().unwrap());
    }
    macro_rules! service {
        ($number:literal) => {
            Vanishing::<$number> { until: until.clone(), called: called.clone(), gone: gone.clone() }
        };
    }
    let server = tonic::transport::Server::builder()
        .add_service(service!(0))
        .add_service(service!(1))
        .add_service(service!(2))
        .add_service(service!(3))
        .add_service(service!(4))
        .add_service(service!(5))
        .add_service(service!(6))
        .add_service(service!(7))
        .serve_with_incoming(
            futures::stream::iter([Ok::<_, std::io::Error>(far)]).chain(futures::stream::pending()),
        );
    let mut outbound = scene.control().session(request).await.unwrap().into_inner();
    let to_daemon = async move {
        let mut buffer = vec![0; 32 << 10];
        while let Ok(read @ 1..) = reader.read(&mut buffer).await {
            if sender.send(BytesMessage { data: buffer[..read].to_vec() }).await.is_err() {
                return;
            }
        }
    };
    let from_daemon = async move {
        while let Ok(Some(message)) = outbound.message().await {
            if writer.write_all(&message.data).await.is_err() {
                return;
            }
        }
    };
    let until = gone;
    tokio::spawn(async move {
        let all = async { tokio::join!(to_daemon, from_daemon, server) };
        let _ = until.run_until_cancelled(all).await;
    });
    called
}

pub(super) fn packet(
    kind: fsutil::packet::PacketType,
    stat: Option<fsutil::Stat>,
    id: u32,
    data: &[u8],
) -> Vec<u8> {
    fsutil::Packet { r#type: kind as i32, stat, id, data: data.to_vec() }.encode_to_vec()
}

pub(super) fn file(path: &str, size: i64) -> Vec<u8> {
    let stat = fsutil::Stat { path: path.to_owned(), mode: 0o644, size, ..fsutil::Stat::default() };
    packet(fsutil::packet::PacketType::PacketStat, Some(stat), 0, &[])
}

pub(super) fn local() -> pb::op::Op {
    source("local://context", &[])
}

pub(super) fn copy_all() -> pb::op::Op {
    let copy = pb::FileActionCopy {
        src: "/".to_owned(),
        dest: "/".to_owned(),
        mode: -1,
        timestamp: -1,
        dir_copy_contents: true,
        create_dest_path: true,
        ..pb::FileActionCopy::default()
    };
    let action = pb::file_action::Action::Copy(copy);
    let action = pb::FileAction { input: -1, secondary_input: 0, output: 0, action: Some(action) };
    pb::op::Op::File(pb::FileOp { actions: vec![action] })
}

/// Descriptors of the daemon that are open, and its mounts.
fn held(scene: &Scene) -> (usize, usize) {
    let pid = scene.pid();
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    (std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(), mounts.lines().count())
}

pub(super) async fn build(scene: &Scene, id: &str, until: &Until, mut request: SolveRequest) {
    let called = open(scene, id, until).await;
    request.session = id.to_owned();
    let mut control = scene.control();
    let ended = tokio::time::timeout(ENDS_MAX, control.solve(request)).await;
    let error = ended.unwrap_or_else(|_| panic!("{id} did not end")).expect_err(id);
    assert!(called.is_cancelled(), "{id}: the client was never called: {error:?}");
    assert!(!error.message().is_empty(), "{id}: {error:?}");
    assert!(!error.message().contains("mistake of the daemon"), "{id}: {error:?}");
    scene.lives(id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_vanishes_in_the_middle_of_a_call_leaves_nothing() {
    use fsutil::packet::PacketType;
    let scene = Scene::new().await;
    let of =
        |definition: pb::Definition| SolveRequest { definition: Some(definition), ..SolveRequest::default() };
    let context = || of(chain(vec![local(), copy_all()]));
    let output = |kind: &str| SolveRequest {
        exporters: vec![Exporter { r#type: kind.to_owned(), attrs: HashMap::new() }],
        ..of(chain(vec![file_op(mkfile("/a"), -1)]))
    };
    let git = |attrs: &[(&str, &str)]| of(chain(vec![source("git://127.0.0.1:1/x.git", attrs)]));
    let layout = "oci-layout://x@sha256:0000000000000000000000000000000000000000000000000000000000000000";
    let protected = serve_once(
        "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"http://127.0.0.1:1/token\",service=\"s\"\r\n\
         Content-Length: 0\r\nConnection: close\r\n\r\n",
    );
    let image = format!("docker-image://127.0.0.1:{protected}/x:latest");
    let upload = SolveRequest {
        frontend: "dockerfile.v0".to_owned(),
        frontend_attrs: [("context".to_owned(), "http://buildkit-session/context".to_owned())].into(),
        ..SolveRequest::default()
    };
    let whole = vec![file("a", 10), file("b", 10), packet(PacketType::PacketStat, None, 0, &[])];
    let mut data = whole.clone();
    data.push(packet(PacketType::PacketData, None, 0, b"half"));
    let chooser =
        SolveRequest { enable_session_exporter: true, ..of(chain(vec![file_op(mkfile("/a"), -1)])) };
    let cases: Vec<(&str, Until, SolveRequest)> = vec![
        ("the list of a context", Until::Called, context()),
        ("half of the list", Until::Said(vec![file("a", 10)]), context()),
        ("the contents of files", Until::Said(whole), context()),
        ("half of a file", Until::Said(data), context()),
        ("a message that is none", Until::Said(vec![vec![0xff; 64]]), context()),
        ("a tar as output", Until::Called, output("tar")),
        ("a tar on its way", Until::Heard, output("tar")),
        ("a directory as output", Until::Called, output("local")),
        ("a directory on its way", Until::Heard, output("local")),
        ("a layout as output", Until::Called, output("oci")),
        (
            "a secret",
            Until::Called,
            git(&[("git.fullurl", "http://127.0.0.1:1/x.git"), ("git.authtokensecret", "S")]),
        ),
        (
            "an agent",
            Until::Called,
            git(&[("git.fullurl", "git@127.0.0.1:x.git"), ("git.mountsshsock", "default")]),
        ),
        ("credentials", Until::Called, of(chain(vec![source(&image, &[])]))),
        (
            "a content store",
            Until::Called,
            of(chain(vec![source(layout, &[("oci.store", "x"), ("oci.session", "a content store")])])),
        ),
        ("an upload", Until::Called, upload.clone()),
        ("half of an upload", Until::Said(vec![vec![0x0a, 4, 1, 2, 3, 4]]), upload),
        ("a choice of outputs", Until::Called, chooser),
    ];
    // What a first build opens for good is no leak.
    let (first, rest) = cases.split_first().unwrap();
    build(&scene, first.0, &first.1, first.2.clone()).await;
    let (descriptors, mounts) = held(&scene);
    for (id, until, request) in rest {
        build(&scene, id, until, request.clone()).await;
    }
    let usage = scene.control().disk_usage(DiskUsageRequest::default()).await.unwrap().into_inner();
    let in_use: Vec<_> = usage.record.iter().filter(|record| record.in_use).collect();
    assert!(in_use.is_empty(), "{in_use:?}");
    let settles = async {
        loop {
            let (now, mounted) = held(&scene);
            if now <= descriptors + 8 && mounted <= mounts {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let settled = tokio::time::timeout(ENDS_MAX, settles).await;
    assert!(settled.is_ok(), "had {:?}, has {:?}", (descriptors, mounts), held(&scene));
    let memory = scene.memory_kib();
    assert!(memory < 512 << 10, "the daemon had {memory} KiB");
}
