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
    /// The namespace's label that says which Pod Security level is enforced there.
    pub const POD_SECURITY_ENFORCE: &str = "pod-security.kubernetes.io/enforce";
}

/// The field manager of everything that the operator applies.
pub const fn field_manager() -> &'static str {
    "lapstrake-operator"
}
