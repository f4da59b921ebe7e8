//! Lives of nodes. Several may live in one process, and all end with it.

use std::time::Duration;

use async_trait::async_trait;
use recoup_core::id::ExecutionId;
use rusqlite::params;

use super::{SqliteStore, value};
use crate::contract::{Error, Lease, NodeId, Nodes, Result};

#[async_trait]
impl Nodes for SqliteStore {
    async fn join(&self, address: &str, ttl: Duration) -> Result<Lease> {
        // Rows stay for good, so the greatest id is that of the latest life.
        const JOIN: &str = "
            insert into node (id, address, joined_at, expires_at)
            values ((select coalesce(max(id), 0) + 1 from node), ?1, ?2, ?3) returning id";
        let address = address.to_owned();
        let timeline = self.inner.incarnation.to_string();
        self.write(move |write| {
            let now = write.now;
            let expires_at = now + ttl;
            let row = params![address, now.as_micros(), expires_at.as_micros()];
            let node = write.prepare(JOIN)?.query_row(row, |row| row.get(0).map(NodeId))?;
            Ok(Lease { node, now, expires_at, timeline: timeline.clone() })
        })
        .await
    }

    async fn renew(&self, node: NodeId, ttl: Duration) -> Result<Lease> {
        const RENEW: &str = "update node set expires_at = ?2 where id = ?1 and closed_at is null";
        let timeline = self.inner.incarnation.to_string();
        self.write(move |write| {
            let now = write.now;
            let expires_at = now + ttl;
            if write.execute(RENEW, [node.0, expires_at.as_micros()])? == 0 {
                return Err(Error::LeaseLost.into());
            }
            Ok(Lease { node, now, expires_at, timeline: timeline.clone() })
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

    async fn adopt(&self, node: NodeId, limit: usize) -> Result<Vec<ExecutionId>> {
        // Who asks is alive: it is not the one to close its own lease.
        const CLOSE: &str = "
            update node set closed_at = ?2
            where id <> ?1 and closed_at is null and expires_at <= ?2";
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
            where not exists (
                select 1 from history where execution_id = execution.id and format > ?2)
            limit ?1";
        const ADOPT: &str = "update execution set owner = ?2 where id = ?1";
        self.write(move |write| {
            write.live(node)?;
            write.execute(CLOSE, [node.0, write.now.as_micros()])?;
            let mut orphaned = Vec::new();
            {
                let mut statement = write.prepare(ORPHANED)?;
                let readable = i64::from(crate::format::CURRENT);
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
}
