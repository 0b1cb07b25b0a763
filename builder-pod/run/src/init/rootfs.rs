//! The step's file system tree: layers, kernel file systems, devices, masks, mounts.
//!
//! All is made in the step's own mount namespace, on a file system in memory that is mounted on
//! the executor's scratch directory: when the namespace's last process is gone, so is all of it.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use lapstrake_sys::fs::{locate, open_in_root, open_root};
use lapstrake_sys::mount::{
    self, FsOption, MountAttrFlags, add_attrs, attach, attach_path, clone_tree, clone_tree_at, new_filesystem,
};
use lapstrake_sys::overlay::Overlay;
use lapstrake_sys::{Context, Errno};
use rustix::fs::{FileType, Mode, OFlags};

use super::stubs::{Places, Stubs, plant};
use super::{Failure, kernel};
use crate::protocol::{Request, Stage};
use crate::spec::{Changes, MountSource, StepFile, StepMount, StepSpec};

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
    /// Variables that go with what was mounted, for where the step has none of that name.
    pub(super) env: Vec<(&'static str, &'static str)>,
}

/// A mount of the step's spec with its source opened.
struct Opened<'a> {
    spec: &'a StepMount,
    tree: OwnedFd,
    file: bool,
    /// The file behind it, which what the image has at that place still has to come before.
    own_first: Option<PathBuf>,
}

/// Builds the whole tree.
pub(super) fn assemble(request: &Request) -> Result<Tree, Failure> {
    let scratch = Scratch::mount(&request.scratch, has_secrets(&request.spec))?;
    let mounts = open_mounts(request, &scratch)?;
    plant_stubs(&scratch, &mounts, &request.spec)?;
    let root = mount_root(request, &scratch)?;
    let mut places = Places::new(root.as_fd(), &scratch.root);

    super::system::mount_proc(&mut places)?;
    super::system::mount_sys(&mut places, request.spec.insecure)?;
    super::devices::mount_dev(&mut places, &scratch, request.spec.shm_bytes)?;
    if !request.spec.insecure {
        super::system::mask(root.as_fd(), &scratch)?;
    }
    mount_etc(request, &scratch, &mut places)?;
    let env = super::certificates::show(&request.spec, &scratch, &mut places)?;
    for opened in mounts {
        let name = opened.spec.target.display();
        if let Some(file) = &opened.own_first {
            put_own_first(file, opened.spec, root.as_fd()).map_err(|error| {
                Failure::new(Stage::Mount, format!("source of mount {name}: {error}"), error.errno)
            })?;
        }
        let target = places.place(&opened.spec.target, opened.file).map_err(|error| {
            Failure::new(Stage::Mount, format!("mount point {name}: {error}"), error.errno)
        })?;
        attach(&opened.tree, &target)
            .map_err(|error| Failure::new(Stage::Mount, format!("mounting {name}: {error}"), error.errno))?;
    }
    let stubs = places.finish().map_err(kernel(Stage::Tree))?;
    Ok(Tree { root, stubs, env })
}

fn has_secrets(spec: &StepSpec) -> bool {
    spec.mounts.iter().any(|mount| matches!(mount.source, MountSource::File(_)))
}

impl Scratch {
    fn mount(place: &Path, secrets: bool) -> Result<Self, Failure> {
        let mode = FsOption::Value("mode", "755");
        let make = |options: &[FsOption<'_>]| {
            new_filesystem("tmpfs", options, PLAIN | MountAttrFlags::MOUNT_ATTR_NOSUID)
        };
        let tmpfs = match secrets {
            // What is secret should not reach a swap device. Kernels before 6.4 do not know how, and user
            // namespaces may not ask for it.
            true => make(&[mode, FsOption::Flag("noswap")]).or_else(|_| make(&[mode])),
            false => make(&[mode]),
        };
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

    /// Where the file of a mount is.
    fn step_file(&self, number: usize) -> PathBuf {
        self.base.join(format!("f{number}"))
    }

    /// Writes a file that is shown to the step.
    pub(super) fn file(&self, name: &str, contents: impl AsRef<[u8]>) -> Result<OwnedFd, Failure> {
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

fn plant_stubs(scratch: &Scratch, mounts: &[Opened<'_>], spec: &StepSpec) -> Result<(), Failure> {
    let planting = || {
        for dir in ["proc", "sys", "dev"] {
            plant(&scratch.stub, Path::new(dir), false)?;
        }
        for file in ["etc/hosts", "etc/resolv.conf"] {
            plant(&scratch.stub, Path::new(file), true)?;
        }
        for file in super::certificates::files(spec) {
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
            let own_first = matches!(&spec.source, MountSource::File(file) if file.after_own);
            let own_first = own_first.then(|| scratch.step_file(number));
            Ok(Opened { spec, tree, file, own_first })
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
        MountSource::Device(path) => {
            attrs.remove(PLAIN);
            attrs |= MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
            return open_bind(path, &spec.subpath, attrs);
        }
        MountSource::File(file) => return open_file(file, &scratch.step_file(number), attrs),
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

/// A file on the step's private file system, which is memory.
fn open_file(file: &StepFile, path: &Path, attrs: MountAttrFlags) -> lapstrake_sys::Result<OwnedFd> {
    use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
    let shown = || "its contents in memory".to_owned();
    let mut open = std::fs::OpenOptions::new();
    let mut new = open.write(true).create_new(true).mode(0o600).open(path).about("open", path)?;
    new.write_all(file.contents.reveal()).about("write", shown())?;
    std::os::unix::fs::fchown(&new, Some(file.uid), Some(file.gid))
        .about("chown", format!("{}:{}", file.uid, file.gid))?;
    let mode = std::fs::Permissions::from_mode(file.mode & 0o7777);
    new.set_permissions(mode).about("chmod", format!("{:o}", file.mode))?;
    let tree = clone_tree(path, false)?;
    add_attrs(&tree, attrs, false)?;
    Ok(tree)
}

/// Writes the image's file before what the one behind a mount has. The mount may be read-only, the file is not.
fn put_own_first(file: &Path, mount: &StepMount, root: BorrowedFd<'_>) -> lapstrake_sys::Result<()> {
    let MountSource::File(ours) = &mount.source else { return Ok(()) };
    let Some(mut text) = read_own(root, &mount.target)? else { return Ok(()) };
    if text.last().is_some_and(|last| *last != b'\n') {
        text.push(b'\n');
    }
    text.extend(ours.contents.reveal());
    std::fs::write(file, &text).about("write", file)
}

/// The most bytes of an image's file that something is put behind.
const OWN_BYTES_MAX: u64 = 16 << 20;

/// A regular file of the step's root; `None` where there is none, or a huge one.
pub(super) fn read_own(root: BorrowedFd<'_>, path: &Path) -> lapstrake_sys::Result<Option<Vec<u8>>> {
    let place = match locate(root, super::stubs::normal(path), true) {
        Err(error) if error.is_not_found() => return Ok(None),
        place => place?,
    };
    let stat = rustix::fs::fstat(&place).about("fstat", path)?;
    let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
    if !FileType::from_raw_mode(stat.st_mode).is_file() || size > OWN_BYTES_MAX {
        return Ok(None);
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let file = open_in_root(root, super::stubs::normal(path), flags, Mode::empty())?;
    let mut contents = Vec::new();
    std::fs::File::from(file).take(OWN_BYTES_MAX).read_to_end(&mut contents).about("read", path)?;
    Ok(Some(contents))
}

/// Makes `tree` the root of this process.
pub(super) fn enter(tree: &Tree) -> Result<(), Failure> {
    mount::change_root(&tree.root).map_err(kernel(Stage::Root))
}
