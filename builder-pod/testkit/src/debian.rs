//! Debian roots of other architectures: made once by `mmdebstrap`, kept in the folder for such things.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lapstrake_oci::{Digest, ImageConfig, Platform};

use crate::image::{Image, Layer};

/// Debian's release.
const SUITE: &str = "bookworm";
/// Where Debian's programs look for certificates.
const CA_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What makes the root, in a user namespace with all of the machine's ids and a table of emulators of its
/// own, so that the machine's is not touched. `$1` is the architecture, `$2` QEMU's name of it, `$3` the
/// file. What the machine's apt and its certificates need goes along, so that packages can be installed.
const RECIPE: &str = r#"
set -eu
read -r go
table=/proc/sys/fs/binfmt_misc
mount -t binfmt_misc binfmt_misc $table
case $2 in
aarch64) machine='\xb7\x00' class='\x02' ;;
arm) machine='\x28\x00' class='\x01' ;;
riscv64) machine='\xf3\x00' class='\x02' ;;
*) echo "no recipe for $2" >&2; exit 1 ;;
esac
zeros='\x00\x00\x00\x00\x00\x00\x00\x00\x00'
magic="\\x7fELF$class\\x01\\x01$zeros\\x02\\x00$machine"
mask="\\xff\\xff\\xff\\xff\\xff\\xff\\xff$zeros\\xfe\\xff\\xff\\xff"
printf '%s' ":$2:M:0:$magic:$mask:$(command -v "qemu-$2-static"):FOCP" > $table/register
apt-config dump | grep -Ei '^acquire::(check-|http.*proxy)' > "$3.apt" || true
mmdebstrap --variant=minbase --format=tar --architectures="$1" --include=ca-certificates \
    --aptopt='Acquire::Languages "none"' \
    --customize-hook="cp /etc/ssl/certs/ca-certificates.crt \"\$1/etc/ssl/certs/ca-certificates.crt\"" \
    --customize-hook="cp $3.apt \"\$1/etc/apt/apt.conf.d/90machine\"" \
    --customize-hook='rm -rf "$1"/usr/share/doc/* "$1"/usr/share/man/* "$1"/usr/share/locale/*' \
    bookworm "$3"
rm "$3.apt"
"#;

fn emulator(architecture: &str) -> &str {
    match architecture {
        "arm64" => "aarch64",
        "armhf" => "arm",
        other => other,
    }
}

/// A minimal Debian of an architecture by Debian's name, as a tar file; made where it is not there.
///
/// # Panics
/// Where it can't be made, with what is missing: a test that needs it must not pass unseen.
pub fn tar(architecture: &str) -> PathBuf {
    let cache =
        std::env::var_os("LAPSTRAKE_CACHE").map_or_else(|| "/var/cache/lapstrake".into(), PathBuf::from);
    std::fs::create_dir_all(&cache).expect("the folder for what is kept can be made");
    let certificates = std::fs::read(CA_BUNDLE).unwrap_or_default();
    let key = Digest::of(&[RECIPE.as_bytes(), &certificates].concat());
    let path = cache.join(format!("root-{SUITE}-{architecture}-{}.tar", &key.hex()[..16]));
    let lock = File::create(path.with_extension("lock")).expect("a lock file");
    lock.lock().expect("a lock");
    if !path.exists() {
        make(architecture, &path).unwrap_or_else(|error| {
            panic!(
                "no Debian for {architecture}: {error}; it needs root, Linux 6.7 and \
                 `apt-get install mmdebstrap arch-test qemu-user-static`"
            )
        });
    }
    path
}

fn make(architecture: &str, path: &Path) -> io::Result<()> {
    let unfinished = path.with_extension("unfinished");
    std::fs::remove_file(&unfinished).ok(); // mostly there is none
    let mut child = Command::new("unshare")
        .args(["--user", "--mount", "sh", "-c", &format!("echo ready\n{RECIPE}"), "sh"])
        .args([architecture, emulator(architecture)])
        .arg(&unfinished)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let mut line = String::new();
    BufReader::new(stdout.expect("piped")).read_line(&mut line)?;
    for map in ["uid_map", "gid_map"] {
        std::fs::write(format!("/proc/{}/{map}", child.id()), "0 0 4294967295\n")?;
    }
    stdin.expect("piped").write_all(b"go\n")?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    std::fs::rename(unfinished, path)
}

/// Unpacks the root into a folder.
///
/// # Errors
/// Where `tar` fails.
pub fn root_at(architecture: &str, dir: &Path) -> io::Result<()> {
    unpack(architecture, dir, &[])
}

fn unpack(architecture: &str, dir: &Path, only: &[&str]) -> io::Result<()> {
    let mut command = Command::new("tar");
    command.arg("-xpf").arg(tar(architecture)).arg("-C").arg(dir).args(only);
    let output = command.output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned())),
    }
}

/// A small image for linux/arm64, of Debian's own files: a shell, `cat`, `uname` and what they need.
///
/// # Errors
/// Where files can't be unpacked.
pub fn small_arm64_image() -> io::Result<Image> {
    let dir = tempfile::tempdir()?;
    let library = "./usr/lib/aarch64-linux-gnu";
    let mut only: Vec<String> =
        ["./bin", "./lib", "./usr/lib/ld-linux-aarch64.so.1"].map(str::to_owned).to_vec();
    only.extend(["dash", "sh", "cat", "uname", "mkdir", "sleep"].map(|name| format!("./usr/bin/{name}")));
    only.extend(["ld-linux-aarch64.so.1", "libc.so.6"].map(|name| format!("{library}/{name}")));
    let only: Vec<&str> = only.iter().map(String::as_str).collect();
    unpack("arm64", dir.path(), &only)?;
    let mut config = ImageConfig::of_platform(&Platform::new("linux", "arm64", None));
    config.config.env = vec!["PATH=/usr/bin:/bin".to_owned()];
    Ok(Image::with_config(&[Layer::new().tree(dir.path())?], config))
}
