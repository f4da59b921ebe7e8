//! The feed: every lane is read in one snapshot, and the lanes are merged by number.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use recoup_core::id::ExecutionId;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::error::Failure;
use super::filtered::Filtered;
use super::value::{self, At};
use super::{Inner, PostgresStore};
use crate::contract::{
    Cursor, Error, FailureFilter, Feed, FeedPage, FeedRow, NodeId, PageLimit, Position, Positioned,
    Result,
};

/// Columns of an event, in the order in which [`positioned`] reads them.
const EVENT: &str = "lane, number, id, namespace, kind, workflow, error_type, execution_id,
    fingerprint, at, format, data";

/// One statement, so one snapshot, of three kinds of rows: every lane at or above the floor with its
/// end (kind 0), runs of removed events behind the cursor (1), the page (2). Where the bytes of a page
/// end is said in SQL, so that what is beyond is not sent: the same as [`PageLimit::takes`]. Its last
/// column says whether anything is.
const READ: &str = "
    with lane as materialized (
        select node.id, node.closed_at is not null as closed, coalesce(reached.number, 0) as number
        from node
        left join unnest($2::int8[], $3::int8[]) as reached (lane, number)
            on reached.lane = node.id
        where node.id >= $1),
    page as (
        select * from (
            select event.*, row_number() over place as place, count(*) over () as found,
                sum(octet_length(event.data)) over place as bytes
            from lane
            cross join lateral (
                select * from feed
                where feed.lane = lane.id and feed.number > lane.number
                order by feed.number limit $4) as event
            window place as (order by event.number, event.lane)) as event
        where place <= $4 and (bytes <= $5 or place = 1))
    select 0 as kind, lane.id as lane,
        coalesce((select max(number) from feed where feed.lane = lane.id), 0) as number,
        null as id, null as namespace, null as kind_name, null as workflow, null as error_type,
        null::uuid as execution_id, null as fingerprint, null::timestamptz as at,
        null::int4 as format, null::bytea as data, lane.closed, 0::int8 as events
    from lane
    union all
    select 1, lane.id, removed.last_number, null, null, null, null, null, null, null, null, null,
        null, lane.closed, removed.events
    from lane
    join feed_removed as removed
        on removed.lane = lane.id and removed.last_number > lane.number
    union all
    select 2, page.lane, page.number, page.id, page.namespace, page.kind, page.workflow,
        page.error_type, page.execution_id, page.fingerprint, page.at, page.format, page.data, null,
        page.found
    from page";
/// Lanes, where each ends, and what is known of its beginning.
const LANES: &str = "
    select id, closed_at is not null, feed_removed_to,
        (select min(number) from feed where lane = node.id),
        (select max(number) from feed where lane = node.id)
    from node";

#[async_trait]
impl Feed for PostgresStore {
    async fn read_feed(&self, after: &Cursor, limit: PageLimit) -> Result<FeedPage> {
        if after.incarnation != self.inner.incarnation().await? {
            return Err(Error::ForeignCursor);
        }
        self.inner.page(after, limit).await
    }

    async fn feed_start(&self) -> Result<Cursor> {
        self.inner
            .cursor_at(|lane| match lane.first {
                // A lane that lost nothing is simply unread.
                _ if lane.removed_to == 0 => 0,
                Some(first) => first - 1,
                None => lane.end,
            })
            .await
    }

    async fn feed_end(&self) -> Result<Cursor> {
        self.inner.cursor_at(|lane| lane.end).await
    }

    async fn failure(&self, id: &str) -> Result<Option<Positioned>> {
        let mut session = self.inner.pool.take().await?;
        let sql = format!("select {EVENT} from feed where id = $1");
        let rows = session.query(sql, &[&id]).await?;
        rows.first().map(|row| Ok(positioned(row, 0)?)).transpose()
    }

