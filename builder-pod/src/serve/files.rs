//! Files of results, for frontends that look into them.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::Arc;

use lapstrake_api::frontend::{
    ReadDirRequest, ReadDirResponse, ReadFileRequest, ReadFileResponse, StatFileRequest, StatFileResponse,
};
use lapstrake_api::fsutil::Stat;
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use tonic::Status;

use super::errors::status;
use super::job::Job;
use crate::error::BuildError;

/// A file that is read whole is no longer than this: it goes in one message.
const READ_BYTES_MAX: usize = lapstrake_api::MESSAGE_BYTES_MAX - (64 << 10);
/// Entries of a directory that are listed at most.
const ENTRIES_MAX: usize = 100_000;

/// The bits of Go's file modes, which messages have.
mod go_mode {
    pub(super) const DIR: u32 = 1 << 31;
    pub(super) const SYMLINK: u32 = 1 << 27;
    pub(super) const DEVICE: u32 = 1 << 26;
    pub(super) const NAMED_PIPE: u32 = 1 << 25;
    pub(super) const SOCKET: u32 = 1 << 24;
    pub(super) const SETUID: u32 = 1 << 23;
    pub(super) const SETGID: u32 = 1 << 22;
    pub(super) const CHAR_DEVICE: u32 = 1 << 21;
    pub(super) const STICKY: u32 = 1 << 20;
}

/// A mode as messages have it.
fn mode(mode: u32) -> u32 {
    let kind = match FileType::from_raw_mode(mode) {
        FileType::Directory => go_mode::DIR,
        FileType::Symlink => go_mode::SYMLINK,
        FileType::BlockDevice => go_mode::DEVICE,
        FileType::CharacterDevice => go_mode::DEVICE | go_mode::CHAR_DEVICE,
        FileType::Fifo => go_mode::NAMED_PIPE,
        FileType::Socket => go_mode::SOCKET,
        _ => 0,
    };
    let bit = |unix: u32, go: u32| if mode & unix != 0 { go } else { 0 };
    let special = bit(0o4000, go_mode::SETUID) | bit(0o2000, go_mode::SETGID) | bit(0o1000, go_mode::STICKY);
    kind | special | mode & 0o777
}

/// What is looked into.
enum Place<'a> {
    /// A result of the build, by its id.
    Result(&'a str),
    /// A mount of a container, by its place.
    Mount(&'a str, i32),
}

/// Mounts what is looked into, and looks.
async fn look<T: Send + 'static>(
    job: &Arc<Job>,
    place: Place<'_>,
    look: impl FnOnce(OwnedFd) -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    let id = match place {
        Place::Result(id) => id,
        Place::Mount(id, mount) => {
            let running = job.containers.get(id)?;
            let mount = usize::try_from(mount).map_err(|_| Status::invalid_argument("a negative mount"))?;
            let userxattr = job.engine.userxattr();
            let work = move || {
                let (root, below) = running.container.look_into(mount, userxattr).map_err(|e| status(&e))?;
                match below.to_str() {
                    None | Some("") => look(root),
                    Some(below) => look(open(&root, below, OFlags::PATH | OFlags::DIRECTORY)?),
                }
            };
            return tokio::task::spawn_blocking(work).await.map_err(|e| status(&BuildError::internal(e)))?;
        }
    };
    let snapshot = match id {
        "" => None,
        id => {
            let result = job.kept(id)?;
            let tree = result.tree(job).await.map_err(|e| job.containers.status(&e))?;
            job.engine.snapshot_of(tree, &job.cancel).await.map_err(|e| status(&e))?
        }
    };
    let engine = Arc::clone(&job.engine);
    let work = move || {
        let root = engine.mount(snapshot).map_err(|e| status(&e))?;
        look(root)
    };
    tokio::task::spawn_blocking(work).await.map_err(|e| status(&BuildError::internal(e)))?
}

