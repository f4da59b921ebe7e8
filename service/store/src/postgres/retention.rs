use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use recoup_core::time::Timestamp;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::error::Failure;
use super::partition::{self, Range};
use super::value::{self, At};
use super::{Inner, PostgresStore};
use crate::contract::{Expired, Result, Retention};

/// Of rows whose namespace does not exist: as long as `default` keeps them at first.
const RETENTION_DEFAULT_US: i64 = 30 * 24 * 3600 * 1_000_000;

/// How long an answer may take: where little is due, much may be looked through.
const PATIENCE: Duration = Duration::from_secs(600);

/// Ended longer ago than its namespace keeps it. Namespaces are those that have ended executions, found
/// by one look into the index for each: what is not due yet is not looked at. Ages are compared, for the
/// sum of a time and a long retention need not be a time; that of at most 5,000 years, the one that the
/// index goes by, is. The rows are locked, so that what is deleted is what was found; those that another
/// has are left to him.
const DUE_EXECUTIONS: &str = "
    with recursive present (name) as (
        select min(namespace) from execution where not active and compensation <> 'PARKED'
        union all
        select (
            select min(namespace) from execution
            where not active and compensation <> 'PARKED' and namespace > present.name)
        from present where present.name is not null)
    select due.id
    from present
    left join namespace on namespace.name = present.name
    cross join lateral (
        select execution.id
        from execution
        where not execution.active and execution.compensation <> 'PARKED'
            and execution.namespace = present.name
            and execution.ended_at < $3::timestamptz - interval '1 microsecond'
                * least(coalesce(namespace.retention_us, $2::int8), 157680000000000000)
            and extract(epoch from $3::timestamptz - execution.ended_at) * 1000000
                > coalesce(namespace.retention_us, $2::int8)
            and not exists (
                select from quarantine where execution_id = execution.id and released_at is null)
        order by execution.ended_at limit $1
        for update of execution skip locked) as due
    limit $1";
const DELETE_QUARANTINES: &str = "delete from quarantine where execution_id = any($1)";
const DELETE_KEYS: &str = "delete from execution_key where execution_id = any($1)";
const DELETE_OVERFLOW: &str = "delete from overflow_task where execution_id = any($1)";
const DELETE_EXECUTIONS: &str = "delete from execution where id = any($1) returning id";
const DELETE_HISTORIES: &str = "delete from history where execution_id = any($1)";
const DEFER_HISTORIES: &str = "
    insert into history_range as there (partition, expired_executions)
    select * from unnest($1::text[], $2::int8[]) as gone (partition, expired_executions)
    order by partition
    on conflict (partition) do update
        set expired_executions = there.expired_executions + excluded.expired_executions";

/// Only those are looked at that are older than the shortest time that any namespace keeps them.
const DUE_EVENTS: &str = "
    select feed.lane, feed.number
    from feed
    left join namespace on namespace.name = feed.namespace
    where feed.at < $3 and extract(epoch from $4::timestamptz - feed.at) * 1000000
        > coalesce(namespace.retention_us, $2::int8)
    order by feed.at limit $1";
const SHORTEST_RETENTION: &str = "
    select least(min(retention_us), $1::int8) from namespace";
const DELETE_EVENTS: &str = "
    delete from feed using unnest($1::int8[], $2::int8[]) as due (lane, number)
    where feed.lane = due.lane and feed.number = due.number
    returning feed.lane, feed.number";
/// A run ends at the next event that is kept.
const RECORD_RUNS: &str = "
    insert into feed_removed (lane, last_number, first_number, events)
    select lane, max(number), min(number), count(*)
    from (
        select gone.lane, gone.number, (
            select min(feed.number) from feed
            where feed.lane = gone.lane and feed.number > gone.number) as next
        from unnest($1::int8[], $2::int8[]) as gone (lane, number)) as gone
    group by lane, next";
const RECORD_LANES: &str = "
    update node set feed_removed_to = greatest(feed_removed_to, gone.number)
    from (
        select lane, max(number) as number
        from unnest($1::int8[], $2::int8[]) as gone (lane, number) group by lane) as gone
    where node.id = gone.lane";

const DELETE_REGISTRY_REQUESTS: &str = "
    delete from registry_request
    using (
        select namespace, request_id from registry_request
        where created_at <= $2::timestamptz - interval '1 day'
        order by created_at limit $1
        for update skip locked) as due
    where registry_request.namespace = due.namespace
        and registry_request.request_id = due.request_id";
const REGISTRY_REQUEST_DUE: &str = "
    select from registry_request where created_at <= $1::timestamptz - interval '1 day' limit 1";

const DELETE_REQUESTS: &str = "
    delete from start_request
    using (
        select namespace, request_id from start_request
        where created_at <= $2::timestamptz - interval '1 day'
        order by created_at limit $1
        for update skip locked) as due
    where start_request.namespace = due.namespace and start_request.request_id = due.request_id";
const REQUEST_DUE: &str = "
    select from start_request where created_at <= $1::timestamptz - interval '1 day' limit 1";

const PAUSED: &str = "select from store where retention_paused_at is not null";
const PAUSE: &str = "
    update store set retention_paused_at = clock_timestamp() where retention_paused_at is null";
const LOCK_PAUSED: &str = "
    select retention_paused_at from store where retention_paused_at is not null for update";
const RESUME: &str = "
    update store set retention_paused_at = null where retention_paused_at is not null";