    async fn list_failures(
        &self,
        filter: &FailureFilter,
        before: Option<Position>,
        limit: usize,
    ) -> Result<Vec<Positioned>> {
        let exact = filter.namespace.as_str();
        let below = filter.namespace.strip_suffix('*');
        let kinds: Vec<&str> = filter.kinds.iter().map(|kind| value::kind_name(*kind)).collect();
        let execution = filter.execution.map(|execution| execution.0);
        let before = before.map(|before| (before.number, before.lane.0));
        let limit = value::limit(limit);
        // How patterns of types match is a rule of core: here it is said in SQL, and a test holds the
        // two together.
        let all_of_users = filter.error_types.iter().any(|pattern| pattern == "*");
        let types: Vec<&str> = filter
            .error_types
            .iter()
            .filter(|pattern| *pattern != "*")
            .map(|pattern| pattern.strip_suffix(".*").unwrap_or(pattern))
            .collect();

        let mut query = Filtered::new(&format!("select {EVENT} from feed where true"));
        match &below {
            None => query.and("namespace = ?", &exact),
            Some("") => {}
            Some(prefix) => {
                query.and("starts_with(namespace, ?) and length(namespace) > length(?)", prefix);
            }
        }
        if !filter.workflows.is_empty() {
            query.and("workflow = any(?)", &filter.workflows);
        }
        if !kinds.is_empty() {
            query.and("kind = any(?)", &kinds);
        }
        if !filter.error_types.is_empty() {
            let of_users = if all_of_users {
                "or not (error_type = 'recoup' or starts_with(error_type, 'recoup.'))"
            } else {
                ""
            };
            let condition = format!(
                "(exists (select from unnest(?::text[]) as wanted (prefix)
                    where error_type = prefix or starts_with(error_type, prefix || '.')) {of_users})"
            );
            query.and(&condition, &types);
        }
        if let Some(execution) = &execution {
            query.and("execution_id = ?", execution);
        }
        if let Some((number, lane)) = &before {
            query.and_below(["number", "lane"], number, lane);
        }
        let (sql, parameters) = query.ending("order by number desc, lane desc limit ?", &limit);
        let mut session = self.inner.pool.take().await?;
        let rows = session.query(sql, &parameters).await?;
        rows.iter().map(|row| Ok(positioned(row, 0)?)).collect()
    }
}

/// A lane, as of one snapshot.
struct LaneState {
    closed: bool,
    removed_to: i64,
    first: Option<i64>,
    /// The greatest number that was ever visible.
    end: i64,
}

impl Inner {
    async fn cursor_at(&self, reached: impl Fn(&LaneState) -> i64 + Send) -> Result<Cursor> {
        let incarnation = self.incarnation().await?;
        let mut session = self.pool.take().await?;
        let rows = session.query(LANES, &[]).await?;
        drop(session);
        let mut read = BTreeMap::new();
        let mut lanes = BTreeMap::new();
        for row in &rows {
            let lane = NodeId(row.try_get(0)?);
            let removed_to: i64 = row.try_get(2)?;
            let last: Option<i64> = row.try_get(4)?;
            let state = LaneState {
                closed: row.try_get(1)?,
                removed_to,
                first: row.try_get(3)?,
                end: last.unwrap_or(0).max(removed_to),
            };
            read.insert(lane, reached(&state));
            lanes.insert(lane, (state.closed, state.end));
        }
        Ok(cursor(incarnation, NodeId(0), &lanes, &read))
    }

