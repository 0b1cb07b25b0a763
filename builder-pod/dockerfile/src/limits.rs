//! Bounds on what a Dockerfile may ask of us.

/// A larger file is refused, bytes.
pub const FILE_BYTES_MAX: usize = 4 << 20;
/// More instructions than this are refused: each may be a step, and a definition has bounds too.
pub const INSTRUCTIONS_MAX: usize = 20_000;
/// A longer physical line is refused, bytes with its line end; BuildKit's own bound.
pub const LINE_BYTES_MAX: usize = 65_535;
/// More errors than this are not collected.
pub const ERRORS_MAX: usize = 50;
/// More warnings than this are not collected.
pub const WARNINGS_MAX: usize = 200;
/// Deeper nesting of `${a:-${b:-…}}` is refused.
pub const EXPANSION_DEPTH_MAX: usize = 64;
/// A longer result of variable expansion is refused, bytes.
pub const EXPANSION_BYTES_MAX: usize = 1 << 20;
/// More values of global arguments than this together are refused, bytes.
pub const GLOBAL_BYTES_MAX: usize = 4 << 20;
/// A larger definition is refused, bytes; many steps times a large environment get there.
pub const DEFINITION_BYTES_MAX: usize = 64 << 20;
/// More heredocs in one instruction are refused.
pub const HEREDOCS_MAX: usize = 1000;
/// More trigger instructions in all stages together are refused.
pub const TRIGGERS_MAX: usize = 100_000;
/// A longer message of a finding is cut, bytes.
pub const MESSAGE_BYTES_MAX: usize = 1000;
/// More ports in one `EXPOSE` are refused.
pub const EXPOSED_PORTS_MAX: usize = 65_536;
