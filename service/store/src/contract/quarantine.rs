//! Executions that nobody may go on with until a person has looked; see
//! [`recoup_core::quarantine`].
//!
//! An execution has at most one row, which stays when it is released: it says who let it go and why,
//! and is taken by the next quarantine or by retention. As long as it is in force, no transition of
//! the execution is committed ([`super::Settled::Quarantined`]), no node is reminded of it, and
//! retention leaves it alone.

use recoup_core::id::ExecutionId;
use recoup_core::quarantine::Quarantine;
use recoup_core::time::Timestamp;

use super::FeedRow;
use super::transitions::ROW_BYTES;

/// A quarantine on its way to the store. One that finds another in force, a later one, or no such
/// execution, changes nothing; so a batch may be sent again, and two nodes may find the same.
#[derive(Clone, Debug, PartialEq)]
pub struct NewQuarantine {
    pub execution: ExecutionId,
    pub quarantine: Quarantine,
    /// Written if the quarantine is. One whose id is there already is left as it is.
    ///
    /// Its feed position is behind all earlier events of the execution, and before those of all later
    /// commits, whether their nodes have loaded it or not: it takes no place in the history, so nobody
    /// loses one who has not seen it.
    pub event: FeedRow,
}

impl NewQuarantine {
    /// About how much a store writes for it.
    pub fn bytes(&self) -> usize {
        ROW_BYTES + self.quarantine.detail.len() + self.event.bytes()
    }
}

/// The last quarantine of an execution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuarantineRow {
    pub quarantine: Quarantine,
    /// None as long as it is in force.
    pub released: Option<Released>,
}

impl QuarantineRow {
    pub fn in_force(&self) -> bool {
        self.released.is_none()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released {
    /// The store's clock.
    pub at: Timestamp,
    /// In the words of who released it.
    pub reason: String,
}

/// What an operator says when he releases an execution.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Release {
    pub reason: String,
    /// Id and digest of the request. The one that released it last, sent again, changes nothing.
    pub request: Option<(String, u64)>,
}