    async fn page(&self, after: &Cursor, limit: PageLimit) -> Result<FeedPage> {
        let (reached_lanes, numbers): (Vec<i64>, Vec<i64>) =
            after.lanes.iter().map(|(lane, number)| (lane.0, *number)).unzip();
        let (wanted, bytes) = (value::limit(limit.events), value::limit(limit.bytes));
        let parameters: [&(dyn ToSql + Sync); 5] =
            [&after.floor.0, &reached_lanes, &numbers, &wanted, &bytes];
        let mut session = self.pool.take().await?;
        let rows = session.query(READ, &parameters).await?;
        drop(session);

        let mut lanes: BTreeMap<NodeId, (bool, i64)> = BTreeMap::new();
        let mut removed = Vec::new();
        let mut events = Vec::new();
        let mut found = 0;
        for row in &rows {
            let lane = NodeId(row.try_get(1)?);
            let number: i64 = row.try_get(2)?;
            match row.try_get::<_, i32>(0)? {
                0 => {
                    let state = lanes.entry(lane).or_insert((false, 0));
                    *state = (row.try_get(13)?, state.1.max(number));
                }
                1 => {
                    let state = lanes.entry(lane).or_insert((false, 0));
                    *state = (row.try_get(13)?, state.1.max(number));
                    removed.push((Position { number, lane }, row.try_get::<_, i64>(14)?));
                }
                _ => {
                    found = row.try_get(14)?;
                    events.push(positioned(row, 1)?);
                }
            }
        }
        events.sort_by_key(|event| event.position);

        // Behind a full page, every lane is read only up to the last event of the page. Runs of removed
        // events count where the reader passes them.
        let last = events.last().map(|event| event.position);
        let count = value::limit(events.len());
        let full = count == wanted || count < found;
        let passed = |position: Position| !full || last.is_some_and(|last| position <= last);
        let mut read: BTreeMap<NodeId, i64> = after.lanes.iter().copied().collect();
        let mut reach = |Position { number, lane }: Position| {
            let reached = read.entry(lane).or_insert(number);
            *reached = number.max(*reached);
        };
        for event in &events {
            reach(event.position);
        }
        let mut gap = 0;
        for (position, count) in removed.into_iter().filter(|(position, _)| passed(*position)) {
            reach(position);
            gap += value::unsigned(count);
        }
        let cursor = cursor(after.incarnation, after.floor, &lanes, &read);
        Ok(FeedPage { events, cursor, has_more: full, gap: (gap > 0).then_some(gap) })
    }
}

/// Moves the floor past the lanes at the bottom that are closed and read to their end. `lanes` are all
/// those from `floor` on. Lives begin one after the other: one that is not in this snapshot is above
/// all that are.
fn cursor(
    incarnation: Uuid,
    floor: NodeId,
    lanes: &BTreeMap<NodeId, (bool, i64)>,
    read: &BTreeMap<NodeId, i64>,
) -> Cursor {
    let unfinished = lanes
        .iter()
        .find(|(lane, (closed, end))| !closed || read.get(lane).copied().unwrap_or(0) < *end);
    let above_all = lanes.last_key_value().map(|(lane, _)| NodeId(lane.0 + 1));
    let floor = unfinished.map(|(lane, _)| *lane).or(above_all).unwrap_or(floor);
    let lanes = read
        .range(floor..)
        .filter(|(lane, number)| **number > 0 && lanes.contains_key(lane))
        .map(|(lane, number)| (*lane, *number))
        .collect();
    Cursor { incarnation, floor, lanes }
}

/// Reads the columns [`EVENT`] from the one at `from` on. In [`READ`] other columns stand before and
/// the same follow.
fn positioned(row: &Row, from: usize) -> Result<Positioned, Failure> {
    let text = |at: usize| -> Result<&str, Failure> { Ok(row.try_get(from + at)?) };
    let position = Position { number: row.try_get(from + 1)?, lane: NodeId(row.try_get(from)?) };
    let execution: Option<Uuid> = row.try_get(from + 7)?;
    let event = FeedRow {
        id: text(2)?.into(),
        namespace: text(3)?.into(),
        kind: value::kind(text(4)?)?,
        workflow: text(5)?.into(),
        error_type: text(6)?.into(),
        execution: execution.map(ExecutionId),
        fingerprint: text(8)?.into(),
        at: row.try_get::<_, At>(from + 9)?.0,
        format: value::format(row.try_get(from + 10)?)?,
        data: Bytes::copy_from_slice(row.try_get(from + 11)?),
    };
    Ok(Positioned { position, row: event })
}
