//! End-to-end tests of the `recoup` binary as users run it, with real processes, sockets and databases.
//!
//! `tests/kill.rs` kills processes and cuts connections under load. Then it compares the histories, the
//! workers' records and the events that a subscriber received, which shows that nothing was lost.
//! `tests/bad_input.rs` sends requests that must be refused, and `tests/hostile.rs` behaves as no client
//! should. `tests/feed.rs` compares what subscribers receive with what all histories require. `tests/sdk_*.rs`
//! run workers, subscribers and examples of the Rust SDK against servers that are killed or told to stop, and
//! `tests/command_line.rs` runs the commands that people type.
//!
//! # Map
//!
//! | module | holds |
//! | --- | --- |
//! | `server` | `recoup serve` as a process |
//! | `process` | processes that end with their test |
//! | `binary` | finding and building the binary and the examples |
//! | `connect` | connections by generated clients |
//! | `raw` | HTTP/2 frames written by hand |
//! | `silent` | a client that never reads |
//! | `order` | the workflow that runs under load, and the fates of its orders |
//! | `load` | clients that start orders |
//! | `worker` | a worker on the bare protocol |
//! | `workers` | worker processes, killed and started again |
//! | `record` | the records that workers keep |
//! | `mishap` | executions that fail in every way there is |
//! | `subscriber` | a reader of the feed that keeps its cursor |
//! | `auditor` | a consumer of a durable subscription |
//! | `fold` | derives the events of the feed from the histories alone |
//! | `invariants` | the checks after the faults |
//! | `page` | pages of the documentation |
//! | `refusal` | the code, reason and fields of a refused call |

pub mod auditor;
mod binary;
pub mod connect;
pub mod fold;
pub mod invariants;
pub mod load;
pub mod mishap;
pub mod order;
pub mod page;
pub mod process;
pub mod raw;
pub mod record;
pub mod refusal;
pub mod server;
pub mod silent;
pub mod subscriber;
pub mod worker;
pub mod workers;
