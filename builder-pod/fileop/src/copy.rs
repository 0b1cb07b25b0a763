//! The copy action.
//!
//! [`copy`] finds the sources and the place that each goes to; [`Copier`] walks one source.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};

use crate::action::{Cancel, CopyAction};
use crate::archive::{self, UnpackOptions};
use crate::at::{self, Context};
use crate::data::{Fast, Stop};
use crate::error::Error;
use crate::limits::DEPTH_MAX;
use crate::make::{clear_for_file, mkdir_all};
use crate::mode::ModeChange;
use crate::path;
use crate::pattern::{MatchState, Patterns};
use crate::view::View;

const DEFAULT_DIRECTORY_MODE: u32 = 0o755;

/// Copies from `src` to the tree at `dst`.
///
/// # Errors
/// [`Error::NotFound`] for a source (or required path) that is missing; else what [`Error`] lists. What was
/// copied before stays.
pub fn copy(src: &View<'_>, dst: BorrowedFd<'_>, action: &CopyAction, cancel: &Cancel) -> Result<(), Error> {
    let to = View::snapshot(dst);
    let destination = path::clean(action.dst.as_bytes());
    if !action.create_dest_path {
        let resolved = to.resolve(&destination, true)?;
        let parent = path::split(&resolved).map_or(&b""[..], |(parent, _)| parent);
        if to.stat(parent)?.is_none() {
            return Err(Error::NotFound(path::show(&destination)));
        }
    }
    let sources = if action.allow_wildcard {
        let found = src.glob(action.src.as_bytes(), action.follow_symlink)?;
        if found.is_empty() && !action.allow_empty_wildcard {
            return Err(Error::NotFound(path::show(&path::clean(action.src.as_bytes()))));
        }
        found
    } else {
        vec![path::clean(action.src.as_bytes())]
    };
    let mut missing = action.required_paths.iter().map(|path| path::clean(path.as_bytes())).collect();
    for source in &sources {
        if action.attempt_unpack && unpack(src, source, &to, &destination, action, cancel)? {
            continue;
        }
        copy_one(src, source, &to, &destination, action, cancel, &mut missing)?;
    }
    match missing.first() {
        Some(path) => Err(Error::NotFound(path::show(path))),
        None => Ok(()),
    }
}

fn unpack(
    src: &View<'_>,
    source: &[u8],
    to: &View<'_>,
    destination: &[u8],
    action: &CopyAction,
    cancel: &Cancel,
) -> Result<bool, Error> {
    let source = src.resolve(source, true)?;
    let Some(stat) = src.stat(&source)? else { return Ok(false) };
    if at::kind(&stat) != FileType::RegularFile {
        return Ok(false);
    }
    let file = std::fs::File::from(at::beneath(src.root(), &source, OFlags::RDONLY).on("open", &source)?);
    if !archive::is_archive(&file) {
        return Ok(false);
    }
    let place = to.resolve(destination, true)?;
    mkdir_all(to.root(), &place, DEFAULT_DIRECTORY_MODE, action.owner, action.timestamp_ns)?;
    let dir = to.open_dir(&place)?;
    let options =
        UnpackOptions { owner: action.owner, name: path::show(&source), ..UnpackOptions::default() };
    archive::unpack(file, dir.as_fd(), &options, cancel)?;
    Ok(true)
}

fn copy_one(
    src: &View<'_>,
    source: &[u8],
    to: &View<'_>,
    destination: &[u8],
    action: &CopyAction,
    cancel: &Cancel,
    missing: &mut Vec<Vec<u8>>,
) -> Result<(), Error> {
    let root = to.root();
    let parent_mode = match &action.mode {
        Some(ModeChange::Bits(bits)) => bits & 0o777,
        _ => DEFAULT_DIRECTORY_MODE,
    };
    let ensure = |dir: &[u8]| mkdir_all(root, dir, parent_mode, action.owner, action.timestamp_ns);

    let as_directory = action.dst.is_empty() || action.dst.ends_with('/') || action.dst.ends_with("/.");
    let needed = match path::split(destination) {
        Some((parent, _)) if !as_directory => parent,
        _ => destination,
    };
    let mut made = ensure(&to.resolve(needed, true)?)?;
    let mut place = to.resolve(destination, true)?;

    let followed = src.resolve(source, action.follow_symlink)?;
    let stat = src.stat(&followed)?.ok_or_else(|| Error::NotFound(path::show(source)))?;
    let existing = to.stat(&place)?;
    let source_is_dir = at::is_dir(&stat);
    let into = match &existing {
        Some(_) if source_is_dir => !action.dir_copy_contents,
        Some(there) => at::is_dir(there),
        None => false,
    };
    if into {
        place = path::join(&place, base_name(source, action));
    }
    let contents = action.dir_copy_contents && source_is_dir && existing.is_none();
    let needed =
        if contents { &place[..] } else { path::split(&place).map_or(&b""[..], |(parent, _)| parent) };
    made.extend(ensure(needed)?);

    let mut copier = Copier::new(src, root, action, cancel, missing)?;
    copier.top(&followed, source, &stat, &place)?;

    // The times that children took away from the directories made on the way.
    if let Some(ns) = action.timestamp_ns {
        for dir in made.iter().rev() {
            let fd = at::beneath_dir(root, dir).on("open", dir)?;
            at::set_times(fd.as_fd(), b"", i128::from(ns), i128::from(ns)).on("set times of", dir)?;
        }
    }
    Ok(())
}

