//! Records of builds: which there were, how they ended, what they said.
//!
//! ```text
//! ROOT/side/history/records/<name>   one record each (protobuf); the name is the digest of its ref
//! ROOT/side/history/blobs/<hex>      logs, errors, attestations: what records name
//! ```
//! Holds: a record appears whole or not at all, whenever the daemon is killed (after a power cut the last ones may be
//! missing: no build waits for the disk on their account); a record's blobs are there as long as it is; a log takes no more than
//! [`LOG_BYTES_MAX`]; at most [`RECORDS_MAX`] records; nobody who listens slowly holds up a build.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use lapstrake_api::control::{
    BuildHistoryEvent, BuildHistoryEventType as Type, BuildHistoryRecord, BuildHistoryRequest, Descriptor,
    SolveRequest, StatusResponse, UpdateBuildHistoryRequest,
};
use lapstrake_api::rpc;
use lapstrake_oci::Digest;
use lapstrake_store::Store;
use prost::Message as _;
use tempfile::NamedTempFile;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::attested::Outcome;
use super::clock;
use super::history_filter::HistoryFilter;
use crate::attest::{IN_TOTO, PREDICATE_TYPE};

/// What the log of one build may take.
const LOG_BYTES_MAX: u64 = 64 << 20;
/// What a message of a log may have, for whom it is read.
const MESSAGE_BYTES_MAX: u32 = 16 << 20;
/// What a record may have: it is kept in memory.
const RECORD_BYTES_MAX: usize = 1 << 20;
/// Most records, whatever the configuration says.
const RECORDS_MAX: usize = 10_000;
/// Events that a slow listener may be behind.
const EVENTS_MAX: usize = 1024;
/// Media type of a log: messages of Status, each behind its length.
const LOG_TYPE: &str = "application/vnd.buildkit.status.v0";
/// Media type of an error with its details.
const ERROR_TYPE: &str = "application/vnd.googleapis.google.rpc.status+proto";

/// All records of a state directory.
pub(crate) struct History {
    dir: PathBuf,
    config: lapstrake_daemon::History,
    state: Mutex<State>,
    events: broadcast::Sender<BuildHistoryEvent>,
}

#[derive(Default)]
struct State {
    active: BTreeMap<String, BuildHistoryRecord>,
    done: BTreeMap<String, BuildHistoryRecord>,
}

/// The log of a running build.
pub(crate) struct Recorder {
    file: BufWriter<NamedTempFile>,
    bytes: u64,
    full: bool,
    counts: Counts,
}

/// Steps of a build.
#[derive(Default)]
struct Counts {
    /// By vertex: seen as cached, as completed.
    vertices: HashMap<String, (bool, bool)>,
    warnings: i32,
}

impl Counts {
    fn add(&mut self, status: &StatusResponse) {
        self.warnings += i32::try_from(status.warnings.len()).unwrap_or(0);
        for vertex in &status.vertexes {
            let seen = self.vertices.entry(vertex.digest.clone()).or_default();
            seen.0 |= vertex.cached;
            seen.1 |= vertex.completed.is_some();
        }
    }

    fn write(&self, record: &mut BuildHistoryRecord) {
        let count = |which: fn(&(bool, bool)) -> bool| {
            i32::try_from(self.vertices.values().filter(|seen| which(seen)).count()).unwrap_or(i32::MAX)
        };
        record.num_cached_steps = count(|seen| seen.0);
        record.num_completed_steps = count(|seen| seen.1);
        record.num_total_steps = count(|_| true);
        record.num_warnings = self.warnings;
    }
}

impl Recorder {
    /// Adds what clients are told. What is beyond the limit is left out, except what counts steps.
    pub(crate) fn add(&mut self, status: &StatusResponse) {
        self.counts.add(status);
        let bytes = status.encode_to_vec();
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.full |= length > MESSAGE_BYTES_MAX || self.bytes + u64::from(length) + 4 > LOG_BYTES_MAX;
        if self.full {
            return;
        }
        let written = self.file.write_all(&length.to_le_bytes()).and_then(|()| self.file.write_all(&bytes));
        match written {
            Ok(()) => self.bytes += u64::from(length) + 4,
            Err(error) => {
                tracing::warn!("the log of a build is not kept: {error}");
                self.full = true;
            }
        }
    }
}

