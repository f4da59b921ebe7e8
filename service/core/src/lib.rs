//! The rules of Recoup, as pure code: no clock, no randomness, no I/O. Time, ids and random numbers are
//! passed in as arguments, and decisions are returned as data.
//!
//! # Map
//!
//! | module | holds |
//! | --- | --- |
//! | `command` | the commands to an execution, and why one is rejected |
//! | `decide` | from commands and deadlines to events: the table of transitions stands at its top |
//! | `event` | the events that decisions produce, which make up a history |
//! | `evolve` | folding events into the state |
//! | `execution` | the state: tree nodes, open attempts, counters, and the ledger of effects |
//! | `state` | the types that commands, events and the folded state share |
//! | `definition` | a workflow as it was registered, before defaults are resolved |
//! | `plan` | a version in executable form: defaults resolved, expressions compiled, everything checked |
//! | `tree` | the places of the steps of a plan, and the paths that name them |
//! | `path` | the form of step paths, and their segments |
//! | `expression` | CEL: conditions and templates |
//! | `retry` | whether and when a failed attempt is retried |
//! | `error` | the errors of attempts and executions |
//! | `failure_event` | the failure events that a transition publishes on the feed |
//! | `subscription` | the cursors, deliveries and acknowledgements of a durable subscription |
//! | `outcome` | how far an execution has come, or how it ended |
//! | `key` | whether a new execution may take a key that another execution holds |
//! | `quarantine` | why an execution is quarantined |
//! | `payload` | bytes with a content type |
//! | `id` | the identifiers of executions, transitions, namespaces, workflows, steps and items of loops |
//! | `time` | points in time, in microseconds |
//! | `random` | random choices within a decision, from a seed that is passed in as an argument |
//! | `limits` | the limits of everything that could grow, by name |

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
