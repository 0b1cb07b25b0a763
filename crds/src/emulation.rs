//! What is done for platforms that no node has.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::rules;

/// How long a node is waited for when the spec says nothing.
const AFTER_DEFAULT: Duration = Duration::from_secs(300);

/// What is done for platforms that no node has. Emulation needs nothing on the nodes, and takes several
/// times as long as a node of the platform's own kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Emulation {
    /// `PreferNative` waits for a node of the platform's own architecture, and emulates when none has
    /// taken the pod for as long as `after` says. `Native` waits for one however long it takes, and status
    /// says so: `WaitingForNode`. `Emulate` waits for none: one pod on one node builds all platforms.
    #[serde(default)]
    pub policy: EmulationPolicy,
    /// How long `PreferNative` waits for a node, such as `90s` or `10m`: time for an autoscaler to add one.
    #[serde(default = "default_after")]
    #[schemars(
        length(max = 32),
        extend("default" = "5m", "x-kubernetes-validations" = rules(&[(
            "self.matches('^([0-9]{1,7}([.][0-9]{1,3})?(ms|s|m|h)){1,4}$')",
            "emulation.after must be a length of time, such as 90s or 10m",
        )]))
    )]
    pub after: kube::core::Duration,
}

fn default_after() -> kube::core::Duration {
    AFTER_DEFAULT.into()
}

impl Default for Emulation {
    fn default() -> Self {
        Self { policy: EmulationPolicy::default(), after: default_after() }
    }
}

impl Emulation {
    /// Whether nothing differs from the default.
    pub fn is_default(&self) -> bool {
        self == &Self::default()
    }

    /// How long a node is waited for, if it is not waited for for ever.
    pub fn patience(&self) -> Option<Duration> {
        match self.policy {
            EmulationPolicy::Native => None,
            EmulationPolicy::PreferNative => Some(self.after.into()),
            EmulationPolicy::Emulate => Some(Duration::ZERO),
        }
    }
}

/// When the steps of a platform are emulated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum EmulationPolicy {
    /// Never: the platform waits for a node.
    Native,
    /// When no node was there for a while.
    #[default]
    PreferNative,
    /// At once.
    Emulate,
}
