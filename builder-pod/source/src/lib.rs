//! Sources of a build: local directories, Git repositories, downloads, inline files.
//!
//! Job: to turn each into a directory that can be read in place, with an identity for the cache.
//! Holds: nothing outside a source's own directory is read or written, whatever symlinks, archives, refs or names
//! say; no error or log line shows a credential; only what a build uses is read.
//! Never: decides what to build, keeps a build's state, asks a person for a password.

#![forbid(unsafe_code)]

mod auth;
mod error;
mod git;
mod git_url;
mod http;
mod identity;
mod ignore;
mod inline;
mod local;

pub use auth::{SourceAuth, askpass};
pub use error::{Class, Error, shown_url};
pub use git::{CheckoutOptions, Facts, FileTime, Git, GitRef, Objects, Resolved, Signed};
pub use git_url::{GitUrl, parse_git_url};
pub use http::{
    Download, Fetched, Http, HttpContext, HttpRequest, http_date_seconds, place_file, unpack_context,
};
pub use identity::Identity;
pub use ignore::{IgnoreError, ignore_patterns, parse_ignore};
pub use inline::{InlineFile, check_inline, write_inline};
pub use local::{Local, Sums};
