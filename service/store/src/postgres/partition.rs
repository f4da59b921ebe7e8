//! Ranges of histories. They are created ahead of time, and replaced later by the rows that must stay.
//!
//! | a range is | histories that retention deletes are |
//! | --- | --- |
//! | young: new ids may still fall into it | deleted row by row |
//! | old | left in place until as many executions are gone as remain; then the range is replaced |
//! | none: the default partition | deleted row by row |
//!
//! So each replacement drops at least about as much as it copies.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use recoup_core::time::Timestamp;
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::Inner;
use super::connection::Connection;
use super::error::{ErrorClass, Failure};
use super::value::At;
use crate::contract::{Error, Result};

/// One partition. It holds the ids from `from`, inclusive, to `to`, exclusive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub name: String,
    pub from: Uuid,
    pub to: Uuid,
}

/// How long each try to lock the history tables may make commits wait.
const LOCK_TIMEOUT: &str = "100ms";
const LOCK_PAUSE: Duration = Duration::from_millis(50);
const LOCK_TRIES: usize = 50;
/// The copy of a range that was made while the range was in use.
struct Copy {
    table: String,
    began: Timestamp,
    is_empty: bool,
    /// The executions whose histories may have grown since, whatever their state is now. One that ended long ago
    /// may have had a parked compensation then, which is done by now.
    open: Vec<Uuid>,
}

impl Range {
    /// Whether no new id can fall into the range any more. Clocks may differ by the width of a range.
    pub fn is_old(&self, now: Timestamp, width: Duration) -> bool {
        millis(self.to) <= (now - width).as_micros() / 1000
    }

    pub fn holds(&self, id: Uuid) -> bool {
        self.from <= id && id < self.to
    }
}

/// The time in an id of version 7, in milliseconds.
fn millis(id: Uuid) -> i64 {
    i64::try_from(id.as_u128() >> 80).expect("48 bits")
}

/// The lowest id of that time: not above any id of it, and above all earlier ones.
fn bound(millis: i64) -> Uuid {
    Uuid::from_u128(u128::from(millis.max(0).unsigned_abs()) << 80)
}

pub(super) async fn ranges(connection: &mut Connection) -> Result<Vec<Range>, Failure> {
    let partitions = sqlx::query!(
        r#"
        select class.relname::text as "name!", pg_get_expr(class.relpartbound, class.oid) as bounds
        from pg_inherits
        join pg_class as class on class.oid = pg_inherits.inhrelid
        where pg_inherits.inhparent = 'recoup.history'::regclass
        order by class.relname"#
    );
    let mut ranges = Vec::new();
    for partition in connection.all(partitions).await? {
        let bounds = partition.bounds.unwrap_or_default();
        // Either FOR VALUES FROM ('…') TO ('…'), or DEFAULT.
        let mut quoted = bounds.split('\'').skip(1).step_by(2).map(str::parse::<Uuid>);
        if let (Some(Ok(from)), Some(Ok(to))) = (quoted.next(), quoted.next()) {
            ranges.push(Range { name: partition.name, from, to });
        }
    }
    Ok(ranges)
}

