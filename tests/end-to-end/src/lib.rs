//! The binary `recoup` as users run it: real processes, real sockets, real databases.
//!
//! `tests/kill.rs` ends processes and connections under load and reads from histories, from what the
//! workers wrote down and from what a subscriber received that nothing was lost. `tests/bad_input.rs`
//! sends what must be refused, and `tests/hostile.rs` is what no client should be. `tests/feed.rs`
//! compares what subscribers receive with what all histories tell. `tests/sdk_*.rs` are workers,
//! subscribers and examples of the Rust SDK against servers that are killed or told to stop, and
//! `tests/command_line.rs` is what people type.
//!
//! # Map
//!
//! | module | holds |
//! | --- | --- |
//! | `server` | `recoup serve` as a process |
//! | `process` | processes that end with their test |
//! | `binary` | finding and building the binary and the examples |
//! | `connect` | connections by generated clients |
//! | `raw` | HTTP/2 frames by hand |
//! | `silent` | a client that never reads |
//! | `order` | the workflow that runs under load, and what may become of an order |
//! | `load` | clients that start orders |
//! | `worker` | a worker on the bare protocol |
//! | `workers` | worker processes, killed and started again |
//! | `record` | what the workers write down |
//! | `mishap` | executions that fail in every way there is |
//! | `subscriber` | a reader of the feed that keeps its cursor |
//! | `auditor` | a consumer of a durable subscription |
//! | `fold` | what must be on the feed, from the histories alone |
//! | `invariants` | what must be true when the faults are over |
//! | `refusal` | why a call was refused, as clients read it |

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