#[async_trait]
impl Retention for PostgresStore {
    async fn expire(&self, now: Timestamp, limit: usize) -> Result<Expired> {
        let inner = &self.inner;
        inner.make_partitions().await?;
        let mut session = inner.pool.take().await?;
        let now = now.min(partition::now(&mut session).await?);
        let paused = !session.query(PAUSED, &[]).await?.is_empty();
        drop(session);
        let mut expired = Expired { paused, ..Expired::default() };
        if paused {
            return Ok(expired);
        }
        inner.expire_executions(now, limit, &mut expired).await?;
        inner.expire_events(now, limit, &mut expired).await?;
        inner.expire_requests(now, limit, &mut expired).await?;
        expired.more |= inner.replace_range().await?;
        Ok(expired)
    }

    async fn pause_retention(&self) -> Result<()> {
        let mut session = self.inner.pool.take().await?;
        session.execute(PAUSE, &[]).await?;
        Ok(())
    }

    async fn resume_retention(&self) -> Result<Option<Timestamp>> {
        let mut session = self.inner.pool.take().await?;
        session.begin().await?;
        let paused = session.query(LOCK_PAUSED, &[]).await?;
        session.execute(RESUME, &[]).await?;
        session.committed().await?;
        let paused_at = paused.first().map(|row| Ok::<_, Failure>(row.try_get::<_, At>(0)?.0));
        Ok(paused_at.transpose()?)
    }
}

impl Inner {
    async fn expire_executions(
        &self,
        now: Timestamp,
        limit: usize,
        expired: &mut Expired,
    ) -> Result<()> {
        let mut session = self.pool.take().await?;
        session.set_patience(PATIENCE);
        let ranges = partition::ranges(&mut session).await?;
        let width = self.options.partition_width;
        let old: Vec<Range> = ranges.into_iter().filter(|range| range.is_old(now, width)).collect();

        session.begin().await?;
        let parameters: [&(dyn ToSql + Sync); 3] =
            [&value::limit(limit).saturating_add(1), &RETENTION_DEFAULT_US, &At(now)];
        let due = session.query(DUE_EXECUTIONS, &parameters).await?;
        expired.more |= due.len() > limit;
        let due: Vec<Uuid> =
            due.iter().take(limit).map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
        if due.is_empty() {
            return session.committed().await;
        }
        session.execute(DELETE_QUARANTINES, &[&due]).await?;
        session.execute(DELETE_KEYS, &[&due]).await?;
        session.execute(DELETE_OVERFLOW, &[&due]).await?;
        let gone = session.query(DELETE_EXECUTIONS, &[&due]).await?;
        let gone: Vec<Uuid> = gone.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
        let mut deferred: HashMap<&str, i64> = HashMap::new();
        let mut deleted = Vec::new();
        for &id in &gone {
            match old.iter().find(|range| range.holds(id)) {
                Some(range) => *deferred.entry(&range.name).or_insert(0) += 1,
                None => deleted.push(id),
            }
        }
        session.execute(DELETE_HISTORIES, &[&deleted]).await?;
        let (names, counts): (Vec<&str>, Vec<i64>) = deferred.into_iter().unzip();
        session.execute(DEFER_HISTORIES, &[&names, &counts]).await?;
        session.committed().await?;
        expired.executions = gone.len() as u64;
        Ok(())
    }

    async fn expire_events(
        &self,
        now: Timestamp,
        limit: usize,
        expired: &mut Expired,
    ) -> Result<()> {
        let mut session = self.pool.take().await?;
        session.set_patience(PATIENCE);
        let shortest = session.query(SHORTEST_RETENTION, &[&RETENTION_DEFAULT_US]).await?;
        let shortest = Duration::from_micros(value::unsigned(shortest[0].try_get(0)?));
        let oldest_kept = now - shortest;
        session.begin().await?;
        let parameters: [&(dyn ToSql + Sync); 4] = [
            &value::limit(limit).saturating_add(1),
            &RETENTION_DEFAULT_US,
            &At(oldest_kept),
            &At(now),
        ];
        let due = session.query(DUE_EVENTS, &parameters).await?;
        expired.more |= due.len() > limit;
        let pairs = |rows: &[tokio_postgres::Row]| -> Result<(Vec<i64>, Vec<i64>), Failure> {
            let mut columns = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
            for row in rows {
                columns.0.push(row.try_get(0)?);
                columns.1.push(row.try_get(1)?);
            }
            Ok(columns)
        };
        let (lanes, numbers) = pairs(&due[..due.len().min(limit)])?;
        if !lanes.is_empty() {
            let gone = session.query(DELETE_EVENTS, &[&lanes, &numbers]).await?;
            let (lanes, numbers) = pairs(&gone)?;
            session.execute(RECORD_RUNS, &[&lanes, &numbers]).await?;
            session.execute(RECORD_LANES, &[&lanes, &numbers]).await?;
            expired.events = gone.len() as u64;
        }
        session.committed().await
    }

    async fn expire_requests(
        &self,
        now: Timestamp,
        limit: usize,
        expired: &mut Expired,
    ) -> Result<()> {
        let mut session = self.pool.take().await?;
        session.set_patience(PATIENCE);
        expired.start_requests =
            session.execute(DELETE_REQUESTS, &[&value::limit(limit), &At(now)]).await?;
        if expired.start_requests >= limit as u64 {
            expired.more |= !session.query(REQUEST_DUE, &[&At(now)]).await?.is_empty();
        }
        expired.registry_requests =
            session.execute(DELETE_REGISTRY_REQUESTS, &[&value::limit(limit), &At(now)]).await?;
        if expired.registry_requests >= limit as u64 {
            expired.more |= !session.query(REGISTRY_REQUEST_DUE, &[&At(now)]).await?.is_empty();
        }
        Ok(())
    }
}