fn open(root: &OwnedFd, path: &str, flags: OFlags) -> Result<OwnedFd, Status> {
    let path_in = match path.trim_start_matches('/') {
        "" => ".",
        path => path,
    };
    let opened = rustix::fs::openat2(
        root.as_fd(),
        path_in,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    );
    opened.map_err(|e| failed("open", path, e))
}

fn failed(action: &str, path: &str, error: Errno) -> Status {
    let message = format!("{action} {path}: {}", std::io::Error::from(error));
    match error {
        Errno::NOENT | Errno::NOTDIR => {
            Status::not_found(format!("{action} {path}: no such file or directory"))
        }
        _ => Status::unknown(message),
    }
}

fn irregular(path: &str) -> Status {
    Status::unknown(format!("read {path}: not a regular file"))
}

pub(crate) async fn read_file(job: &Arc<Job>, request: ReadFileRequest) -> Result<ReadFileResponse, Status> {
    let id = request.r#ref.clone();
    read_file_in(job, request, Place::Result(&id)).await
}

pub(crate) async fn read_file_container(
    job: &Arc<Job>,
    request: ReadFileRequest,
) -> Result<ReadFileResponse, Status> {
    let (id, mount) = (request.r#ref.clone(), request.mount_index);
    read_file_in(job, request, Place::Mount(&id, mount)).await
}

async fn read_file_in(
    job: &Arc<Job>,
    request: ReadFileRequest,
    place: Place<'_>,
) -> Result<ReadFileResponse, Status> {
    let path = request.file_path;
    let range = request.range.unwrap_or_default();
    let invalid = || Status::unknown(format!("invalid range for {path}"));
    let offset = u64::try_from(range.offset).map_err(|_| invalid())?;
    let length = usize::try_from(range.length).map_err(|_| invalid())?;
    let read = move |root: OwnedFd| {
        // Found first, opened once it is known for a file: a device of the image's would be one of this machine's.
        let found = open(&root, &path, OFlags::PATH)?;
        let stat = rustix::fs::fstat(&found).map_err(|e| failed("stat", &path, e))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(irregular(&path));
        }
        let again = format!("/proc/self/fd/{}", found.as_raw_fd());
        let file = rustix::fs::open(again, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| failed("open", &path, e))?;
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        let left = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let wanted = if length == 0 { left } else { left.min(length) };
        if wanted > READ_BYTES_MAX {
            return Err(Status::resource_exhausted(format!(
                "read {path}: {wanted} bytes do not fit into a message; ask for a range"
            )));
        }
        let mut data = vec![0; wanted];
        let mut at = 0;
        while let Some(rest) = data.get_mut(at..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pread(&file, rest, offset + at as u64).map_err(|e| failed("read", &path, e))? {
                0 => break,
                count => at += count,
            }
        }
        data.truncate(at);
        Ok(ReadFileResponse { data })
    };
    look(job, place, read).await
}

fn stat_of(dir: &OwnedFd, name: &str, shown: &str) -> Result<Stat, Status> {
    let stat = rustix::fs::statat(
        dir,
        name,
        rustix::fs::AtFlags::SYMLINK_NOFOLLOW | rustix::fs::AtFlags::EMPTY_PATH,
    )
    .map_err(|e| failed("lstat", shown, e))?;
    let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
    let linkname = match is_link {
        true => rustix::fs::readlinkat(dir, name, Vec::new())
            .map(|target| target.to_string_lossy().into_owned())
            .map_err(|e| failed("readlink", shown, e))?,
        false => String::new(),
    };
    Ok(Stat {
        path: shown.rsplit('/').next().unwrap_or(shown).to_owned(),
        mode: mode(stat.st_mode),
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: if is_link || FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
            stat.st_size
        } else {
            0
        },
        mod_time: stat
            .st_mtime
            .saturating_mul(1_000_000_000)
            .saturating_add(i64::try_from(stat.st_mtime_nsec).unwrap_or_default()),
        linkname,
        devmajor: i64::from(rustix::fs::major(stat.st_rdev)),
        devminor: i64::from(rustix::fs::minor(stat.st_rdev)),
        xattrs: HashMap::new(),
    })
}

