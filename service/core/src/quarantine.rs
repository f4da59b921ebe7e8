//! Quarantine: the mark of an execution that cannot proceed until an operator has looked at it.
//!
//! Quarantine is not a state of the execution, whose history may be unreadable, but a mark beside it. No
//! node decides about a marked execution. The cause is damage or a defect of the service. An execution
//! whose history only a newer binary can read is not quarantined.

use crate::time::Timestamp;

/// Why an execution is quarantined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QuarantineReason {
    /// A transition is missing from its history.
    HistoryGap,
    /// A transition cannot be decoded, or does not fit the state before it.
    HistoryUnreadable,
    /// The workflow version that the execution follows is missing or cannot be read.
    WorkflowUnreadable,
    /// A decision about it panicked.
    DecisionPanicked,
    /// The store refuses a transition that the node decided, and would refuse it again each time.
    StoreRefused,
    /// A newer binary quarantined the execution for a reason whose name this binary does not know.
    Unknown,
}

impl QuarantineReason {
    /// All reasons for which this binary quarantines an execution.
    pub const ALL: [Self; 5] = [
        Self::HistoryGap,
        Self::HistoryUnreadable,
        Self::WorkflowUnreadable,
        Self::DecisionPanicked,
        Self::StoreRefused,
    ];

    /// The name under which the reason is stored and logged.
    pub fn name(self) -> &'static str {
        match self {
            Self::HistoryGap => "history_gap",
            Self::HistoryUnreadable => "history_unreadable",
            Self::WorkflowUnreadable => "workflow_unreadable",
            Self::DecisionPanicked => "decision_panicked",
            Self::StoreRefused => "store_refused",
            Self::Unknown => "unknown",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.name() == name)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantine {
    pub reason: QuarantineReason,
    /// For an operator: what was found, and where. Contains no NUL and at most [`DETAIL_BYTES_MAX`] bytes.
    pub detail: String,
    pub at: Timestamp,
}

/// Maximum bytes of a quarantine's detail; the rest is cut off.
pub const DETAIL_BYTES_MAX: usize = 4096;

impl Quarantine {
    pub fn new(reason: QuarantineReason, detail: &str, at: Timestamp) -> Self {
        let mut end = detail.len().min(DETAIL_BYTES_MAX);
        while !detail.is_char_boundary(end) {
            end -= 1;
        }
        let detail = detail[..end].replace('\0', "\u{fffd}");
        Self { reason, detail, at }
    }
}

impl std::fmt::Display for Quarantine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.reason.name(), self.detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quarantine_reason_is_found_by_its_name() {
        for reason in QuarantineReason::ALL {
            assert_eq!(QuarantineReason::from_name(reason.name()), Some(reason));
        }
        assert_eq!(QuarantineReason::from_name("bored"), None);
    }

    #[test]
    fn quarantine_detail_is_cut_at_a_character_boundary_and_free_of_nul() {
        let long = "é".repeat(DETAIL_BYTES_MAX);
        let reason = QuarantineReason::StoreRefused;
        let cut = Quarantine::new(reason, &format!("x{long}"), Timestamp::default()).detail;
        assert_eq!(cut.len(), DETAIL_BYTES_MAX - 1);
        assert_eq!(Quarantine::new(reason, "a\0b", Timestamp::default()).detail, "a\u{fffd}b");
    }
}
