//! Clients that mean no good: each is told what is wrong, the daemon lives on, and nothing outside of a root is touched.

use std::collections::{BTreeMap, HashMap};

use hyper_util::rt::TokioIo;
use lapstrake_api::control::control_client::ControlClient;
use lapstrake_api::control::{BytesMessage, InfoRequest, SolveRequest};
use lapstrake_api::frontend::llb_bridge_client::LlbBridgeClient;
use lapstrake_api::frontend::{
    ExecMessage, NewContainerRequest, PingRequest, ReadFileRequest, ResolveImageConfigRequest, WarnRequest,
};
use lapstrake_api::pb;
use lapstrake_llb::{Builder, Output};
use lapstrake_oci::Digest;
use prost::Message as _;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::{Daemon, Place};

const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// A daemon, and a client of it.
pub(super) struct Scene {
    place: Place,
    daemon: Daemon,
    channel: Channel,
    outside: Vec<(String, u64)>,
}

impl Scene {
    pub(super) async fn new() -> Self {
        let place = Place::new();
        std::fs::write(place.path("outside"), "untouched").unwrap();
        let mut daemon = place.daemon(&[]);
        daemon.ready(&place);
        let channel = connect(&place).await;
        let outside = files_beside(&place);
        Self { place, daemon, channel, outside }
    }

    pub(super) fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel.clone()).max_encoding_message_size(256 << 20)
    }

    /// A client with a connection of its own.
    pub(super) async fn another(&self) -> ControlClient<Channel> {
        ControlClient::new(connect(&self.place).await)
    }

    pub(super) fn bridge(&self) -> LlbBridgeClient<Channel> {
        LlbBridgeClient::new(self.channel.clone()).max_encoding_message_size(256 << 20)
    }

    async fn solve(&self, definition: pb::Definition) -> Result<(), Status> {
        let request = SolveRequest { definition: Some(definition), ..SolveRequest::default() };
        self.control().solve(request).await.map(drop)
    }

    /// It was refused in words, and the daemon answers.
    async fn refused(&self, what: &str, definition: pb::Definition, word: &str) {
        let error = self.solve(definition).await.expect_err(what);
        assert!(error.message().contains(word), "{what}: {error:?}");
        assert!(!error.message().contains("mistake of the daemon"), "{what}: {error:?}");
        self.lives(what).await;
    }

    pub(super) async fn lives(&self, after: &str) {
        let info = self.control().info(InfoRequest {}).await;
        assert!(info.is_ok(), "after {after}: {info:?}");
        assert_eq!(files_beside(&self.place), self.outside, "after {after}");
        assert_eq!(std::fs::read_to_string(self.place.path("outside")).unwrap(), "untouched");
    }

    /// The folder that the daemon's root is in, with the file that is outside of it.
    pub(super) fn folder(&self) -> String {
        self.place.path("").display().to_string().trim_end_matches('/').to_owned()
    }

    /// Whether a file below the daemon's root has just these bytes.
    pub(super) fn holds(&self, bytes: &[u8]) -> bool {
        let mut open = vec![self.place.path("root")];
        while let Some(dir) = open.pop() {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                let kind = entry.file_type().unwrap();
                if kind.is_dir() {
                    open.push(entry.path());
                } else if kind.is_file() && std::fs::read(entry.path()).is_ok_and(|read| read == bytes) {
                    return true;
                }
            }
        }
        false
    }

    pub(super) fn pid(&self) -> u32 {
        self.daemon.child.id()
    }

    /// Memory of the daemon, all its threads together, at its highest: KiB.
    pub(super) fn memory_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.daemon.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

