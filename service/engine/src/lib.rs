//! The engine: executions in memory, decided by `recoup-core`, committed in groups, handed out to
//! workers.
//!
//! A [`node`] is the engine without I/O; the simulation runs several of them on one store in virtual time.
//! [`Engine`] is the handle that the API holds on a node that a [`driver`] runs.
//!
//! # Map
//!
//! | module | holds |
//! | --- | --- |
//! | `node` | the engine without I/O: inputs in, outputs out, time an argument; its file has a map of its own |
//! | `driver` | the task that gives a node its clock, its store and its channels |
//! | `handle` | [`Engine`], through which the API asks a node, and the links of workers |
//! | `request` | the messages from the handle to the driver |
//! | `load` | from stored rows back to states and plans |
//! | `transition` | from a decision to the rows that make it durable |
//! | `task` | what a worker is told of an attempt |
//! | `token` | task tokens: the identity of an attempt as opaque bytes |
//! | `clock` | the two clocks of a node |
//! | `process_clock` | the monotonic clock of the process |
//! | `options` | the settings of an engine, with their defaults |
//! | `unread` | the log of executions that no live node can read |

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
pub use load::PartialExecution;
pub use node::io::{Refusal, Snapshot, StartSpec, WorkerMessage};
pub use options::Options;
pub use process_clock::Clock;
pub use task::{HandedTask, TaskContent, Undone};
