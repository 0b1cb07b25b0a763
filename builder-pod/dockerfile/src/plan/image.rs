//! Which image configs a plan needs.

use std::collections::BTreeSet;

use lapstrake_oci::{Platform, Reference};

use crate::plan::{Base, From, ImageKey, ImageRequest, Images, Plan};
use crate::source::Span;

/// Requests for what is not `known`, each once, in the order of the file.
pub(super) fn needed(plan: &Plan, known: &Images) -> Vec<ImageRequest> {
    let mut out: Vec<ImageRequest> = Vec::new();
    let mut seen = BTreeSet::new();
    let mut add = |reference: &Reference, platform: Platform, span: Span| {
        let key = ImageKey { reference: reference.clone(), platform };
        if !known.contains_key(&key) && seen.insert(key.clone()) {
            out.push(ImageRequest { key, span });
        }
    };
    let (stages, _) = super::triggers::resolve(plan, known);
    for (stage, reachable) in stages.list.iter().zip(&stages.reachable) {
        if !reachable {
            continue;
        }
        if let Base::Image(reference) = &stage.base {
            add(reference, plan.platform_of(stage), stage.image.span);
        }
        for from in stage.steps.iter().flat_map(|step| &step.from) {
            if let From::Image(reference, span) = from {
                add(reference, plan.target_platform(), *span);
            }
        }
    }
    out
}

impl Plan {
    /// The platform to build for.
    pub(crate) fn target_platform(&self) -> Platform {
        self.options.target_platform.clone().unwrap_or_else(|| self.options.build_platform.clone())
    }

    /// The platform that a stage's base image is asked for.
    pub(crate) fn platform_of(&self, stage: &super::Stage) -> Platform {
        stage.platform.clone().unwrap_or_else(|| self.target_platform())
    }
}
