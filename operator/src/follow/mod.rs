//! Where branches, tags and base images stand, asked of their servers from time to time.
//!
//! Job: what ImageBuilds follow is asked for once per place, however many follow it ([`Pollers`]); what an
//! answer means for a build is decided by [`wish`], purely.
//! Holds: nothing is cloned or pulled; no credential is used, since the operator has none; waits grow with
//! every failure and are spread, so that a server is not asked by all at once.
//! Never: writes to the cluster.

mod git;
mod pollers;
mod registry;
mod schedule;
#[cfg(test)]
mod tests;
mod wish;

use std::fmt;

use lapstrake_crds::ImageBuild;

pub use pollers::Pollers;
pub use registry::Registries;
pub use wish::{Facts, Moved, Wish, wish};

/// A place that can be followed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// A reference of a Git repository.
    Git {
        /// Address of the repository.
        url: String,
        /// `refs/heads/…`, `refs/tags/…` or `HEAD`.
        reference: String,
    },
    /// An image by its name with tag.
    Image(String),
}

impl Target {
    /// What an ImageBuild's source follows, if it can follow anything.
    pub fn source(build: &ImageBuild) -> Option<Self> {
        let git = build.spec.source.git.as_ref().filter(|git| git.commit.is_none())?;
        let reference = match (&git.branch, &git.tag) {
            (Some(branch), _) => format!("refs/heads/{branch}"),
            (None, Some(tag)) => format!("refs/tags/{tag}"),
            (None, None) => "HEAD".to_owned(),
        };
        Some(Self::Git { url: git.url.clone(), reference })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Git { url, reference } => {
                let short = reference.trim_start_matches("refs/heads/").trim_start_matches("refs/tags/");
                write!(f, "{url}#{short}")
            }
            Self::Image(name) => f.write_str(name),
        }
    }
}

/// What a place said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Answer {
    /// It was not asked yet.
    #[default]
    Unknown,
    /// The commit or digest that the name stands for.
    At(String),
    /// It did not say, and why.
    Silent(String),
}
