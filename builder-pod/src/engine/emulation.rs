//! Steps of other architectures: by an emulator of the builder's own, else by whatever the machine has.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use lapstrake_handoff::Reason;
use lapstrake_oci::Platform;
use lapstrake_run::{Emulator, RunError, Sink, StepExit, StepSpec, emulated, runs_natively};
use tokio_util::sync::CancellationToken;

use super::Engine;
use crate::error::{BuildError, chain};

/// Where the builder's image has its emulators.
const SHIPPED: &str = "/usr/libexec/lapstrake/emulators";

/// Where emulators are looked for, and whether the kernel lets us use them.
pub(crate) struct Emulators {
    dirs: Vec<PathBuf>,
    /// Why the kernel has no table of emulators for us, once it was asked.
    refused: OnceLock<String>,
}

impl Emulators {
    /// In `asked` first, if it is given, in the builder's image, and in `PATH`.
    pub(crate) fn new(asked: Option<&Path>) -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs = asked.map(Path::to_owned).into_iter().chain([PathBuf::from(SHIPPED)]);
        Self { dirs: dirs.chain(std::env::split_paths(&path)).collect(), refused: OnceLock::new() }
    }

    /// Whether steps of this architecture run here, by an emulator or without.
    pub(super) fn can_run(&self, architecture: &str) -> bool {
        runs_natively(architecture) || self.find(architecture).is_some()
    }

    /// The emulator of an architecture: a program that needs no other file.
    fn find(&self, architecture: &str) -> Option<Emulator> {
        let name = emulated(architecture)?;
        let names = [format!("qemu-{name}-static"), format!("qemu-{name}")];
        let places = self.dirs.iter().flat_map(|dir| names.iter().map(|name| dir.join(name)));
        let interpreter =
            places.filter(|path| stands_alone(path)).find_map(|path| path.canonicalize().ok())?;
        Some(Emulator { architecture: architecture.to_owned(), interpreter })
    }
}

/// A static program: the step's root has nothing that another one would load.
fn stands_alone(path: &Path) -> bool {
    const INTERPRETER: u32 = 3;
    let Ok(file) = File::open(path) else { return false };
    let mut head = [0; 64];
    if file.read_exact_at(&mut head, 0).is_err() || !head.starts_with(b"\x7fELF\x02\x01") {
        return false;
    }
    let word = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    let mut offset = [0; 8];
    offset.copy_from_slice(&head[32..40]);
    let (first, size, count) = (u64::from_le_bytes(offset), u64::from(word(54)), u64::from(word(56)));
    (0..count).all(|number| {
        let mut kind = [0; 4];
        let at = number.checked_mul(size).and_then(|at| at.checked_add(first));
        at.is_some_and(|at| file.read_exact_at(&mut kind, at).is_ok())
            && u32::from_le_bytes(kind) != INTERPRETER
    })
}

impl Engine {
    /// Runs a step, through an emulator where its platform is not the machine's.
    pub(super) async fn run_step(
        &self,
        mut spec: StepSpec,
        platform: &Platform,
        sink: Sink<'_>,
        cancel: &CancellationToken,
    ) -> Result<Result<StepExit, RunError>, BuildError> {
        if platform.os != self.platform.os {
            let message = format!("a step for {platform} can't run on {}", self.platform);
            return Err(BuildError::new(Reason::NotSupported, message));
        }
        if runs_natively(&platform.architecture) {
            return Ok(self.executor.run(&spec, &mut *sink, cancel).await);
        }
        let emulator = self.emulators.find(&platform.architecture);
        let found = emulator.is_some();
        if self.emulators.refused.get().is_none() {
            spec.emulator = emulator;
        }
        let mut exit = self.executor.run(&spec, &mut *sink, cancel).await;
        if let Err(error) = &exit
            && error.is_without_emulation()
        {
            // Not in a namespace of ours; perhaps the machine itself knows the architecture.
            self.emulators.refused.get_or_init(|| chain(error));
            spec.emulator = None;
            exit = self.executor.run(&spec, &mut *sink, cancel).await;
        }
        match exit {
            Err(error) if error.is_foreign_program() && (spec.emulator.is_none() || !found) => {
                Err(self.cannot_emulate(platform, found))
            }
            exit => Ok(exit),
        }
    }

    /// What runs programs of a platform that is not the machine's; none where the machine itself may know how.
    pub(super) fn emulator_of(&self, platform: &Platform) -> Result<Option<Emulator>, BuildError> {
        if platform.os != self.platform.os {
            let message = format!("a program for {platform} can't run on {}", self.platform);
            return Err(BuildError::new(Reason::NotSupported, message));
        }
        let may = self.emulators.refused.get().is_none();
        Ok(self.emulators.find(&platform.architecture).filter(|_| may))
    }

    /// No emulator of ours, and the kernel does not know the architecture either.
    fn cannot_emulate(&self, platform: &Platform, found: bool) -> BuildError {
        let name = emulated(&platform.architecture);
        let (cause, way_out) = match (name, found, self.emulators.refused.get()) {
            (None, ..) => ("nothing is known that emulates it".to_owned(), String::new()),
            (Some(_), true, Some(refused)) => (
                format!("the emulator can't be used here ({refused})"),
                "use a kernel of 6.7 or later, register an emulator for the machine (binfmt_misc, with the \
                 flag F), or "
                    .to_owned(),
            ),
            (Some(name), ..) => (
                format!("no qemu-{name}-static was found in {SHIPPED} or PATH"),
                "install one (Debian: qemu-user-static), name its directory with --emulators, or ".to_owned(),
            ),
        };
        let message = format!(
            "a step for {platform} can't run on {}: {cause}; {way_out}build on a machine of that platform",
            self.platform
        );
        BuildError::new(Reason::NotSupported, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header of an ELF program with one program header of a kind.
    fn program(kind: u32) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = 1;
        bytes[64..68].copy_from_slice(&kind.to_le_bytes());
        bytes
    }

    #[test]
    fn an_emulator_that_loads_libraries_is_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let other = if std::env::consts::ARCH == "aarch64" { "amd64" } else { "arm64" };
        let name = emulated(other).expect("known");
        let emulators = Emulators { dirs: vec![dir.path().to_owned()], refused: OnceLock::new() };
        assert_eq!(emulators.find(other), None);
        let (dynamic, fixed) = (format!("qemu-{name}-static"), format!("qemu-{name}"));
        std::fs::write(dir.path().join(dynamic), program(3)).expect("write");
        assert_eq!(emulators.find(other), None);
        std::fs::write(dir.path().join(&fixed), program(1)).expect("write");
        let found = emulators.find(other).expect("found");
        assert!(found.interpreter.ends_with(fixed), "{found:?}");
    }
}
