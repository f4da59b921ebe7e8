//! Reads the feed: all lanes in one snapshot, merged by number.

use std::collections::BTreeMap;

use async_trait::async_trait;
use recoup_core::error::type_matches;
use recoup_core::failure_event::FailureKind;
use recoup_core::id::namespace_matches;
use rusqlite::{Connection, Row, params};
use uuid::Uuid;

use super::error::Failure;
use super::{SqliteStore, value};
use crate::contract::{
    Cursor, Error, FailureFilter, Feed, FeedPage, FeedRow, NodeId, PageLimit, Position, Positioned,
    Result,
};

/// The columns of an event, in the order in which [`positioned`] reads them.
const EVENT: &str = "number, lane, id, namespace, kind, workflow, error_type, execution_id,
    fingerprint, at, format, data";
/// The lanes at or above `?1`, with the greatest number that was ever visible on each.
const LANES: &str = "
    select id, closed_at is not null,
        max(coalesce((select max(number) from feed where lane = node.id), 0),
            coalesce((select max(last_number) from feed_removed where lane = node.id), 0)),
        (select min(number) from feed where lane = node.id),
        exists (select 1 from feed_removed where lane = node.id)
    from node where id >= ?1 order by id";
const REMOVED: &str = "
    select last_number, first_number, events from feed_removed where lane = ?1 and last_number > ?2
    order by last_number";

#[async_trait]
impl Feed for SqliteStore {
    async fn read_feed(&self, after: &Cursor, limit: PageLimit) -> Result<FeedPage> {
        if after.incarnation != self.inner.incarnation {
            return Err(Error::ForeignCursor);
        }
        let after = after.clone();
        self.read(move |connection| page(connection, &after, limit)).await
    }

    async fn feed_start(&self) -> Result<Cursor> {
        let before_first = |lane: &Lane| match lane.first {
            // A lane from which nothing was deleted is simply unread.
            _ if !lane.has_lost => 0,
            Some(first) => first - 1,
            None => lane.end,
        };
        self.cursor_at(before_first).await
    }

    async fn feed_end(&self) -> Result<Cursor> {
        self.cursor_at(|lane| lane.end).await
    }

    async fn failure(&self, id: &str) -> Result<Option<Positioned>> {
        let id = id.to_owned();
        self.read(move |connection| {
            let sql = format!("select {EVENT} from feed where id = ?1");
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query([id])?;
            rows.next()?.map(positioned).transpose()
        })
        .await
    }

    async fn list_failures(
        &self,
        filter: &FailureFilter,
        before: Option<Position>,
        limit: usize,
    ) -> Result<Vec<Positioned>> {
        let filter = filter.clone();
        self.read(move |connection| {
            let of_one = filter.execution.map_or("", |_| "and execution_id = ?3");
            let sql = format!(
                "select {EVENT} from feed
                where number <= ?1 and (number, lane) < (?1, ?2) {of_one}
                order by number desc"
            );
            let (number, lane) =
                before.map_or((i64::MAX, i64::MAX), |before| (before.number, before.lane.0));
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = match &filter.execution {
                Some(execution) => statement.query(params![number, lane, execution.0.as_bytes()]),
                None => statement.query(params![number, lane]),
            }?;
            let mut listed = Vec::new();
            while listed.len() < limit
                && let Some(row) = rows.next()?
            {
                // Core defines how patterns match, so rows are filtered here, before their data is read.
                if takes(&filter, row)? {
                    listed.push(positioned(row)?);
                }
            }
            Ok(listed)
        })
        .await
    }
}

impl SqliteStore {
    async fn cursor_at(&self, reached: impl Fn(&Lane) -> i64 + Send + 'static) -> Result<Cursor> {
        let incarnation = self.inner.incarnation;
        self.read(move |connection| {
            let lanes = lanes(connection, NodeId(0))?;
            let read = lanes.iter().map(|(id, lane)| (*id, reached(lane))).collect();
            Ok(cursor(incarnation, NodeId(1), &lanes, &read))
        })
        .await
    }
}

/// The state of a lane in one snapshot.
struct Lane {
    closed: bool,
    end: i64,
    first: Option<i64>,
    has_lost: bool,
}

fn lanes(connection: &Connection, floor: NodeId) -> Result<BTreeMap<NodeId, Lane>, Failure> {
    let mut statement = connection.prepare_cached(LANES)?;
    let mut rows = statement.query([floor.0])?;
    let mut lanes = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let lane = Lane {
            closed: row.get(1)?,
            end: row.get(2)?,
            first: row.get(3)?,
            has_lost: row.get(4)?,
        };
        lanes.insert(NodeId(row.get(0)?), lane);
    }
    Ok(lanes)
}

