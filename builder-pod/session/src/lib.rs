//! Sessions: what a client lends to its builds.
//!
//! Job: keep the clients that are connected, and call the services that they serve backwards over
//! `Control.Session`: files, secrets, agents, credentials, outputs.
//! Holds: a method that a client did not name is not called; what a client sends stays below the
//! directory that it is for.
//! Never: decides what a build needs.
