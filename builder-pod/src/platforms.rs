//! Several platforms in one build: what is common to them is worked on once.

use std::sync::Arc;

use futures::future::join_all;
use lapstrake_llb::Graph;
use lapstrake_oci::Platform;
use lapstrake_solver::{CacheKey, Job, Outcome};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::build::Tree;
use crate::engine::{Engine, Res, native_platform};
use crate::error::BuildError;
use crate::options::BuildOptions;
use crate::progress::Progress;

/// What is to be built: one platform's graph.
pub(crate) struct Target {
    /// The platform.
    pub(crate) platform: Platform,
    /// Its steps.
    pub(crate) graph: Arc<Graph>,
}

/// The platforms that are asked for, each once; this machine's where none is.
pub(crate) fn wanted(options: &BuildOptions) -> Vec<Platform> {
    let mut all: Vec<Platform> = Vec::new();
    for platform in &options.platforms {
        if !all.contains(platform) {
            all.push(platform.clone());
        }
    }
    if all.is_empty() { vec![native_platform()] } else { all }
}

/// Solves all graphs at the same time. The first one that fails stops the others.
pub(crate) async fn solve(
    engine: &Arc<Engine>,
    targets: &[Target],
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<Vec<Tree>, BuildError> {
    engine.share(progress);
    // Also where all is in the cache: what others were allowed is not for everybody.
    for vertex in targets.iter().flat_map(|target| target.graph.vertices()) {
        if let lapstrake_llb::pb::op::Op::Exec(exec) = &vertex.op {
            engine.check_allowed(exec)?;
        }
    }
    for target in targets {
        engine.drop_caches(&target.graph).await?;
    }
    let _wished: Vec<_> = targets.iter().map(|target| engine.wish(&target.graph)).collect();
    let stop = cancel.child_token();
    let jobs = targets.iter().map(|target| {
        let (solver, stop) = (engine.solver(), stop.clone());
        async move {
            let (sender, mut events) = mpsc::unbounded_channel::<lapstrake_solver::Progress>();
            let shown = progress.job();
            let show = tokio::spawn(async move {
                while let Some(event) = events.recv().await {
                    shown.vertex(&event.vertex, &event.kind);
                }
            });
            let graph = Arc::clone(&target.graph);
            let job = Job { graph, world: Arc::clone(engine), progress: sender, cancel: stop.clone() };
            let outcome = solver.solve(job).await;
            show.await.ok(); // it ends with the channel
            if matches!(outcome, Outcome::Failed(..)) {
                stop.cancel();
            }
            outcome
        }
    });
    let mut results = Vec::new();
    let mut canceled = false;
    for (outcome, target) in join_all(jobs).await.into_iter().zip(targets) {
        match outcome {
            Outcome::Done(result) => results.push(tree(engine, target, result)?),
            Outcome::Failed(_, error) => {
                let error = crate::build::in_file(&target.graph, &error);
                let platform = (targets.len() > 1).then(|| target.platform.to_string());
                return Err(error.noted(|failure| failure.platform = platform));
            }
            Outcome::Canceled => canceled = true,
        }
    }
    if canceled {
        return Err(BuildError::canceled());
    }
    for target in targets {
        progress.all_else_cached(&target.graph);
    }
    Ok(results)
}

/// A result as exporters want it: as a snapshot where it is one by now.
fn tree(engine: &Engine, target: &Target, result: Option<(Res, CacheKey)>) -> Result<Tree, BuildError> {
    let Some((result, key)) = result else { return Ok(Tree::default()) };
    let key = Some((key, target.graph.target().map_or(0, |target| target.index)));
    match result {
        Res::Snapshot(snapshot) => Ok(Tree { snapshot, lazy: None, key }),
        Res::Lazy(lazy) => {
            let snapshot = engine.unpacked(&lazy);
            Ok(Tree { snapshot, lazy: snapshot.is_none().then_some(lazy), key })
        }
        Res::Context(_) => Err(BuildError::internal("the result is a directory of the builder")),
    }
}