/// The name that a source has inside an existing directory; none for the root and for `dir/.`.
fn base_name<'a>(source: &'a [u8], action: &CopyAction) -> &'a [u8] {
    if !action.allow_wildcard && action.src.ends_with("/.") {
        return b"";
    }
    path::split(source).map_or(b"", |(_, name)| name)
}

/// A directory that the walk is in.
struct Frame {
    /// The source directory that it is in and its name there; for its metadata.
    src_parent: Rc<OwnedFd>,
    src_name: Vec<u8>,
    stat: Option<Stat>,
    dst_name: Vec<u8>,
    dst_path: Vec<u8>,
    /// The directory in the destination; none until something in it is copied.
    dst: Option<Rc<OwnedFd>>,
    /// It was made here, so all of its metadata comes from the source.
    made: bool,
    overwrite: bool,
}

/// Where in the source the walk is.
struct Here<'a> {
    dir: &'a Rc<OwnedFd>,
    name: &'a [u8],
    /// Relative to the source's root.
    path: &'a [u8],
    /// Relative to the copied directory; what the patterns see.
    inside: &'a [u8],
    /// The path as the action spells it, before symlinks; what the required paths see.
    spelled: &'a [u8],
    stat: &'a Stat,
    dst_name: &'a [u8],
}

#[derive(Default)]
struct States {
    include: MatchState,
    exclude: MatchState,
}

struct Copier<'a> {
    src: &'a View<'a>,
    root: BorrowedFd<'a>,
    action: &'a CopyAction,
    cancel: &'a Cancel,
    include: Option<Patterns>,
    exclude: Option<Patterns>,
    missing: &'a mut Vec<Vec<u8>>,
    frames: Vec<Frame>,
    /// The first copy of each file that has several links.
    links: HashMap<(u64, u64), Vec<u8>>,
    fast: Fast,
}

impl<'a> Copier<'a> {
    fn new(
        src: &'a View<'a>,
        root: BorrowedFd<'a>,
        action: &'a CopyAction,
        cancel: &'a Cancel,
        missing: &'a mut Vec<Vec<u8>>,
    ) -> Result<Self, Error> {
        let patterns = |list: &[String]| match list {
            [] => Ok(None),
            list => Patterns::new(list).map(Some),
        };
        Ok(Self {
            src,
            root,
            action,
            cancel,
            include: patterns(&action.include_patterns)?,
            exclude: patterns(&action.exclude_patterns)?,
            missing,
            frames: Vec::new(),
            links: HashMap::new(),
            fast: Fast::default(),
        })
    }

    /// Copies the source at `path` to `place`; the parent of `place` exists.
    fn top(&mut self, path: &[u8], spelled: &[u8], stat: &Stat, place: &[u8]) -> Result<(), Error> {
        let (src_parent, src_name) = path::split(path).unwrap_or((b"", b""));
        let (dst_parent, dst_name) = path::split(place).unwrap_or((b"", b""));
        let dir = Rc::new(self.src.open_dir(src_parent)?);
        let dst = at::beneath_dir(self.root, dst_parent).on("open", dst_parent)?;
        self.frames.push(Frame {
            src_parent: Rc::clone(&dir),
            src_name: Vec::new(),
            stat: None,
            dst_name: Vec::new(),
            dst_path: dst_parent.to_vec(),
            dst: Some(Rc::new(dst)),
            made: false,
            overwrite: false,
        });
        let here = Here { dir: &dir, name: src_name, path, inside: b"", spelled, stat, dst_name };
        let result = if at::is_dir(stat) {
            self.directory(&here, true, false, &States::default())
        } else {
            self.leaf(&here)
        };
        self.frames.clear();
        result
    }