pub(super) async fn now(connection: &mut Connection) -> Result<Timestamp, Failure> {
    let now = sqlx::query_scalar!(r#"select clock_timestamp() as "now!: At""#);
    Ok(connection.one(now).await?.0)
}

impl Inner {
    fn width_ms(&self) -> i64 {
        let millis = self.options.partition_width.as_millis().max(1);
        i64::try_from(millis).unwrap_or(i64::MAX / 4)
    }

    /// Creates the missing ranges ahead of now. A range that cannot be created (because the default partition
    /// has a row in it, or a long transaction holds the table) is left out, and its rows go to the default
    /// partition.
    pub async fn make_partitions(&self) -> Result<()> {
        let width = self.width_ms();
        let mut connection = self.retention.take().await?;
        let now = now(&mut connection).await?.as_micros() / 1000;
        let last = now.saturating_add(width.saturating_mul(self.options.partitions_ahead.into()));
        let mut from = now / width * width;
        for range in ranges(&mut connection).await? {
            from = from.max(millis(range.to));
        }
        drop(connection);
        while from <= last {
            let to = (from / width + 1) * width;
            match self.make_partition(from, to).await {
                Ok(()) => {}
                Err(failure @ (Failure::Lost(_) | Failure::Store(_))) => return Err(failure.into()),
                Err(failure) => {
                    let error = Error::from(failure);
                    tracing::warn!(from, to, %error, "a partition of history could not be made");
                }
            }
            from = to;
        }
        Ok(())
    }

    async fn make_partition(&self, from_ms: i64, to_ms: i64) -> Result<(), Failure> {
        let (from, to) = (bound(from_ms), bound(to_ms));
        let mut connection = self.retention.take().await?;
        connection.begin().await?;
        connection.run("select pg_advisory_xact_lock(hashtext('recoup.history'))").await?;
        // Another node may have created it, or one with other bounds.
        let there = ranges(&mut connection).await?;
        if !there.iter().any(|range| range.from < to && from < range.to) {
            connection
                .run(AssertSqlSafe(format!(
                    "set local lock_timeout = '1s';
                    create table history_{from_ms} (like history including all);
                    alter table history attach partition history_{from_ms}
                        for values from ('{from}') to ('{to}')"
                )))
                .await?;
        }
        Ok(connection.committed().await?)
    }

    /// Replaces at most one old range of which half is gone. Returns whether it did.
    pub async fn replace_range(&self) -> Result<bool> {
        let mut connection = self.retention.take().await?;
        // The lock ends with the connection.
        connection.close_when_dropped();
        let lock = sqlx::query_scalar!(
            r#"select pg_try_advisory_lock(hashtext('recoup.history.replace')) as "locked!""#
        );
        if !connection.one(lock).await? {
            // Another node is replacing a range.
            return Ok(false);
        }
        let now = now(&mut connection).await?;
        let expired = sqlx::query!("select partition, expired_executions from history_range");
        let expired = connection.all(expired).await?;
        for range in ranges(&mut connection).await? {
            if !range.is_old(now, self.options.partition_width) {
                continue;
            }
            let gone = expired.iter().find(|row| row.partition == range.name);
            let gone = gone.map_or(0, |row| row.expired_executions);
            let survivors = sqlx::query_scalar!(
                r#"select count(*) as "survivors!" from execution where id >= $1 and id < $2"#,
                range.from,
                range.to,
            );
            let survivors = connection.one(survivors).await?;
            // If no execution survives, the rows that are left belong to executions that were deleted while the
            // range was last replaced.
            if survivors == 0 || (gone > 0 && gone >= survivors) {
                return Ok(self.replace(&mut connection, &range).await?);
            }
        }
        Ok(false)
    }

    /// Copies the rows that stay, then exchanges the tables under a short lock. A crash in between leaves the
    /// copy, which the next try drops. Returns false if the range stayed in use. Each try blocks commits for a
    /// moment, so the next one should come a while later.
    async fn replace(&self, connection: &mut Connection, range: &Range) -> Result<bool, Failure> {
        let Range { name, from, to } = range;
        let table = format!("{name}_next");
        let began = now(connection).await?;
        connection
            .run(AssertSqlSafe(format!(
                "drop table if exists {table};
                create table {table} (like history including all);
                alter table {table} add constraint history_range check (
                    execution_id >= '{from}' and execution_id < '{to}' and execution_id is not null)"
            )))
            .await?;
        let insert = format!(
            "insert into {table} select * from {name} where execution_id = any($1)
            on conflict do nothing"
        );
        let mut after = *from;
        let mut copy = Copy { table, began, is_empty: true, open: Vec::new() };
        loop {
            // Reads, with each survivor, whether its history may still grow.
            let survivors = sqlx::query!(
                r#"select id, active or compensation in ('PARKED', 'PENDING') as "is_open!"
                from execution where id >= $1 and id < $2 order by id limit 500"#,
                after,
                to,
            );
            let survivors = connection.all(survivors).await?;
            let Some(last) = survivors.last() else { break };
            copy.is_empty = false;
            after = Uuid::from_u128(last.id.as_u128() + 1);
            copy.open.extend(survivors.iter().filter(|row| row.is_open).map(|row| row.id));
            let ids: Vec<Uuid> = survivors.into_iter().map(|row| row.id).collect();
            connection.execute(sqlx::query(AssertSqlSafe(insert.as_str())).bind(ids)).await?;
        }
        for _ in 0..LOCK_TRIES {
            match self.exchange(connection, range, &copy).await {
                Ok(()) => return Ok(true),
                Err(failure)
                    if failure.is_locked() || failure.class() == Some(ErrorClass::Again) =>
                {
                    connection.run("rollback").await?;
                    tokio::time::sleep(LOCK_PAUSE).await;
                }
                Err(failure) => {
                    // The connection is closed when it is dropped, and the transaction ends with it.
                    return Err(failure);
                }
            }
        }
        tracing::warn!(partition = name, "a range of histories is in use and was not replaced");
        connection.run(AssertSqlSafe(format!("drop table {}", copy.table))).await?;
        Ok(false)
    }

    async fn exchange(
        &self,
        connection: &mut Connection,
        range: &Range,
        copy: &Copy,
    ) -> Result<(), Failure> {
        let Range { name, from, to } = range;
        let Copy { table, began, is_empty, open } = copy;
        connection
            .run(AssertSqlSafe(format!(
                "begin; set local lock_timeout = '{LOCK_TIMEOUT}';
                lock table history in access exclusive mode"
            )))
            .await?;
        let locked = Instant::now();
        // Copies what was written since then, to histories that were open at that time and to new ones. A
        // closed history is never opened again.
        let delta = format!(
            "insert into {table}
            select history.* from execution
            join {name} as history on history.execution_id = execution.id
            where execution.id >= $1 and execution.id < $2
                and (execution.active or execution.compensation in ('PARKED', 'PENDING')
                    or execution.ended_at is null
                    or execution.ended_at > $3::timestamptz - interval '1 hour'
                    or execution.id = any($4))
            on conflict do nothing"
        );
        let delta =
            sqlx::query(AssertSqlSafe(delta)).bind(from).bind(to).bind(At(*began)).bind(open);
        let added = connection.execute(delta).await?;
        let attach = if *is_empty && added == 0 {
            format!("drop table {name}; drop table {table}")
        } else {
            format!(
                "alter table history attach partition {table}
                    for values from ('{from}') to ('{to}');
                drop table {name};
                alter table {table} drop constraint history_range;
                alter table {table} rename to {name}"
            )
        };
        connection
            .run(AssertSqlSafe(format!(
                "alter table history detach partition {name};
                {attach};
                delete from history_range where partition = '{name}';
                commit"
            )))
            .await?;
        let stalled = u64::try_from(locked.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.counts.ranges_replaced.fetch_add(1, Ordering::Relaxed);
        self.counts.replace_us_max.fetch_max(stalled, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use recoup_core::id::ExecutionId;

    use super::*;

    #[test]
    fn range_bounds_divide_ids_by_their_time() {
        let before = ExecutionId::new(Timestamp::from_micros(59_999_000), [0xff; 10]).0;
        let after = ExecutionId::new(Timestamp::from_micros(60_000_000), [0; 10]).0;
        assert!(before < bound(60_000) && bound(60_000) < after);
        assert_eq!(millis(after), 60_000);
        let range = Range { name: String::new(), from: bound(0), to: bound(60_000) };
        assert!(range.holds(before) && !range.holds(after));
        let width = Duration::from_secs(60);
        assert!(!range.is_old(Timestamp::from_micros(119_999_000), width));
        assert!(range.is_old(Timestamp::from_micros(120_000_000), width));
    }
}
