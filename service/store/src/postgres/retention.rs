use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use recoup_core::time::Timestamp;

use super::partition::{self, Range};
use super::value::{self, At, RETENTION_DEFAULT_US};
use super::{Inner, PostgresStore};
use crate::contract::{Expired, REQUEST_KEPT, Result, Retention};

#[async_trait]
impl Retention for PostgresStore {
    async fn expire(&self, now: Timestamp, limit: usize) -> Result<Expired> {
        let inner = &self.inner;
        inner.make_partitions().await?;
        let mut connection = inner.retention.take().await?;
        let now = now.min(partition::now(&mut connection).await?);
        let paused = sqlx::query_scalar!(
            r#"select true as "paused!" from store where retention_paused_at is not null"#
        );
        let paused = connection.first(paused).await?.is_some();
        drop(connection);
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
        let mut connection = self.inner.connections.take().await?;
        let pause = sqlx::query!(
            "update store set retention_paused_at = clock_timestamp()
            where retention_paused_at is null"
        );
        connection.execute(pause).await?;
        Ok(())
    }

    async fn resume_retention(&self) -> Result<Option<Timestamp>> {
        let mut connection = self.inner.connections.take().await?;
        connection.begin().await?;
        let paused = sqlx::query_scalar!(
            r#"select retention_paused_at as "at!: At" from store
            where retention_paused_at is not null for update"#
        );
        let paused = connection.first(paused).await?;
        let resume = sqlx::query!(
            "update store set retention_paused_at = null where retention_paused_at is not null"
        );
        connection.execute(resume).await?;
        connection.committed().await?;
        Ok(paused.map(|at| at.0))
    }
}

impl Inner {
    async fn expire_executions(
        &self,
        now: Timestamp,
        limit: usize,
        expired: &mut Expired,
    ) -> Result<()> {
        let mut connection = self.retention.take().await?;
        let ranges = partition::ranges(&mut connection).await?;
        let width = self.options.partition_width;
        let old: Vec<Range> = ranges.into_iter().filter(|range| range.is_old(now, width)).collect();

        connection.begin().await?;
        // Finds executions that ended longer ago than the retention of their namespace. The namespaces are
        // those that have ended executions; each is found with one lookup in the index, so executions that are
        // not due yet are not read. Executions with a state that only a newer binary knows stay, because work
        // may remain for them.
        //
        // The comparison is between ages, because the sum of a time and a long retention may not be a valid
        // time. The condition that uses the index caps retention at 5,000 years, for which the difference is
        // valid. The rows are locked, so that exactly what was found is deleted. Rows that another transaction
        // has locked are left to it.
        let due = sqlx::query_scalar!(
            r#"
            with recursive present (name) as (
                select min(namespace) from execution where not active and compensation <> 'PARKED'
                union all
                select (
                    select min(namespace) from execution
                    where not active and compensation <> 'PARKED' and namespace > present.name)
                from present where present.name is not null)
            select due.id as "id!"
            from present
            left join namespace on namespace.name = present.name
            cross join lateral (
                select execution.id
                from execution
                where not execution.active and execution.compensation <> 'PARKED'
                    and execution.compensation in ('NONE', 'PENDING', 'DONE')
                    and execution.state in ('SUCCEEDED', 'WARNING', 'FAILED', 'TIMED_OUT',
                        'CANCELLED', 'TERMINATED')
                    and execution.namespace = present.name
                    and execution.ended_at < $3::timestamptz - interval '1 microsecond'
                        * least(coalesce(namespace.retention_us, $2::int8), 157680000000000000)
                    and extract(epoch from $3::timestamptz - execution.ended_at) * 1000000
                        > coalesce(namespace.retention_us, $2::int8)
                    and not exists (
                        select from quarantine where execution_id = execution.id and released_at is null)
                order by execution.ended_at limit $1
                for update of execution skip locked) as due
            limit $1"#,
            value::limit(limit).saturating_add(1),
            RETENTION_DEFAULT_US,
            At(now) as _,
        );
        let mut due = connection.all(due).await?;
        expired.more |= due.len() > limit;
        due.truncate(limit);
        if due.is_empty() {
            return connection.committed().await;
        }
        let quarantines =
            sqlx::query!("delete from quarantine where execution_id = any($1)", &due[..]);
        connection.execute(quarantines).await?;
        let keys = sqlx::query!("delete from execution_key where execution_id = any($1)", &due[..]);
        connection.execute(keys).await?;
        let tasks =
            sqlx::query!("delete from overflow_task where execution_id = any($1)", &due[..]);
        connection.execute(tasks).await?;
        let gone =
            sqlx::query_scalar!("delete from execution where id = any($1) returning id", &due[..]);
        let gone = connection.all(gone).await?;
        let mut deferred: HashMap<&str, i64> = HashMap::new();
        let mut deleted = Vec::new();
        for &id in &gone {
            match old.iter().find(|range| range.holds(id)) {
                Some(range) => *deferred.entry(&range.name).or_insert(0) += 1,
                None => deleted.push(id),
            }
        }
        let histories =
            sqlx::query!("delete from history where execution_id = any($1)", &deleted[..]);
        connection.execute(histories).await?;
        let (names, counts): (Vec<&str>, Vec<i64>) = deferred.into_iter().unzip();
        let defer = sqlx::query!(
            "insert into history_range as there (partition, expired_executions)
            select * from unnest($1::text[], $2::int8[]) as gone (partition, expired_executions)
            order by partition
            on conflict (partition) do update
                set expired_executions = there.expired_executions + excluded.expired_executions",
            &names[..] as _,
            &counts[..],
        );
        connection.execute(defer).await?;
        connection.committed().await?;
        expired.executions = gone.len() as u64;
        Ok(())
    }

