//! A disk that is soon full.

/// A small file system that no path leads to; gone when the handle closes.
pub(crate) fn small(bytes: u64) -> Option<std::os::fd::OwnedFd> {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
    if !rustix::process::geteuid().is_root() {
        let required = std::env::var("LAPSTRAKE_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|r| r == "userns"), "this test needs root");
        eprintln!("skipped: needs root");
        return None;
    }
    let fs = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    rustix::mount::fsconfig_set_string(&fs, "size", bytes.to_string()).unwrap();
    rustix::mount::fsconfig_create(&fs).unwrap();
    Some(rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap())
}
