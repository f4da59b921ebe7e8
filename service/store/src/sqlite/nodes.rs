//! Lives of nodes. Several may live in one process, and all end with it.

use std::time::Duration;

use async_trait::async_trait;
use recoup_core::id::ExecutionId;
use recoup_core::time::Timestamp;
use rusqlite::{OptionalExtension, params};

use super::error::Failure;
use super::writer::Write;
use super::{SqliteStore, value};
use crate::contract::{Error, Lease, NodeId, Nodes, Renewals, Result, UNREAD_MAX};

#[async_trait]
impl Nodes for SqliteStore {
    async fn join(&self, address: &str, ttl: Duration) -> Result<Lease> {
        // Rows stay for good, so the greatest id is that of the latest life.
        const LATEST: &str = "select id, renewed_at from node order by id desc limit 1";
        const JOIN: &str = "
            insert into node (id, address, joined_at, ttl_us, renewed_at, history_format)
            values (?1, ?2, ?3, ?4, ?3, ?5)";
        let (address, newest) = (address.to_owned(), self.formats.history);
        let (clock, timeline) = (self.inner.clock.clone(), self.inner.incarnation.to_string());
        self.write(move |write| {
            let now = clock();
            let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, value::at(row, 1)));
            let latest: Option<(i64, _)> = write.prepare(LATEST)?.query_row((), read).optional()?;
            let node = NodeId(latest.as_ref().map_or(1, |(last, _)| last + 1));
            let renewed_before = latest.map(|(_, at)| at).transpose()?;
            let row = params![node.0, address, now.as_micros(), value::micros(ttl), newest];
            write.execute(JOIN, row)?;
            let reached = reached(write)?;
            Ok(Lease { node, now, reached, renewed_before, timeline: timeline.clone() })
        })
        .await
    }

    async fn renew(&self, node: NodeId, ttl: Duration, reached: Timestamp) -> Result<Lease> {
        const RENEW: &str = "
            update node set ttl_us = ?2, renewals = renewals + 1, renewed_at = ?3,
                reached_at = max(reached_at, ?4)
            where id = ?1 and closed_at is null";
        let (clock, timeline) = (self.inner.clock.clone(), self.inner.incarnation.to_string());
        self.write(move |write| {
            let now = clock();
            let row = [node.0, value::micros(ttl), now.as_micros(), reached.as_micros()];
            if write.execute(RENEW, row)? == 0 {
                return Err(Error::LeaseLost.into());
            }
            let reached = self::reached(write)?;
            Ok(Lease { node, now, reached, renewed_before: None, timeline: timeline.clone() })
        })
        .await
    }

    async fn leave(&self, node: NodeId) -> Result<()> {
        const LEAVE: &str = "update node set closed_at = ?2 where id = ?1 and closed_at is null";
        self.write(move |write| {
            write.execute(LEAVE, [node.0, write.now.as_micros()])?;
            Ok(())
        })
        .await
    }

    async fn leases(&self, node: NodeId, silent: &[Renewals]) -> Result<Vec<Renewals>> {
        const CLOSE: &str = "
            update node set closed_at = ?3
            where id = ?1 and renewals = ?2 and closed_at is null";
        const OPEN: &str =
            "select id, renewals, ttl_us from node where closed_at is null and id <> ?1";
        let silent = silent.to_vec();
        self.write(move |write| {
            write.live(node)?;
            for seen in &silent {
                let count = i64::try_from(seen.count).unwrap_or(i64::MAX);
                write.execute(CLOSE, [seen.node.0, count, write.now.as_micros()])?;
            }
            let mut statement = write.prepare(OPEN)?;
            let mut rows = statement.query([node.0])?;
            let mut open = Vec::new();
            while let Some(row) = rows.next()? {
                let count: i64 = row.get(1)?;
                open.push(Renewals {
                    node: NodeId(row.get(0)?),
                    count: count.unsigned_abs(),
                    ttl: value::duration(row.get(2)?),
                });
            }
            Ok(open)
        })
        .await
    }

    async fn adopt(&self, node: NodeId, limit: usize) -> Result<Vec<ExecutionId>> {
        // One look into the index for each life that left something behind.
        const ORPHANED: &str = "
            with recursive owners (id) as (
                select min(owner) from execution where active = 1
                union all
                select (select min(owner) from execution where active = 1 and owner > owners.id)
                from owners where owners.id is not null)
            select execution.id
            from owners join node on node.id = owners.id and node.closed_at is not null
            join execution on execution.owner = owners.id and execution.active = 1
            where execution.format <= ?2
            limit ?1";
        const ADOPT: &str = "update execution set owner = ?2 where id = ?1";
        let readable = i64::from(self.formats.history);
        self.write(move |write| {
            write.live(node)?;
            let mut orphaned = Vec::new();
            {
                let mut statement = write.prepare(ORPHANED)?;
                let mut rows = statement.query([value::limit(limit), readable])?;
                while let Some(row) = rows.next()? {
                    orphaned.push(value::execution(row, 0)?);
                }
            }
            for execution in &orphaned {
                write.execute(ADOPT, params![execution.0.as_bytes(), node.0])?;
            }
            Ok(orphaned)
        })
        .await
    }

    async fn unread(&self) -> Result<u64> {
        const UNREAD: &str = "
            select count(*) from (
                select 1 from execution
                where active = 1 and format > 1 and format > (
                    select coalesce(max(history_format), 0) from node where closed_at is null)
                limit ?1)";
        self.read(|connection| {
            let most = i64::try_from(UNREAD_MAX).unwrap_or(i64::MAX);
            let count: i64 =
                connection.prepare_cached(UNREAD)?.query_row([most], |row| row.get(0))?;
            Ok(count.unsigned_abs())
        })
        .await
    }
}

/// The highest store time that any life has reached.
fn reached(write: &Write<'_>) -> Result<Timestamp, Failure> {
    const REACHED: &str = "select coalesce(max(reached_at), 0) from node";
    Ok(write.prepare(REACHED)?.query_row((), |row| row.get(0).map(Timestamp::from_micros))?)
}