    async fn expire_events(
        &self,
        now: Timestamp,
        limit: usize,
        expired: &mut Expired,
    ) -> Result<()> {
        let mut connection = self.retention.take().await?;
        let shortest = sqlx::query_scalar!(
            r#"select least(min(retention_us), $1::int8) as "shortest!" from namespace"#,
            RETENTION_DEFAULT_US,
        );
        let shortest = Duration::from_micros(value::unsigned(connection.one(shortest).await?));
        let oldest_kept = now - shortest;
        connection.begin().await?;
        // Reads only events that are older than the shortest retention of any namespace.
        let due = sqlx::query!(
            "select feed.lane, feed.number
            from feed
            left join namespace on namespace.name = feed.namespace
            where feed.at < $3 and extract(epoch from $4::timestamptz - feed.at) * 1000000
                > coalesce(namespace.retention_us, $2::int8)
            order by feed.at limit $1",
            value::limit(limit).saturating_add(1),
            RETENTION_DEFAULT_US,
            At(oldest_kept) as _,
            At(now) as _,
        );
        let due = connection.all(due).await?;
        expired.more |= due.len() > limit;
        let (lanes, numbers): (Vec<i64>, Vec<i64>) =
            due.iter().take(limit).map(|event| (event.lane, event.number)).unzip();
        if !lanes.is_empty() {
            let gone = sqlx::query!(
                "delete from feed using unnest($1::int8[], $2::int8[]) as due (lane, number)
                where feed.lane = due.lane and feed.number = due.number
                returning feed.lane, feed.number",
                &lanes[..],
                &numbers[..],
            );
            let gone = connection.all(gone).await?;
            let (lanes, numbers): (Vec<i64>, Vec<i64>) =
                gone.iter().map(|event| (event.lane, event.number)).unzip();
            // A run of deleted events ends at the next event that is still stored.
            let runs = sqlx::query!(
                "insert into feed_removed (lane, last_number, first_number, events)
                select lane, max(number), min(number), count(*)
                from (
                    select gone.lane, gone.number, (
                        select min(feed.number) from feed
                        where feed.lane = gone.lane and feed.number > gone.number) as next
                    from unnest($1::int8[], $2::int8[]) as gone (lane, number)) as gone
                group by lane, next",
                &lanes[..],
                &numbers[..],
            );
            connection.execute(runs).await?;
            let ends = sqlx::query!(
                "update node set feed_removed_to = greatest(feed_removed_to, gone.number)
                from (
                    select lane, max(number) as number
                    from unnest($1::int8[], $2::int8[]) as gone (lane, number)
                    group by lane) as gone
                where node.id = gone.lane",
                &lanes[..],
                &numbers[..],
            );
            connection.execute(ends).await?;
            expired.events = gone.len() as u64;
        }
        connection.committed().await
    }

    async fn expire_requests(
        &self,
        now: Timestamp,
        limit: usize,
        expired: &mut Expired,
    ) -> Result<()> {
        let until = At(now - REQUEST_KEPT);
        let mut connection = self.retention.take().await?;
        let starts = sqlx::query!(
            "delete from start_request
            using (
                select namespace, request_id from start_request
                where created_at <= $2
                order by created_at limit $1
                for update skip locked) as due
            where start_request.namespace = due.namespace
                and start_request.request_id = due.request_id",
            value::limit(limit),
            until as _,
        );
        expired.start_requests = connection.execute(starts).await?;
        if expired.start_requests >= limit as u64 {
            let due = sqlx::query_scalar!(
                r#"select true as "due!" from start_request
                where created_at <= $1 limit 1"#,
                until as _,
            );
            expired.more |= connection.first(due).await?.is_some();
        }
        let mutations = sqlx::query!(
            "delete from registry_request
            using (
                select namespace, request_id from registry_request
                where created_at <= $2
                order by created_at limit $1
                for update skip locked) as due
            where registry_request.namespace = due.namespace
                and registry_request.request_id = due.request_id",
            value::limit(limit),
            until as _,
        );
        expired.registry_requests = connection.execute(mutations).await?;
        if expired.registry_requests >= limit as u64 {
            let due = sqlx::query_scalar!(
                r#"select true as "due!" from registry_request
                where created_at <= $1 limit 1"#,
                until as _,
            );
            expired.more |= connection.first(due).await?.is_some();
        }
        Ok(())
    }
}
