//! Deletes expired data in bounded portions.

use async_trait::async_trait;
use recoup_core::time::Timestamp;
use rusqlite::{OptionalExtension, params};

use super::error::Failure;
use super::writer::Write;
use super::{SqliteStore, value};
use crate::contract::{Expired, REQUEST_KEPT, RETENTION_DEFAULT, Result, Retention};

#[async_trait]
impl Retention for SqliteStore {
    async fn expire(&self, now: Timestamp, limit: usize) -> Result<Expired> {
        self.write(move |write| {
            let now = now.min(write.now);
            let mut expired = Expired::default();
            if paused_at(write)?.is_some() {
                return Ok(Expired { paused: true, ..expired });
            }
            (expired.executions, expired.more) = executions(write, now, limit)?;
            let more;
            (expired.events, more) = events(write, now, limit)?;
            expired.more |= more;
            let more;
            (expired.start_requests, more) = start_requests(write, now, limit)?;
            expired.more |= more;
            let more;
            (expired.registry_requests, more) = registry_requests(write, now, limit)?;
            expired.more |= more;
            Ok(expired)
        })
        .await
    }

    async fn pause_retention(&self) -> Result<()> {
        const PAUSE: &str =
            "update store set retention_paused_at = coalesce(retention_paused_at, ?1)";
        let clock = self.inner.clock.clone();
        self.write(move |write| write.execute(PAUSE, [clock().as_micros()]).map(drop)).await
    }

    async fn resume_retention(&self) -> Result<Option<Timestamp>> {
        const RESUME: &str = "update store set retention_paused_at = null";
        self.write(|write| {
            let paused_at = paused_at(write)?;
            write.execute(RESUME, ())?;
            Ok(paused_at)
        })
        .await
    }
}

fn paused_at(write: &Write<'_>) -> Result<Option<Timestamp>, Failure> {
    let mut statement = write.prepare("select retention_paused_at from store")?;
    let paused_at = statement.query_row((), |row| row.get::<_, Option<i64>>(0))?;
    Ok(paused_at.map(Timestamp::from_micros))
}

/// The namespaces that have rows of a kind, each with the time before which its rows expire. One index lookup
/// finds each namespace, because rows may outlive the row of their namespace.
fn cutoffs(
    write: &Write<'_>,
    now: Timestamp,
    next: &str,
) -> Result<Vec<(String, Timestamp)>, Failure> {
    const RETENTION: &str = "select retention_us from namespace where name = ?1";
    let mut cutoffs: Vec<(String, Timestamp)> = Vec::new();
    let mut next = write.prepare(next)?;
    let mut retention = write.prepare(RETENTION)?;
    loop {
        // No name is empty, so every name sorts after this one.
        let after = cutoffs.last().map_or("", |(namespace, _)| namespace.as_str());
        let namespace = next.query_row([after], |row| row.get(0)).optional()?;
        let Some(namespace): Option<String> = namespace else { return Ok(cutoffs) };
        let kept = retention.query_row([&namespace], |row| row.get(0)).optional()?;
        let kept = kept.map_or(RETENTION_DEFAULT, value::duration);
        cutoffs.push((namespace, now - kept));
    }
}