    fn entry(&mut self, here: &Here<'_>, parent: &States) -> Result<(), Error> {
        self.cancel.check()?;
        let text = String::from_utf8_lossy(here.inside);
        let (mut include, mut states) = (true, States::default());
        if let Some(patterns) = &self.include {
            (include, states.include) = patterns.matches_below(&text, &parent.include);
        }
        if let Some(patterns) = &self.exclude {
            let (excluded, state) = patterns.matches_below(&text, &parent.exclude);
            states.exclude = state;
            include &= !excluded;
            if excluded && !patterns.has_negations() {
                return Ok(());
            }
        }
        match (at::is_dir(here.stat), include) {
            (true, _) => self.directory(here, include, true, &states),
            (false, true) => self.leaf(here),
            (false, false) => Ok(()),
        }
    }

    fn directory(
        &mut self,
        here: &Here<'_>,
        include: bool,
        overwrite: bool,
        states: &States,
    ) -> Result<(), Error> {
        if self.frames.len() > DEPTH_MAX {
            return Err(Error::TooDeep(path::show(here.path)));
        }
        let dst_path = path::join(&self.last().dst_path, here.dst_name);
        self.frames.push(Frame {
            src_parent: Rc::clone(here.dir),
            src_name: here.name.to_vec(),
            stat: Some(*here.stat),
            dst_name: here.dst_name.to_vec(),
            dst_path,
            dst: None,
            made: false,
            overwrite,
        });
        if include {
            self.found(here.spelled);
            self.ensure_frames()?;
        }
        let fd = Rc::new(at::open_dir(here.dir.as_fd(), here.name).on("open", here.path)?);
        for child in self.src.children(fd.as_fd(), here.path)? {
            let below = Here {
                dir: &fd,
                name: &child.name,
                path: &path::join(here.path, &child.name),
                inside: &path::join(here.inside, &child.name),
                spelled: &path::join(here.spelled, &child.name),
                stat: &child.stat,
                dst_name: &child.name,
            };
            self.entry(&below, states)?;
        }
        drop(fd);
        let frame = self.frames.pop().expect("the frame that was pushed above");
        self.finish_directory(&frame, include)
    }

    /// Sets a directory's metadata last, since each child made in it changes its time.
    fn finish_directory(&mut self, frame: &Frame, include: bool) -> Result<(), Error> {
        let (Some(_), Some(stat)) = (&frame.dst, &frame.stat) else { return Ok(()) };
        let parent = Rc::clone(self.last_dst());
        if frame.made || frame.overwrite && include {
            let xattrs = at::xattrs(frame.src_parent.as_fd(), &frame.src_name)
                .on("read attributes of", &frame.dst_path)?;
            return self.metadata(parent.as_fd(), &frame.dst_name, &frame.dst_path, stat, &xattrs);
        }
        self.times(parent.as_fd(), &frame.dst_name, &frame.dst_path, stat)
    }

    /// Makes the directories that the walk is in, as far as they are not there.
    fn ensure_frames(&mut self) -> Result<(), Error> {
        for at in 1..self.frames.len() {
            if self.frames[at].dst.is_some() {
                continue;
            }
            let parent = Rc::clone(self.frames[at - 1].dst.as_ref().expect("frames are made from the top"));
            let frame = &self.frames[at];
            let (name, path) = (frame.dst_name.clone(), frame.dst_path.clone());
            let made =
                self.ensure_directory(parent.as_fd(), &name, &path, frame.overwrite, frame.stat.as_ref())?;
            let fd = at::open_dir(parent.as_fd(), &name).on("open", &path)?;
            let frame = &mut self.frames[at];
            frame.made = made;
            frame.dst = Some(Rc::new(fd));
        }
        Ok(())
    }

    /// Says whether the directory had to be made.
    fn ensure_directory(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        overwrite: bool,
        source: Option<&Stat>,
    ) -> Result<bool, Error> {
        match at::stat(dir, name).on("stat", path)? {
            Some(stat) if at::is_dir(&stat) => {
                if let Some(source) = source.filter(|_| overwrite) {
                    at::chmod(dir, name, source.st_mode).on("change mode of", path)?;
                }
                return Ok(false);
            }
            Some(_) if self.action.always_replace_existing_dest_paths => {
                at::remove_all(dir, name).on("remove", path)?;
            }
            Some(_) => return Err(Error::DirectoryOverFile(path::show(path))),
            None => {}
        }
        rustix::fs::mkdirat(dir, name, Mode::RWXU).on("make directory", path)?;
        Ok(true)
    }

