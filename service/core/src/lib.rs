//! The rules of Recoup, pure: no clock, no randomness, no I/O. Time, ids and randomness arrive as
//! arguments; what is decided leaves as data.
//!
//! [`decide`] turns a command into events, [`evolve`] folds events into the state, [`retry`] decides
//! about an attempt that failed, [`failure_event`] says what of it belongs on the feed.

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
