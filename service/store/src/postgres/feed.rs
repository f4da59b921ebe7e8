//! Reads the feed: all lanes in one snapshot, merged by number.

use std::collections::BTreeMap;

use async_trait::async_trait;
use recoup_core::id::ExecutionId;
use recoup_core::time::Timestamp;
use sqlx::FromRow;
use uuid::Uuid;

use super::error::Failure;
use super::filtered::Filtered;
use super::value::{self, At};
use super::{Inner, PostgresStore};
use crate::contract::{
    Cursor, Error, FailureFilter, Feed, FeedPage, FeedRow, Name, Named, NodeId, PageLimit,
    Position, Positioned, Result,
};

/// The columns of an event, as [`EventRow`] reads them.
const EVENT: &str = "lane, number, id, namespace, kind, workflow, error_type, execution_id,
    fingerprint, at, format, data";

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
                // A lane from which nothing was deleted is simply unread.
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
        let mut connection = self.inner.connections.take().await?;
        let event = sqlx::query_as!(
            EventRow,
            r#"select lane, number, id, namespace, kind, workflow, error_type, execution_id,
                fingerprint, at as "at: At", format, data
            from feed where id = $1"#,
            id,
        );
        Ok(connection.first(event).await?.map(positioned).transpose()?)
    }

    async fn list_failures(
        &self,
        filter: &FailureFilter,
        before: Option<Position>,
        limit: usize,
    ) -> Result<Vec<Positioned>> {
        let exact = filter.namespace.as_str();
        let below = filter.namespace.strip_suffix('*');
        let kinds: Vec<&str> = filter.kinds.iter().map(|kind| kind.name()).collect();
        // Core defines how type patterns match. This repeats the rule in SQL, and a test checks that both
        // agree.
        let all_of_users = filter.error_types.iter().any(|pattern| pattern == "*");
        let types: Vec<&str> = filter
            .error_types
            .iter()
            .filter(|pattern| *pattern != "*")
            .map(|pattern| pattern.strip_suffix(".*").unwrap_or(pattern))
            .collect();

        let mut query = Filtered::new(&format!("select {EVENT} from feed where true"));
        match &below {
            None => query.and("namespace = ?", exact),
            Some("") => {}
            Some(prefix) => {
                query.and("starts_with(namespace, ?) and length(namespace) > length(?)", prefix);
            }
        }
        if !filter.workflows.is_empty() {
            query.and("workflow = any(?)", filter.workflows.clone());
        }
        if !kinds.is_empty() {
            query.and("kind = any(?)", kinds);
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
            query.and(&condition, types);
        }
        if let Some(execution) = filter.execution {
            query.and("execution_id = ?", execution.0);
        }
        if let Some(before) = before {
            query.and_below(["number", "lane"], (before.number, before.lane.0));
        }
        let query = query.ending("order by number desc, lane desc limit ?", value::limit(limit))?;
        let mut connection = self.inner.connections.take().await?;
        let rows = connection.rows(query).await?;
        rows.iter().map(|row| Ok(positioned(EventRow::from_row(row)?)?)).collect()
    }
}

