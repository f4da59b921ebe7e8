use std::time::Duration;

use async_trait::async_trait;
use recoup_core::id::ExecutionId;
use recoup_core::time::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::PostgresStore;
use super::error::Failure;
use super::session::Session;
use super::value::{self, At};
use crate::contract::{
    Error, Lease, NODES_MAX, NodeFormats, NodeId, Nodes, Renewals, Result, StoreFormats, UNREAD_MAX,
};
use crate::format::{COLUMNS, Formats};

/// Lives begin one after the other, so that a reader of the feed that sees one has seen all before
/// it. Ids come near the clock: lives after a restored backup have ids above those that it lost.
const LOCK_JOINS: &str = "select pg_advisory_xact_lock(hashtext('recoup.node'))";
const LATEST: &str = "select renewed_at from node order by id desc limit 1";
const JOIN: &str = "
    insert into node (id, address, ttl_us, history_format, definition_format,
        failure_event_format, subscription_format, registry_answer_format)
    select greatest(coalesce(max(id), 0) + 1,
            (extract(epoch from clock_timestamp()) * 1000000)::int8),
        $1, $2::int8, formats[1], formats[2], formats[3], formats[4], formats[5]
    from (values ($3::int4[])) as known (formats) left join node on true
    group by formats
    returning id, renewed_at,
        (select coalesce(max(reached_at), to_timestamp(0)) from node)";
const RENEW: &str = "
    update node set ttl_us = $2, renewals = renewals + 1, renewed_at = clock_timestamp(),
        reached_at = greatest(reached_at, $3)
    where id = $1 and closed_at is null
    returning id, renewed_at, greatest(reached_at, (select max(reached_at) from node))";
/// The least that a renewal waits for an answer, however short the lease.
const RENEW_MIN: Duration = Duration::from_secs(1);
/// Changes when the row is of another life of the database, or the server of another timeline.
const TIMELINE: &str = "
    select incarnation || '/' || system_identifier || '/'
        || left(pg_walfile_name(pg_current_wal_lsn()), 8)
    from store";
const OPEN_FORMATS: &str = "
    select history_format, definition_format, failure_event_format, subscription_format,
        registry_answer_format, id, address
    from node where closed_at is null order by id limit $1";
const FINALIZE: &str = "
    update store set
        history_format = greatest(store.history_format, read.history),
        definition_format = greatest(store.definition_format, read.definition),
        failure_event_format = greatest(store.failure_event_format, read.failure_event),
        subscription_format = greatest(store.subscription_format, read.subscription),
        registry_answer_format = greatest(store.registry_answer_format, read.registry_answer)
    from (
        select min(history_format) as history, min(definition_format) as definition,
            min(failure_event_format) as failure_event, min(subscription_format) as subscription,
            min(registry_answer_format) as registry_answer
        from node where closed_at is null) as read";
/// This lock waits for the commits that passed the fence, and holds up those that have not: an update
/// that leaves the key alone would do neither.
const LOCK_ONE: &str = "select id from node where id = $1 and closed_at is null for update";
const LOCK_SILENT: &str = "
    select node.id
    from node
    join unnest($1::int8[], $2::int8[]) as seen (id, renewals)
        on node.id = seen.id and node.renewals = seen.renewals
    where node.closed_at is null
    order by node.id for update of node";
const CLOSE: &str = "
    update node set closed_at = clock_timestamp() where id = any($1) and closed_at is null";
const LIVE: &str = "select from node where id = $1 and closed_at is null for key share";
const OPEN: &str =
    "select id, renewals, ttl_us from node where closed_at is null and id <> $1 order by id";
const ADOPT: &str = "
    update execution set owner = $1
    from (
        select orphan.id from execution as orphan
        where orphan.active
            and orphan.owner = any(array(
                select id from node where closed_at is not null and drained_at is null))
            and orphan.format <= $3
        order by orphan.id
        limit $2
        for update skip locked) as orphan
    where execution.id = orphan.id
    returning execution.id";
/// Goes by the index `execution_newer`, which leaves out the formats that every release reads.
const UNREAD: &str = "
    select count(*) from (
        select from execution
        where active and format > 2 and format > (
            select coalesce(max(history_format), 0) from node where closed_at is null)
        limit $1) as unread";
const DRAIN: &str = "
    update node set drained_at = clock_timestamp()
    where closed_at is not null and drained_at is null
        and not exists (select from execution where active and owner = node.id)";

#[async_trait]
impl Nodes for PostgresStore {
    async fn join(&self, address: &str, ttl: Duration) -> Result<Lease> {
        let mut session = self.inner.leases.take().await?;
        self.inner.incarnation_by(&mut session).await?;
        session.begin().await?;
        session.query(LOCK_JOINS, &[]).await?;
        let latest = session.query(LATEST, &[]).await?;
        let newest = self.formats.numbers().map(i32::from);
        let rows = session.query(JOIN, &[&address, &value::ttl_us(ttl), &&newest[..]]).await?;
        let mut lease = lease(&mut session, &rows[0]).await?;
        if let Some(latest) = latest.first() {
            lease.renewed_before = Some(latest.try_get::<_, At>(0)?.0);
        }
        session.committed().await?;
        self.inner.begin_lane(lease.node);
        Ok(lease)
    }

