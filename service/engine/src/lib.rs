//! The engine: executions in memory, decided by `recoup-core`, committed in groups, handed out to
//! workers.
//!
//! [`node`] is the engine without I/O: inputs go in, outputs come out, time is an argument. It is what
//! the simulation runs, several at a time, in virtual time. [`driver`] gives it a clock, a store and
//! channels; [`Engine`] is the handle that the API holds.

pub mod clock;
pub mod driver;
pub mod handle;
pub mod load;
pub mod node;
pub mod options;
mod process_clock;
mod request;
mod task;
pub mod token;
mod transition;
mod unread;

pub use handle::{Engine, Started, Worker, WorkerLink};
pub use load::Remains;
pub use node::io::{Refusal, Snapshot, StartSpec, WorkerMessage};
pub use options::Options;
pub use process_clock::Clock;
pub use task::{HandedTask, TaskContent, Undone};
