use std::collections::BTreeMap;

use async_trait::async_trait;
use recoup_core::error::type_matches;
use recoup_core::id::namespace_matches;

use super::MemoryStore;
use super::state::{Lane, State};
use crate::contract::{
    Cursor, Error, FailureFilter, Feed, FeedPage, FeedRow, NodeId, PageLimit, Position, Positioned,
    Result,
};

#[async_trait]
impl Feed for MemoryStore {
    async fn read_feed(&self, after: &Cursor, limit: PageLimit) -> Result<FeedPage> {
        let state = self.lock();
        if after.incarnation != state.incarnation {
            return Err(Error::ForeignCursor);
        }
        let mut read = state.read_up_to(after);
        if self.options.mutant_scalar_cursor {
            let greatest = read.values().copied().max().unwrap_or(0);
            read = state.nodes.keys().map(|lane| (*lane, greatest)).collect();
        }
        Ok(state.page(&read, limit))
    }

    async fn feed_start(&self) -> Result<Cursor> {
        let state = self.lock();
        let before_first = |lane: &Lane| match lane.events.first_key_value() {
            Some((number, _)) => number - 1,
            None => lane.end(),
        };
        // A lane from which nothing was deleted is simply unread.
        let trimmed = state.nodes.iter().filter(|(_, node)| !node.lane.removed.is_empty());
        let read = trimmed.map(|(lane, node)| (*lane, before_first(&node.lane))).collect();
        Ok(state.cursor(&read))
    }

    async fn feed_end(&self) -> Result<Cursor> {
        let state = self.lock();
        let read = state.nodes.iter().map(|(lane, node)| (*lane, node.lane.end())).collect();
        Ok(state.cursor(&read))
    }

    async fn failure(&self, id: &str) -> Result<Option<Positioned>> {
        let state = self.lock();
        let found = state.event_ids.get(id).and_then(|&position| {
            let row = state.nodes.get(&position.lane)?.lane.events.get(&position.number)?;
            Some(Positioned { position, row: row.clone() })
        });
        Ok(found)
    }

    async fn list_failures(
        &self,
        filter: &FailureFilter,
        before: Option<Position>,
        limit: usize,
    ) -> Result<Vec<Positioned>> {
        let events = self.lock().events();
        let listed = events
            .into_iter()
            .rev()
            .filter(|event| before.is_none_or(|before| event.position < before))
            .filter(|event| takes(filter, &event.row));
        Ok(listed.take(limit).collect())
    }
}

/// The number up to which each lane has been read. A lane that is missing is unread.
type Read = BTreeMap<NodeId, i64>;

impl State {
    fn read_up_to(&self, cursor: &Cursor) -> Read {
        let below = self.nodes.range(..cursor.floor);
        let mut read: Read = below.map(|(lane, node)| (*lane, node.lane.end())).collect();
        read.extend(cursor.lanes.iter().copied());
        read
    }

    /// Leaves out the lowest lanes that are closed and read to their end.
    fn cursor(&self, read: &Read) -> Cursor {
        let finished = |lane: &NodeId| {
            let node = &self.nodes[lane];
            node.closed && read.get(lane).copied().unwrap_or(0) >= node.lane.end()
        };
        let last = self.nodes.last_key_value().map_or(0, |(lane, _)| lane.0);
        let unfinished = self.nodes.keys().find(|lane| !finished(lane));
        let floor = unfinished.copied().unwrap_or(NodeId(last + 1));
        let lanes = read.range(floor..).filter(|(_, number)| **number > 0);
        let lanes = lanes.map(|(lane, number)| (*lane, *number)).collect();
        Cursor { incarnation: self.incarnation, floor, lanes }
    }

    fn page(&self, read: &Read, limit: PageLimit) -> FeedPage {
        let after = |lane: &NodeId| read.get(lane).copied().unwrap_or(0);
        let mut unread: Vec<(Position, &FeedRow)> = Vec::new();
        for (&lane, node) in &self.nodes {
            let rows = node.lane.events.range(after(&lane) + 1..).take(limit.events);
            unread.extend(rows.map(|(&number, row)| (Position { number, lane }, row)));
        }
        unread.sort_by_key(|(position, _)| *position);
        let taken = limit.takes(unread.iter().map(|(_, row)| row.data.len()));
        let full = taken == limit.events || taken < unread.len();
        unread.truncate(taken);
        let events: Vec<_> = unread
            .into_iter()
            .map(|(position, row)| Positioned { position, row: row.clone() })
            .collect();

        // After a full page a lane counts as read up to the page's last event, but only as far as it has been
        // written, because an open transaction may still add lower numbers.
        let last = events.last().map(|event| event.position);
        let mut reached = read.clone();
        let mut gap = 0;
        for (&lane, node) in &self.nodes {
            let passed = |number: i64| match last {
                _ if !full => true,
                Some(last) => Position { number, lane } <= last,
                None => false,
            };
            let from = after(&lane) + 1;
            let kept = node.lane.events.range(from..).map(|(number, _)| *number);
            let kept = kept.take_while(|number| passed(*number)).last();
            let removed: Vec<_> =
                node.lane.removed.range(from..).copied().take_while(|n| passed(*n)).collect();
            gap += removed.len() as u64;
            if let Some(number) = kept.max(removed.last().copied()) {
                reached.insert(lane, number);
            }
        }
        FeedPage {
            events,
            cursor: self.cursor(&reached),
            has_more: full,
            gap: (gap > 0).then_some(gap),
        }
    }
}

fn takes(filter: &FailureFilter, row: &FeedRow) -> bool {
    let types = &filter.error_types;
    namespace_matches(&filter.namespace, row.namespace.as_str())
        && (filter.workflows.is_empty() || filter.workflows.contains(&row.workflow))
        && (filter.kinds.is_empty()
            || row.kind.known().is_some_and(|kind| filter.kinds.contains(&kind)))
        && (types.is_empty() || types.iter().any(|pattern| type_matches(pattern, &row.error_type)))
        && filter.execution.is_none_or(|execution| row.execution == Some(execution))
}
