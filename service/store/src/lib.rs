//! The stores, in which Recoup keeps everything that it must not lose. A store only stores; the rules are in
//! `recoup-core`.
//!
//! One conformance suite checks every store against the contract, and random operations compare each store with
//! the model in memory.
//!
//! # Map
//!
//! | module | holds |
//! | --- | --- |
//! | `contract` | the promises of every store: one trait per concern, and the types of their calls |
//! | `memory` | the in-memory store, the plainest one: the model with which the others are compared |
//! | `settle` | the rules for the verdict on a transition, given the row that a store found in its place |
//! | `sqlite` | the embedded store: one database in a folder, one process |
//! | `postgres` | the store that several servers share |
//! | `format` | the stored form of each kind of row, such as a history, and the numbers of the formats |
//! | `cursor` | the cursor of the failure feed as text |
//! | `schema` | which versions of the database schema a binary can run on |
//! | `waiting` | waiting for a store that does not answer yet |
//! | `conformance` | the suite that every store has to pass, and the random comparison |

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod contract;
pub mod cursor;
pub mod format;
pub mod memory;
pub mod postgres;
mod schema;
mod settle;
pub mod sqlite;
mod waiting;

pub use contract::*;
pub use waiting::until_available;
