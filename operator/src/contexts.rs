//! Contexts that are the images of other ImageBuilds. Pure.
//!
//! Holds: what is not Ready keeps nobody's image from standing; a run that begins takes what the others are Ready with at
//! that moment, all of it; a run under way is not overtaken by a change, which waits until it has ended; ImageBuilds that
//! go round in a circle start no runs for each other.

use std::collections::BTreeSet;

use lapstrake_crds::{Change, ConditionType, ContextKind, ContextStatus, ImageBuild, ImageBuildStatus};

/// ImageBuilds in a circle that a message names.
const NAMED_MAX: usize = 8;

/// Another ImageBuild that a context of this one is the image of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// Its name.
    pub name: String,
    /// What is known of it.
    pub state: State,
}

/// What is known of another ImageBuild.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// There is none of that name.
    Missing,
    /// It is there, and has no image of its present spec; why, in a few words.
    NotReady(String),
    /// Its image, by digest.
    Ready(String),
}

/// What is known of all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Each once.
    pub others: Vec<Other>,
    /// The way from this ImageBuild back to itself, if there is one.
    pub circle: Option<Vec<String>>,
}

/// Names of the ImageBuilds that contexts of this one are, each once.
pub fn names(build: &ImageBuild) -> BTreeSet<&str> {
    build.spec.contexts.iter().filter_map(named).collect()
}

fn named(context: &lapstrake_crds::NamedContext) -> Option<&str> {
    match context.kind() {
        Some(ContextKind::Build(name)) => Some(name),
        _ => None,
    }
}

impl State {
    /// What an ImageBuild is to others.
    pub fn of(build: Option<&ImageBuild>) -> Self {
        let Some(build) = build.filter(|build| build.metadata.deletion_timestamp.is_none()) else {
            return Self::Missing;
        };
        let unseen = || Self::NotReady("it has not been looked at yet".to_owned());
        let Some(status) =
            build.status.as_ref().filter(|s| s.observed_generation == build.metadata.generation)
        else {
            return unseen();
        };
        let Some(ready) = status.condition(ConditionType::Ready) else { return unseen() };
        match (ready.status.as_str(), &status.image) {
            ("True", Some(image)) => Self::Ready(image.clone()),
            _ => Self::NotReady(format!("{}: {}", ready.reason, ready.message)),
        }
    }
}

/// The way from `build` back to itself over contexts, if there is one; `next` says which ImageBuilds are contexts of the
/// one of a name.
pub fn circle(build: &ImageBuild, next: &dyn Fn(&str) -> Vec<String>) -> Option<Vec<String>> {
    let own = build.metadata.name.clone().unwrap_or_default();
    let mut seen = BTreeSet::new();
    // Ways that are not at their end: the last name of each is to be looked at.
    let mut open: Vec<Vec<String>> = names(build).into_iter().map(|name| vec![name.to_owned()]).collect();
    while let Some(way) = open.pop() {
        let Some(last) = way.last() else { continue };
        if *last == own {
            return Some(std::iter::once(own).chain(way).collect());
        }
        if !seen.insert(last.clone()) {
            continue;
        }
        for name in next(last) {
            open.push(way.iter().cloned().chain([name]).collect());
        }
    }
    None
}

/// What the contexts ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Images of other ImageBuilds that a run is to be started with.
    pub contexts: Vec<ContextStatus>,
    /// What moved since the last run, if that is what asks for one.
    pub change: Option<Change>,
    /// No run can start yet; why.
    pub waits: Option<String>,
    /// No run can ever start; why.
    pub circle: Option<String>,
}

/// What the contexts ask for, as the others stand. `asked` says that a run was asked for by hand.
pub fn wish(build: &ImageBuild, status: &ImageBuildStatus, facts: &Facts, asked: bool) -> Wish {
    let same_spec = status.run.as_ref().is_some_and(|run| run.generation == build.metadata.generation);
    let busy = same_spec && !asked && status.completion_time.is_none();
    let mut wish = Wish { circle: facts.circle.as_deref().map(told), ..Wish::default() };
    let (mut now, mut handled, mut changes) = (Vec::new(), Vec::new(), Vec::new());
    let mut complete = true;
    for context in &build.spec.contexts {
        let Some(name) = named(context) else { continue };
        let before = status.contexts.iter().find(|one| one.name == context.name && one.build == name);
        handled.extend(before.cloned());
        complete &= before.is_some();
        let state = facts.others.iter().find(|other| other.name == name).map(|other| &other.state);
        match state {
            Some(State::Ready(image)) => {
                if before.is_some_and(|before| before.image != *image) {
                    let from = before.map(|before| digest(&before.image));
                    changes.push(Change { name: name.to_owned(), from, to: digest(image) });
                }
                let (name, build) = (context.name.clone(), name.to_owned());
                now.push(ContextStatus { name, build, image: image.clone() });
            }
            Some(State::NotReady(why)) => {
                wish.waits
                    .get_or_insert_with(|| waits(&context.name, name, &format!("is not Ready yet ({why})")));
            }
            Some(State::Missing) | None => {
                wish.waits.get_or_insert_with(|| waits(&context.name, name, "does not exist yet"));
            }
        }
    }
    let stands = busy || wish.waits.is_some() || wish.circle.is_some();
    if stands && complete {
        wish.contexts = handled;
    } else {
        wish.contexts = if wish.waits.is_some() { handled } else { now };
        wish.change = changes.into_iter().next();
    }
    wish
}

fn waits(context: &str, build: &str, why: &str) -> String {
    format!("waits for ImageBuild {build}, whose image is the context {context}: it {why}")
}

fn told(way: &[String]) -> String {
    let shown: Vec<&str> = way.iter().take(NAMED_MAX).map(String::as_str).collect();
    let more = if way.len() > NAMED_MAX { " → …" } else { "" };
    format!(
        "contexts go round in a circle: {}{more}; take one of them out of its contexts[].build",
        shown.join(" → ")
    )
}

/// What stands behind the `@`.
fn digest(image: &str) -> String {
    image.rsplit_once('@').map_or(image, |(_, digest)| digest).chars().take(256).collect()
}

#[cfg(test)]
#[path = "contexts_tests.rs"]
mod tests;
