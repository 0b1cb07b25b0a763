//! The step's file system tree: layers, kernel file systems, devices, masks, mounts.
//!
//! All is made in the step's own mount namespace, on a file system in memory that is mounted on
//! the executor's scratch directory: when the namespace's last process is gone, so is all of it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use lapstrake_sys::fs::{locate, open_root};
use lapstrake_sys::mount::{
    self, FsOption, MountAttrFlags, add_attrs, attach, attach_path, clone_tree, clone_tree_at, new_filesystem,
};
use lapstrake_sys::overlay::Overlay;
use lapstrake_sys::{Context, Errno};
use rustix::fs::FileType;

use super::stubs::{Places, Stubs, plant};
use super::{Failure, kernel};
use crate::protocol::{Request, Stage};
use crate::spec::{Changes, MountSource, StepMount};

/// Nothing that a step mounts or makes is a device: those of `/dev` come one by one.
const PLAIN: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV;

/// Attributes of `/proc`, `/sys` and the like.
pub(super) fn inert() -> MountAttrFlags {
    MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC
}

/// Directories of the scratch file system.
pub(super) struct Scratch {
    pub(super) root: PathBuf,
    pub(super) stub: PathBuf,
    pub(super) nodes: PathBuf,
    pub(super) empty: PathBuf,
    base: PathBuf,
}

/// A finished tree, not yet the root.
pub(super) struct Tree {
    pub(super) root: OwnedFd,
    pub(super) stubs: Option<Stubs>,
}

/// A mount of the step's spec with its source opened.
struct Opened<'a> {
    spec: &'a StepMount,
    tree: OwnedFd,
    file: bool,
}

/// Builds the whole tree.
pub(super) fn assemble(request: &Request) -> Result<Tree, Failure> {
    let scratch = Scratch::mount(&request.scratch)?;
    let mounts = open_mounts(request, &scratch)?;
    plant_stubs(&scratch, &mounts)?;
    let root = mount_root(request, &scratch)?;
    let mut places = Places::new(root.as_fd(), &scratch.root);

    super::system::mount_proc(&mut places)?;
    super::system::mount_sys(&mut places)?;
    super::devices::mount_dev(&mut places, &scratch, request.spec.shm_bytes)?;
    super::system::mask(root.as_fd(), &scratch)?;
    mount_etc(request, &scratch, &mut places)?;
    for opened in mounts {
        let name = opened.spec.target.display();
        let target = places.place(&opened.spec.target, opened.file).map_err(|error| {
            Failure::new(Stage::Mount, format!("mount point {name}: {error}"), error.errno)
        })?;
        attach(&opened.tree, &target)
            .map_err(|error| Failure::new(Stage::Mount, format!("mounting {name}: {error}"), error.errno))?;
    }
    let stubs = places.finish().map_err(kernel(Stage::Tree))?;
    Ok(Tree { root, stubs })
}

impl Scratch {
    fn mount(place: &Path) -> Result<Self, Failure> {
        let options = [FsOption::Value("mode", "755")];
        let tmpfs = new_filesystem("tmpfs", &options, PLAIN | MountAttrFlags::MOUNT_ATTR_NOSUID);
        let tmpfs = tmpfs.map_err(kernel(Stage::Tree))?;
        attach_path(&tmpfs, place).map_err(kernel(Stage::Tree))?;
        let dir = |name: &str| {
            let path = place.join(name);
            std::fs::create_dir(&path).about("mkdir", &path).map_err(kernel(Stage::Tree))?;
            Ok(path)
        };
        Ok(Self {
            root: dir("root")?,
            stub: dir("stub")?,
            nodes: dir("nodes")?,
            empty: dir("empty")?,
            base: place.to_owned(),
        })
    }

    /// Writes a file that is shown to the step.
    fn file(&self, name: &str, contents: &str) -> Result<OwnedFd, Failure> {
        let path = self.base.join(name);
        std::fs::write(&path, contents).about("write", &path).map_err(kernel(Stage::Tree))?;
        let tree = clone_tree(&path, false).map_err(kernel(Stage::Tree))?;
        add_attrs(&tree, MountAttrFlags::MOUNT_ATTR_RDONLY | inert(), false).map_err(kernel(Stage::Tree))?;
        Ok(tree)
    }
}

fn mount_root(request: &Request, scratch: &Scratch) -> Result<OwnedFd, Failure> {
    let rootfs = &request.spec.rootfs;
    let mut lowers = rootfs.lowers_top_first.clone();
    lowers.push(scratch.stub.clone());
    let upper_work = rootfs.upper.as_deref().zip(rootfs.work.as_deref());
    if upper_work.is_none() && lowers.len() == 1 {
        lowers.push(scratch.empty.clone());
    }
    let overlay = Overlay {
        lowers_top_first: &lowers,
        upper_work,
        userxattr: request.userxattr,
        volatile: true,
        attrs: PLAIN,
    };
    let root = overlay.mount_detached().map_err(kernel(Stage::Overlay))?;
    attach_path(&root, &scratch.root).map_err(kernel(Stage::Overlay))?;
    Ok(root)
}

