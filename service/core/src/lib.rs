//! The rules of Recoup, as pure code: no clock, no randomness, no I/O. Time, ids and random numbers are
//! passed in as arguments, and decisions are returned as data.
//!
//! # Map
//!
//! | module | holds |
//! | --- | --- |
//! | `command` | what may be asked of an execution, and why it is rejected |
//! | `decide` | commands and deadlines into events: the table of transitions stands at its top |
//! | `event` | what has been decided: the contents of a history |
//! | `evolve` | folding events into the state |
//! | `execution` | the state: nodes, open attempts, counters, and the ledger of effects |
//! | `state` | the states that commands, events and the folded state name |
//! | `definition` | a workflow as it was registered, before defaults are resolved |
//! | `plan` | a version made executable: defaults resolved, expressions compiled, everything checked |
//! | `tree` | where the steps of a plan stand, and how paths name them |
//! | `path` | a step path taken apart |
//! | `expression` | CEL: conditions and templates |
//! | `retry` | whether and when a failed attempt is tried again |
//! | `error` | the errors of attempts and executions |
//! | `failure_event` | which events of a transition belong on the failure feed |
//! | `subscription` | the cursor, the deliveries and the acknowledgements of a durable subscription |
//! | `outcome` | the result of an execution that has ended |
//! | `key` | whether an execution may be started under a key that another one holds |
//! | `quarantine` | why an execution is quarantined |
//! | `payload` | bytes with a content type |
//! | `id` | the identifiers: executions, namespaces, workflows, steps, nodes |
//! | `time` | points in time, in microseconds |
//! | `random` | choices within a decision, from a seed that is an argument |
//! | `limits` | the limits of everything, by name |

#![allow(
    clippy::result_large_err,
    reason = "a step's error is a value as its output is, and made rarely"
)]

pub mod command;
pub mod decide;
pub mod definition;
pub mod error;
pub mod event;
pub mod evolve;
pub mod execution;
pub mod expression;
pub mod failure_event;
pub mod id;
pub mod key;
pub mod limits;
pub mod outcome;
pub mod path;
pub mod payload;
pub mod plan;
pub mod quarantine;
pub mod random;
pub mod retry;
pub mod state;
pub mod subscription;
pub mod time;
pub mod tree;