fn page(connection: &Connection, after: &Cursor, limit: PageLimit) -> Result<FeedPage, Failure> {
    let lanes = lanes(connection, after.floor)?;
    let mut read: BTreeMap<NodeId, i64> = after.lanes.iter().copied().collect();
    let read_to = |lane: &NodeId| read.get(lane).copied().unwrap_or(0);

    let sql = format!(
        "select {EVENT} from feed where lane = ?1 and number > ?2 order by number limit ?3"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let mut events = Vec::new();
    for (lane, state) in &lanes {
        if state.end > read_to(lane) {
            let mut rows = statement.query([lane.0, read_to(lane), value::limit(limit.events)])?;
            let mut bytes = 0;
            // Events after the first one that exceeds the byte limit cannot be on the page.
            while bytes <= limit.bytes
                && let Some(row) = rows.next()?
            {
                let event = positioned(row)?;
                bytes = event.row.data.len().saturating_add(bytes);
                events.push(event);
            }
        }
    }
    events.sort_by_key(|event| event.position);
    let taken = limit.takes(events.iter().map(|event| event.row.data.len()));
    let full = taken == limit.events || taken < events.len();
    events.truncate(taken);

    // After a full page, every lane counts as read only up to the last event of the page. A run of deleted
    // events counts once the reader passes it.
    let last = events.last().map(|event| event.position);
    let passed = |position: Position| !full || last.is_some_and(|last| position <= last);
    let mut reached: Vec<Position> = events.iter().map(|event| event.position).collect();
    let mut gap = 0;
    let mut statement = connection.prepare_cached(REMOVED)?;
    for (&lane, state) in &lanes {
        let from = read_to(&lane);
        if !state.has_lost || state.end <= from {
            continue;
        }
        let mut rows = statement.query([lane.0, from])?;
        while let Some(row) = rows.next()? {
            let (number, first, count): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            if !passed(Position { number, lane }) {
                break;
            }
            reached.push(Position { number, lane });
            // If the reader is in the middle of a run, only the part after its position counts. That part has
            // at most this many events.
            gap += if first > from { count } else { count.min(number - from) };
        }
    }
    for Position { number, lane } in reached {
        let reached = read.entry(lane).or_insert(number);
        *reached = number.max(*reached);
    }
    let cursor = cursor(after.incarnation, after.floor, &lanes, &read);
    Ok(FeedPage { events, cursor, has_more: full, gap: (gap > 0).then_some(gap.unsigned_abs()) })
}

/// Moves the floor past the lowest lanes that are closed and read to their end. `lanes` holds all lanes from
/// `floor` on. A lane that joins later is above them.
fn cursor(
    incarnation: Uuid,
    floor: NodeId,
    lanes: &BTreeMap<NodeId, Lane>,
    read: &BTreeMap<NodeId, i64>,
) -> Cursor {
    let read_to = |lane: &NodeId| read.get(lane).copied().unwrap_or(0);
    let unfinished = lanes.iter().find(|(id, lane)| !lane.closed || read_to(id) < lane.end);
    let above_all = lanes.last_key_value().map(|(lane, _)| NodeId(lane.0 + 1));
    let floor = unfinished.map(|(lane, _)| *lane).or(above_all).unwrap_or(floor);
    let lanes = read.range(floor..).filter(|(lane, number)| {
        // A reader's claims about lanes that do not exist are ignored.
        **number > 0 && lanes.contains_key(lane)
    });
    let lanes = lanes.map(|(lane, number)| (*lane, *number)).collect();
    Cursor { incarnation, floor, lanes }
}

fn takes(filter: &FailureFilter, row: &Row<'_>) -> Result<bool, Failure> {
    let (namespace, workflow) = (value::text(row, 3)?, value::text(row, 5)?);
    let (kind, error_type) = (value::named::<FailureKind>(row, 4)?, value::text(row, 6)?);
    let types = &filter.error_types;
    Ok(namespace_matches(&filter.namespace, namespace)
        && (filter.workflows.is_empty() || filter.workflows.iter().any(|name| name == workflow))
        && (filter.kinds.is_empty()
            || kind.known().is_some_and(|kind| filter.kinds.contains(&kind)))
        && (types.is_empty() || types.iter().any(|pattern| type_matches(pattern, error_type))))
}

fn positioned(row: &Row<'_>) -> Result<Positioned, Failure> {
    let text = |column| value::text(row, column);
    let position = Position { number: row.get(0)?, lane: NodeId(row.get(1)?) };
    let execution: Option<[u8; 16]> = row.get(7)?;
    let event = FeedRow {
        id: text(2)?.into(),
        namespace: text(3)?.into(),
        kind: value::named(row, 4)?,
        workflow: text(5)?.into(),
        error_type: text(6)?.into(),
        execution: execution.map(|id| recoup_core::id::ExecutionId(Uuid::from_bytes(id))),
        fingerprint: text(8)?.into(),
        at: value::at(row, 9)?,
        format: value::format(row, 10)?,
        data: value::bytes(row, 11)?,
    };
    Ok(Positioned { position, row: event })
}
