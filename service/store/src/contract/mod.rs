//! The contract of a store. Each concern is one trait, and [`Store`] combines them all.
//!
//! The following holds at every moment, including after a crash:
//!
//! - A transition is one row at `(execution, sequence)`. Two writers never both win the same place.
//! - The rows that belong to a transition (index row, request id, failure events, overflow rows) exist if and
//!   only if the transition does.
//! - A batch that is sent again is settled rather than written twice: the store recognises its rows by their
//!   `transition_id`.
//! - A reader of the feed that follows its cursor sees every event, in order per execution, in whatever order
//!   commits interleave.

mod error;
mod executions;
mod feed;
mod name;
mod namespaces;
mod nodes;
mod overflow;
mod quarantine;
mod registry;
mod registry_request;
mod retention;
mod subscriptions;
mod transitions;
mod workflows;

pub use error::*;
pub use executions::*;
pub use feed::*;
pub use name::*;
pub use namespaces::*;
pub use nodes::*;
pub use overflow::*;
pub use quarantine::*;
pub use registry::*;
pub use registry_request::*;
pub use retention::*;
pub use subscriptions::*;
pub use transitions::*;
pub use workflows::*;

/// Everything that a store has to provide.
pub trait Store:
    Transitions + Nodes + Executions + Overflow + Feed + Registry + Retention + Send + Sync + 'static
{
}

impl<T> Store for T where
    T: Transitions
        + Nodes
        + Executions
        + Overflow
        + Feed
        + Registry
        + Retention
        + Send
        + Sync
        + 'static
{
}
