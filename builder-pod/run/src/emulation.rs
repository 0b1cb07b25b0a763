//! A user namespace in which the kernel runs programs of another architecture through an emulator.
//!
//! The kernel keeps a table of such programs for each user namespace (Linux 6.7). A keeper, a child of the
//! step's helper, makes a namespace with the helper's own ids, mounts a table of its own there and enters
//! the emulator; the step's program joins the namespace. Nobody else's table is touched, and all of it is
//! gone with the keeper, which goes with the step. The emulator is opened when it is entered: nothing of it
//! has to be in the step's root.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use lapstrake_sys::idmap::{IdMap, write_maps};
use lapstrake_sys::mount::{
    MountAttrFlags, add_attrs, attach_path, clone_tree, isolate_propagation, new_filesystem,
};
use lapstrake_sys::process::{self, Child, Namespaces, Side};
use lapstrake_sys::{Context, Errno};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;

use crate::init::{Failure, kernel};
use crate::protocol::{Report, Stage, send};
use crate::spec::Emulator;

/// How the kernel tells a program of an architecture: the fields of its ELF header.
struct Elf {
    /// Go's name of the architecture.
    architecture: &'static str,
    /// QEMU's.
    emulator: &'static str,
    wide: bool,
    big_endian: bool,
    machine: u16,
}

const fn elf(
    architecture: &'static str,
    emulator: &'static str,
    wide: bool,
    big_endian: bool,
    machine: u16,
) -> Elf {
    Elf { architecture, emulator, wide, big_endian, machine }
}

/// What can be emulated.
const ELVES: [Elf; 7] = [
    elf("amd64", "x86_64", true, false, 62),
    elf("386", "i386", false, false, 3),
    elf("arm64", "aarch64", true, false, 183),
    elf("arm", "arm", false, false, 40),
    elf("riscv64", "riscv64", true, false, 243),
    elf("ppc64le", "ppc64le", true, false, 21),
    elf("s390x", "s390x", true, true, 22),
];

/// QEMU's name of an architecture that is given by Go's, where it can be emulated.
pub fn emulated(architecture: &str) -> Option<&'static str> {
    find(architecture).map(|elf| elf.emulator)
}

fn find(architecture: &str) -> Option<&'static Elf> {
    ELVES.iter().find(|elf| elf.architecture == architecture)
}

/// Whether this machine runs programs of an architecture by itself.
pub fn runs_natively(architecture: &str) -> bool {
    match (std::env::consts::ARCH, architecture) {
        ("x86_64", "amd64" | "386") | ("aarch64", "arm64") => true,
        // Some processors have left the 32-bit instructions out.
        ("aarch64", "arm") => process::runs_32_bit_programs(),
        (native, wanted) => native == wanted,
    }
}

impl Elf {
    /// The line that enters an emulator into the table.
    ///
    /// `F`: it is opened now; `O`, `C`: programs that it may execute but not read, and set-user-id ones,
    /// work; `P`: it is told the program's first argument.
    fn registration(&self, interpreter: &Path) -> Vec<u8> {
        let mut magic = [0; 20];
        magic[..4].copy_from_slice(b"\x7fELF");
        magic[4] = if self.wide { 2 } else { 1 };
        magic[5] = if self.big_endian { 2 } else { 1 };
        magic[6] = 1;
        let both = |value: u16| if self.big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
        // Type 2 is a fixed executable, 3 one that can lie anywhere: the lowest bit is not looked at.
        magic[16..18].copy_from_slice(&both(2));
        magic[18..].copy_from_slice(&both(self.machine));
        let mut mask = [0xff; 20];
        // Which operating system's conventions it follows differs between toolchains.
        mask[7..16].fill(0);
        mask[16..18].copy_from_slice(&both(0xfffe));
        let hex = |bytes: [u8; 20]| bytes.iter().map(|b| format!("\\x{b:02x}")).collect::<String>();
        let head = format!("\u{1f}{}\u{1f}M\u{1f}0\u{1f}", self.emulator);
        let mut line = format!("{head}{}\u{1f}{}\u{1f}", hex(magic), hex(mask)).into_bytes();
        line.extend(std::os::unix::ffi::OsStrExt::as_bytes(interpreter.as_os_str()));
        line.extend(b"\x1fFOCP");
        line
    }
}

/// The process that keeps the namespace, and the way into it.
#[derive(Debug)]
pub(crate) struct Keeper {
    child: Child,
    namespace: OwnedFd,
}