fn plant_stubs(scratch: &Scratch, mounts: &[Opened<'_>]) -> Result<(), Failure> {
    let planting = || {
        for dir in ["proc", "sys", "dev"] {
            plant(&scratch.stub, Path::new(dir), false)?;
        }
        for file in ["etc/hosts", "etc/resolv.conf"] {
            plant(&scratch.stub, Path::new(file), true)?;
        }
        mounts.iter().try_for_each(|opened| plant(&scratch.stub, &opened.spec.target, opened.file))
    };
    planting().map_err(kernel(Stage::Tree))
}

fn mount_etc(request: &Request, scratch: &Scratch, places: &mut Places<'_>) -> Result<(), Failure> {
    for (name, contents) in [("hosts", &request.hosts), ("resolv.conf", &request.resolv_conf)] {
        let tree = scratch.file(name, contents)?;
        let target = places.place(&Path::new("etc").join(name), true).map_err(kernel(Stage::Tree))?;
        attach(&tree, &target).map_err(kernel(Stage::Tree))?;
    }
    Ok(())
}

fn open_mounts<'a>(request: &'a Request, scratch: &Scratch) -> Result<Vec<Opened<'a>>, Failure> {
    let mut mounts: Vec<&StepMount> = request.spec.mounts.iter().collect();
    // Parents before children; the order given decides between equals.
    mounts.sort_by_key(|mount| super::stubs::normal(&mount.target).components().count());
    mounts
        .into_iter()
        .enumerate()
        .map(|(number, spec)| {
            let wrong = |message: String, errno| Failure::new(Stage::Mount, message, errno);
            if super::stubs::normal(&spec.target).as_os_str().is_empty() {
                return Err(wrong(format!("cannot mount over {}", spec.target.display()), Errno::INVAL));
            }
            let tree = open_source(spec, request, scratch, number).map_err(|error| {
                wrong(format!("source of mount {}: {error}", spec.target.display()), error.errno)
            })?;
            let stat = rustix::fs::fstat(&tree)
                .map_err(|errno| wrong(format!("source of mount {}", spec.target.display()), errno))?;
            let file = !FileType::from_raw_mode(stat.st_mode).is_dir();
            Ok(Opened { spec, tree, file })
        })
        .collect()
}

fn open_source(
    spec: &StepMount,
    request: &Request,
    scratch: &Scratch,
    number: usize,
) -> lapstrake_sys::Result<OwnedFd> {
    let mut attrs = PLAIN;
    attrs.set(MountAttrFlags::MOUNT_ATTR_RDONLY, spec.readonly);
    attrs.set(MountAttrFlags::MOUNT_ATTR_NOSUID, spec.nosuid);
    attrs.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, spec.noexec);
    let whole = match &spec.source {
        MountSource::Bind(path) => return open_bind(path, &spec.subpath, attrs),
        MountSource::Tmpfs { size_bytes } => {
            let size = size_bytes.map(|bytes| bytes.to_string());
            let mut options = vec![FsOption::Value("mode", "1777")];
            options.extend(size.as_deref().map(|size| FsOption::Value("size", size)));
            new_filesystem("tmpfs", &options, attrs)?
        }
        MountSource::Layers { lowers_top_first, changes } => {
            let upper_work = match changes {
                Changes::Refused => None,
                Changes::Kept { upper, work } => Some((upper.as_path(), work.as_path())),
                // The executor has put directories of its own in their place.
                Changes::Discarded => {
                    return Err(lapstrake_sys::Error::new("overlay", "no place for changes", Errno::INVAL));
                }
            };
            let overlay =
                Overlay { lowers_top_first, upper_work, userxattr: request.userxattr, volatile: true, attrs };
            overlay.mount_detached()?
        }
    };
    if spec.subpath.as_os_str().is_empty() {
        return Ok(whole);
    }
    // Only a mount that has a place can be cloned in part.
    let place = scratch.base.join(format!("m{number}"));
    std::fs::create_dir(&place).about("mkdir", &place)?;
    attach_path(&whole, &place)?;
    let part = locate(&whole, &spec.subpath, true)?;
    clone_tree_at(part, false)
}

fn open_bind(path: &Path, subpath: &Path, attrs: MountAttrFlags) -> lapstrake_sys::Result<OwnedFd> {
    let (tree, recursive) = if subpath.as_os_str().is_empty() {
        // Mounts below that this user namespace may not take off can only come along.
        match clone_tree(path, false) {
            Err(error) if error.errno == Errno::INVAL => (clone_tree(path, true)?, true),
            result => (result?, false),
        }
    } else {
        let part = locate(open_root(path)?, subpath, true)?;
        (clone_tree_at(part, false)?, false)
    };
    add_attrs(&tree, attrs, recursive)?;
    Ok(tree)
}

/// Makes `tree` the root of this process.
pub(super) fn enter(tree: &Tree) -> Result<(), Failure> {
    mount::change_root(&tree.root).map_err(kernel(Stage::Root))
}
