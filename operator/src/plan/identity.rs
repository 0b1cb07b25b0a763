//! Names a run by what it is asked to do, so that the same request is the same run.
//!
//! The first half of the name covers what decides the image: the object itself, source, Dockerfile,
//! args, platforms, output, and the requests for a new run. An ImageBuild that was deleted and made
//! again is another object, so what is left of the old one never has the new one's names. The second
//! half covers how it is built: pod, cache and timeout. A run that succeeded stands as long as the
//! first half is the same; one that did not is run again when either half changes, since more memory
//! may be just what it needed.
//! `suspend`, `cancel`, `retries` and `history` never start a run.

use lapstrake_crds::{
    BaseImageStatus, ContextStatus, FollowedSource, ImageBuild, ImageBuildSpec, ImageBuildStatus, annotation,
};
use serde_json::json;

use crate::follow::Wish;
use crate::names::short_hash;

/// What a run is asked to do, as a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// What decides the image.
    what: String,
    /// What of it decides the image of any one platform.
    inputs: String,
    /// How it is built.
    how: String,
}

/// The requests for a new run that hold now.
///
/// An annotation that was taken away asks for nothing: what was handled last goes on to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// `lapstrake.dev/rebuild`.
    pub rebuild: Option<String>,
    /// `reconcile.fluxcd.io/requestedAt`.
    pub reconcile_at: Option<String>,
    /// `reconcile.fluxcd.io/forceAt`, which counts only while it equals `requestedAt`.
    pub force_at: Option<String>,
    /// The commit that is followed.
    pub source: Option<FollowedSource>,
    /// Base images that moved.
    pub base_images: Vec<BaseImageStatus>,
    /// Images of other ImageBuilds that are contexts.
    pub contexts: Vec<ContextStatus>,
}

/// Longest value of a request that status may repeat.
const REQUEST_CHARS_MAX: usize = 1024;

impl Requests {
    /// The requests that were acted on.
    pub fn handled(status: &ImageBuildStatus) -> Self {
        Self {
            rebuild: status.last_handled_rebuild.clone(),
            reconcile_at: status.last_handled_reconcile_at.clone(),
            force_at: status.last_handled_force_at.clone(),
            ..Self::followed(status)
        }
    }

    /// What following and contexts asked for last.
    fn followed(status: &ImageBuildStatus) -> Self {
        let follow = status.follow.clone().unwrap_or_default();
        let contexts = status.contexts.clone();
        Self { source: follow.source, base_images: follow.base_images, contexts, ..Self::default() }
    }

    /// The same requests, with what following asks for now.
    pub fn with_wish(mut self, wish: &Wish) -> Self {
        self.source.clone_from(&wish.source);
        self.base_images.clone_from(&wish.base_images);
        self
    }

    /// The same requests, with what the contexts are now.
    pub fn with_contexts(mut self, contexts: &[ContextStatus]) -> Self {
        self.contexts = contexts.to_vec();
        self
    }

    /// Whether all that was asked for by hand was acted on.
    pub fn by_hand_handled(&self, status: &ImageBuildStatus) -> bool {
        let handled = Self::handled(status);
        (&self.rebuild, &self.reconcile_at, &self.force_at)
            == (&handled.rebuild, &handled.reconcile_at, &handled.force_at)
    }

    /// The requests of this ImageBuild.
    pub fn of(build: &ImageBuild, status: &ImageBuildStatus) -> Self {
        let asked = |name: &str| {
            let value = build.metadata.annotations.as_ref()?.get(name)?;
            (!value.is_empty()).then(|| value.chars().take(REQUEST_CHARS_MAX).collect::<String>())
        };
        let reconcile = asked(annotation::RECONCILE_REQUESTED_AT);
        let force = asked(annotation::RECONCILE_FORCE_AT).filter(|force| reconcile.as_ref() == Some(force));
        Self {
            rebuild: asked(annotation::REBUILD).or_else(|| status.last_handled_rebuild.clone()),
            reconcile_at: reconcile.or_else(|| status.last_handled_reconcile_at.clone()),
            force_at: force.or_else(|| status.last_handled_force_at.clone()),
            ..Self::followed(status)
        }
    }
}

/// Whether the spec says something of what stands around steps and stages.
fn has_options(spec: &ImageBuildSpec) -> bool {
    !spec.contexts.is_empty() || !spec.steps.is_default() || !spec.no_cache.is_default()
}

impl Identity {
    /// The run that this ImageBuild asks for now.
    ///
    /// Both `requestedAt` and `forceAt` start a run: whether a branch or a base image moved is found
    /// out by the builder, and a run in which nothing moved takes everything from its cache.
    pub fn of(build: &ImageBuild, requests: &Requests) -> Self {
        let spec = &build.spec;
        let mut platforms = spec.platforms.clone();
        platforms.sort();
        let given = crate::plan::inputs::identity(spec);
        let mut inputs =
            json!([build.metadata.uid, spec.source, spec.dockerfile, spec.args, spec.output, given]);
        // Nothing is added where nothing of it is said: those runs keep their names.
        if let Some(parts) = inputs.as_array_mut()
            && has_options(spec)
        {
            parts.push(json!([spec.contexts, spec.steps, spec.no_cache, requests.contexts]));
        }
        let mut what =
            json!([inputs, platforms, requests.rebuild, requests.reconcile_at, requests.force_at,]);
        // Nothing is added where nothing is followed: those runs keep their names.
        if let Some(parts) = what.as_array_mut()
            && (requests.source.is_some() || !requests.base_images.is_empty())
        {
            parts.push(json!([requests.source, requests.base_images]));
        }
        let timeout = spec.timeout().as_millis().to_string();
        let mut how = vec![json!(spec.pod), json!(spec.cache), json!(spec.emulation), json!(timeout)];
        how.extend(Some(crate::plan::inputs::identity(spec)).filter(|inputs| !inputs.is_null()));
        let how = json!(how);
        Self {
            inputs: short_hash(inputs.to_string().as_bytes(), 10),
            what: short_hash(what.to_string().as_bytes(), 10),
            how: short_hash(how.to_string().as_bytes(), 6),
        }
    }

    /// The run's id: a label value.
    pub fn id(&self) -> String {
        format!("{}-{}", self.what, self.how)
    }

    /// What decides the image of any one platform, as a name: whatever was built under it stands.
    pub fn inputs(&self) -> &str {
        &self.inputs
    }

    /// Whether a run of this id built what is asked for now.
    pub fn builds_the_same(&self, id: &str) -> bool {
        id.split_once('-').is_some_and(|(what, _)| what == self.what)
    }
}
