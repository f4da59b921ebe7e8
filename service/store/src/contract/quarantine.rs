//! Executions that do not proceed until an operator releases them; see [`recoup_core::quarantine`].
//!
//! An execution has at most one quarantine row. When the quarantine is released the row stays, and records when
//! and why. The next quarantine replaces it, or retention deletes it. As long as the quarantine is in force, no
//! transition of the execution is committed ([`super::Settled::Quarantined`]), no node is reminded of the
//! execution, and retention leaves it alone.

use recoup_core::id::ExecutionId;
use recoup_core::quarantine::Quarantine;
use recoup_core::time::Timestamp;

use super::FeedRow;
use super::transitions::ROW_BYTES;

/// A quarantine that is about to be written. It changes nothing if the execution already has a quarantine in
/// force or a later one, or does not exist. So a batch may be sent again, and two nodes may report the same
/// broken execution.
#[derive(Clone, Debug, PartialEq)]
pub struct NewQuarantine {
    pub execution: ExecutionId,
    pub quarantine: Quarantine,
    /// The event to write together with the quarantine. If an event with its id exists already, that event is
    /// left unchanged.
    ///
    /// Its feed position is after all earlier events of the execution and before those of all later commits,
    /// whether or not the committing node has loaded it. A quarantine needs this because it takes no place in
    /// the history: a node that has not seen it would not lose a race for a row.
    pub event: FeedRow,
}

impl NewQuarantine {
    /// Roughly how many bytes a store writes for this quarantine.
    pub fn bytes(&self) -> usize {
        ROW_BYTES + self.quarantine.detail.len() + self.event.bytes()
    }
}

/// The latest quarantine of an execution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuarantineRow {
    pub quarantine: Quarantine,
    /// None as long as the quarantine is in force.
    pub released: Option<Released>,
}

impl QuarantineRow {
    pub fn in_force(&self) -> bool {
        self.released.is_none()
    }
}

/// The end of a quarantine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released {
    /// The time of the release, on the store's clock.
    pub at: Timestamp,
    /// The reason that the operator gave.
    pub reason: String,
}

/// The details that an operator gives when releasing an execution.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Release {
    pub reason: String,
    /// Id and digest of the request. If the request that made the latest release is sent again, nothing
    /// changes.
    pub request: Option<(String, u64)>,
}