impl History {
    /// Opens the records of `store`. Blocking.
    ///
    /// A record that cannot be read, or whose log is missing, goes.
    pub(crate) fn open(store: &Store, config: lapstrake_daemon::History) -> io::Result<Arc<Self>> {
        let dir = store.side_dir("history").map_err(io::Error::other)?;
        for name in ["records", "blobs"] {
            std::fs::create_dir_all(dir.join(name))?;
        }
        let history =
            Self { dir, config, state: Mutex::default(), events: broadcast::Sender::new(EVENTS_MAX) };
        let mut done = BTreeMap::new();
        for entry in std::fs::read_dir(history.dir.join("records"))?.flatten() {
            match history.load(&entry.path()) {
                Some(record) => {
                    done.insert(record.r#ref.clone(), record);
                }
                None => remove(&entry.path()),
            }
        }
        history.state().done = done;
        history.sweep();
        history.collect(SystemTime::now());
        Ok(Arc::new(history))
    }

    fn load(&self, path: &Path) -> Option<BuildHistoryRecord> {
        let bytes = std::fs::read(path).ok()?;
        let record = BuildHistoryRecord::decode(bytes.as_slice()).ok()?;
        let whole = blobs_of(&record).all(|digest| self.blob_path(digest).is_some_and(|path| path.exists()));
        (whole && self.record_path(&record.r#ref) == path).then_some(record)
    }

    /// Starts the log of a build. Blocking.
    pub(crate) fn recorder(&self) -> io::Result<Recorder> {
        let file = NamedTempFile::new_in(&self.dir)?;
        Ok(Recorder { file: BufWriter::new(file), bytes: 0, full: false, counts: Counts::default() })
    }

    /// Tells that the build runs that `request` asks for, under the name `id`. None where it is not recorded.
    pub(crate) fn begin(&self, request: &SolveRequest, id: &str) -> Option<BuildHistoryRecord> {
        if !self.config.enabled || request.internal {
            return None;
        }
        let record = BuildHistoryRecord {
            r#ref: id.to_owned(),
            frontend: request.frontend.clone(),
            frontend_attrs: super::caches::without_credentials(&request.frontend_attrs),
            exporters: request.exporters.clone(),
            ..BuildHistoryRecord::default()
        };
        self.started(record.clone());
        Some(record)
    }

    /// Keeps how that build ended, with all that was told of it. Blocking.
    ///
    /// A record is no reason to fail a build: what goes wrong is logged.
    pub(crate) fn finish(
        &self,
        mut record: BuildHistoryRecord,
        told: &[Arc<StatusResponse>],
        response: HashMap<String, String>,
        outcome: Outcome,
        error: Option<rpc::Status>,
    ) {
        record.exporter_response = response;
        let name = record.r#ref.clone();
        let kept =
            self.attest(&mut record, outcome).and_then(|()| self.recorder()).and_then(|mut recorder| {
                told.iter().for_each(|status| recorder.add(status));
                self.completed(record, Some(recorder), error)
            });
        if let Err(error) = kept {
            self.state().active.remove(&name);
            tracing::error!("the record of build {name} is not kept: {error}");
        }
    }

    /// Adds what was made, and how. The first of several results stands also where clients of old look for it.
    fn attest(&self, record: &mut BuildHistoryRecord, outcome: Outcome) -> io::Result<()> {
        for (key, kind, bytes) in outcome.provenance {
            let mut descriptor = self.put(IN_TOTO, &bytes)?;
            descriptor.annotations.insert(PREDICATE_TYPE.to_owned(), kind);
            let result = match key {
                None => record.result.get_or_insert_default(),
                Some(key) => record.results.entry(key).or_default(),
            };
            result.attestations.push(descriptor);
        }
        for (number, made) in outcome.results {
            let descriptor = Descriptor {
                media_type: made.media_type,
                digest: made.digest.to_string(),
                size: i64::try_from(made.size).unwrap_or(i64::MAX),
                annotations: made.annotations.into_iter().collect(),
            };
            let result = record.result.get_or_insert_default();
            result.result_deprecated.get_or_insert_with(|| descriptor.clone());
            result.results.insert(number, descriptor);
        }
        Ok(())
    }

    /// Tells that a build runs: its ref, frontend, exporters and times are in `record`.
    pub(crate) fn started(&self, mut record: BuildHistoryRecord) {
        if !self.config.enabled {
            return;
        }
        shorten(&mut record);
        record.created_at.get_or_insert_with(clock::now);
        let event = event(Type::Started, record.clone());
        let mut state = self.state();
        state.active.insert(record.r#ref.clone(), record);
        self.send(event);
    }

    /// Keeps how a build ended: `record` as it was started, with response, results and, where it failed, its `error`
    /// (whose details go into a blob). Blocking.
    pub(crate) fn completed(
        &self,
        mut record: BuildHistoryRecord,
        recorder: Option<Recorder>,
        error: Option<rpc::Status>,
    ) -> io::Result<()> {
        let name = record.r#ref.clone();
        if !self.config.enabled {
            return Ok(());
        }
        let started = self.state().active.get(&name).and_then(|active| active.created_at);
        record.created_at = started.or(record.created_at).or_else(|| Some(clock::now()));
        record.completed_at.get_or_insert_with(clock::now);
        let kept = self.keep(&mut record, recorder, error);
        let mut state = self.state();
        state.active.remove(&name);
        if let Err(error) = kept {
            self.send(event(
                Type::Deleted,
                BuildHistoryRecord { r#ref: name, ..BuildHistoryRecord::default() },
            ));
            return Err(error);
        }
        state.done.insert(name, record.clone());
        self.send(event(Type::Complete, record));
        drop(state);
        self.collect(SystemTime::now());
        Ok(())
    }

    fn keep(
        &self,
        record: &mut BuildHistoryRecord,
        recorder: Option<Recorder>,
        error: Option<rpc::Status>,
    ) -> io::Result<()> {
        shorten(record);
        if let Some(recorder) = recorder {
            recorder.counts.write(record);
            let file = recorder.file.into_inner().map_err(io::IntoInnerError::into_error)?;
            record.logs = Some(self.adopt(LOG_TYPE, file)?);
        }
        if let Some(mut error) = error {
            record.external_error = Some(self.put(ERROR_TYPE, &error.encode_to_vec())?);
            error.details.clear();
            record.error = Some(error);
        }
        self.write(record)
    }

    fn write(&self, record: &BuildHistoryRecord) -> io::Result<()> {
        let mut file = NamedTempFile::new_in(&self.dir)?;
        file.write_all(&record.encode_to_vec())?;
        file.persist(self.record_path(&record.r#ref))?;
        Ok(())
    }

    /// Keeps a document that a record names: an attestation, a manifest. Blocking.
    pub(crate) fn put(&self, media_type: &str, bytes: &[u8]) -> io::Result<Descriptor> {
        let mut file = NamedTempFile::new_in(&self.dir)?;
        file.write_all(bytes)?;
        self.adopt(media_type, file)
    }

    fn adopt(&self, media_type: &str, mut file: NamedTempFile) -> io::Result<Descriptor> {
        file.rewind()?;
        let (digest, size) = digest_of(file.as_file_mut())?;
        file.persist(self.dir.join("blobs").join(digest.hex()))?;
        Ok(Descriptor {
            media_type: media_type.to_owned(),
            digest: digest.to_string(),
            size: i64::try_from(size).unwrap_or(i64::MAX),
            annotations: HashMap::new(),
        })
    }

    /// A blob that records name.
    pub(crate) fn blob(&self, digest: &str) -> Option<File> {
        File::open(self.blob_path(digest)?).ok()
    }

    fn blob_path(&self, digest: &str) -> Option<PathBuf> {
        let digest: Digest = digest.parse().ok()?;
        Some(self.dir.join("blobs").join(digest.hex()))
    }

    /// What a client of a build that has ended is told, from its start; none where there is no such record.
    pub(crate) fn replay(&self, name: &str) -> Option<Replay> {
        let record = self.state().done.get(name).cloned()?;
        let file = record.logs.and_then(|logs| self.blob(&logs.digest));
        Some(Replay(file.map(BufReader::new)))
    }

    /// Control's ListenBuildHistory.
    pub(crate) fn listen(
        &self,
        request: &BuildHistoryRequest,
    ) -> Result<ReceiverStream<Result<BuildHistoryEvent, Status>>, Status> {
        let filter =
            HistoryFilter::parse(&request.filter, SystemTime::now()).map_err(Status::invalid_argument)?;
        let limit = usize::try_from(request.limit)
            .map_err(|_| Status::invalid_argument(format!("invalid limit {}", request.limit)))?;
        let name = request.r#ref.clone();
        let wanted = move |record: &BuildHistoryRecord| name.is_empty() || record.r#ref == name;
        let (mut first, mut later) = {
            let state = self.state();
            let started =
                state.active.values().filter(|r| wanted(r)).map(|r| event(Type::Started, r.clone()));
            let mut first: Vec<_> = started.collect();
            if !request.active_only {
                let mut done: Vec<_> =
                    state.done.values().filter(|r| wanted(r) && filter.matches(r)).collect();
                if limit > 0 {
                    done.sort_by_key(|record| {
                        std::cmp::Reverse(record.created_at.map(|t| (t.seconds, t.nanos)))
                    });
                    done.truncate(limit);
                }
                first.extend(done.into_iter().map(|record| event(Type::Complete, record.clone())));
            }
            // Under the lock: nothing is missed, nothing comes twice.
            (first.into_iter(), self.events.subscribe())
        };
        let (send, receive) = mpsc::channel(16);
        let early_exit = request.early_exit;
        tokio::spawn(async move {
            for event in &mut first {
                if send.send(Ok(event)).await.is_err() {
                    return;
                }
            }
            if early_exit {
                return;
            }
            loop {
                let event = tokio::select! {
                    () = send.closed() => return,
                    event = later.recv() => event,
                };
                let event = match event {
                    Ok(event) if event.record.as_ref().is_some_and(&wanted) => Ok(event),
                    Ok(_) => continue,
                    Err(broadcast::error::RecvError::Closed) => return,
                    Err(broadcast::error::RecvError::Lagged(missed)) => {
                        let why = format!(
                            "{missed} events were missed, since they were read too slowly: listen again"
                        );
                        Err(Status::resource_exhausted(why))
                    }
                };
                let last = event.is_err();
                if send.send(event).await.is_err() || last {
                    return;
                }
            }
        });
        Ok(ReceiverStream::new(receive))
    }

    /// Control's UpdateBuildHistory: deletes or pins; whatever else a record waits for is written already. Blocking.
    pub(crate) fn update(&self, request: &UpdateBuildHistoryRequest) -> Result<(), Status> {
        let name = &request.r#ref;
        if request.finalize {
            return Ok(());
        }
        if request.delete {
            self.remove(std::slice::from_ref(name));
            return Ok(());
        }
        let mut state = self.state();
        let missing = || Status::unknown(format!("failed to retrieve ref {name}: file does not exist"));
        let record = state.done.get_mut(name).ok_or_else(missing)?;
        record.pinned = request.pinned;
        record.generation += 1;
        let failed = |error| Status::internal(format!("the record of {name} cannot be written: {error}"));
        self.write(record).map_err(failed)?;
        let event = event(Type::Complete, record.clone());
        self.send(event);
        Ok(())
    }

    /// Removes records that are older than they may be. Blocking.
    pub(crate) fn collect(&self, now: SystemTime) {
        let expired = {
            let state = self.state();
            let mut records: Vec<_> = state
                .done
                .values()
                .filter(|r| !r.pinned)
                .map(|r| (completed_at(r), r.r#ref.clone()))
                .collect();
            records.sort();
            let spare = records.len().saturating_sub(self.config.entries_min);
            let too_many = state.done.len().saturating_sub(RECORDS_MAX);
            let old = |at: &SystemTime| now.duration_since(*at).unwrap_or_default() > self.config.age_max;
            let oldest = records.into_iter().enumerate();
            let gone =
                oldest.take_while(|(number, (at, _))| *number < too_many || (*number < spare && old(at)));
            gone.map(|(_, (_, name))| name).collect::<Vec<_>>()
        };
        self.remove(&expired);
    }

    fn remove(&self, names: &[String]) {
        let mut removed = false;
        for name in names {
            let mut state = self.state();
            if state.done.remove(name).is_none() {
                continue;
            }
            removed = true;
            remove(&self.record_path(name));
            let record = BuildHistoryRecord { r#ref: name.clone(), ..BuildHistoryRecord::default() };
            self.send(event(Type::Deleted, record));
        }
        if removed {
            self.sweep();
        }
    }

    /// Removes blobs that no record names and files that a kill left behind. A blob of a record that is not yet written
    /// is young.
    fn sweep(&self) {
        let named: HashSet<PathBuf> = {
            let state = self.state();
            let records = state.done.values().chain(state.active.values());
            records.flat_map(blobs_of).filter_map(|digest| self.blob_path(digest)).collect()
        };
        let files = |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten();
        let all = files(self.dir.join("blobs")).chain(files(self.dir.clone()));
        for entry in all {
            let Ok(meta) = entry.metadata() else { continue };
            let age = meta.modified().ok().and_then(|at| at.elapsed().ok()).unwrap_or_default();
            if meta.is_file() && age > YOUNG && !named.contains(&entry.path()) {
                remove(&entry.path());
            }
        }
    }

    fn record_path(&self, name: &str) -> PathBuf {
        // A ref is the client's text: never a path.
        self.dir.join("records").join(Digest::of(name.as_bytes()).hex())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What is under the lock is whole at every step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, event: BuildHistoryEvent) {
        self.events.send(event).ok(); // nobody listens
    }
}

/// A blob that no record names is swept only when it is older.
const YOUNG: Duration = Duration::from_secs(3600);

fn event(r#type: Type, record: BuildHistoryRecord) -> BuildHistoryEvent {
    BuildHistoryEvent { r#type: r#type.into(), record: Some(record) }
}

/// Large values of a request are not kept: what is kept is in memory.
fn shorten(record: &mut BuildHistoryRecord) {
    if record.encoded_len() > RECORD_BYTES_MAX {
        let most = RECORD_BYTES_MAX / 256;
        record.frontend_attrs.retain(|name, value| name.len() + value.len() <= most);
        record.exporter_response.retain(|name, value| name.len() + value.len() <= most);
    }
    if record.encoded_len() > RECORD_BYTES_MAX {
        record.frontend_attrs.clear();
        record.exporter_response.clear();
        record.exporters.clear();
    }
}

fn completed_at(record: &BuildHistoryRecord) -> SystemTime {
    record.completed_at.map_or(SystemTime::UNIX_EPOCH, clock::system)
}

/// Digests of the blobs that are kept for a record. Others that it names are the store's, and may go.
fn blobs_of(record: &BuildHistoryRecord) -> impl Iterator<Item = &str> {
    let own = [&record.logs, &record.trace, &record.external_error];
    let results = record.results.values().chain(&record.result).flat_map(|result| &result.attestations);
    own.into_iter().flatten().chain(results).map(|descriptor| descriptor.digest.as_str())
}

fn digest_of(file: &mut File) -> io::Result<(Digest, u64)> {
    let mut hasher = lapstrake_oci::Hasher::new();
    let (mut size, mut buffer) = (0, vec![0; 64 << 10]);
    loop {
        let read = file.read(&mut buffer)?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        hasher.update(bytes);
        size += u64::try_from(read).map_err(io::Error::other)?;
    }
    Ok((hasher.finish(), size))
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!("{} cannot be removed: {error}", path.display());
    }
}

/// The messages of a build's log, one by one.
pub(crate) struct Replay(Option<BufReader<File>>);

impl Replay {
    /// The same for a client, read piece by piece as it takes them.
    pub(crate) fn stream(mut self) -> ReceiverStream<Result<StatusResponse, Status>> {
        let (send, receive) = mpsc::channel(16);
        tokio::task::spawn_blocking(move || {
            for message in &mut self {
                let message = message.map_err(|e| Status::internal(format!("the log cannot be read: {e}")));
                if send.blocking_send(message).is_err() {
                    return;
                }
            }
        });
        ReceiverStream::new(receive)
    }
}

impl Iterator for Replay {
    type Item = io::Result<StatusResponse>;

    fn next(&mut self) -> Option<Self::Item> {
        let file = self.0.as_mut()?;
        let mut length = [0; 4];
        match file.read_exact(&mut length) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                self.0 = None;
                return None;
            }
            done => {
                if let Err(error) = done {
                    self.0 = None;
                    return Some(Err(error));
                }
            }
        }
        let message = read_message(file, u32::from_le_bytes(length));
        if message.is_err() {
            self.0 = None;
        }
        Some(message)
    }
}

fn read_message(file: &mut BufReader<File>, length: u32) -> io::Result<StatusResponse> {
    if length > MESSAGE_BYTES_MAX {
        return Err(io::Error::other("a log is not what was written"));
    }
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    file.read_exact(&mut bytes)?;
    StatusResponse::decode(bytes.as_slice()).map_err(io::Error::other)
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
