//! The failure feed.
//!
//! Every node writes a lane of its own, one commit after the other, with numbers that grow in the
//! order of its commits. A cursor holds, for every lane, the number up to which it has read, so an
//! open transaction on one lane neither hides nor holds up another. A page is read in one snapshot
//! and merged by number; numbers are taken from a clock that each node sets forward past whatever it
//! loads (a hybrid logical clock), so an execution that changes lanes never overtakes itself.

use async_trait::async_trait;
use bytes::Bytes;
use recoup_core::failure_event::FailureKind;
use recoup_core::id::{ExecutionId, Namespace};
use recoup_core::time::Timestamp;

use super::transitions::ROW_BYTES;
use super::{Named, NodeId, Result};

/// A failure event on its way to the feed; its position is given by the commit.
#[derive(Clone, Debug, PartialEq)]
pub struct FeedRow {
    /// [`recoup_core::failure_event::FailureEvent::id`]: unique.
    pub id: String,
    pub namespace: Namespace,
    pub kind: Named<FailureKind>,
    /// Empty for events of no execution.
    pub workflow: String,
    /// Empty if there is no error.
    pub error_type: String,
    pub execution: Option<ExecutionId>,
    pub fingerprint: String,
    pub at: Timestamp,
    pub format: u16,
    pub data: Bytes,
}

impl FeedRow {
    /// About how much a store writes for it.
    pub fn bytes(&self) -> usize {
        let Self { id, namespace, workflow, error_type, fingerprint, data, .. } = self;
        let texts = id.len() + workflow.len() + error_type.len() + fingerprint.len();
        ROW_BYTES + texts + namespace.as_str().len() + data.len()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    pub number: i64,
    pub lane: NodeId,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Positioned {
    pub position: Position,
    pub row: FeedRow,
}

/// Up to where a reader has read; opaque to clients (base64, made by the store).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Of the store: changes with a restored dump.
    pub incarnation: uuid::Uuid,
    /// All lanes below are read to their end.
    pub floor: NodeId,
    /// Ascending by lane; a lane at or above the floor that is missing is unread.
    pub lanes: Vec<(NodeId, i64)>,
}

/// How much of the feed is read at once: whatever is reached first, but one event at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageLimit {
    pub events: usize,
    /// Of [`FeedRow::data`].
    pub bytes: usize,
}

impl PageLimit {
    /// So many events, however large.
    pub const fn events(events: usize) -> Self {
        Self { events, bytes: usize::MAX }
    }

    /// How many of these events make a page, given their sizes in order.
    pub fn takes(self, sizes: impl IntoIterator<Item = usize>) -> usize {
        let mut bytes = 0_usize;
        let fits = sizes.into_iter().take(self.events).enumerate().take_while(|(index, size)| {
            bytes = bytes.saturating_add(*size);
            *index == 0 || bytes <= self.bytes
        });
        fits.count()
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct FeedPage {
    /// Ascending by position.
    pub events: Vec<Positioned>,
    /// Behind the last of `events`; behind everything visible unless `has_more`.
    pub cursor: Cursor,
    /// The page ended at its limit: more may be there already.
    pub has_more: bool,
    /// Retention took events that the reader had not read: this many.
    pub gap: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct FailureFilter {
    /// Pattern: see [`recoup_core::id::namespace_matches`].
    pub namespace: String,
    /// Empty is all.
    pub workflows: Vec<String>,
    /// Empty is all.
    pub kinds: Vec<FailureKind>,
    /// Type patterns, see [`recoup_core::error::type_matches`]; empty is all.
    pub error_types: Vec<String>,
    pub execution: Option<ExecutionId>,
}

#[async_trait]
pub trait Feed {
    /// What follows the cursor, as far as the limit allows, none skipped.
    async fn read_feed(&self, after: &Cursor, limit: PageLimit) -> Result<FeedPage>;

    /// Before the first event that is kept.
    async fn feed_start(&self) -> Result<Cursor>;

    /// Behind every event that is visible now.
    async fn feed_end(&self) -> Result<Cursor>;

    async fn failure(&self, id: &str) -> Result<Option<Positioned>>;

    /// Newest first, below `before`.
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
    fn a_page_ends_at_whichever_limit_comes_first_and_has_one_event_at_least() {
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
