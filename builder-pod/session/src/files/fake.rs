//! The other side of a transfer, in tests: a sender of a tree that is held in memory, one that says what it is told
//! to, and a receiver.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::Stream;
use lapstrake_api::filesync::file_send_server::{FileSend, FileSendServer};
use lapstrake_api::filesync::file_sync_server::{FileSync, FileSyncServer};
use lapstrake_api::fsutil;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use super::wire::{Packet, Stat, kind};
use crate::method;
use crate::testing::{Connected, connect};

type Packets = Pin<Box<dyn Stream<Item = Result<fsutil::Packet, Status>> + Send>>;

/// An entry and its contents.
#[derive(Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) stat: Stat,
    pub(super) content: Vec<u8>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = String::from_utf8_lossy;
        let Stat { path, mode, size, linkname, .. } = &self.stat;
        write!(f, "{} {mode:x} {size} -> {}", text(path), text(linkname))
    }
}

/// A tree, in the order of its listing.
pub(super) type Tree = Vec<Entry>;

/// How a sender behaves.
#[derive(Clone)]
pub(super) enum Sender {
    /// As it should.
    Tree(Tree),
    /// Sends these and then nothing more.
    Script(Vec<Packet>),
    /// Sends these and then data of this entry without end.
    Endless(Vec<Packet>, u32),
    /// Ends the call well after these.
    Ends(Vec<Packet>),
    /// Refuses.
    Refuses(Status),
}

/// What a sender saw.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) requested: Vec<u32>,
    pub(super) error: Option<String>,
    pub(super) headers: MetadataMap,
    pub(super) finished: bool,
}

#[derive(Clone)]
pub(super) struct Client {
    pub(super) sender: Arc<Mutex<Sender>>,
    pub(super) seen: Arc<Mutex<Seen>>,
    /// Fires when the sender has said all that it says unasked, or noted an error.
    pub(super) said: Arc<tokio::sync::Notify>,
    /// What a receiver got.
    pub(super) received: Arc<Mutex<Vec<Entry>>>,
}

impl Client {
    pub(super) fn new(sender: Sender) -> Self {
        Self {
            sender: Arc::new(Mutex::new(sender)),
            seen: Arc::default(),
            said: Arc::default(),
            received: Arc::default(),
        }
    }

    pub(super) async fn connect(&self) -> Connected {
        let routes = Routes::new(FileSyncServer::new(self.clone()).max_decoding_message_size(16 << 20))
            .add_service(FileSendServer::new(self.clone()));
        connect(routes, &[method::SYNC, method::SEND]).await
    }

    /// Sends another tree from now on, and forgets what was seen.
    pub(super) fn becomes(&self, tree: Tree) {
        *self.sender.lock().expect("lock") = Sender::Tree(tree);
        *self.seen.lock().expect("lock") = Seen::default();
    }

    pub(super) fn requested(&self) -> Vec<u32> {
        let mut requested = self.seen.lock().expect("lock").requested.clone();
        requested.sort_unstable();
        requested
    }

    /// Notes what the daemon says, and answers it from `tree`; without one it sends nothing that it is asked for.
    async fn answer(
        self,
        mut incoming: Streaming<fsutil::Packet>,
        outgoing: mpsc::UnboundedSender<Result<fsutil::Packet, Status>>,
        tree: Option<Tree>,
    ) {
        while let Ok(Some(packet)) = incoming.message().await {
            let packet = ours(&packet);
            match packet.kind {
                kind::REQ => {
                    self.seen.lock().expect("lock").requested.push(packet.id);
                    let Some(tree) = &tree else { continue };
                    let content = tree.get(packet.id as usize).map_or(&[][..], |entry| &entry.content);
                    for chunk in content.chunks(32 << 10).chain([&[][..]]) {
                        let data = Bytes::copy_from_slice(chunk);
                        let packet = Packet { id: packet.id, data, ..Packet::of(kind::DATA) };
                        let _ = outgoing.send(Ok(theirs(&packet)));
                    }
                }
                kind::FIN => {
                    self.seen.lock().expect("lock").finished = true;
                    let _ = outgoing.send(Ok(theirs(&Packet::of(kind::FIN))));
                    return;
                }
                kind::ERR => {
                    let text = String::from_utf8_lossy(&packet.data).into_owned();
                    self.seen.lock().expect("lock").error = Some(text);
                    self.said.notify_one();
                    return;
                }
                other => panic!("a receiver sent a packet of kind {other}"),
            }
        }
    }
}

