//! What is done with each entry of a listing.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lapstrake_fileop::at;

use super::{ACL_DEFAULT, Folder, LINK_BYTES_MAX, Level, Link, QUEUE_BYTES_MAX, Receiver, Wanted, io, join};
use crate::error::Error;
use crate::files::disk::{self, Meta};
use crate::files::mode::Kind;
use crate::files::order::{self, show};
use crate::files::wire::Stat;
use crate::files::{Differ, metadata};

impl Receiver {
    /// Makes an entry what it shall be, or notes what is missing for that.
    pub(super) fn place(&mut self, id: u32, stat: &Stat, what: Kind) -> Result<(), Error> {
        let (parent, name) = order::split(&stat.path);
        while self.stack.last().is_some_and(|level| level.folder.path != parent) {
            self.leave()?;
        }
        let old = self.advance(name)?;
        self.done.bare &= !stat.xattrs.iter().any(|xattr| at::xattr_is_content(&xattr.key));
        match what {
            Kind::Directory => self.directory(stat, name, old),
            Kind::File if stat.linkname.is_empty() => self.file(id, stat, name, old),
            Kind::File => self.link(stat, name),
            Kind::Symlink => self.symlink(stat, name, old),
            Kind::BlockDevice | Kind::CharDevice | Kind::Fifo => self.node(stat, name, what, old),
            // As if it were not there.
            Kind::Other => self.remove(name, old),
        }
    }

    fn top(&mut self) -> Result<&mut Level, Error> {
        let name = &self.task.name;
        self.stack.last_mut().ok_or_else(|| Error::Protocol {
            name: name.clone(),
            problem: "an entry outside of the directory".to_owned(),
        })
    }

    /// Removes what the listing passed over, and tells what has the name now.
    fn advance(&mut self, name: &[u8]) -> Result<Option<rustix::fs::Stat>, Error> {
        let keep = self.kept_name();
        let level = self.top()?;
        let mut passed = Vec::new();
        while let Some(old) = level.old.next_if(|old| old.as_slice() < name) {
            passed.push(old);
        }
        let known = level.old.next_if(|old| old == name).is_some();
        let path = |level: &Level| join(&level.folder.path, name);
        let stat = match known {
            true => at::stat(level.fd.as_fd(), name).map_err(|errno| io("stat", &path(level))(errno))?,
            false => None,
        };
        self.remove_passed(passed, keep)?;
        Ok(stat)
    }

