//! What the answers mean for one ImageBuild. Pure.
//!
//! Holds: the same answers, asked again, wish for the same; a place that was not asked, or does not answer,
//! changes nothing; a run under way is not overtaken by a change, which waits until it has ended.

use lapstrake_crds::{
    BaseImageStatus, Change, ConditionType, Follow, FollowedSource, ImageBuild, ImageBuildStatus,
};

use super::{Answer, Target};

/// What was asked for one ImageBuild, and answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Where the source stands.
    pub source: Answer,
    /// Where base images stand, by their names in status.
    pub bases: Vec<(String, Answer)>,
}

impl Facts {
    /// Whether a place was not asked yet.
    pub fn unknown(&self, follow: &Follow) -> bool {
        (follow.source && self.source == Answer::Unknown)
            || self.bases.iter().any(|(_, answer)| *answer == Answer::Unknown)
    }
}

/// What following asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// The commit to build; none: whatever the builder finds.
    pub source: Option<FollowedSource>,
    /// Base images that the next run is started for.
    pub base_images: Vec<BaseImageStatus>,
    /// What moved since the last run, if that is what asks for one.
    pub change: Option<Moved>,
    /// A run that starts now would not know its commit: the first answer is worth waiting for.
    pub undecided: bool,
    /// Why something cannot be followed.
    pub problem: Option<String>,
}

/// Something that moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Moved {
    /// The branch or tag.
    Source(Change),
    /// A base image.
    BaseImage(Change),
}

/// What following asks for, after these answers. `asked` says that a run was asked for by hand.
pub fn wish(build: &ImageBuild, status: &ImageBuildStatus, facts: &Facts, asked: bool) -> Wish {
    let run = status.run.as_ref();
    // An attempt that was never recorded counts as this generation's: it is found out by its pod.
    let same_spec = run.is_some_and(|run| run.generation == build.metadata.generation);
    let busy = same_spec && !asked && status.completion_time.is_none();
    let past = Past { build, status, busy, same_spec };
    let mut wish = Wish::default();
    past.source(&facts.source, asked, &mut wish);
    past.base_images(&facts.bases, &mut wish);
    wish
}

struct Past<'a> {
    build: &'a ImageBuild,
    status: &'a ImageBuildStatus,
    /// A run of this spec is under way.
    busy: bool,
    /// The last run was of this spec.
    same_spec: bool,
}

impl Past<'_> {
    fn succeeded(&self) -> bool {
        let condition = self.status.condition(ConditionType::Succeeded);
        self.status.completion_time.is_some() && condition.is_some_and(|one| one.status == "True")
    }

    fn built(&self) -> Option<&str> {
        self.status.source.as_ref().map(|source| source.revision.as_str())
    }

    fn source(&self, answer: &Answer, asked: bool, wish: &mut Wish) {
        let handled = self.status.follow.as_ref().and_then(|follow| follow.source.clone());
        let target = Target::source(self.build).filter(|_| self.build.spec.follow.source);
        let Some(target) = target else {
            // What is not followed any more asks for nothing: what was handled last goes on to hold.
            wish.source = handled;
            return;
        };
        let name = target.to_string();
        let handled = handled.filter(|source| source.name == name);
        match answer {
            Answer::Unknown => {
                wish.undecided = asked || handled.is_none();
                wish.source = handled;
            }
            Answer::Silent(why) => {
                wish.problem = Some(why.clone());
                wish.source = handled;
            }
            Answer::At(now) => {
                let stands = match &handled {
                    Some(handled) => handled.revision == *now || self.busy,
                    // A run that was not told its commit has found out by itself.
                    None => self.busy || (self.same_spec && self.succeeded() && self.built() == Some(now)),
                };
                if stands {
                    wish.source = handled;
                    return;
                }
                let from = handled.map(|source| source.revision).or_else(|| self.built().map(str::to_owned));
                let change = Change { name: name.clone(), from, to: now.clone() };
                wish.change = Some(Moved::Source(change));
                wish.source = Some(FollowedSource { name, revision: now.clone() });
            }
        }
    }

    fn base_images(&self, answers: &[(String, Answer)], wish: &mut Wish) {
        let handled =
            self.status.follow.as_ref().map(|follow| follow.base_images.clone()).unwrap_or_default();
        if !self.build.spec.follow.base_images || self.busy {
            wish.base_images = handled;
            return;
        }
        let mut moved = Vec::new();
        let mut change = None;
        for base in self.status.base_images.iter().filter(|base| !base.pinned) {
            let answer = answers.iter().find(|(name, _)| *name == base.image).map(|(_, answer)| answer);
            let acted_on = handled.iter().find(|one| one.image == base.image);
            let now = match answer {
                Some(Answer::At(digest)) => Some(digest.clone()),
                Some(Answer::Silent(why)) => {
                    wish.problem.get_or_insert_with(|| why.clone());
                    None
                }
                Some(Answer::Unknown) | None => None,
            };
            // Without an answer it stands where it stood when it was acted on.
            let Some(now) = now.or_else(|| acted_on.map(|one| one.digest.clone())) else { continue };
            if now == base.digest {
                continue;
            }
            if acted_on.is_none_or(|one| one.digest != now) {
                change.get_or_insert(Change {
                    name: base.image.clone(),
                    from: Some(base.digest.clone()),
                    to: now.clone(),
                });
            }
            moved.push(BaseImageStatus { image: base.image.clone(), digest: now, pinned: false });
        }
        match change {
            Some(change) => {
                wish.base_images = moved;
                wish.change.get_or_insert(Moved::BaseImage(change));
            }
            // Nothing new: what was acted on stays as it is, so that the run's name does.
            None => wish.base_images = handled,
        }
    }
}