    fn leaf(&mut self, here: &Here<'_>) -> Result<(), Error> {
        self.found(here.spelled);
        self.ensure_frames()?;
        let dir = Rc::clone(self.last_dst());
        let (dir, name) = (dir.as_fd(), here.dst_name);
        let path = path::join(&self.last().dst_path, name);
        clear_for_file(dir, name, &path, self.action.always_replace_existing_dest_paths)?;
        // Symlinks and devices, too, may have several names.
        if self.link(here.stat, dir, name, &path)? {
            return Ok(());
        }
        match at::kind(here.stat) {
            FileType::RegularFile => self.file(here, dir, &path)?,
            FileType::Symlink => {
                let target = at::read_link(here.dir.as_fd(), here.name).on("read link", here.path)?;
                rustix::fs::symlinkat(target.as_slice(), dir, name).on("make symlink", &path)?;
            }
            kind => {
                let device = matches!(kind, FileType::BlockDevice | FileType::CharacterDevice);
                let device = if device { here.stat.st_rdev } else { 0 };
                rustix::fs::mknodat(dir, name, kind, Mode::RUSR | Mode::WUSR, device)
                    .on("make special file", &path)?;
            }
        }
        let xattrs = at::xattrs(here.dir.as_fd(), here.name).on("read attributes of", here.path)?;
        self.metadata(dir, name, &path, here.stat, &xattrs)
    }

    /// Links to the copy that was already made of a file with several links.
    fn link(&mut self, stat: &Stat, dir: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<bool, Error> {
        if stat.st_nlink < 2 {
            return Ok(false);
        }
        match self.links.get(&(stat.st_dev, stat.st_ino)) {
            Some(first) => {
                rustix::fs::linkat(self.root, first.as_slice(), dir, name, AtFlags::empty())
                    .on("make hard link", path)?;
                Ok(true)
            }
            None => {
                self.links.insert((stat.st_dev, stat.st_ino), path.to_vec());
                Ok(false)
            }
        }
    }

    fn file(&mut self, here: &Here<'_>, dir: BorrowedFd<'_>, path: &[u8]) -> Result<(), Error> {
        let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let from =
            rustix::fs::openat(here.dir.as_fd(), here.name, read, Mode::empty()).on("open", here.path)?;
        let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let to = rustix::fs::openat(dir, here.dst_name, write, Mode::RUSR | Mode::WUSR).on("create", path)?;
        self.fast.copy(from.as_fd(), to.as_fd(), here.stat, self.cancel).map_err(|stop| match stop {
            Stop::Errno(errno) => Error::Io { action: "copy to", path: path::show(path), errno },
            Stop::Canceled => Error::Canceled,
        })
    }

    fn metadata(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        stat: &Stat,
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<(), Error> {
        let (uid, gid) = match self.action.owner {
            Some(owner) => (owner.uid, owner.gid),
            None => self.src.owner(stat),
        };
        at::chown(dir, name, uid, gid).on("change owner of", path)?;
        if at::kind(stat) != FileType::Symlink {
            let mode = match &self.action.mode {
                Some(change) => change.apply(stat.st_mode, at::is_dir(stat)),
                None => stat.st_mode,
            };
            at::chmod(dir, name, mode).on("change mode of", path)?;
        }
        at::set_xattrs(dir, name, xattrs).on("set attributes of", path)?;
        self.times(dir, name, path, stat)
    }

    fn times(&self, dir: BorrowedFd<'_>, name: &[u8], path: &[u8], stat: &Stat) -> Result<(), Error> {
        let (access, modify) = match self.action.timestamp_ns {
            Some(ns) => (i128::from(ns), i128::from(ns)),
            None => (at::accessed_ns(stat), at::modified_ns(stat)),
        };
        at::set_times(dir, name, access, modify).on("set times of", path)
    }

    fn found(&mut self, path: &[u8]) {
        self.missing.retain(|required| !path::is_at_or_below(path, required));
    }

    fn last(&self) -> &Frame {
        self.frames.last().expect("the top frame stays until the walk ends")
    }

    fn last_dst(&self) -> &Rc<OwnedFd> {
        self.last().dst.as_ref().expect("made by ensure_frames, or the top")
    }
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
