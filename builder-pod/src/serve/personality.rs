//! The names that the program answers to beside its own: `buildkitd`, and as much of `buildctl` as drivers and probes
//! of clusters call.

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use lapstrake_daemon::{Flags, Usage};

use super::{buildctl, start};

/// Product that versions are of, as clients show it.
pub(crate) const PACKAGE: &str = "github.com/lapstrake/lapstrake";
/// The release of BuildKit whose interface is spoken: clients choose by it what they ask for.
pub(crate) const VERSION: &str = "v0.34.2";
/// Our own version.
pub(crate) const REVISION: &str = concat!("lapstrake-", env!("CARGO_PKG_VERSION"));

/// What the program was called for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Called {
    /// By its own name, for something else than serving.
    Builder,
    /// To serve, with these arguments.
    Daemon(Vec<OsString>),
    /// As a client, with these arguments.
    Client(Vec<OsString>),
}

impl Called {
    /// Finds out by the name and the first argument.
    pub(crate) fn by(arguments: impl IntoIterator<Item = OsString>) -> Self {
        let mut arguments = arguments.into_iter();
        let name = arguments.next().unwrap_or_default();
        let mut rest: Vec<_> = arguments.collect();
        match Path::new(&name).file_name().and_then(|name| name.to_str()) {
            Some("buildkitd") => Self::Daemon(rest),
            Some("buildctl") => Self::Client(rest),
            _ if rest.first().is_some_and(|first| first == "serve") => Self::Daemon(rest.split_off(1)),
            _ if rest.first().is_some_and(|first| is_of_daemon(first)) => Self::Daemon(rest),
            _ => Self::Builder,
        }
    }
}

/// Options that stand before the builder's own commands.
const OF_BUILDER: [&str; 5] = ["--help", "-h", "--version", "-V", "--log"];

/// Whether a command line that begins with this is `buildkitd`'s: drivers start an image whose entry point they take
/// for it, with its flags.
fn is_of_daemon(first: &OsStr) -> bool {
    let first = first.to_string_lossy();
    let name = first.split('=').next().unwrap_or_default();
    name.starts_with('-') && !OF_BUILDER.contains(&name)
}

/// Answers where the program was called by another name. None: go on as the builder.
pub(crate) fn answer() -> Option<ExitCode> {
    match Called::by(std::env::args_os()) {
        Called::Builder => None,
        Called::Client(arguments) => Some(buildctl::main(arguments)),
        Called::Daemon(arguments) => Some(daemon(arguments)),
    }
}

/// Is `buildkitd` with these arguments.
pub(crate) fn daemon(arguments: Vec<OsString>) -> ExitCode {
    match Flags::parse(arguments) {
        Ok(flags) => start::start(&flags),
        Err(Usage::Help(text)) => print(&text),
        Err(Usage::Version) => print(&version("buildkitd")),
        Err(Usage::Wrong(text)) => {
            std::io::stderr().write_all(text.as_bytes()).ok(); // nobody listens
            ExitCode::FAILURE
        }
    }
}

/// The line of `--version`: four words, of which clients read the third.
pub(crate) fn version(name: &str) -> String {
    format!("{name} {PACKAGE} {VERSION} {REVISION}\n")
}

pub(crate) fn print(text: &str) -> ExitCode {
    // A closed pipe wants nothing more.
    std::io::stdout().write_all(text.as_bytes()).ok();
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(arguments: &[&str]) -> Called {
        Called::by(arguments.iter().map(Into::into))
    }

    #[test]
    fn the_name_decides_and_serve_is_a_name_too() {
        let debug = || vec![OsString::from("--debug")];
        assert_eq!(called(&["/usr/bin/buildkitd", "--debug"]), Called::Daemon(debug()));
        assert_eq!(called(&["lapstrake-builder", "serve", "--debug"]), Called::Daemon(debug()));
        assert_eq!(called(&["buildctl", "--debug"]), Called::Client(debug()));
        assert_eq!(called(&["lapstrake-builder", "--debug"]), Called::Daemon(debug()));
        for other in [
            &["lapstrake-builder", "build", "serve"][..],
            &["lapstrake-builder", "--log=info", "build"],
            &["lapstrake-builder", "--help"],
            &["lapstrake-builder"],
            &[],
        ] {
            assert_eq!(called(other), Called::Builder);
        }
    }

    #[test]
    fn a_version_has_the_four_words_that_buildx_counts() {
        let version = version("buildkitd");
        let words: Vec<_> = version.split_whitespace().collect();
        assert!(matches!(words[..], ["buildkitd", _, release, _] if release.starts_with("v0.")), "{words:?}");
    }
}