    /// A name at the top that is ours.
    fn kept_name(&self) -> Option<&'static [u8]> {
        (self.stack.len() == 1 && self.task.metadata_only.is_some()).then_some(metadata::NAME)
    }

    fn remove_passed(&mut self, passed: Vec<Vec<u8>>, keep: Option<&[u8]>) -> Result<(), Error> {
        for old in passed {
            if keep != Some(old.as_slice()) {
                self.clear(&old)?;
            }
        }
        Ok(())
    }

    /// Removes what has the name, whatever it is.
    fn clear(&mut self, name: &[u8]) -> Result<(), Error> {
        let account = Arc::clone(&self.account);
        let level = self.top()?;
        account.goes_below(level.fd.as_fd(), name);
        at::remove_all(level.fd.as_fd(), name).map_err(io("remove", &join(&level.folder.path, name)))?;
        let folder = Arc::clone(&level.folder);
        self.touch(&folder);
        self.done.changed = true;
        Ok(())
    }

    fn remove(&mut self, name: &[u8], old: Option<rustix::fs::Stat>) -> Result<(), Error> {
        if old.is_some() { self.clear(name) } else { Ok(()) }
    }

    /// Notes that a directory's times are to be set at the end.
    pub(super) fn touch(&mut self, folder: &Arc<Folder>) {
        if !folder.touched.swap(true, Ordering::Relaxed) {
            self.touched.push(Arc::clone(folder));
        }
    }

    /// The listing has left the innermost directory.
    pub(super) fn leave(&mut self) -> Result<(), Error> {
        let keep = self.kept_name();
        let level = self.top()?;
        let passed: Vec<_> = level.old.by_ref().collect();
        self.remove_passed(passed, keep)?;
        self.stack.pop();
        Ok(())
    }

    fn directory(&mut self, stat: &Stat, name: &[u8], old: Option<rustix::fs::Stat>) -> Result<(), Error> {
        let meta = Meta::of(stat);
        self.acls |= meta.xattrs.iter().any(|(name, _)| name == ACL_DEFAULT);
        let (creator, acls, differ, bare) = (self.creator, self.acls, self.task.differ, self.bare);
        let old_dir = old.filter(at::is_dir);
        if old_dir.is_none() {
            self.remove(name, old)?;
        }
        let level = self.top()?;
        let (dir, inherits) = (Arc::clone(&level.fd), level.folder.inherits || acls);
        let mut changed = true;
        let mut names = Vec::new();
        let fd = match old_dir {
            None => creator
                .make_dir(dir.as_fd(), name, &meta, inherits)
                .map_err(io("make directory", &stat.path))?,
            Some(old) => {
                let fd = at::open_dir(dir.as_fd(), name).map_err(io("open", &stat.path))?;
                names = at::list(fd.as_fd()).map_err(io("list", &stat.path))?;
                let same = meta
                    .is_of(dir.as_fd(), name, &old, bare)
                    .map_err(io("read attributes of", &stat.path))?;
                changed = !same || differ == Differ::None;
                if changed {
                    disk::change_dir(fd.as_fd(), &meta).map_err(io("change", &stat.path))?;
                }
                fd
            }
        };
        let fd = Arc::new(fd);
        let setgid = meta.permissions & 0o2000 != 0;
        let folder = Folder::new(stat.path.clone(), stat.mod_time, setgid, old_dir, &fd);
        let times = old_dir.is_some_and(|old| at::modified_ns(&old) == i128::from(stat.mod_time));
        if changed || !times {
            self.touch(&folder);
        }
        if old_dir.is_none() {
            let parent = Arc::clone(&self.top()?.folder);
            self.touch(&parent);
        }
        self.done.changed |= changed;
        self.stack.push(Level { folder, fd, old: names.into_iter().peekable() });
        Ok(())
    }

    fn file(
        &mut self,
        id: u32,
        stat: &Stat,
        name: &[u8],
        old: Option<rustix::fs::Stat>,
    ) -> Result<(), Error> {
        let Ok(size) = u64::try_from(stat.size) else {
            return Err(self.protocol(format!("{}: a size below zero", show(&stat.path))));
        };
        let meta = Meta::of(stat);
        if let Some(old) = old {
            if self.is_same_file(stat, &meta, name, &old)? {
                return Ok(());
            }
            // Files give way when their successor is there, a directory at once.
            if at::is_dir(&old) {
                self.clear(name)?;
            } else {
                self.account.goes(&old);
            }
        }
        let folder = Arc::clone(&self.top()?.folder);
        self.touch(&folder);
        self.done.changed = true;
        let wanted = Wanted { id, folder, name: name.to_vec(), meta, size, replace: old.is_some() };
        self.queue_bytes += wanted.bytes();
        if self.queue_bytes > QUEUE_BYTES_MAX {
            return Err(self.protocol("names and attributes that do not fit into memory"));
        }
        self.queue.push_back(wanted);
        self.ask()
    }

    fn is_same_file(
        &mut self,
        stat: &Stat,
        meta: &Meta,
        name: &[u8],
        old: &rustix::fs::Stat,
    ) -> Result<bool, Error> {
        // Its first name keeps a file of several; the others must become files of their own.
        let is_link =
            old.st_nlink > 1 && !at::is_dir(old) && !self.old_links.insert((old.st_dev, old.st_ino));
        let same = self.task.differ == Differ::Metadata
            && !is_link
            && at::kind(old) == rustix::fs::FileType::RegularFile
            && i128::from(old.st_size) == i128::from(stat.size)
            && at::modified_ns(old) == i128::from(stat.mod_time);
        if !same {
            return Ok(false);
        }
        let bare = self.bare;
        let level = self.top()?;
        meta.is_of(level.fd.as_fd(), name, old, bare).map_err(io("read attributes of", &stat.path))
    }

    fn symlink(&mut self, stat: &Stat, name: &[u8], old: Option<rustix::fs::Stat>) -> Result<(), Error> {
        if stat.linkname.is_empty() || stat.linkname.contains(&0) || stat.linkname.len() > LINK_BYTES_MAX {
            return Err(self.protocol(format!("{}: a symlink to what cannot be a path", show(&stat.path))));
        }
        let differ = self.task.differ;
        let meta = Meta::of(stat);
        let level = self.top()?;
        if let Some(old) = old {
            let same = differ == Differ::Metadata
                && at::kind(&old) == rustix::fs::FileType::Symlink
                && (old.st_uid, old.st_gid) == (meta.uid, meta.gid)
                && at::modified_ns(&old) == i128::from(meta.modified_ns)
                && at::read_link(level.fd.as_fd(), name).map_err(io("read link", &stat.path))?
                    == stat.linkname;
            if same {
                return self.kept(name, &stat.path);
            }
        }
        self.clear(name)?;
        let level = self.top()?;
        disk::make_symlink(level.fd.as_fd(), name, &stat.linkname, &meta)
            .map_err(io("make link", &stat.path))?;
        self.came(name, &stat.path)
    }

    /// Adds up what was made.
    fn came(&mut self, name: &[u8], path: &[u8]) -> Result<(), Error> {
        let level = self.top()?;
        let made = at::stat(level.fd.as_fd(), name).map_err(io("stat", path))?;
        made.iter().for_each(|made| self.account.came(made));
        Ok(())
    }

    /// Something stays whose attributes nobody compared.
    fn kept(&mut self, name: &[u8], path: &[u8]) -> Result<(), Error> {
        if !self.bare {
            let level = self.top()?;
            let xattrs = at::xattrs(level.fd.as_fd(), name).map_err(io("read attributes of", path))?;
            self.done.bare &= xattrs.is_empty();
        }
        Ok(())
    }

    fn node(
        &mut self,
        stat: &Stat,
        name: &[u8],
        what: Kind,
        old: Option<rustix::fs::Stat>,
    ) -> Result<(), Error> {
        let (Ok(major), Ok(minor)) = (u32::try_from(stat.devmajor), u32::try_from(stat.devminor)) else {
            return Err(self.protocol(format!("{}: no device has such numbers", show(&stat.path))));
        };
        let device = if what == Kind::Fifo { 0 } else { rustix::fs::makedev(major, minor) };
        // In an overlay this would hide what is below, and itself: nobody would see it.
        if what == Kind::CharDevice && device == 0 {
            return self.remove(name, old);
        }
        let Some(kind) = what.file_type() else { return Ok(()) };
        let differ = self.task.differ;
        let meta = Meta::of(stat);
        if let Some(old) = old {
            let same = differ == Differ::Metadata
                && at::kind(&old) == kind
                && (what == Kind::Fifo || old.st_rdev == device)
                && at::modified_ns(&old) == i128::from(meta.modified_ns)
                && old.st_mode & 0o7777 == meta.permissions
                && (old.st_uid, old.st_gid) == (meta.uid, meta.gid);
            if same {
                return self.kept(name, &stat.path);
            }
        }
        self.clear(name)?;
        let level = self.top()?;
        disk::make_node(level.fd.as_fd(), name, kind, device, &meta).map_err(io("make node", &stat.path))?;
        self.came(name, &stat.path)
    }

    /// Links are made at the end, when what they are to is there.
    fn link(&mut self, stat: &Stat, name: &[u8]) -> Result<(), Error> {
        let known = order::check(&stat.linkname).is_ok()
            && stat.linkname.split(|&b| b == b'/').lt(stat.path.split(|&b| b == b'/'));
        if !known {
            return Err(self.unknown_target(&stat.path, &stat.linkname));
        }
        let folder = Arc::clone(&self.top()?.folder);
        self.queue_bytes += name.len() + stat.linkname.len();
        if self.queue_bytes > QUEUE_BYTES_MAX {
            return Err(self.protocol("names and attributes that do not fit into memory"));
        }
        self.links.push(Link { folder, name: name.to_vec(), target: stat.linkname.clone() });
        Ok(())
    }

    fn unknown_target(&self, path: &[u8], target: &[u8]) -> Error {
        self.protocol(format!("invalid link {} to unknown path: {}", show(path), show(target)))
    }

    pub(super) fn make_link(&mut self, link: &Link) -> Result<(), Error> {
        let path = join(&link.folder.path, &link.name);
        let (parent, target) = order::split(&link.target);
        let from = at::beneath_dir(self.root.as_fd(), parent);
        let stat = from.as_ref().ok().map(|from| at::stat(from.as_fd(), target)).transpose();
        let stat = stat.map_err(io("stat", &link.target))?.flatten();
        let (Ok(from), Some(stat)) = (from, stat) else {
            return Err(self.unknown_target(&path, &link.target));
        };
        if at::kind(&stat) != rustix::fs::FileType::RegularFile {
            return Err(self.unknown_target(&path, &link.target));
        }
        let dir = link.folder.open(&self.root)?;
        let old = at::stat(dir.as_fd(), &link.name).map_err(io("stat", &path))?;
        if let Some(old) = old {
            if (old.st_dev, old.st_ino) == (stat.st_dev, stat.st_ino) {
                return Ok(());
            }
            at::remove_all(dir.as_fd(), &link.name).map_err(io("remove", &path))?;
        }
        self.account.lose();
        rustix::fs::linkat(&from, target, &dir, link.name.as_slice(), rustix::fs::AtFlags::empty())
            .map_err(io("link", &path))?;
        self.touch(&link.folder);
        self.done.changed = true;
        Ok(())
    }
}
