//! The binary `recoup` as users run it: real processes, real sockets, real databases.
//!
//! `tests/kill.rs` ends processes and connections under load and reads from histories, from what the
//! workers wrote down and from what a subscriber received that nothing was lost. `tests/bad_input.rs`
//! sends what must be refused, and `tests/hostile.rs` is what no client should be. `tests/feed.rs`
//! compares what subscribers receive with what all histories tell. `tests/sdk_*.rs` are workers,
//! subscribers and examples of the Rust SDK against servers that are killed or told to stop, and
//! `tests/command_line.rs` is what people type.

pub mod auditor;
mod binary;
pub mod connect;
pub mod fold;
pub mod invariants;
pub mod load;
pub mod mishap;
pub mod order;
pub mod process;
pub mod raw;
pub mod record;
pub mod refusal;
pub mod server;
pub mod silent;
pub mod subscriber;
pub mod worker;
pub mod workers;