impl Keeper {
    /// Makes the namespace. Only for a process of one thread.
    pub(crate) fn start(emulator: &Emulator) -> Result<Self, Failure> {
        let fail = kernel(Stage::Emulation);
        let elf = find(&emulator.architecture).ok_or_else(|| {
            let text = format!("programs of {} can't be emulated", emulator.architecture);
            Failure::new(Stage::Emulation, text, Errno::INVAL)
        })?;
        let maps = (IdMap::of_users().map_err(&fail)?.nested(), IdMap::of_groups().map_err(&fail)?.nested());
        let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).about("pipe", "keeper");
        let (told, tell) = pipe().map_err(&fail)?;
        let (wait, go) = pipe().map_err(&fail)?;
        match process::clone_into_namespaces(Namespaces::USER | Namespaces::MOUNT).map_err(&fail)? {
            Side::Child => {
                drop((told, go));
                keep(elf, emulator, wait, tell)
            }
            Side::Parent(child) => {
                drop((wait, tell));
                // From here on whatever is wrong ends the child.
                let pid = child.pid.as_raw_nonzero();
                let namespace = format!("/proc/{pid}/ns/user");
                let unnamed = rustix::fs::open(c"/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                    .about("open", "/dev/null")
                    .map_err(&fail)?;
                let mut keeper = Self { child, namespace: unnamed };
                write_maps(keeper.child.pid, &maps.0, &maps.1).map_err(&fail)?;
                let io = |error: std::io::Error| Failure::new(Stage::Emulation, error.to_string(), Errno::IO);
                File::from(go).write_all(b"y").map_err(io)?;
                let mut answer = Vec::new();
                File::from(told).read_to_end(&mut answer).map_err(io)?;
                if let Some(Report::Failed { stage, message, errno }) = Report::decode_all(&answer).pop() {
                    return Err(Failure::new(stage, message, Errno::from_raw_os_error(errno)));
                }
                keeper.namespace =
                    rustix::fs::open(&*namespace, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                        .about("open", &namespace)
                        .map_err(&fail)?;
                Ok(keeper)
            }
        }
    }

    /// Moves this process, which has one thread, into the namespace.
    pub(crate) fn join(&self) -> lapstrake_sys::Result<()> {
        use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
        move_into_link_name_space(self.namespace.as_fd(), Some(LinkNameSpaceType::User))
            .about("setns", "the emulator's user namespace")
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // It is our child until we wait for it: neither can fail.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The keeper's life: enters the emulator, says so by closing `tell`, and waits for its end.
fn keep(elf: &Elf, emulator: &Emulator, wait: OwnedFd, tell: OwnedFd) -> ! {
    match enter(elf, emulator, wait, tell) {
        // Killed by the helper, or by its end.
        Ok(_table) => loop {
            rustix::event::pause();
        },
        Err(failure) => send(&mut std::io::stdout(), &failure.into_report()),
    }
    process::exit_now(0)
}

fn enter(elf: &Elf, emulator: &Emulator, wait: OwnedFd, tell: OwnedFd) -> Result<OwnedFd, Failure> {
    let fail = kernel(Stage::Emulation);
    process::die_with_parent().map_err(&fail)?;
    // Nothing of the helper's is held on to: the ends of its pipes tell others something.
    process::replace_stdio(wait, 0).map_err(&fail)?;
    process::replace_stdio(tell, 1).map_err(&fail)?;
    process::close_from(3).map_err(&fail)?;
    std::io::stdin().read_exact(&mut [0]).map_err(|error| {
        Failure::new(Stage::Emulation, format!("the keeper was not told to go on: {error}"), Errno::IO)
    })?;
    isolate_propagation(false).map_err(&fail)?;
    // A step sees the emulator's file behind its programs: through this mount it can't be written.
    let file = clone_tree(&emulator.interpreter, false).map_err(&fail)?;
    add_attrs(&file, MountAttrFlags::MOUNT_ATTR_RDONLY, false).map_err(&fail)?;
    attach_path(&file, &emulator.interpreter).map_err(&fail)?;
    let table = new_filesystem("binfmt_misc", &[], MountAttrFlags::MOUNT_ATTR_NOSUID).map_err(|error| {
        let text = format!("a table of emulators in a user namespace (Linux 6.7 and later): {error}");
        Failure::new(Stage::Emulation, text, error.errno)
    })?;
    let register = rustix::fs::openat(&table, c"register", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .about("open", "binfmt_misc/register")
        .map_err(&fail)?;
    process::retry(|| rustix::io::write(&register, &elf.registration(&emulator.interpreter)))
        .about("register", &emulator.interpreter)
        .map_err(&fail)?;
    drop(register);
    let null = rustix::fs::open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .about("open", "/dev/null")
        .map_err(&fail)?;
    for stream in [0, 2, 1] {
        process::replace_stdio(&null, stream).map_err(&fail)?;
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_told_by_its_header() {
        let line = |architecture: &str| {
            let line = find(architecture).expect("known").registration(Path::new("/e/q"));
            String::from_utf8(line).expect("text").replace('\u{1f}', ":")
        };
        assert_eq!(
            line("arm64"),
            ":aarch64:M:0:\\x7f\\x45\\x4c\\x46\\x02\\x01\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x02\\x00\
             \\xb7\\x00:\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\xfe\\xff\
             \\xff\\xff:/e/q:FOCP"
        );
        // The other byte order.
        assert!(line("s390x").contains("\\x00\\x02\\x00\\x16:"), "{}", line("s390x"));
        assert!(line("s390x").contains("\\xff\\xfe\\xff\\xff:/e/q"), "{}", line("s390x"));
    }

    #[test]
    fn this_machine_needs_no_emulator_for_itself() {
        assert!(!runs_natively("s390x") && !runs_natively("riscv64"));
        let own = ELVES.iter().filter(|elf| runs_natively(elf.architecture)).count();
        assert!((1..=2).contains(&own), "{own}");
    }
}
