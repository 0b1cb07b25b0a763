//! What starts a new run by itself.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::rules;

/// What starts a new run by itself when it moves. The operator asks for it without credentials; where it gets no
/// answer, `status.follow.problem` says why, and runs start as they do without following.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Follow {
    /// Whether a new commit of `source.git`'s branch (or tag, or default branch) starts a run. The repository is asked
    /// where the name stands; nothing is cloned. The run builds exactly the commit that was found.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub source: bool,
    /// Whether a new image under the name of one that the last build used (`FROM`, `COPY --from`) starts a run. Names
    /// with a digest never move.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub base_images: bool,
    /// How often is asked, such as `1m`; spread by a tenth, and less often while there is no answer. What several
    /// ImageBuilds follow is asked for once, as often as the most eager of them wants.
    #[serde(default = "default_interval", skip_serializing_if = "is_default_interval")]
    #[schemars(
        length(max = 32),
        extend("default" = "5m", "x-kubernetes-validations" = rules(&[(
            "self.matches('^([0-9]{1,7}([.][0-9]{1,3})?(ms|s|m|h)){1,4}$') && duration(self) >= duration('5s')",
            "follow.interval must be a length of time of at least five seconds, such as 30s, 5m or 1h",
        )]))
    )]
    pub interval: kube::core::Duration,
}

/// How often is asked when the spec says nothing.
const INTERVAL_DEFAULT: Duration = Duration::from_secs(300);

fn default_interval() -> kube::core::Duration {
    INTERVAL_DEFAULT.into()
}

fn is_default_interval(interval: &kube::core::Duration) -> bool {
    Duration::from(*interval) == INTERVAL_DEFAULT
}

impl Default for Follow {
    fn default() -> Self {
        Self { source: false, base_images: false, interval: default_interval() }
    }
}

impl Follow {
    /// How often is asked.
    pub fn interval(&self) -> Duration {
        self.interval.into()
    }

    /// Whether nothing differs from the default.
    pub fn is_default(&self) -> bool {
        self == &Self::default()
    }
}
