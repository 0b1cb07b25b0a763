//! A single build that asks a frontend's image, without a daemon: what a client would ask over the socket.

use std::collections::HashMap;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::build::{self, Asked, EPOCH};
use super::errors;
use super::gateway;
use super::host::Host;
use super::job::{Job, Jobs};
use crate::build::Solved;
use crate::engine::Engine;
use crate::error::BuildError;
use crate::progress::Progress;

/// What is asked of whom.
pub(crate) struct Request {
    /// The frontend's image.
    pub(crate) image: String,
    /// Attributes.
    pub(crate) opts: HashMap<String, String>,
    /// The file that names it, for errors that name no other.
    pub(crate) file: String,
}

/// What came of it.
pub(crate) struct Answered {
    /// File systems and configs.
    pub(crate) solved: Vec<Solved>,
    /// There is a result for each platform, also where it is one.
    pub(crate) several: bool,
    /// The time that the results are from, seconds since 1970.
    pub(crate) epoch: Option<i64>,
}

/// Asks, and works the results out.
pub(crate) async fn solve(
    engine: &Arc<Engine>,
    request: Request,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<Answered, BuildError> {
    let host = Arc::new(Host::of_build(engine));
    let mut job = Job::new(&super::id(), "", Arc::clone(engine));
    job.progress = progress.clone();
    job.cancel = cancel.clone();
    let job = Arc::new(job);
    // What the frontend left running ends with it.
    let _ends = Arc::new(Jobs::default()).ends(&job);
    let mut opts = request.opts;
    opts.insert("cmdline".to_owned(), request.image.clone());
    let (inputs, policies) = (HashMap::new(), crate::policy::Policies::default());
    let asked =
        Asked { definition: None, frontend: String::new(), opts, inputs, imports: Vec::new(), policies };
    let answer = gateway::solve(&host, &job, &job.trail, &request.image, asked).await;
    let answer = answer.map_err(|status| errors::of_frontend(&status, &request.file))?;
    let all = answer.all()?;
    let solved = build::solve(&job, &answer, &all).await?;
    let epoch = answer.metadata.get(EPOCH).and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
    Ok(Answered { solved, several: all.len() > 1 || all.iter().any(|of| of.key.is_some()), epoch })
}