pub(crate) async fn stat_file(job: &Arc<Job>, request: StatFileRequest) -> Result<StatFileResponse, Status> {
    let id = request.r#ref.clone();
    stat_file_in(job, request, Place::Result(&id)).await
}

pub(crate) async fn stat_file_container(
    job: &Arc<Job>,
    request: StatFileRequest,
) -> Result<StatFileResponse, Status> {
    let (id, mount) = (request.r#ref.clone(), request.mount_index);
    let mut found = stat_file_in(job, request, Place::Mount(&id, mount)).await?;
    if let Some(stat) = &mut found.stat {
        // Of a container, the name alone.
        stat.path = stat.path.rsplit('/').next().unwrap_or_default().to_owned();
    }
    Ok(found)
}

async fn stat_file_in(
    job: &Arc<Job>,
    request: StatFileRequest,
    place: Place<'_>,
) -> Result<StatFileResponse, Status> {
    let path = request.path;
    let stat = move |root: OwnedFd| {
        let clean = lapstrake_fileop::path::clean_lexically(&format!("/{path}"));
        let (dir, name) = clean.rsplit_once('/').unwrap_or(("", &clean));
        let dir = open(&root, dir, OFlags::PATH | OFlags::DIRECTORY)?;
        let mut stat = stat_of(&dir, if name.is_empty() { "." } else { name }, &path)?;
        stat.path = clean.trim_start_matches('/').to_owned();
        Ok(StatFileResponse { stat: Some(stat) })
    };
    look(job, place, stat).await
}

pub(crate) async fn read_dir(job: &Arc<Job>, request: ReadDirRequest) -> Result<ReadDirResponse, Status> {
    let id = request.r#ref.clone();
    read_dir_in(job, request, Place::Result(&id)).await
}

pub(crate) async fn read_dir_container(
    job: &Arc<Job>,
    request: ReadDirRequest,
) -> Result<ReadDirResponse, Status> {
    let (id, mount) = (request.r#ref.clone(), request.mount_index);
    read_dir_in(job, request, Place::Mount(&id, mount)).await
}

async fn read_dir_in(
    job: &Arc<Job>,
    request: ReadDirRequest,
    place: Place<'_>,
) -> Result<ReadDirResponse, Status> {
    let path = request.dir_path;
    let patterns = match request.include_pattern.as_str() {
        "" => None,
        pattern => Some(
            lapstrake_fileop::Patterns::new(&[pattern.to_owned()])
                .map_err(|e| Status::invalid_argument(format!("pattern {pattern:?}: {e}")))?,
        ),
    };
    let read = move |root: OwnedFd| {
        let dir = open(&root, &path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut entries = Vec::new();
        for entry in Dir::read_from(&dir).map_err(|e| failed("open", &path, e))? {
            let entry = entry.map_err(|e| failed("read", &path, e))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == "."
                || name == ".."
                || patterns.as_ref().is_some_and(|patterns| !patterns.matches(&name))
            {
                continue;
            }
            if entries.len() >= ENTRIES_MAX {
                return Err(Status::resource_exhausted(format!(
                    "{path} has more than {ENTRIES_MAX} entries"
                )));
            }
            entries.push(stat_of(&dir, &name, &name)?);
        }
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(ReadDirResponse { entries })
    };
    look(job, place, read).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_those_of_go() {
        for (unix, go) in [
            (0o100_644, 0o644),
            (0o040_755, go_mode::DIR | 0o755),
            (0o120_777, go_mode::SYMLINK | 0o777),
            (0o104_755, go_mode::SETUID | 0o755),
            (0o041_777, go_mode::DIR | go_mode::STICKY | 0o777),
            (0o020_600, go_mode::DEVICE | go_mode::CHAR_DEVICE | 0o600),
        ] {
            assert_eq!(mode(unix), go, "{unix:o}");
        }
    }
}
