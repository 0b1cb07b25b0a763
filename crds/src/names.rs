//! Names that Lapstrake puts on objects, and names that it looks for.

/// Annotations on an `ImageBuild` that ask for a new run, and those that the operator sets.
pub mod annotation {
    /// Asks to look at the inputs again: a run follows, which takes everything from its cache if
    /// nothing moved.
    ///
    /// The value is an opaque token: a change of it is the request. It is echoed to
    /// `status.lastHandledReconcileAt`.
    pub const RECONCILE_REQUESTED_AT: &str = "reconcile.fluxcd.io/requestedAt";
    /// Asks for a run even if nothing changed; honoured when it equals
    /// [`RECONCILE_REQUESTED_AT`] and is new. Echoed to `status.lastHandledForceAt`.
    pub const RECONCILE_FORCE_AT: &str = "reconcile.fluxcd.io/forceAt";
    /// Asks for a run even if nothing changed, for people: any new value will do, as in
    /// `kubectl annotate ib/web lapstrake.dev/rebuild="$(date)" --overwrite`.
    /// Echoed to `status.lastHandledRebuild`.
    pub const REBUILD: &str = "lapstrake.dev/rebuild";
    /// On a cache volume: uid of the pod that has it, as long as that pod lives.
    pub const LEASED_TO: &str = "lapstrake.dev/leased-to";
    /// On a cache volume: name of the ImageBuild that used it last.
    pub const LAST_USER: &str = "lapstrake.dev/last-user";
    /// On a cache volume: when it was taken or given back last.
    pub const LAST_USED: &str = "lapstrake.dev/last-used";
    /// On a cache volume: how much the cache took when it was given back last, in bytes.
    pub const USED_BYTES: &str = "lapstrake.dev/used-bytes";
    /// On a cache volume: how long it is kept unused; absent: as long as its owner.
    pub const UNUSED_FOR: &str = "lapstrake.dev/unused-for";
}

/// Labels on the objects that the operator makes.
pub mod label {
    /// Name of the `ImageBuild` (cut to the length of a label's value).
    pub const BUILD: &str = "lapstrake.dev/build";
    /// UID of the `ImageBuild`.
    pub const BUILD_UID: &str = "lapstrake.dev/build-uid";
    /// Id of the run.
    pub const RUN: &str = "lapstrake.dev/run";
    /// Number of the attempt within its run, from 1.
    pub const ATTEMPT: &str = "lapstrake.dev/attempt";
    /// Platform with `-` for `/`, as in `linux-amd64`.
    pub const PLATFORM: &str = "lapstrake.dev/platform";
    /// Cache that a volume is a slot of, and that a pod uses: the name of a shared cache, or of the
    /// ImageBuild whose own it is.
    pub const CACHE: &str = "lapstrake.dev/cache";
    /// Platform of the builders that use the slot, with `-` for `/`; `any` if none was asked for.
    pub const CACHE_PLATFORM: &str = "lapstrake.dev/cache-platform";
    /// Number of the slot within its cache and platform, from 0.
    pub const SLOT: &str = "lapstrake.dev/slot";
    /// The namespace's label that says which Pod Security level is enforced there.
    pub const POD_SECURITY_ENFORCE: &str = "pod-security.kubernetes.io/enforce";
}

/// The field manager of everything that the operator applies.
pub const fn field_manager() -> &'static str {
    "lapstrake-operator"
}
