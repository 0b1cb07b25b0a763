//! The copy action.
//!
//! [`copy`] finds the sources and the place that each goes to; [`Copier`] walks one source and makes directories and hard
//! links; files are handed to threads where there are many (`spread.rs`), which make them (`leaf.rs`).

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};

use crate::action::{Cancel, CopyAction};
use crate::archive::{self, UnpackOptions};
use crate::at::{self, Context};
use crate::error::Error;
use crate::leaf::{Batch, Finish, Folder, Leaf, Writer};
use crate::limits::DEPTH_MAX;
use crate::make::mkdir_all;
use crate::mode::ModeChange;
use crate::path;
use crate::pattern::{MatchState, Patterns};
use crate::spread::{Division, Shared, Spread};
use crate::view::View;

const DEFAULT_DIRECTORY_MODE: u32 = 0o755;

/// Copies from `src` to the tree at `dst`.
///
/// # Errors
/// [`Error::NotFound`] for a source (or required path) that is missing; else what [`Error`] lists. What was
/// copied before stays.
pub fn copy(src: &View<'_>, dst: BorrowedFd<'_>, action: &CopyAction, cancel: &Cancel) -> Result<(), Error> {
    copy_divided(src, dst, action, cancel, Division::default())
}

fn copy_divided(
    src: &View<'_>,
    dst: BorrowedFd<'_>,
    action: &CopyAction,
    cancel: &Cancel,
    division: Division,
) -> Result<(), Error> {
    let to = View::snapshot(dst);
    let destination = path::clean(action.dst.as_bytes());
    if !action.create_dest_path {
        let resolved = to.resolve(&destination, true)?;
        let parent = path::split(&resolved).map_or(&b""[..], |(parent, _)| parent);
        if to.stat(parent)?.is_none() {
            let parent = path::show(parent);
            return Err(Error::NoDestination { destination: action.dst.clone(), parent });
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
    let by = By { src, to: &to, action, cancel, division };
    let mut missing = action.required_paths.iter().map(|path| path::clean(path.as_bytes())).collect();
    for source in &sources {
        if action.attempt_unpack && unpack(src, source, &to, &destination, action, cancel)? {
            continue;
        }
        copy_one(by, source, &destination, &mut missing)?;
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

/// What all sources of a copy have in common.
#[derive(Clone, Copy)]
struct By<'a> {
    src: &'a View<'a>,
    to: &'a View<'a>,
    action: &'a CopyAction,
    cancel: &'a Cancel,
    division: Division,
}

fn copy_one(by: By<'_>, source: &[u8], destination: &[u8], missing: &mut Vec<Vec<u8>>) -> Result<(), Error> {
    let By { src, to, action, cancel, division } = by;
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

    let shared = Shared::new(Writer { src: *src, action, cancel });
    let copied = std::thread::scope(|scope| {
        let mut copier = Copier::new(src, root, missing, Spread::new(scope, &shared, division))?;
        copier.top(&followed, source, &stat, &place)?;
        copier.spread.end()
    });
    // What a thread met came before what the walk met, which may only be that it was told to stop.
    shared.into_failure().map_or(copied, Err)?;

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
    src: Arc<OwnedFd>,
    src_path: Vec<u8>,
    stat: Option<Stat>,
    dst_name: Vec<u8>,
    dst_path: Vec<u8>,
    /// The directory in the destination; none until something in it is copied.
    dst: Option<Arc<Folder>>,
    overwrite: bool,
    /// It is copied itself, and not only the way to something below it.
    include: bool,
    /// Files that were met and not handed over yet.
    leaves: Vec<Leaf>,
    leaf_bytes: u64,
}

/// Where in the source the walk is.
struct Here<'a> {
    dir: &'a Arc<OwnedFd>,
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

struct Copier<'a, 'scope, 'env> {
    src: &'a View<'a>,
    root: BorrowedFd<'a>,
    include: Option<Patterns>,
    exclude: Option<Patterns>,
    missing: &'a mut Vec<Vec<u8>>,
    frames: Vec<Frame>,
    /// The first copy of each file that has several links.
    links: HashMap<(u64, u64), Vec<u8>>,
    spread: Spread<'scope, 'env>,
}

impl<'a, 'scope, 'env> Copier<'a, 'scope, 'env> {
    fn new(
        src: &'a View<'a>,
        root: BorrowedFd<'a>,
        missing: &'a mut Vec<Vec<u8>>,
        spread: Spread<'scope, 'env>,
    ) -> Result<Self, Error> {
        let patterns = |list: &[String]| match list {
            [] => Ok(None),
            list => Patterns::new(list).map(Some),
        };
        let action = spread.writer().action;
        Ok(Self {
            src,
            root,
            include: patterns(&action.include_patterns)?,
            exclude: patterns(&action.exclude_patterns)?,
            missing,
            frames: Vec::new(),
            links: HashMap::new(),
            spread,
        })
    }

    /// Copies the source at `path` to `place`; the parent of `place` exists.
    fn top(&mut self, path: &[u8], spelled: &[u8], stat: &Stat, place: &[u8]) -> Result<(), Error> {
        let (src_parent, src_name) = path::split(path).unwrap_or((b"", b""));
        let (dst_parent, dst_name) = path::split(place).unwrap_or((b"", b""));
        let dir = Arc::new(self.src.open_dir(src_parent)?);
        let fd = at::beneath_dir(self.root, dst_parent).on("open", dst_parent)?;
        self.frames.push(Frame {
            src: Arc::clone(&dir),
            src_path: src_parent.to_vec(),
            stat: None,
            dst_name: Vec::new(),
            dst_path: dst_parent.to_vec(),
            dst: Some(Arc::new(Folder { fd, path: dst_parent.to_vec(), finish: None })),
            overwrite: false,
            include: false,
            leaves: Vec::new(),
            leaf_bytes: 0,
        });
        let here = Here { dir: &dir, name: src_name, path, inside: b"", spelled, stat, dst_name };
        let result = if at::is_dir(stat) {
            self.directory(&here, true, false, &States::default())
        } else {
            self.leaf(&here)
        };
        result.and_then(|()| self.leave())
    }

    fn entry(&mut self, here: &Here<'_>, parent: &States) -> Result<(), Error> {
        self.spread.writer().cancel.check()?;
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
        let fd = Arc::new(at::open_dir(here.dir.as_fd(), here.name).on("open", here.path)?);
        let dst_path = path::join(&self.last().dst_path, here.dst_name);
        self.frames.push(Frame {
            src: Arc::clone(&fd),
            src_path: here.path.to_vec(),
            stat: Some(*here.stat),
            dst_name: here.dst_name.to_vec(),
            dst_path,
            dst: None,
            overwrite,
            include,
            leaves: Vec::new(),
            leaf_bytes: 0,
        });
        if include {
            self.found(here.spelled);
            self.ensure_frames()?;
        }
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
        self.leave()
    }

    /// The walk has left the innermost directory.
    fn leave(&mut self) -> Result<(), Error> {
        self.hand_over()?;
        match self.frames.pop().and_then(|frame| frame.dst) {
            // The last one to let go of it sets its metadata.
            Some(folder) => self.spread.writer().release(folder),
            None => Ok(()),
        }
    }

    /// Hands over the files that were met in the innermost directory.
    fn hand_over(&mut self) -> Result<(), Error> {
        let Some(frame) = self.frames.last_mut() else { return Ok(()) };
        let Some(folder) = frame.dst.as_ref().filter(|_| !frame.leaves.is_empty()) else { return Ok(()) };
        let batch = Batch {
            src: Arc::clone(&frame.src),
            src_path: frame.src_path.clone(),
            folder: Arc::clone(folder),
            leaves: std::mem::take(&mut frame.leaves),
        };
        self.spread.push(batch, std::mem::take(&mut frame.leaf_bytes))
    }

    /// Makes the directories that the walk is in, as far as they are not there.
    fn ensure_frames(&mut self) -> Result<(), Error> {
        for at in 1..self.frames.len() {
            if self.frames[at].dst.is_some() {
                continue;
            }
            let parent = Arc::clone(self.frames[at - 1].dst.as_ref().expect("frames are made from the top"));
            let frame = &self.frames[at];
            let (name, path) = (&frame.dst_name, frame.dst_path.clone());
            let made = self.ensure_directory(parent.fd.as_fd(), name, &path, frame)?;
            let fd = at::open_dir(parent.fd.as_fd(), name).on("open", &path)?;
            let whole = made || frame.overwrite && frame.include;
            let finish = frame.stat.map(|stat| Finish { src: Arc::clone(&frame.src), stat, whole });
            self.frames[at].dst = Some(Arc::new(Folder { fd, path, finish }));
        }
        Ok(())
    }

    /// Says whether the directory had to be made.
    fn ensure_directory(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        frame: &Frame,
    ) -> Result<bool, Error> {
        match at::stat(dir, name).on("stat", path)? {
            Some(stat) if at::is_dir(&stat) => {
                if let Some(source) = frame.stat.filter(|_| frame.overwrite) {
                    at::chmod(dir, name, source.st_mode).on("change mode of", path)?;
                }
                return Ok(false);
            }
            Some(_) if self.spread.writer().action.always_replace_existing_dest_paths => {
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
        let renamed = (here.dst_name != here.name).then(|| here.dst_name.to_vec());
        let leaf = Leaf { name: here.name.to_vec(), stat: *here.stat, renamed };
        // Symlinks and devices, too, may have several names; the first copy has to be there before others link to it.
        if here.stat.st_nlink > 1 {
            return if self.link(&leaf)? { Ok(()) } else { self.leaf_now(&leaf) };
        }
        let bytes = match at::kind(here.stat) {
            FileType::RegularFile => u64::try_from(here.stat.st_size).unwrap_or(0),
            _ => 0,
        };
        let frame = self.frames.last_mut().expect("the top frame stays until the walk ends");
        frame.leaves.push(leaf);
        frame.leaf_bytes = frame.leaf_bytes.saturating_add(bytes);
        if self.spread.is_full(frame.leaves.len(), frame.leaf_bytes) { self.hand_over() } else { Ok(()) }
    }

    fn leaf_now(&mut self, leaf: &Leaf) -> Result<(), Error> {
        let folder = Arc::clone(self.last_dst());
        let (src, src_path) = (Arc::clone(&self.last().src), self.last().src_path.clone());
        self.spread.writer().leaf(src.as_fd(), &src_path, &folder, leaf, self.spread.fast())?;
        self.spread.writer().release(folder)
    }

    /// Links to the copy that was already made of a file with several links.
    fn link(&mut self, leaf: &Leaf) -> Result<bool, Error> {
        let folder = Arc::clone(self.last_dst());
        let (dir, name) = (folder.fd.as_fd(), leaf.dst_name());
        let path = path::join(&folder.path, name);
        let inode = (leaf.stat.st_dev, leaf.stat.st_ino);
        let Some(first) = self.links.get(&inode) else {
            self.links.insert(inode, path);
            return Ok(false);
        };
        let make = || rustix::fs::linkat(self.root, first.as_slice(), dir, name, AtFlags::empty());
        self.spread.writer().in_place(dir, name, &path, make)?.on("make hard link", &path)?;
        Ok(true)
    }

    fn found(&mut self, path: &[u8]) {
        self.missing.retain(|required| !path::is_at_or_below(path, required));
    }

    fn last(&self) -> &Frame {
        self.frames.last().expect("the top frame stays until the walk ends")
    }

    fn last_dst(&self) -> &Arc<Folder> {
        self.last().dst.as_ref().expect("made by ensure_frames, or the top")
    }
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
