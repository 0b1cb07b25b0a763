//! The driver on a world of plain values.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use lapstrake_llb::{Builder, Graph, Output, Vertex, pb};
use lapstrake_oci::Digest;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::{CacheKey, Job, OpKey, Outcome, ProgressKind, Record, Solver, Step, World};

/// Pieces that a chatty vertex prints.
const PIECES: usize = 1000;
const PIECE_BYTES: usize = 64 << 10;

/// Does what the source's name says.
struct Plain {
    printed: AtomicUsize,
    /// What is lent to steps; it can be taken away.
    lends: CancellationToken,
    /// Runs that began with what is lent.
    borrowed: Semaphore,
}

impl Default for Plain {
    fn default() -> Self {
        Self { printed: AtomicUsize::default(), lends: CancellationToken::new(), borrowed: Semaphore::new(0) }
    }
}

#[async_trait]
impl World for Plain {
    type Result = u32;
    type Error = String;

    async fn describe(&self, vertex: &Vertex, _: &Step) -> Result<OpKey, String> {
        assert_ne!(vertex.name(), "panics early", "as asked");
        Ok(OpKey { digest: vertex.digest.0, inputs: Vec::new(), ephemeral: false, name: None })
    }

    fn look_up(&self, _: CacheKey) -> Option<Record<u32>> {
        None
    }

    async fn hash(&self, _: &Vertex, _: usize, _: &u32, _: &Step) -> Result<Digest, String> {
        Err("nothing is read".to_owned())
    }

    async fn run(&self, vertex: &Vertex, _: Vec<u32>, step: &Step) -> Result<Vec<u32>, String> {
        match vertex.name().as_str() {
            "panics" => panic!("as asked"),
            "prints" => {
                for _ in 0..PIECES {
                    step.log(1, &[b'x'; PIECE_BYTES]);
                    self.printed.fetch_add(1, Ordering::SeqCst);
                }
            }
            "borrows" => {
                self.borrowed.add_permits(1);
                tokio::select! {
                    () = self.lends.cancelled() => return Err("it was taken away".to_owned()),
                    () = step.cancel.cancelled() => return Err(self.canceled()),
                    () = give_back(&self.printed) => {}
                }
            }
            _ => {}
        }
        Ok(vec![1])
    }

    fn save(&self, _: CacheKey, _: &Record<u32>) {}

    fn canceled(&self) -> String {
        "canceled".to_owned()
    }

    fn panicked(&self, message: &str) -> String {
        format!("panicked: {message}")
    }
}

fn job(name: &str) -> (Job<Plain>, mpsc::UnboundedReceiver<crate::Progress>) {
    job_in(name, Arc::default())
}

fn job_in(name: &str, world: Arc<Plain>) -> (Job<Plain>, mpsc::UnboundedReceiver<crate::Progress>) {
    let mut builder = Builder::new();
    let source = pb::SourceOp { identifier: name.to_owned(), attrs: BTreeMap::new() };
    let op = pb::Op { op: Some(pb::op::Op::Source(source)), ..Default::default() };
    let vertex = builder.add(&op, pb::OpMetadata::default(), &[]);
    let graph = Graph::decode(&builder.finish(Some(Output { vertex, index: 0 }))).expect("valid graph");
    let (progress, events) = mpsc::unbounded_channel();
    (Job { graph: Arc::new(graph), world, progress, cancel: CancellationToken::new() }, events)
}

/// Returns once the world says so.
async fn give_back(printed: &AtomicUsize) {
    while printed.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_vertex_outlives_the_job_that_lent_it_what_it_needs() {
    let solver = Arc::new(Solver::start());
    let (first, second) = (Arc::new(Plain::default()), Arc::new(Plain::default()));
    let begin = |world: &Arc<Plain>| {
        let ((job, _), solver) = (job_in("borrows", Arc::clone(world)), Arc::clone(&solver));
        let cancel = job.cancel.clone();
        (cancel, tokio::spawn(async move { solver.solve(job).await }))
    };
    let (cancel, gone) = begin(&first);
    first.borrowed.acquire().await.expect("open").forget();
    let (_, waiting) = begin(&second);
    // The solver takes requests in order: once a third one is answered it knows the second.
    solver.solve(job("nothing").0).await;
    cancel.cancel();
    assert!(matches!(gone.await, Ok(Outcome::Canceled)));
    first.lends.cancel();
    second.borrowed.acquire().await.expect("open").forget();
    second.printed.store(1, Ordering::SeqCst);
    let outcome = waiting.await.expect("no panic");
    assert!(matches!(&outcome, Outcome::Done(Some((1, _)))), "{outcome:?}");
}

#[tokio::test]
async fn work_that_panics_fails_its_job() {
    let solver = Solver::start();
    for name in ["panics", "panics early"] {
        let outcome = solver.solve(job(name).0).await;
        assert!(
            matches!(&outcome, Outcome::Failed(_, why) if why.contains("as asked")),
            "{name}: {outcome:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_step_that_prints_waits_for_those_who_show_it() {
    let world = Arc::new(Plain::default());
    let solver = Solver::start();
    let (job, mut events) = job_in("prints", Arc::clone(&world));
    let solving = tokio::spawn(async move { solver.solve(job).await });
    let (mut received, mut ahead_max) = (0, 0);
    while let Some(event) = events.recv().await {
        if let ProgressKind::Log(_, bytes) = &event.kind {
            received += bytes.len();
            ahead_max =
                ahead_max.max((world.printed.load(Ordering::SeqCst) * PIECE_BYTES).saturating_sub(received));
        }
    }
    assert_eq!(received, PIECES * PIECE_BYTES, "nothing is lost");
    assert!(ahead_max <= 8 << 20, "{ahead_max} bytes were on their way");
    assert!(matches!(solving.await, Ok(Outcome::Done(Some((1, _))))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_step_that_waits_to_print_can_be_canceled() {
    let solver = Solver::start();
    let (job, events) = job("prints");
    let cancel = job.cancel.clone();
    let solving = tokio::spawn(async move { solver.solve(job).await });
    // Nothing is shown until then.
    while events.len() < 16 {
        tokio::task::yield_now().await;
    }
    cancel.cancel();
    assert!(matches!(solving.await, Ok(Outcome::Canceled)));
    drop(events);
}
