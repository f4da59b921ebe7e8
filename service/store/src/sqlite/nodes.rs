//! Lives of nodes. Several can run in one process, and all of them end with it.

use std::time::Duration;

use async_trait::async_trait;
use recoup_core::id::ExecutionId;
use recoup_core::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::error::Failure;
use super::writer::Write;
use super::{SqliteStore, value};
use crate::contract::{
    Error, Lease, NODES_MAX, NodeFormats, NodeId, Nodes, Renewals, Result, StoreFormats, UNREAD_MAX,
};
use crate::format::{COLUMNS, Formats};

#[async_trait]
impl Nodes for SqliteStore {
    async fn join(&self, address: &str, ttl: Duration) -> Result<Lease> {
        // Rows are never deleted, so the greatest id belongs to the latest life.
        const LATEST: &str = "select id, renewed_at from node order by id desc limit 1";
        const JOIN: &str = "
            insert into node (id, address, joined_at, ttl_us, renewed_at, history_format,
                definition_format, failure_event_format, subscription_format,
                registry_answer_format)
            values (?1, ?2, ?3, ?4, ?3, ?5, ?6, ?7, ?8, ?9)";
        let (address, newest) = (address.to_owned(), self.formats.numbers());
        let (clock, timeline) = (self.inner.clock.clone(), self.inner.incarnation.to_string());
        self.write(move |write| {
            let now = clock();
            let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, value::at(row, 1)));
            let latest: Option<(i64, _)> = write.prepare(LATEST)?.query_row((), read).optional()?;
            let node = NodeId(latest.as_ref().map_or(1, |(last, _)| last + 1));
            let renewed_before = latest.map(|(_, at)| at).transpose()?;
            let [a, b, c, d, e] = newest;
            let (joined_at, ttl_us) = (now.as_micros(), value::micros(ttl));
            write.execute(JOIN, params![node.0, address, joined_at, ttl_us, a, b, c, d, e])?;
            let (reached, writable, timeline) =
                (reached(write)?, writable(write.connection())?, timeline.clone());
            Ok(Lease { node, now, reached, renewed_before, timeline, writable })
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
            let (reached, writable, timeline) =
                (self::reached(write)?, writable(write.connection())?, timeline.clone());
            Ok(Lease { node, now, reached, renewed_before: None, timeline, writable })
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
        // One index lookup for each life that left active executions behind.
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
                where active = 1 and format > 2 and format > (
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

    async fn formats(&self) -> Result<StoreFormats> {
        self.read(store_formats).await
    }

    async fn finalize(&self) -> Result<StoreFormats> {
        const FINALIZE: &str = "
            update store set
                history_format = max(store.history_format, read.history),
                definition_format = max(store.definition_format, read.definition),
                failure_event_format = max(store.failure_event_format, read.failure_event),
                subscription_format = max(store.subscription_format, read.subscription),
                registry_answer_format = max(store.registry_answer_format, read.registry_answer)
            from (
                select min(history_format) as history, min(definition_format) as definition,
                    min(failure_event_format) as failure_event,
                    min(subscription_format) as subscription,
                    min(registry_answer_format) as registry_answer
                from node where closed_at is null
                having count(*) > 0) as read";
        self.write(|write| {
            write.execute(FINALIZE, ())?;
            store_formats(write.connection())
        })
        .await
    }
}

fn store_formats(connection: &Connection) -> Result<StoreFormats, Failure> {
    let sql = format!(
        "select {COLUMNS}, id, address from node where closed_at is null order by id limit ?1"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([value::limit(NODES_MAX)])?;
    let mut nodes = Vec::new();
    while let Some(row) = rows.next()? {
        let (node, address) = (NodeId(row.get(5)?), row.get(6)?);
        nodes.push(NodeFormats { node, address, readable: value::formats(row)? });
    }
    Ok(StoreFormats { writable: writable(connection)?, nodes })
}

fn writable(connection: &Connection) -> Result<Formats, Failure> {
    let mut statement = connection.prepare_cached(&format!("select {COLUMNS} from store"))?;
    let mut rows = statement.query(())?;
    let lost = || Error::Incompatible("the row that identifies the store is missing".into());
    value::formats(rows.next()?.ok_or_else(lost)?)
}

/// The highest store time that any life has reached.
fn reached(write: &Write<'_>) -> Result<Timestamp, Failure> {
    const REACHED: &str = "select coalesce(max(reached_at), 0) from node";
    Ok(write.prepare(REACHED)?.query_row((), |row| row.get(0).map(Timestamp::from_micros))?)
}
