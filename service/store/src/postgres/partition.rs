//! Ranges of histories: made ahead, and replaced by what must stay.
//!
//! | a range is | histories that retention takes are |
//! | --- | --- |
//! | young: ids of now may still come | deleted row by row |
//! | old | left where they are, until as many executions are gone as remain: then the range is replaced |
//! | none: the default partition | deleted row by row |
//!
//! So a history is copied at most about once for every time that as much is dropped.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use recoup_core::time::Timestamp;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::Inner;
use super::error::{Failure, Refusal};
use super::session::Session;
use super::value::At;
use crate::contract::{Error, Result};

/// Of the partition; ids from `from` on, below `to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub name: String,
    pub from: Uuid,
    pub to: Uuid,
}

const RANGES: &str = "
    select class.relname::text, pg_get_expr(class.relpartbound, class.oid)
    from pg_inherits
    join pg_class as class on class.oid = pg_inherits.inhrelid
    where pg_inherits.inhparent = 'recoup.history'::regclass
    order by class.relname";
const LOCK: &str = "select pg_advisory_xact_lock(hashtext('recoup.history'))";
/// Another node is at it, or this session from here on, until it ends.
const TRY_LOCK: &str = "select pg_try_advisory_lock(hashtext('recoup.history.replace'))";
const NOW: &str = "select clock_timestamp()";
const EXPIRED: &str = "select partition, expired_executions from history_range";
const SURVIVORS: &str = "select count(*) from execution where id >= $1 and id < $2";
/// With each, whether its history may still grow.
const NEXT_SURVIVORS: &str = "
    select id, active or compensation in ('PARKED', 'PENDING')
    from execution where id >= $1 and id < $2 order by id limit 500";

/// How long a commit may wait behind us for each of our tries to lock histories.
const LOCK_TIMEOUT: &str = "100ms";
const LOCK_PAUSE: Duration = Duration::from_millis(50);
const LOCK_TRIES: usize = 50;
/// Copies take their time; a server that says nothing for so long is gone.
const PATIENCE: Duration = Duration::from_secs(600);

/// What was copied of a range while it was in use.
struct Copy {
    table: String,
    began: Timestamp,
    is_empty: bool,
    /// Whose histories may have grown since, whatever has become of them: one that ended long ago may
    /// have been parked, and be done by now.
    open: Vec<Uuid>,
}

impl Range {
    /// No id of now falls into it any more; clocks may be apart by the width of a range.
    pub fn is_old(&self, now: Timestamp, width: Duration) -> bool {
        millis(self.to) <= (now - width).as_micros() / 1000
    }

    pub fn holds(&self, id: Uuid) -> bool {
        self.from <= id && id < self.to
    }
}

/// The time in an id of version 7.
fn millis(id: Uuid) -> i64 {
    i64::try_from(id.as_u128() >> 80).expect("48 bits")
}

/// Below all ids of that time, and above all before.
fn bound(millis: i64) -> Uuid {
    Uuid::from_u128(u128::from(millis.max(0).unsigned_abs()) << 80)
}

pub(super) async fn ranges(session: &mut Session) -> Result<Vec<Range>, Failure> {
    let rows = session.query(RANGES, &[]).await?;
    let mut ranges = Vec::with_capacity(rows.len());
    for row in rows {
        let bounds: String = row.try_get(1)?;
        // FOR VALUES FROM ('…') TO ('…'), or DEFAULT.
        let mut quoted = bounds.split('\'').skip(1).step_by(2).map(str::parse::<Uuid>);
        if let (Some(Ok(from)), Some(Ok(to))) = (quoted.next(), quoted.next()) {
            ranges.push(Range { name: row.try_get(0)?, from, to });
        }
    }
    Ok(ranges)
}

pub(super) async fn now(session: &mut Session) -> Result<Timestamp, Failure> {
    let rows = session.query(NOW, &[]).await?;
    Ok(rows[0].try_get::<_, At>(0)?.0)
}

impl Inner {
    fn width_ms(&self) -> i64 {
        let millis = self.options.partition_width.as_millis().max(1);
        i64::try_from(millis).unwrap_or(i64::MAX / 4)
    }

    /// Makes the ranges that are missing ahead of now. One that cannot be made (the default partition
    /// has a row in it, a long transaction holds the table) is left out: its rows go to the default.
    pub async fn make_partitions(&self) -> Result<()> {
        let width = self.width_ms();
        let mut session = self.pool.take().await?;
        let now = now(&mut session).await?.as_micros() / 1000;
        let last = now.saturating_add(width.saturating_mul(self.options.partitions_ahead.into()));
        let mut from = now / width * width;
        for range in ranges(&mut session).await? {
            from = from.max(millis(range.to));
        }
        drop(session);
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
        let mut session = self.pool.take().await?;
        session.begin().await?;
        session.query(LOCK, &[]).await?;
        // Another node may have made it, or one with other bounds.
        let there = ranges(&mut session).await?;
        if !there.iter().any(|range| range.from < to && from < range.to) {
            session
                .run(&format!(
                    "set local lock_timeout = '1s';
                    create table history_{from_ms} (like history including all);
                    alter table history attach partition history_{from_ms}
                        for values from ('{from}') to ('{to}')"
                ))
                .await?;
        }
        Ok(session.committed().await?)
    }

