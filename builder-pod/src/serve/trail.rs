//! Who asked for what in a build: the client, and frontends that ask further. From it, what went into each result.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lapstrake_api::pb;
use lapstrake_llb::head;

use super::answer::{Answer, Of, Ref, Refs};
use super::job::Job;
use crate::attest::{self, Capture, FrontendRequest, ImageSource, RequestProvenance};

/// One request to a frontend with all that was done for it; the outermost is the client's.
#[derive(Default)]
pub(crate) struct Trail {
    /// What was asked of the frontend; none of what the client does itself.
    request: Option<FrontendRequest>,
    /// What the client asked for in the first place.
    root: FrontendRequest,
    parts: Mutex<Parts>,
}

#[derive(Default)]
struct Parts {
    results: Vec<Arc<Ref>>,
    /// Sources that no definition names.
    more: Vec<Capture>,
    trails: Vec<Arc<Trail>>,
}

impl Trail {
    /// Of a client's request.
    pub(crate) fn of(root: FrontendRequest) -> Arc<Self> {
        Arc::new(Self { request: None, root, parts: Mutex::default() })
    }

    /// Of a request that is made in it.
    pub(crate) fn ask(&self, request: FrontendRequest) -> Arc<Self> {
        let root = match (self.root.says_something(), &self.request) {
            (true, _) | (false, None) => self.root.clone(),
            (false, Some(own)) => own.clone(),
        };
        Arc::new(Self { request: Some(request), root, parts: Mutex::default() })
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// That request was answered.
    pub(crate) fn answered(&self, trail: Arc<Self>, answer: &Answer) {
        trail.parts().results.extend(results(answer));
        self.parts().trails.push(trail);
    }

    /// A definition was worked out that came from whoever works for this request.
    pub(crate) fn made(&self, answer: &Answer) {
        self.parts().results.extend(results(answer));
    }

    /// It used this, too.
    pub(crate) fn used(&self, more: Capture) {
        self.parts().more.push(more);
    }

    /// The request whose answer a result is in, the innermost.
    fn of_result(self: &Arc<Self>, id: &str) -> Option<Arc<Self>> {
        let (trails, own) = {
            let parts = self.parts();
            (parts.trails.clone(), parts.results.iter().any(|result| result.id == id))
        };
        trails.iter().find_map(|trail| trail.of_result(id)).or_else(|| own.then(|| Arc::clone(self)))
    }

    /// All results of the request and of those that were made for it, and what else was used.
    fn all(&self) -> (Vec<Arc<Ref>>, Vec<Capture>) {
        let (mut results, mut more, trails) = {
            let parts = self.parts();
            (parts.results.clone(), parts.more.clone(), parts.trails.clone())
        };
        for trail in trails {
            let (inner, used) = trail.all();
            results.extend(inner);
            more.extend(used);
        }
        (results, more)
    }

    /// The request as it is told where its result is used further.
    fn told(&self, capture: &Capture) -> Option<RequestProvenance> {
        let mut told = self.request.as_ref()?.provenance(&capture.sources);
        told.request.root = self.root(capture, &told);
        Some(told)
    }

    fn root(&self, capture: &Capture, own: &RequestProvenance) -> Option<Box<RequestProvenance>> {
        if !self.root.says_something() {
            return None;
        }
        let root = self.root.provenance(&capture.sources);
        let request = &root.request;
        let says_nothing =
            request.frontend.is_empty() && request.args.is_empty() && request.inputs.is_empty();
        (!says_nothing && root != *own).then(|| Box::new(root))
    }
}

fn results(answer: &Answer) -> Vec<Arc<Ref>> {
    let attested = answer.attestations.values().flatten().filter_map(|one| one.result.clone());
    let own: Vec<Arc<Ref>> = match &answer.refs {
        Refs::One(result) => result.iter().cloned().collect(),
        Refs::Many(refs) => refs.values().flatten().cloned().collect(),
    };
    own.into_iter().chain(attested).collect()
}

/// What went into each result of an answer; none of the empty file system.
pub(crate) async fn captures(job: &Job, answer: &Answer, all: &[Of]) -> Vec<Option<Capture>> {
    let own: HashSet<String> = results(answer).into_iter().map(|result| result.id.clone()).collect();
    let images = attest::known_images(&job.engine);
    let mut captures = Vec::new();
    for of in all {
        let Some(result) = &of.result else {
            captures.push(None);
            continue;
        };
        let trail = job.trail.of_result(&result.id).unwrap_or_else(|| Arc::clone(&job.trail));
        let mut capture = attest::of_graph(&job.engine, result.graph()).await;
        let (others, more) = trail.all();
        for other in others.iter().filter(|other| !own.contains(&other.id) && other.is_there()) {
            capture.merge(&attest::of_graph(&job.engine, other.graph()).await);
        }
        more.iter().for_each(|more| capture.merge(more));
        for image in of_platform(&images, of, all) {
            capture.add_image(image);
        }
        capture.settle();
        if let Some(request) = &trail.request {
            capture.request = attest::arguments_of(request);
            let told = request.provenance(&capture.sources);
            capture.request.root = trail.root(&capture, &told);
        }
        capture.target_platform = Some(of.platform.to_string());
        captures.push(Some(capture));
    }
    captures
}

/// Images for a platform: of those that were looked up for each of the platforms only its own.
fn of_platform(images: &[ImageSource], of: &Of, all: &[Of]) -> Vec<ImageSource> {
    if all.len() < 2 {
        return images.to_vec();
    }
    let matches = |image: &ImageSource, platform: &lapstrake_oci::Platform| {
        image
            .platform
            .as_ref()
            .is_some_and(|p| (&p.os, &p.architecture) == (&platform.os, &platform.architecture))
    };
    let for_all = |image: &ImageSource| {
        all.iter().all(|of| {
            images.iter().any(|other| other.reference == image.reference && matches(other, &of.platform))
        })
    };
    images.iter().filter(|image| !for_all(image) || matches(image, &of.platform)).cloned().collect()
}

/// Requests that made definitions which clients may use in further builds, as long as the build goes on that they were made in.
#[derive(Default)]
pub(crate) struct Requests(Mutex<BTreeMap<String, BTreeMap<String, Option<RequestProvenance>>>>);

impl Requests {
    fn all(&self) -> MutexGuard<'_, BTreeMap<String, BTreeMap<String, Option<RequestProvenance>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers what made the results of an answer to a request.
    pub(crate) async fn remember(&self, job: &Job, trail: &Trail, answer: &Answer) {
        for result in results(answer) {
            let Some(head) = head(&result.definition) else { continue };
            let capture = attest::of_graph(&job.engine, result.graph()).await;
            let mut told = trail.told(&capture);
            if let Some(told) = &mut told {
                told.request.root = None;
            }
            self.all().entry(head).or_default().insert(job.id.clone(), told);
        }
    }

    /// The request that made a definition; none where it is not known, or not the same everywhere.
    pub(crate) fn of(&self, definition: &pb::Definition) -> Option<RequestProvenance> {
        let all = self.all();
        let mut known = all.get(&head(definition)?)?.values().flatten();
        let first = known.next()?;
        known.all(|other| other == first).then(|| first.clone())
    }

    /// A build has ended.
    pub(crate) fn forget(&self, job: &str) {
        self.all().retain(|_, jobs| {
            jobs.remove(job);
            !jobs.is_empty()
        });
    }
}
