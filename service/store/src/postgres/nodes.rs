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
use crate::contract::{Error, Lease, NodeId, Nodes, Result};

/// Lives begin one after the other, so that a reader of the feed that sees one has seen all before
/// it. Ids come near the clock: lives after a restored backup have ids above those that it lost.
const LOCK_JOINS: &str = "select pg_advisory_xact_lock(hashtext('recoup.node'))";
const JOIN: &str = "
    insert into node (id, address, expires_at)
    select greatest(coalesce(max(id), 0) + 1,
            (extract(epoch from clock_timestamp()) * 1000000)::int8),
        $1, clock_timestamp() + $2::int8 * interval '1 microsecond'
    from node
    returning id, expires_at - $2::int8 * interval '1 microsecond', expires_at";
const RENEW: &str = "
    update node set expires_at = clock_timestamp() + $2::int8 * interval '1 microsecond'
    where id = $1 and closed_at is null
    returning id, expires_at - $2::int8 * interval '1 microsecond', expires_at";
/// The least that a renewal waits for an answer, however short the lease.
const RENEW_MIN: Duration = Duration::from_secs(1);
/// Changes when the row is of another life of the database, or the server of another timeline.
const TIMELINE: &str = "
    select incarnation || '/' || system_identifier || '/'
        || left(pg_walfile_name(pg_current_wal_lsn()), 8)
    from store";
/// This lock waits for the commits that passed the fence, and holds up those that have not: an update
/// that leaves the key alone would do neither.
const LOCK_ONE: &str = "select id from node where id = $1 and closed_at is null for update";
const LOCK_EXPIRED: &str = "
    select id from node
    where closed_at is null and id <> $1 and expires_at <= clock_timestamp()
    order by id for update";
const CLOSE: &str = "
    update node set closed_at = clock_timestamp() where id = any($1) and closed_at is null";
const LIVE: &str = "select from node where id = $1 and closed_at is null for key share";
const ADOPT: &str = "
    update execution set owner = $1
    from (
        select orphan.id from execution as orphan
        where orphan.active
            and orphan.owner = any(array(
                select id from node where closed_at is not null and drained_at is null))
            and not exists (
                select from history where execution_id = orphan.id and format > $3)
        order by orphan.id
        limit $2
        for update skip locked) as orphan
    where execution.id = orphan.id
    returning execution.id";
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
        let rows = session.query(JOIN, &[&address, &value::ttl_us(ttl)]).await?;
        let lease = lease(&mut session, &rows[0]).await?;
        session.committed().await?;
        self.inner.begin_lane(lease.node);
        Ok(lease)
    }

    async fn renew(&self, node: NodeId, ttl: Duration) -> Result<Lease> {
        let mut session = self.inner.leases.take().await?;
        // So that there is time to ask again, on another connection.
        session.set_patience(
            (ttl / 3).clamp(RENEW_MIN, self.inner.options.answer_timeout.max(RENEW_MIN)),
        );
        self.inner.incarnation_by(&mut session).await?;
        let rows = session.query(RENEW, &[&node.0, &value::ttl_us(ttl)]).await?;
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

    async fn adopt(&self, node: NodeId, limit: usize) -> Result<Vec<ExecutionId>> {
        let mut session = self.inner.pool.take().await?;
        session.begin().await?;
        if session.query(LIVE, &[&node.0]).await?.is_empty() {
            return Err(Error::LeaseLost);
        }
        session.committed().await?;

        // Who renews while we wait for the lock keeps the lease: the condition is checked again.
        let mut session = self.inner.pool.take().await?;
        session.begin().await?;
        let expired = session.query(LOCK_EXPIRED, &[&node.0]).await?;
        let expired: Vec<i64> =
            expired.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
        if !expired.is_empty() {
            session.execute(CLOSE, &[&expired]).await?;
        }
        session.committed().await?;

        let mut session = self.inner.pool.take().await?;
        session.begin().await?;
        if session.query(LIVE, &[&node.0]).await?.is_empty() {
            return Err(Error::LeaseLost);
        }
        let readable = i32::from(crate::format::CURRENT);
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
}

async fn lease(session: &mut Session, row: &Row) -> Result<Lease, Failure> {
    let timeline = session.query(TIMELINE, &[]).await?;
    let timeline = timeline.first().ok_or_else(|| {
        Failure::Store(Error::Incompatible("the store has lost the row that names it".into()))
    })?;
    let time = |at: usize| -> Result<Timestamp, Failure> { Ok(row.try_get::<_, At>(at)?.0) };
    Ok(Lease {
        node: NodeId(row.try_get(0)?),
        now: time(1)?,
        expires_at: time(2)?,
        timeline: timeline.try_get(0)?,
    })
}
