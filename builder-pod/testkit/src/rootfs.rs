//! A root file system small enough for every test.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::image::{Image, Layer};

/// The statically linked busybox of the machine.
///
/// # Panics
/// Where there is none, with the command that installs it: a test that needs it must not pass unseen.
pub fn busybox_program() -> PathBuf {
    let candidates = [std::env::var_os("BUSYBOX").map(PathBuf::from), Some("/bin/busybox".into())];
    let found =
        candidates.into_iter().flatten().chain([PathBuf::from("/usr/bin/busybox")]).find(|p| p.exists());
    found.expect("busybox is missing: run `apt-get install busybox-static`, or set BUSYBOX to a static one")
}

/// Makes `dir` a root file system with busybox, its applets, and the usual folders and accounts.
pub fn busybox_at(dir: &Path) -> io::Result<()> {
    for sub in
        ["bin", "dev", "etc", "home", "proc", "root", "sbin", "sys", "tmp", "usr/bin", "usr/sbin", "var/tmp"]
    {
        std::fs::create_dir_all(dir.join(sub))?;
    }
    let program = busybox_program();
    std::fs::copy(&program, dir.join("bin/busybox"))?;
    let list = std::process::Command::new(&program).arg("--list").output()?;
    for applet in String::from_utf8_lossy(&list.stdout).lines().filter(|a| *a != "busybox" && !a.is_empty()) {
        symlink("busybox", dir.join("bin").join(applet))?;
    }
    std::fs::write(
        dir.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
    )?;
    std::fs::write(dir.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    set_mode(&dir.join("tmp"), 0o1777)?;
    set_mode(&dir.join("var/tmp"), 0o1777)
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
}

/// A temporary busybox root.
pub fn busybox() -> io::Result<tempfile::TempDir> {
    let dir = tempfile::Builder::new().prefix("testkit-root-").tempdir()?;
    set_mode(dir.path(), 0o755)?;
    busybox_at(dir.path())?;
    Ok(dir)
}

/// An image of one layer with a busybox root.
pub fn busybox_image() -> io::Result<Image> {
    let root = busybox()?;
    Ok(Image::new(&[Layer::new().tree(root.path())?]))
}