    async fn renew(&self, node: NodeId, ttl: Duration, reached: Timestamp) -> Result<Lease> {
        let mut session = self.inner.leases.take().await?;
        // So that there is time to ask again, on another connection.
        session.set_patience(
            (ttl / 3).clamp(RENEW_MIN, self.inner.options.answer_timeout.max(RENEW_MIN)),
        );
        self.inner.incarnation_by(&mut session).await?;
        let rows = session.query(RENEW, &[&node.0, &value::ttl_us(ttl), &At(reached)]).await?;
        let row = rows.first().ok_or(Error::LeaseLost)?;
        let lease = lease(&mut session, row).await?;
        self.inner.lane(node).set_clock(lease.now);
        Ok(lease)
    }

    async fn leave(&self, node: NodeId) -> Result<()> {
        let mut session = self.inner.leases.take().await?;
        session.begin().await?;
        session.query(LOCK_ONE, &[&node.0]).await?;
        session.execute(CLOSE, &[&&[node.0][..]]).await?;
        session.committed().await
    }

    async fn leases(&self, node: NodeId, silent: &[Renewals]) -> Result<Vec<Renewals>> {
        if !silent.is_empty() {
            let mut session = self.inner.pool.take().await?;
            session.begin().await?;
            if session.query(LIVE, &[&node.0]).await?.is_empty() {
                return Err(Error::LeaseLost);
            }
            session.committed().await?;

            // Who renews while we wait for the lock keeps the lease: the condition is checked again.
            let mut session = self.inner.pool.take().await?;
            session.begin().await?;
            let ids: Vec<i64> = silent.iter().map(|seen| seen.node.0).collect();
            let counts: Vec<i64> = silent.iter().map(|seen| seen.count.cast_signed()).collect();
            let locked = session.query(LOCK_SILENT, &[&ids, &counts]).await?;
            let locked: Vec<i64> =
                locked.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
            if !locked.is_empty() {
                session.execute(CLOSE, &[&locked]).await?;
            }
            session.committed().await?;
        }
        let mut session = self.inner.pool.take().await?;
        session.begin().await?;
        if session.query(LIVE, &[&node.0]).await?.is_empty() {
            return Err(Error::LeaseLost);
        }
        let open = session.query(OPEN, &[&node.0]).await?;
        session.committed().await?;
        let open = open.iter().map(|row| {
            Ok(Renewals {
                node: NodeId(row.try_get(0)?),
                count: value::unsigned(row.try_get(1)?),
                ttl: Duration::from_micros(value::unsigned(row.try_get(2)?)),
            })
        });
        open.collect()
    }

    async fn adopt(&self, node: NodeId, limit: usize) -> Result<Vec<ExecutionId>> {
        let mut session = self.inner.pool.take().await?;
        session.begin().await?;
        if session.query(LIVE, &[&node.0]).await?.is_empty() {
            return Err(Error::LeaseLost);
        }
        let readable = i32::from(self.formats.history);
        let parameters: [&(dyn ToSql + Sync); 3] = [&node.0, &value::limit(limit), &readable];
        let adopted = session.query(ADOPT, &parameters).await?;
        let mut adopted: Vec<ExecutionId> = adopted
            .iter()
            .map(|row| Ok(ExecutionId(row.try_get::<_, Uuid>(0)?)))
            .collect::<Result<_, Failure>>()?;
        if adopted.len() < limit {
            session.execute(DRAIN, &[]).await?;
        }
        session.committed().await?;
        adopted.sort();
        Ok(adopted)
    }

    async fn unread(&self) -> Result<u64> {
        let most = i64::try_from(UNREAD_MAX).unwrap_or(i64::MAX);
        let mut session = self.inner.pool.take().await?;
        let rows = session.query(UNREAD, &[&most]).await?;
        Ok(value::unsigned(rows[0].try_get(0)?))
    }

    async fn formats(&self) -> Result<StoreFormats> {
        let mut session = self.inner.pool.take().await?;
        session.begin().await?;
        let formats = store_formats(&mut session).await?;
        session.committed().await?;
        Ok(formats)
    }

    async fn finalize(&self) -> Result<StoreFormats> {
        let mut session = self.inner.pool.take().await?;
        session.begin().await?;
        // A node that joined just now would not be among those that are asked.
        session.query(LOCK_JOINS, &[]).await?;
        session.execute(FINALIZE, &[]).await?;
        let formats = store_formats(&mut session).await?;
        session.committed().await?;
        Ok(formats)
    }
}

async fn store_formats(session: &mut Session) -> Result<StoreFormats, Failure> {
    let writable = writable(session).await?;
    let nodes = session.query(OPEN_FORMATS, &[&value::limit(NODES_MAX)]).await?;
    let nodes = nodes.iter().map(|row| {
        let (node, address) = (NodeId(row.try_get(5)?), row.try_get(6)?);
        Ok(NodeFormats { node, address, readable: value::formats(row)? })
    });
    Ok(StoreFormats { writable, nodes: nodes.collect::<Result<_, Failure>>()? })
}

async fn writable(session: &mut Session) -> Result<Formats, Failure> {
    let row = session.query(format!("select {COLUMNS} from store"), &[]).await?;
    value::formats(row.first().ok_or_else(nameless)?)
}

fn nameless() -> Failure {
    Error::Incompatible("the store has lost the row that names it".into()).into()
}

async fn lease(session: &mut Session, row: &Row) -> Result<Lease, Failure> {
    let timeline = session.query(TIMELINE, &[]).await?;
    let timeline = timeline.first().ok_or_else(nameless)?;
    let time = |at: usize| -> Result<Timestamp, Failure> { Ok(row.try_get::<_, At>(at)?.0) };
    Ok(Lease {
        node: NodeId(row.try_get(0)?),
        now: time(1)?,
        reached: time(2)?,
        renewed_before: None,
        timeline: timeline.try_get(0)?,
        writable: writable(session).await?,
    })
}