/// The state of a lane in one snapshot.
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
        let mut connection = self.connections.take().await?;
        // All lanes with their last number, and the first number that is still stored.
        let known = sqlx::query!(
            r#"
            select id, closed_at is not null as "closed!", feed_removed_to as removed_to,
                (select min(number) from feed where lane = node.id) as first,
                (select max(number) from feed where lane = node.id) as last
            from node"#
        );
        let rows = connection.all(known).await?;
        drop(connection);
        let mut read = BTreeMap::new();
        let mut lanes = BTreeMap::new();
        for row in rows {
            let lane = NodeId(row.id);
            let state = LaneState {
                closed: row.closed,
                removed_to: row.removed_to,
                first: row.first,
                end: row.last.unwrap_or(0).max(row.removed_to),
            };
            read.insert(lane, reached(&state));
            lanes.insert(lane, (state.closed, state.end));
        }
        Ok(cursor(incarnation, NodeId(0), &lanes, &read))
    }

    async fn page(&self, after: &Cursor, limit: PageLimit) -> Result<FeedPage> {
        let (reached_lanes, numbers): (Vec<i64>, Vec<i64>) =
            after.lanes.iter().map(|(lane, number)| (lane.0, *number)).unzip();
        let wanted = value::limit(limit.events);
        let mut connection = self.connections.take().await?;
        // One statement, and so one snapshot, returns three kinds of rows: every lane at or above the floor
        // with its end (kind 0), runs of deleted events after the cursor (kind 1), and the events of the page
        // (kind 2). The byte limit of a page is applied in SQL, in the same way as in `PageLimit::takes`, so
        // that no event beyond the page is sent. The last column says whether such events exist.
        let page = sqlx::query!(
            r#"
            with lane as materialized (
                select node.id, node.closed_at is not null as closed,
                    coalesce(reached.number, 0) as number
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
            select 0 as "row_kind!", lane.id as "lane!",
                coalesce((select max(number) from feed where feed.lane = lane.id), 0) as "number!",
                null as "id?", null as "namespace?", null as "kind?", null as "workflow?",
                null as "error_type?", null::uuid as "execution_id?", null as "fingerprint?",
                null::timestamptz as "at?: At", null::int4 as "format?", null::bytea as "data?",
                lane.closed as "closed?", 0::int8 as "events!"
            from lane
            union all
            select 1, lane.id, removed.last_number, null, null, null, null, null, null, null, null,
                null, null, lane.closed, removed.events
            from lane
            join feed_removed as removed
                on removed.lane = lane.id and removed.last_number > lane.number
            union all
            select 2, page.lane, page.number, page.id, page.namespace, page.kind, page.workflow,
                page.error_type, page.execution_id, page.fingerprint, page.at, page.format,
                page.data, null, page.found
            from page"#,
            after.floor.0,
            &reached_lanes[..],
            &numbers[..],
            wanted,
            value::limit(limit.bytes),
        );
        let rows = connection.all(page).await?;
        drop(connection);

        let mut lanes: BTreeMap<NodeId, (bool, i64)> = BTreeMap::new();
        let mut removed = Vec::new();
        let mut events = Vec::new();
        let mut found = 0;
        for row in rows {
            let (lane, number) = (NodeId(row.lane), row.number);
            let closed = row.closed.unwrap_or(false);
            match row.row_kind {
                0 => {
                    let state = lanes.entry(lane).or_insert((false, 0));
                    *state = (closed, state.1.max(number));
                }
                1 => {
                    let state = lanes.entry(lane).or_insert((false, 0));
                    *state = (closed, state.1.max(number));
                    removed.push((Position { number, lane }, row.events));
                }
                _ => {
                    found = row.events;
                    events.push(positioned(EventRow {
                        lane: row.lane,
                        number,
                        id: row.id.unwrap_or_default(),
                        namespace: row.namespace.unwrap_or_default(),
                        kind: row.kind.unwrap_or_default(),
                        workflow: row.workflow.unwrap_or_default(),
                        error_type: row.error_type.unwrap_or_default(),
                        execution_id: row.execution_id,
                        fingerprint: row.fingerprint.unwrap_or_default(),
                        at: row.at.unwrap_or(At(Timestamp::default())),
                        format: row.format.unwrap_or_default(),
                        data: row.data.unwrap_or_default(),
                    })?);
                }
            }
        }
        events.sort_by_key(|event| event.position);

        // After a full page, every lane counts as read only up to the last event of the page. A run of deleted
        // events counts once the reader passes it.
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

/// Moves the floor past the lowest lanes that are closed and read to their end. `lanes` holds all lanes from
/// `floor` on. Lives begin one after the other, so a life that is not in this snapshot has a higher id than all
/// that are.
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

/// The columns of an event of the feed.
#[derive(FromRow)]
struct EventRow {
    lane: i64,
    number: i64,
    id: String,
    namespace: String,
    kind: String,
    workflow: String,
    error_type: String,
    execution_id: Option<Uuid>,
    fingerprint: String,
    at: At,
    format: i32,
    data: Vec<u8>,
}

fn positioned(row: EventRow) -> Result<Positioned, Failure> {
    let position = Position { number: row.number, lane: NodeId(row.lane) };
    let event = FeedRow {
        id: row.id,
        namespace: row.namespace.as_str().into(),
        kind: Named::of(&row.kind),
        workflow: row.workflow,
        error_type: row.error_type,
        execution: row.execution_id.map(ExecutionId),
        fingerprint: row.fingerprint,
        at: row.at.0,
        format: value::format(row.format)?,
        data: row.data.into(),
    };
    Ok(Positioned { position, row: event })
}
