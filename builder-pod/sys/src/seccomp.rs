//! Seccomp filters: the mechanism. What a filter allows is the caller's policy.

use crate::{Error, Result};

/// One instruction of the classic packet filter that seccomp runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when a comparison holds.
    pub jt: u8,
    /// Instructions to skip when it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// The most instructions that the kernel takes.
pub const INSTRUCTIONS_MAX: usize = 4096;

/// Installs `program` for this thread and all that it starts, for good.
///
/// Needs `CAP_SYS_ADMIN` in the thread's user namespace, since it does not set `no_new_privs`.
pub fn install(program: &[Instruction]) -> Result<()> {
    let length = libc::c_ushort::try_from(program.len())
        .ok()
        .filter(|length| (1..=INSTRUCTIONS_MAX).contains(&usize::from(*length)))
        .ok_or_else(|| {
            Error::new("seccomp", format!("{} instructions", program.len()), crate::Errno::INVAL)
        })?;
    let filter = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: `Instruction` has the layout of `struct sock_filter`; the kernel copies `len` of them
    // and writes nothing.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter) };
    if result == 0 { Ok(()) } else { Err(Error::last("seccomp", "SET_MODE_FILTER")) }
}