    /// Replaces at most one old range of which half is gone. Says whether it did.
    pub async fn replace_range(&self) -> Result<bool> {
        // Its own connection: the lock ends with it.
        let mut session = self.pool.open().await?;
        session.set_patience(PATIENCE);
        let locked = session.query(TRY_LOCK, &[]).await?;
        if !locked[0].try_get::<_, bool>(0)? {
            return Ok(false);
        }
        let now = now(&mut session).await?;
        let expired = session.query(EXPIRED, &[]).await?;
        for range in ranges(&mut session).await? {
            if !range.is_old(now, self.options.partition_width) {
                continue;
            }
            let gone = expired.iter().find(|row| row.get::<_, &str>(0) == range.name);
            let gone: i64 = gone.map_or(Ok(0), |row| row.try_get(1))?;
            let survivors = session.query(SURVIVORS, &[&range.from, &range.to]).await?;
            let survivors: i64 = survivors[0].try_get(0)?;
            // Without survivors, rows that are left are those of executions that went while the range
            // was replaced the last time.
            if survivors == 0 || (gone > 0 && gone >= survivors) {
                return Ok(self.replace(&mut session, &range).await?);
            }
        }
        Ok(false)
    }

    /// Copies what stays, then changes the tables under a short lock. A crash in between leaves the
    /// copy, which the next try throws away. False if the range stayed in use: every try holds up
    /// commits, so the next one should be a while off.
    async fn replace(&self, session: &mut Session, range: &Range) -> Result<bool, Failure> {
        let Range { name, from, to } = range;
        let table = format!("{name}_next");
        let began = now(session).await?;
        session
            .run(&format!(
                "drop table if exists {table};
                create table {table} (like history including all);
                alter table {table} add constraint history_range check (
                    execution_id >= '{from}' and execution_id < '{to}' and execution_id is not null)"
            ))
            .await?;
        let insert = format!(
            "insert into {table} select * from {name} where execution_id = any($1)
            on conflict do nothing"
        );
        let mut after = *from;
        let mut copy = Copy { table, began, is_empty: true, open: Vec::new() };
        loop {
            let survivors = session.query(NEXT_SURVIVORS, &[&after, to]).await?;
            let mut ids: Vec<Uuid> = Vec::with_capacity(survivors.len());
            for row in &survivors {
                ids.push(row.try_get(0)?);
                if row.try_get(1)? {
                    copy.open.push(row.try_get(0)?);
                }
            }
            let Some(last) = ids.last() else { break };
            copy.is_empty = false;
            after = Uuid::from_u128(last.as_u128() + 1);
            session.query(insert.clone(), &[&ids]).await?;
        }
        for _ in 0..LOCK_TRIES {
            match self.exchange(session, range, &copy).await {
                Ok(()) => return Ok(true),
                Err(Failure::Refused(error))
                    if *error.code() == tokio_postgres::error::SqlState::LOCK_NOT_AVAILABLE
                        || Failure::Refused(error.clone()).refusal() == Some(Refusal::Again) =>
                {
                    session.run("rollback").await?;
                    tokio::time::sleep(LOCK_PAUSE).await;
                }
                Err(failure) => {
                    // The session ends with us, and with it the transaction.
                    return Err(failure);
                }
            }
        }
        tracing::warn!(partition = name, "a range of histories is in use and was not replaced");
        session.run(&format!("drop table {}", copy.table)).await?;
        Ok(false)
    }

    async fn exchange(
        &self,
        session: &mut Session,
        range: &Range,
        copy: &Copy,
    ) -> Result<(), Failure> {
        let Range { name, from, to } = range;
        let Copy { table, began, is_empty, open } = copy;
        session
            .run(&format!(
                "begin; set local lock_timeout = '{LOCK_TIMEOUT}';
                lock table history in access exclusive mode"
            ))
            .await?;
        let locked = Instant::now();
        // What was written since, to histories that were open then and to those that are new. None is
        // opened again.
        let delta = format!(
            "insert into {table}
            select history.* from execution
            join {name} as history on history.execution_id = execution.id
            where execution.id >= $1 and execution.id < $2
                and (execution.active or execution.compensation in ('PARKED', 'PENDING')
                    or execution.ended_at is null
                    or execution.ended_at > $3::timestamptz - interval '1 hour'
                    or execution.id = any($4))
            on conflict do nothing returning true"
        );
        let parameters: [&(dyn ToSql + Sync); 4] = [from, to, &At(*began), open];
        let added = session.query(delta, &parameters).await?;
        let attach = if *is_empty && added.is_empty() {
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
        session
            .run(&format!(
                "alter table history detach partition {name};
                {attach};
                delete from history_range where partition = '{name}';
                commit"
            ))
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
    fn a_bound_divides_ids_by_their_time() {
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
