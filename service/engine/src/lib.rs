//! The engine keeps executions in memory, turns commands into decisions with `recoup-core`, commits the decisions
//! in groups and hands tasks out to workers.
//!
//! A [`node`] is the engine without I/O; the simulation runs two nodes on one store in virtual time. [`Engine`]
//! is the handle through which the API talks to a node that a [`driver`] runs.
//!
//! # Map
//!
//! | module | holds |
//! | --- | --- |
//! | `node` | the engine without I/O: inputs in, outputs out, time as an argument; its file has a map of its own |
//! | `driver` | the tokio task that gives a node its clock, its store and its channels |
//! | `handle` | [`Engine`], through which the API sends requests to a node; also the connections of workers to that node |
//! | `request` | the messages from the handle to the driver |
//! | `load` | from stored rows back to states and plans |
//! | `transition` | from a decision to the rows that make it durable |
//! | `task` | the content of an attempt that a worker receives |
//! | `token` | task tokens: the identity of an attempt as opaque bytes |
//! | `clock` | the two clocks of a node |
//! | `process_clock` | the monotonic clock of the process |
//! | `options` | the settings of an engine, with their defaults |
//! | `unread` | the error that is logged while there are executions that no running node can read |

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