/// Between the generated messages and ours, by their bytes. Names that are not UTF-8 cannot be told this way.
pub(super) fn theirs(packet: &Packet) -> fsutil::Packet {
    fsutil::Packet::decode(packet.encode_to_vec().as_slice()).expect("the same message")
}

fn ours(packet: &fsutil::Packet) -> Packet {
    Packet::decode(packet.encode_to_vec().as_slice()).expect("the same message")
}

pub(super) fn listing(tree: &[Entry]) -> Vec<Packet> {
    let stats = tree.iter().map(|entry| Packet { stat: Some(entry.stat.clone()), ..Packet::of(kind::STAT) });
    stats.chain([Packet::of(kind::STAT)]).collect()
}

#[tonic::async_trait]
impl FileSync for Client {
    type DiffCopyStream = Packets;

    async fn diff_copy(
        &self,
        request: Request<Streaming<fsutil::Packet>>,
    ) -> Result<Response<Packets>, Status> {
        self.seen.lock().expect("lock").headers = request.metadata().clone();
        let incoming = request.into_inner();
        let (outgoing, packets) = mpsc::unbounded_channel();
        let say = |packets: &[Packet]| {
            for packet in packets {
                let _ = outgoing.send(Ok(theirs(packet)));
            }
            self.said.notify_one();
        };
        let sender = self.sender.lock().expect("lock").clone();
        match sender {
            Sender::Refuses(status) => return Err(status),
            Sender::Ends(script) => say(&script),
            Sender::Script(script) => {
                say(&script);
                tokio::spawn(self.clone().answer(incoming, outgoing, None));
            }
            Sender::Tree(tree) => {
                say(&listing(&tree));
                tokio::spawn(self.clone().answer(incoming, outgoing, Some(tree)));
            }
            Sender::Endless(script, id) => {
                say(&script);
                let chunk = Packet { id, data: vec![b'x'; 1 << 20].into(), ..Packet::of(kind::DATA) };
                let chunk = theirs(&chunk);
                tokio::spawn(self.clone().answer(incoming, outgoing, None));
                let head = script.iter().map(theirs).map(Ok).collect::<Vec<_>>();
                let endless = futures::stream::iter(head).chain(futures::stream::repeat(Ok(chunk)));
                return Ok(Response::new(Box::pin(endless)));
            }
        }
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(packets))))
    }

    type TarStreamStream = Packets;

    async fn tar_stream(&self, _: Request<Streaming<fsutil::Packet>>) -> Result<Response<Packets>, Status> {
        Err(Status::unimplemented("tarstream"))
    }
}

#[tonic::async_trait]
impl FileSend for Client {
    type DiffCopyStream = Packets;

    /// Takes all there is.
    async fn diff_copy(
        &self,
        request: Request<Streaming<fsutil::Packet>>,
    ) -> Result<Response<Packets>, Status> {
        self.seen.lock().expect("lock").headers = request.metadata().clone();
        if let Sender::Refuses(status) = &*self.sender.lock().expect("lock") {
            return Err(status.clone());
        }
        let mut incoming = request.into_inner();
        let (outgoing, packets) = mpsc::unbounded_channel();
        let say = move |packet: Packet| {
            let _ = outgoing.send(Ok(theirs(&packet)));
        };
        let me = self.clone();
        tokio::spawn(async move {
            let (mut listed, mut open, mut id) = (false, 0, 0);
            let mut contents: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
            let mut stats = Vec::new();
            while let Ok(Some(packet)) = incoming.message().await {
                let packet = ours(&packet);
                match (packet.kind, packet.stat) {
                    (kind::STAT, Some(stat)) => {
                        if super::mode::Kind::of(stat.mode) == super::mode::Kind::File
                            && stat.linkname.is_empty()
                        {
                            open += 1;
                            say(Packet::request(id));
                        }
                        id += 1;
                        stats.push(stat);
                    }
                    (kind::STAT, None) => listed = true,
                    (kind::DATA, _) if packet.data.is_empty() => open -= 1,
                    (kind::DATA, _) => contents.entry(packet.id).or_default().extend(packet.data),
                    (kind::FIN, _) => break,
                    (other, _) => panic!("a sender sent a packet of kind {other}"),
                }
                if listed && open == 0 {
                    say(Packet::of(kind::FIN));
                }
            }
            let entries = stats.into_iter().zip(0..).map(|(stat, id)| {
                let content = contents.remove(&id).unwrap_or_default();
                Entry { stat, content }
            });
            *me.received.lock().expect("lock") = entries.collect();
            me.said.notify_one();
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(packets))))
    }
}

use futures::StreamExt as _;