/// The first rows that are due, and whether there are more. The statement `due` takes namespace, cutoff and
/// limit.
fn due<T>(
    write: &Write<'_>,
    now: Timestamp,
    [next, due]: [&str; 2],
    limit: usize,
    read: impl Fn(&rusqlite::Row<'_>) -> Result<T, rusqlite::Error>,
) -> Result<(Vec<T>, bool), Failure> {
    let wanted = limit.saturating_add(1);
    let mut found = Vec::new();
    for (namespace, before) in cutoffs(write, now, next)? {
        let mut statement = write.prepare(due)?;
        let left = value::limit(wanted - found.len());
        let rows =
            statement.query_map(params![namespace, before.as_micros(), left], |row| read(row))?;
        for row in rows {
            found.push(row?);
        }
        if found.len() == wanted {
            found.truncate(limit);
            return Ok((found, true));
        }
    }
    Ok((found, false))
}

fn executions(write: &Write<'_>, now: Timestamp, limit: usize) -> Result<(u64, bool), Failure> {
    // Repeats the condition of the index `execution_ended`, which leaves out active and parked executions. An
    // execution with a state that only a newer binary knows stays, because work may remain for it.
    const NEXT: &str = "
        select namespace from execution
        where ended_at is not null and active = 0 and compensation <> 'PARKED'
            and namespace > ?1
        order by namespace limit 1";
    const DUE: &str = "
        select id from execution
        where ended_at is not null and active = 0 and compensation <> 'PARKED'
            and namespace = ?1 and ended_at < ?2
            and compensation in ('NONE', 'PENDING', 'DONE')
            and state in ('SUCCEEDED', 'WARNING', 'FAILED', 'TIMED_OUT', 'CANCELLED', 'TERMINATED')
            and not exists (
                select 1 from quarantine where execution_id = execution.id and released_at is null)
        order by ended_at limit ?3";
    const DELETE: [&str; 5] = [
        "delete from quarantine where execution_id = ?1",
        "delete from execution_key where execution_id = ?1",
        "delete from overflow_task where execution_id = ?1",
        "delete from history where execution_id = ?1",
        "delete from execution where id = ?1",
    ];
    let (due, more) = due(write, now, [NEXT, DUE], limit, |row| row.get::<_, [u8; 16]>(0))?;
    for execution in &due {
        for delete in DELETE {
            write.execute(delete, [execution])?;
        }
    }
    Ok((due.len() as u64, more))
}

fn events(write: &Write<'_>, now: Timestamp, limit: usize) -> Result<(u64, bool), Failure> {
    const NEXT: &str = "
        select namespace from feed where namespace > ?1 order by namespace limit 1";
    const DUE: &str = "
        select lane, number from feed where namespace = ?1 and at < ?2 order by at limit ?3";
    const DELETE: &str = "delete from feed where number = ?1";
    let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
    let (due, more) = due(write, now, [NEXT, DUE], limit, read)?;
    for &(lane, number) in &due {
        write.execute(DELETE, [number])?;
        note_removed(write, lane, number)?;
    }
    Ok((due.len() as u64, more))
}

/// Adds a number to the runs of deleted events of its lane. A run ends at an event that is still stored.
fn note_removed(write: &Write<'_>, lane: i64, number: i64) -> Result<(), Failure> {
    const KEPT_BELOW: &str = "select max(number) from feed where lane = ?1 and number < ?2";
    const KEPT_ABOVE: &str = "select min(number) from feed where lane = ?1 and number > ?2";
    const RUNS: &str = "
        select min(first_number), max(last_number), coalesce(sum(events), 0) from feed_removed
        where lane = ?1 and last_number > ?2 and last_number < ?3";
    const MERGE: &str = "
        delete from feed_removed where lane = ?1 and last_number > ?2 and last_number < ?3";
    const ADD: &str = "
        insert into feed_removed (lane, first_number, last_number, events) values (?1, ?2, ?3, ?4)";
    let kept = |sql| -> Result<Option<i64>, Failure> {
        Ok(write.prepare(sql)?.query_row([lane, number], |row| row.get(0))?)
    };
    let below = kept(KEPT_BELOW)?.unwrap_or(0);
    let above = kept(KEPT_ABOVE)?.unwrap_or(i64::MAX);
    // Everything between two stored neighbours is one run.
    let between = [lane, below, above];
    let (first, last, events): (Option<i64>, Option<i64>, i64) = write
        .prepare(RUNS)?
        .query_row(between, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    write.execute(MERGE, between)?;
    let first = first.map_or(number, |first| first.min(number));
    let last = last.map_or(number, |last| last.max(number));
    write.execute(ADD, [lane, first, last, events + 1])?;
    Ok(())
}

fn start_requests(write: &Write<'_>, now: Timestamp, limit: usize) -> Result<(u64, bool), Failure> {
    // The first rows are the oldest, so if one row stays, all rows after it stay too.
    const DELETE: &str = "
        delete from start_request where id in (
            select id from (select id, created_at from start_request order by id limit ?2)
            where created_at <= ?1)";
    const MORE: &str = "
        select coalesce((select created_at <= ?1 from start_request order by id limit 1), 0)";
    let until = (now - REQUEST_KEPT).as_micros();
    let deleted = write.execute(DELETE, [until, value::limit(limit)])?;
    let more = write.prepare(MORE)?.query_row([until], |row| row.get(0))?;
    Ok((deleted as u64, more))
}

fn registry_requests(
    write: &Write<'_>,
    now: Timestamp,
    limit: usize,
) -> Result<(u64, bool), Failure> {
    const DELETE: &str = "
        delete from registry_request where rowid in (
            select rowid from registry_request where created_at <= ?1 order by created_at limit ?2)";
    const MORE: &str = "select 1 from registry_request where created_at <= ?1";
    let until = (now - REQUEST_KEPT).as_micros();
    let deleted = write.execute(DELETE, params![until, value::limit(limit)])?;
    Ok((deleted as u64, write.prepare(MORE)?.exists([until])?))
}
