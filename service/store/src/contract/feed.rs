//! The failure feed.
//!
//! Each node writes a lane of its own, one commit after the other, with numbers that grow in the order of its
//! commits. A cursor holds one number per lane: the number up to which that lane has been read. So an open
//! transaction on one lane neither hides nor delays the events of another lane.
//!
//! A page is read in one snapshot and merged by number. Numbers come from a hybrid logical clock, which a node
//! advances past every number it loads. So the events of an execution stay in order when the execution moves to
//! another lane.

use async_trait::async_trait;
use bytes::Bytes;
use recoup_core::failure_event::FailureKind;
use recoup_core::id::{ExecutionId, Namespace};
use recoup_core::time::Timestamp;

use super::transitions::ROW_BYTES;
use super::{Named, NodeId, Result};

/// A failure event that is about to be written. The commit assigns its position.
#[derive(Clone, Debug, PartialEq)]
pub struct FeedRow {
    /// [`recoup_core::failure_event::FailureEvent::id`], which is unique.
    pub id: String,
    pub namespace: Namespace,
    pub kind: Named<FailureKind>,
    /// Empty if the event does not belong to an execution.
    pub workflow: String,
    /// Empty if the event does not report an error.
    pub error_type: String,
    pub execution: Option<ExecutionId>,
    pub fingerprint: String,
    pub at: Timestamp,
    pub format: u16,
    pub data: Bytes,
}

impl FeedRow {
    /// Roughly how many bytes a store writes for this event.
    pub fn bytes(&self) -> usize {
        let Self { id, namespace, workflow, error_type, fingerprint, data, .. } = self;
        let texts = id.len() + workflow.len() + error_type.len() + fingerprint.len();
        ROW_BYTES + texts + namespace.as_str().len() + data.len()
    }
}

/// The place of an event on the feed. Positions are ordered by number, then by lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    pub number: i64,
    pub lane: NodeId,
}

/// An event on the feed.
#[derive(Clone, Debug, PartialEq)]
pub struct Positioned {
    pub position: Position,
    pub row: FeedRow,
}

/// How far a reader has read the feed. Clients see it as an opaque base64 text that the store makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The incarnation of the store, which changes when the store is restored from a dump.
    pub incarnation: uuid::Uuid,
    /// Every lane below this one has been read to its end.
    pub floor: NodeId,
    /// One number per lane, ascending by lane. A lane at or above the floor that is missing here is unread.
    pub lanes: Vec<(NodeId, i64)>,
}

/// How much of the feed is read at once. A page ends at the first limit that it reaches, but holds at least one
/// event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageLimit {
    pub events: usize,
    /// The total size of [`FeedRow::data`], in bytes.
    pub bytes: usize,
}

impl PageLimit {
    /// Limits the number of events only, whatever their size.
    pub const fn events(events: usize) -> Self {
        Self { events, bytes: usize::MAX }
    }

    /// How many of the next events fit on a page, given their sizes in order.
    pub fn takes(self, sizes: impl IntoIterator<Item = usize>) -> usize {
        let mut bytes = 0_usize;
        let fits = sizes.into_iter().take(self.events).enumerate().take_while(|(index, size)| {
            bytes = bytes.saturating_add(*size);
            *index == 0 || bytes <= self.bytes
        });
        fits.count()
    }
}

/// One page of the feed.
#[derive(Clone, Debug, PartialEq)]
pub struct FeedPage {
    /// Ascending by position.
    pub events: Vec<Positioned>,
    /// Points after the last of `events`, or after everything visible if `has_more` is false.
    pub cursor: Cursor,
    /// The page ended at its limit, so more events may be there already.
    pub has_more: bool,
    /// The number of events that retention deleted before the reader had read them.
    pub gap: Option<u64>,
}

/// Selects failure events. All conditions must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FailureFilter {
    /// A pattern; see [`recoup_core::id::namespace_matches`].
    pub namespace: String,
    /// Empty selects all workflows.
    pub workflows: Vec<String>,
    /// Empty selects all kinds.
    pub kinds: Vec<FailureKind>,
    /// Patterns of error types, see [`recoup_core::error::type_matches`]. Empty selects all types.
    pub error_types: Vec<String>,
    pub execution: Option<ExecutionId>,
}

/// Reads of the failure feed. Commits write it: see [`super::Transitions`].
#[async_trait]
pub trait Feed {
    /// Reads the events after the cursor, as many as the limit allows, without skipping one.
    async fn read_feed(&self, after: &Cursor, limit: PageLimit) -> Result<FeedPage>;

    /// A cursor before the first event that is still stored.
    async fn feed_start(&self) -> Result<Cursor>;

    /// A cursor after every event that is visible now.
    async fn feed_end(&self) -> Result<Cursor>;

    /// The event with this id, if it is stored.
    async fn failure(&self, id: &str) -> Result<Option<Positioned>>;

    /// Newest first, starting below `before`.
    async fn list_failures(
        &self,
        filter: &FailureFilter,
        before: Option<Position>,
        limit: usize,
    ) -> Result<Vec<Positioned>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_ends_at_the_first_limit_but_one_event_may_exceed_the_byte_limit() {
        let page = |events, bytes, sizes: &[usize]| {
            PageLimit { events, bytes }.takes(sizes.iter().copied())
        };
        assert_eq!(page(2, 100, &[10, 10, 10]), 2);
        assert_eq!(page(9, 20, &[10, 10, 10]), 2, "the limit itself fits");
        assert_eq!(page(9, 19, &[10, 10, 10]), 1);
        assert_eq!(page(9, 5, &[10, 1]), 1, "one at least");
        assert_eq!(page(9, 15, &[10, 10, 1]), 1, "none is skipped");
        assert_eq!(page(0, 100, &[10]), 0);
        assert_eq!(page(9, 100, &[]), 0);
        assert_eq!(page(9, usize::MAX, &[usize::MAX, usize::MAX]), 2);
    }
}
