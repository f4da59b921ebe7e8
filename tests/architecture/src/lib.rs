//! What must never appear in this repository, as checks.
//!
//! Each check is a pure function from what it looks at to its findings, one line each, so that its
//! own tests can show it a bad example. `tests/workspace.rs` applies all of them to this repository.

pub mod graph;
pub mod hygiene;
pub mod links;
pub mod modules;
pub mod reasons;
pub mod sources;
pub mod tree;
