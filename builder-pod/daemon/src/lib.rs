//! The outside of the daemon: its flags, its `buildkitd.toml`, its listeners.
//!
//! Job: be started, found, talked to and stopped exactly as `buildkitd` is.
//! Holds: an option without a meaning here is accepted and told once; an unknown one is an error.
//! Never: knows what a build is.