async fn connect(place: &Place) -> Channel {
    let sock = place.path("sock");
    let connect = tower::service_fn(move |_| {
        let sock = sock.clone();
        async move { tokio::net::UnixStream::connect(sock).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://daemon").connect_with_connector(connect).await.unwrap()
}

/// What lies beside the daemon's root, but for what is a program's or a socket.
fn files_beside(place: &Place) -> Vec<(String, u64)> {
    let mut all: Vec<_> = std::fs::read_dir(place.path(""))
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let size = entry.metadata().unwrap().len();
            (entry.file_name().into_string().unwrap(), if entry.path().is_dir() { 0 } else { size })
        })
        .collect();
    all.sort();
    all
}

fn definition(ops: &[Vec<u8>]) -> pb::Definition {
    pb::Definition { def: ops.to_vec(), ..pb::Definition::default() }
}

fn pointer(to: &str, index: i64) -> Vec<u8> {
    let input = pb::Input { digest: to.to_owned(), index };
    pb::Op { inputs: vec![input], ..pb::Op::default() }.encode_to_vec()
}

fn name(op: &[u8]) -> String {
    Digest::of(op).to_string()
}

fn of(op: pb::op::Op, inputs: &[Output]) -> pb::Op {
    let inputs = inputs.iter().map(|input| Builder::input(*input)).collect();
    pb::Op { inputs, op: Some(op), ..pb::Op::default() }
}

pub(super) fn file_op(action: pb::file_action::Action, input: i64) -> pb::op::Op {
    let action = pb::FileAction { input, secondary_input: -1, output: 0, action: Some(action) };
    pb::op::Op::File(pb::FileOp { actions: vec![action] })
}

pub(super) fn mkfile(path: &str) -> pb::file_action::Action {
    let data = b"from inside".to_vec();
    pb::file_action::Action::Mkfile(pb::FileActionMkFile {
        path: path.to_owned(),
        mode: 0o644,
        data,
        timestamp: -1,
        ..pb::FileActionMkFile::default()
    })
}

/// A chain of operations, each on the one before it.
pub(super) fn chain(ops: Vec<pb::op::Op>) -> pb::Definition {
    let mut builder = Builder::new();
    let mut last: Option<Output> = None;
    for op in ops {
        let inputs: Vec<Output> = last.into_iter().collect();
        let vertex = builder.add(&of(op, &inputs), pb::OpMetadata::default(), &[]);
        last = Some(Output { vertex, index: 0 });
    }
    builder.finish(last)
}

pub(super) fn source(identifier: &str, attrs: &[(&str, &str)]) -> pb::op::Op {
    let attrs: BTreeMap<String, String> =
        attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    pb::op::Op::Source(pb::SourceOp { identifier: identifier.to_owned(), attrs })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn definitions_that_are_none_are_told_so() {
    let scene = Scene::new().await;
    scene.refused("bytes that are no operation", definition(&[vec![0xff; 40]]), "can't be decoded").await;
    let nowhere = pointer("sha256:0000000000000000000000000000000000000000000000000000000000000000", 0);
    scene.refused("an input that is not there", definition(&[nowhere]), "not in the definition").await;
    scene.refused("a digest that is none", definition(&[pointer("md5:1", 0)]), "malformed input").await;
    let base = of(file_op(mkfile("/a"), -1), &[]).encode_to_vec();
    for index in [1, -1, i64::MAX] {
        let ops = [base.clone(), pointer(&name(&base), index)];
        scene.refused("an output that is not there", definition(&ops), "no such output").await;
    }
    // An operation that points at itself would have to hold its own digest: one that claims another's name has no
    // place in the graph.
    let claimed = pointer(&name(b"another operation"), 0);
    let ops = [claimed.clone(), pointer(&name(&claimed), 0)];
    scene.refused("a digest that is another's", definition(&ops), "no such output").await;
    let unknown = [0x42, 0x00]; // field 8, empty: a kind of operation from another time
    let ops = [unknown.to_vec(), pointer(&name(&unknown), 0)];
    let error = scene.solve(definition(&ops)).await.expect_err("an unknown operation");
    assert!(!error.message().is_empty());
    scene.lives("an unknown operation").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_that_lead_out_stay_inside() {
    let scene = Scene::new().await;
    let up = "../".repeat(40);
    for path in [format!("{up}outside"), format!("/{up}outside"), "/a/../../../outside".to_owned()] {
        // All of them are paths below the result's root.
        let outcome = scene.solve(chain(vec![file_op(mkfile(&path), -1)])).await;
        scene.lives(&format!("{path}: {outcome:?}")).await;
    }
    let link = pb::file_action::Action::Symlink(pb::FileActionSymlink {
        oldpath: scene.place.path("").display().to_string(),
        newpath: "/link".to_owned(),
        timestamp: -1,
        ..pb::FileActionSymlink::default()
    });
    let through = chain(vec![file_op(link.clone(), -1), file_op(mkfile("/link/outside"), 0)]);
    let outcome = scene.solve(through).await;
    scene.lives(&format!("a file through a link: {outcome:?}")).await;
    let remove = pb::file_action::Action::Rm(pb::FileActionRm {
        path: "/link/outside".to_owned(),
        allow_not_found: true,
        ..pb::FileActionRm::default()
    });
    let outcome = scene.solve(chain(vec![file_op(link, -1), file_op(remove, 0)])).await;
    scene.lives(&format!("a removal through a link: {outcome:?}")).await;
    let all = pb::file_action::Action::Rm(pb::FileActionRm {
        path: format!("/{up}*"),
        allow_wildcard: true,
        allow_not_found: true,
    });
    let outcome = scene.solve(chain(vec![file_op(mkfile("/a"), -1), file_op(all, 0)])).await;
    scene.lives(&format!("a removal of all: {outcome:?}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sources_that_are_none_are_told_so() {
    let scene = Scene::new().await;
    for (identifier, attrs) in [
        ("nonsense", &[][..]),
        ("docker-image://../../etc", &[]),
        ("docker-image://x@sha256:1", &[]),
        ("local://../../etc", &[]),
        ("local://context", &[("local.session", "nobody"), ("local.followpaths", "[\"../../etc/passwd\"]")]),
        ("oci-layout://x@sha256:0000000000000000000000000000000000000000000000000000000000000000", &[]),
        ("git://127.0.0.1:1/x.git", &[("git.fullurl", "ext::sh -c 'touch outside'")]),
        ("git://127.0.0.1:1/x.git", &[("git.fullurl", "--upload-pack=touch outside")]),
        ("http://127.0.0.1:1/x", &[("http.filename", "../../outside")]),
        ("http://127.0.0.1:1/x", &[("http.checksum", "no digest")]),
        ("http://127.0.0.1:1/x", &[("http.perm", "nine")]),
    ] {
        let error = scene.solve(chain(vec![source(identifier, attrs)])).await;
        let error = error.expect_err(identifier);
        assert!(!error.message().is_empty(), "{identifier}");
        scene.lives(identifier).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_million_operations_are_too_many_and_cost_no_more_than_their_bytes() {
    let scene = Scene::new().await;
    // The most that fits into a message; more is no message.
    let ops: Vec<Vec<u8>> = (0..1_000_000u32).map(|number| number.to_le_bytes().to_vec()).collect();
    let error = scene.solve(definition(&ops)).await.expect_err("a million");
    assert!(!error.message().is_empty(), "{error:?}");
    scene.lives("a million operations").await;
    let large = vec![vec![0; 1 << 20]; 64];
    let error = scene.solve(definition(&large)).await.expect_err("64 MiB");
    assert_eq!(error.code(), Code::OutOfRange, "{error:?}");
    scene.lives("a message that is too large").await;
    let memory = scene.memory_kib();
    assert!(memory < 1 << 20, "the daemon had {memory} KiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_words_and_strange_requests_are_told_so() {
    let scene = Scene::new().await;
    let long = "x".repeat(8 << 20);
    let request = SolveRequest {
        frontend: "dockerfile.v0".to_owned(),
        frontend_attrs: HashMap::from([("filename".to_owned(), long.clone()), (long.clone(), String::new())]),
        ..SolveRequest::default()
    };
    assert!(request.encoded_len() > MESSAGE_BYTES_MAX, "it is more than a message");
    assert!(scene.control().solve(request).await.is_err());
    for (frontend, key, value) in [
        ("no-such.v0", "", ""),
        ("dockerfile.v0", "platform", "a/b/c/d/e"),
        ("dockerfile.v0", "context", "https://\u{0}/"),
        ("dockerfile.v0", "cache-imports", "{"),
        ("gateway.v0", "source", ""),
        ("gateway.v0", "source", "../../x"),
    ] {
        let request = SolveRequest {
            frontend: frontend.to_owned(),
            frontend_attrs: HashMap::from([(key.to_owned(), value.to_owned())]),
            session: "nobody".to_owned(),
            ..SolveRequest::default()
        };
        let error = scene.control().solve(request).await.expect_err(frontend);
        assert!(!error.message().is_empty(), "{frontend} {key}");
        scene.lives(frontend).await;
    }
    let request = SolveRequest { entitlements: vec![long], ..SolveRequest::default() };
    assert!(scene.control().solve(request).await.is_err());
    scene.lives("a long entitlement").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frontend_s_calls_without_a_build_are_refused() {
    let scene = Scene::new().await;
    let mut bridge = scene.bridge();
    assert_eq!(bridge.ping(PingRequest {}).await.expect_err("no build").code(), Code::InvalidArgument);
    let with = |id: &'static str| {
        let mut request =
            tonic::Request::new(ReadFileRequest { r#ref: "x".to_owned(), ..Default::default() });
        request.metadata_mut().insert("buildkit-controlapi-buildid", id.parse().unwrap());
        request
    };
    assert_eq!(bridge.read_file(with("nobody")).await.expect_err("no build").code(), Code::NotFound);
    assert!(bridge.new_container(NewContainerRequest::default()).await.is_err());
    assert!(bridge.warn(WarnRequest::default()).await.is_err());
    assert!(bridge.resolve_image_config(ResolveImageConfigRequest::default()).await.is_err());
    let messages = tokio_stream::iter([ExecMessage::default()]);
    assert!(bridge.exec_process(messages).await.is_err());
    scene.lives("calls without a build").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_of_garbage_and_one_that_stops_are_ended() {
    let scene = Scene::new().await;
    for bytes in [vec![0xff; 1 << 16], b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), Vec::new()] {
        let messages = tokio_stream::iter([BytesMessage { data: bytes }]);
        let mut request = tonic::Request::new(messages);
        request.metadata_mut().insert("x-docker-expose-session-uuid", "garbage".parse().unwrap());
        let mut session = scene.control();
        if let Ok(answers) = session.session(request).await {
            // Whatever it says, it ends: the client's side has.
            let mut answers = answers.into_inner();
            while let Ok(Some(_)) = answers.message().await {}
        }
        scene.lives("a session of garbage").await;
    }
    // A build whose client goes away in the middle.
    let attrs = HashMap::from([("filename".to_owned(), "Dockerfile".to_owned())]);
    let request = SolveRequest {
        frontend: "dockerfile.v0".to_owned(),
        frontend_attrs: attrs,
        session: "gone".to_owned(),
        ..SolveRequest::default()
    };
    let mut control = scene.control();
    let solve = tokio::spawn(async move { control.solve(request).await.map(drop) });
    solve.abort();
    assert!(solve.await.is_err());
    scene.lives("a client that went away").await;
}

/// An archive whose entries lead out: by dots, from the root, and through a link.
fn archive(place: &Place) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let outside = place.path("outside").display().to_string();
    let mut put = |name: &str, kind: tar::EntryType, link: &str, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        // The crate's own way would refuse such names.
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append(&header, data).unwrap();
    };
    put("inside", tar::EntryType::Regular, "", b"fine");
    put(&format!("{}outside", "../".repeat(12)), tar::EntryType::Regular, "", b"out");
    put("link", tar::EntryType::Symlink, &place.path("").display().to_string(), b"");
    put("link/outside", tar::EntryType::Regular, "", b"out");
    put("hard", tar::EntryType::Link, &outside, b"");
    put(&outside, tar::EntryType::Regular, "", b"out");
    builder.into_inner().unwrap()
}

/// Answers each request with the same bytes as a file.
pub(super) fn serve(bytes: Vec<u8>) -> u16 {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", bytes.len());
    serve_all([head.into_bytes(), bytes].concat())
}

/// Answers each request with the same text, from its first line on.
pub(super) fn serve_once(answer: &str) -> u16 {
    serve_all(answer.as_bytes().to_vec())
}

fn serve_all(answer: Vec<u8>) -> u16 {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let count = stream.read(&mut request).unwrap();
            assert!(count == 0 || request.starts_with(b"GET ") || request.starts_with(b"HEAD "));
            stream.write_all(&answer).ok(); // who has enough hangs up
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_with_ways_out_stays_inside() {
    let scene = Scene::new().await;
    let port = serve(archive(&scene.place));
    let copy = pb::file_action::Action::Copy(pb::FileActionCopy {
        src: "/a.tar".to_owned(),
        dest: "/".to_owned(),
        mode: -1,
        timestamp: -1,
        attempt_unpack_docker_compatibility: true,
        create_dest_path: true,
        ..pb::FileActionCopy::default()
    });
    let action = pb::FileAction { input: -1, secondary_input: 0, output: 0, action: Some(copy) };
    let unpack = pb::op::Op::File(pb::FileOp { actions: vec![action] });
    let outcome =
        scene.solve(chain(vec![source(&format!("http://127.0.0.1:{port}/a.tar"), &[]), unpack])).await;
    scene.lives(&format!("an archive with ways out: {outcome:?}")).await;
}
