//! The Dockerfile frontend: text and options in, LLB, image config and diagnostics out.
//!
//! Job: parse a Dockerfile ([`parse`]), pick the stages that a target needs ([`plan`]) and lower them to
//! an LLB definition with its image config ([`Plan::lower`]). Meaning, texts and digests are those of
//! BuildKit's frontend; what it refuses is refused here, with a place and a way out.
//! Holds: every finding has a span of the file; findings that do not depend on each other are reported
//! together; the same input gives the same bytes; time is linear in the size of the text, and memory
//! is bounded by [`limits`].
//! Never: reads a file or a socket, asks the machine for anything, panics on any input. Image configs are
//! fetched by the caller between the two steps.
//!
//! ```
//! use lapstrake_dockerfile::{Images, Options, parse, plan};
//!
//! let parsed = parse("Dockerfile", "FROM scratch\nCOPY hello /\nCMD [\"/hello\"]\n");
//! let plan = plan(&parsed, &Options::default())?;
//! let images = Images::new(); // what `plan.images_needed(&images)` names, fetched by the caller
//! let lowered = plan.lower(&images)?;
//! assert_eq!(lowered.config.config.cmd, Some(vec!["/hello".to_owned()]));
//! # Ok::<(), lapstrake_dockerfile::Diagnostics>(())
//! ```
//!
//! # From a text to a build
//!
//! 1. [`parse`] gives the tree ([`ast`]) and what is wrong with the text alone. It never fails: a broken instruction is
//!    [`ast::Kind::Invalid`] and has a finding.
//! 2. [`plan`] picks the stages that the target needs, by the [`Options`] of the build.
//! 3. [`Plan::images_needed`] names the base images whose configs must be known; the caller fetches them, and asks again,
//!    since triggers of a base may name further ones.
//! 4. [`Plan::lower`] gives the [`Lowered`] graph, config and warnings, or every error that it found.
//!
//! # Looking at a file
//!
//! [`lint::check`] finds errors and what should be written otherwise, in one go and without image configs; findings are
//! [`Diagnostics`], which render as text, short lines, JSON or SARIF. [`targets`] and [`Plan::outline`] tell what can be
//! built and what it can be given; [`features`] which parts of the language a file uses. [`fixed`] and [`formatted`]
//! change a text without changing what comes of it. `examples/check.rs` is a linter of ten lines.
//!
//! ```
//! use lapstrake_dockerfile::{Images, Options, lint, parse};
//!
//! let parsed = parse("Dockerfile", "FROM alpine:3.20\nENV MODE fast\n");
//! let checked = lint::check(&parsed, &Options::default(), &Images::new());
//! let finding = checked.findings.iter().next().expect("the old form");
//! assert_eq!(finding.code, "LegacyKeyValueFormat");
//! assert_eq!(lapstrake_dockerfile::fixed(&parsed, &Options::default(), &Images::new()).expect("mended").1, 1);
//! ```

pub mod ast;
mod attrs;
mod diagnostic;
mod expand;
mod features;
mod fix;
mod git;
mod go;
mod inspect;
mod instruction;
mod json;
pub mod limits;
mod lines;
pub mod lint;
mod lower;
mod options;
mod parse;
mod plan;
mod render;
mod sarif;
mod source;
mod subrequest;
mod suggest;
mod words;

pub use attrs::OptionError;
pub use diagnostic::{Diagnostic, Diagnostics, Edit, Label, Severity};
pub use features::{all_features, features};
pub use fix::{fixed, formatted};
pub use inspect::{Outline, OutlineArg, OutlineInput, Target, targets, targets_text};
pub use lower::{ContextUse, Lowered};
pub use options::{
    AllowedDevices, Capabilities, ContextFacts, ExtraHost, MainContext, NamedContext, Network, NoCache,
    Options, ResolveMode, Ulimit,
};
pub use parse::{Parsed, frontend_of, parse};
pub use plan::{
    EpochSource, ImageKey, ImageRequest, Images, Plan, ResolvedImage, epoch_source, is_built_in, plan,
};
pub use render::Style;
pub use source::{Position, Source, Span};
pub use subrequest::Subrequest;
pub use suggest::nearest;
