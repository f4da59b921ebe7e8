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
//! | `memory` | the store that keeps them in the plainest way: the model that others are compared with |
//! | `settle` | the verdict on a transition, from what a store found where it is to be written |
//! | `sqlite` | the embedded store: one database in a folder, one process |
//! | `postgres` | the store that several servers share |
//! | `format` | the stored form of histories, definitions, events and subscriptions, with its numbers |
//! | `cursor` | the cursor of the failure feed as text |
//! | `schema` | which versions of a schema a binary runs on |
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
