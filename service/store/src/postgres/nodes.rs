use std::time::Duration;

use async_trait::async_trait;
use recoup_core::id::ExecutionId;
use recoup_core::time::Timestamp;

use super::PostgresStore;
use super::connection::Connection;
use super::error::Failure;
use super::incarnation::{incarnation, lost_row};
use super::value::{self, At};
use crate::contract::{
    Error, Lease, NODES_MAX, NodeFormats, NodeId, Nodes, Renewals, Result, StoreFormats, UNREAD_MAX,
};
use crate::format::Formats;

/// Joins are serialized, so that a reader of the feed that sees one life has seen all lives before it. Ids are
/// close to the clock, so lives that begin after a backup was restored get ids above those that the backup had
/// lost.
const LOCK_JOINS: &str = "select pg_advisory_xact_lock(hashtext('recoup.node'))";
/// The shortest time that a renewal waits for an answer, however short the lease is.
const RENEW_MIN: Duration = Duration::from_secs(1);

#[async_trait]
impl Nodes for PostgresStore {
    async fn join(&self, address: &str, ttl: Duration) -> Result<Lease> {
        let mut connection = self.inner.leases.take().await?;
        incarnation(&mut connection).await?;
        connection.begin().await?;
        connection.run(LOCK_JOINS).await?;
        let latest = sqlx::query_scalar!(
            r#"select renewed_at as "at: At" from node order by id desc limit 1"#
        );
        let latest = connection.first(latest).await?;
        let newest = self.formats.numbers().map(i32::from);
        let join = sqlx::query!(
            r#"
            insert into node (id, address, ttl_us, history_format, definition_format,
                failure_event_format, subscription_format, registry_answer_format)
            select greatest(coalesce(max(id), 0) + 1,
                    (extract(epoch from clock_timestamp()) * 1000000)::int8),
                $1, $2::int8, $3::int4, $4::int4, $5::int4, $6::int4, $7::int4
            from node
            returning id, renewed_at as "renewed_at: At",
                (select coalesce(max(reached_at), to_timestamp(0)) from node) as "reached_at!: At""#,
            address,
            value::ttl_us(ttl),
            newest[0],
            newest[1],
            newest[2],
            newest[3],
            newest[4],
        );
        let joined = connection.one(join).await?;
        let (timeline, writable) = store(&mut connection).await?;
        connection.committed().await?;
        let lease = Lease {
            node: NodeId(joined.id),
            now: joined.renewed_at.0,
            reached: joined.reached_at.0,
            renewed_before: latest.map(|at| at.0),
            timeline,
            writable,
        };
        self.inner.begin_lane(lease.node);
        Ok(lease)
    }

    async fn renew(&self, node: NodeId, ttl: Duration, reached: Timestamp) -> Result<Lease> {
        let mut connection = self.inner.leases.take().await?;
        // Leaves time to try again on another connection.
        connection.set_patience(
            (ttl / 3).clamp(RENEW_MIN, self.inner.options.answer_timeout.max(RENEW_MIN)),
        );
        incarnation(&mut connection).await?;
        let renew = sqlx::query!(
            r#"
            update node set ttl_us = $2, renewals = renewals + 1, renewed_at = clock_timestamp(),
                reached_at = greatest(reached_at, $3)
            where id = $1 and closed_at is null
            returning id, renewed_at as "renewed_at: At",
                greatest(reached_at, (select max(reached_at) from node)) as "reached_at!: At""#,
            node.0,
            value::ttl_us(ttl),
            At(reached) as _,
        );
        let renewed = connection.first(renew).await?.ok_or(Error::LeaseLost)?;
        let (timeline, writable) = store(&mut connection).await?;
        let lease = Lease {
            node: NodeId(renewed.id),
            now: renewed.renewed_at.0,
            reached: renewed.reached_at.0,
            renewed_before: None,
            timeline,
            writable,
        };
        self.inner.lane(node).set_clock(lease.now);
        Ok(lease)
    }

    async fn leave(&self, node: NodeId) -> Result<()> {
        let mut connection = self.inner.leases.take().await?;
        connection.begin().await?;
        // This lock waits for the commits that have passed the fence, and blocks those that have not. An update
        // that leaves the key alone would do neither.
        let lock = sqlx::query_scalar!(
            "select id from node where id = $1 and closed_at is null for update",
            node.0,
        );
        connection.first(lock).await?;
        close(&mut connection, &[node.0]).await?;
        connection.committed().await
    }

    async fn leases(&self, node: NodeId, silent: &[Renewals]) -> Result<Vec<Renewals>> {
        if !silent.is_empty() {
            let mut connection = self.inner.connections.take().await?;
            connection.begin().await?;
            connection.check_lease(node).await?;
            connection.committed().await?;

            // A node that renews while this call waits for the lock keeps its lease, because Postgres checks
            // the condition again.
            let mut connection = self.inner.connections.take().await?;
            connection.begin().await?;
            let ids: Vec<i64> = silent.iter().map(|seen| seen.node.0).collect();
            let counts: Vec<i64> = silent.iter().map(|seen| seen.count.cast_signed()).collect();
            let lock = sqlx::query_scalar!(
                "select node.id
                from node
                join unnest($1::int8[], $2::int8[]) as seen (id, renewals)
                    on node.id = seen.id and node.renewals = seen.renewals
                where node.closed_at is null
                order by node.id for update of node",
                &ids[..],
                &counts[..],
            );
            let locked = connection.all(lock).await?;
            if !locked.is_empty() {
                close(&mut connection, &locked).await?;
            }
            connection.committed().await?;
        }
        let mut connection = self.inner.connections.take().await?;
        connection.begin().await?;
        connection.check_lease(node).await?;
        let open = sqlx::query!(
            "select id, renewals, ttl_us from node where closed_at is null and id <> $1 order by id",
            node.0,
        );
        let open = connection.all(open).await?;
        connection.committed().await?;
        let open = open.into_iter().map(|row| Renewals {
            node: NodeId(row.id),
            count: value::unsigned(row.renewals),
            ttl: Duration::from_micros(value::unsigned(row.ttl_us)),
        });
        Ok(open.collect())
    }

    async fn adopt(&self, node: NodeId, limit: usize) -> Result<Vec<ExecutionId>> {
        let mut connection = self.inner.connections.take().await?;
        connection.begin().await?;
        connection.check_lease(node).await?;
        let adopt = sqlx::query_scalar!(
            "update execution set owner = $1
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
            returning execution.id",
            node.0,
            value::limit(limit),
            i32::from(self.formats.history),
        );
        let mut adopted: Vec<ExecutionId> =
            connection.all(adopt).await?.into_iter().map(ExecutionId).collect();
        if adopted.len() < limit {
            let drain = sqlx::query!(
                "update node set drained_at = clock_timestamp()
                where closed_at is not null and drained_at is null
                    and not exists (select from execution where active and owner = node.id)"
            );
            connection.execute(drain).await?;
        }
        connection.committed().await?;
        adopted.sort();
        Ok(adopted)
    }

    async fn unread(&self) -> Result<u64> {
        let most = i64::try_from(UNREAD_MAX).unwrap_or(i64::MAX);
        let mut connection = self.inner.connections.take().await?;
        // Uses the index `execution_newer`, which leaves out the formats that every release reads.
        let unread = sqlx::query_scalar!(
            r#"
            select count(*) as "unread!" from (
                select from execution
                where active and format > 2 and format > (
                    select coalesce(max(history_format), 0) from node where closed_at is null)
                limit $1) as unread"#,
            most,
        );
        Ok(value::unsigned(connection.one(unread).await?))
    }

    async fn formats(&self) -> Result<StoreFormats> {
        let mut connection = self.inner.connections.take().await?;
        connection.begin().await?;
        let formats = store_formats(&mut connection).await?;
        connection.committed().await?;
        Ok(formats)
    }

    async fn finalize(&self) -> Result<StoreFormats> {
        let mut connection = self.inner.connections.take().await?;
        connection.begin().await?;
        // Without the lock, a node that joins at this moment would not be among those that are checked.
        connection.run(LOCK_JOINS).await?;
        let finalize = sqlx::query!(
            "update store set
                history_format = greatest(store.history_format, read.history),
                definition_format = greatest(store.definition_format, read.definition),
                failure_event_format = greatest(store.failure_event_format, read.failure_event),
                subscription_format = greatest(store.subscription_format, read.subscription),
                registry_answer_format = greatest(store.registry_answer_format, read.registry_answer)
            from (
                select min(history_format) as history, min(definition_format) as definition,
                    min(failure_event_format) as failure_event,
                    min(subscription_format) as subscription,
                    min(registry_answer_format) as registry_answer
                from node where closed_at is null) as read"
        );
        connection.execute(finalize).await?;
        let formats = store_formats(&mut connection).await?;
        connection.committed().await?;
        Ok(formats)
    }
}

async fn close(connection: &mut Connection, nodes: &[i64]) -> Result<u64, Failure> {
    let close = sqlx::query!(
        "update node set closed_at = clock_timestamp() where id = any($1) and closed_at is null",
        nodes,
    );
    connection.execute(close).await
}

/// Returns the timeline and the formats that may be written. The timeline changes when the row describes
/// another life of the database, or when the server is on another timeline.
async fn store(connection: &mut Connection) -> Result<(String, Formats)> {
    let store = sqlx::query!(
        r#"
        select incarnation || '/' || system_identifier || '/'
                || left(pg_walfile_name(pg_current_wal_lsn()), 8) as "timeline!",
            array[history_format, definition_format, failure_event_format, subscription_format,
                registry_answer_format] as "formats!"
        from store"#
    );
    let store = connection.first(store).await?.ok_or_else(lost_row)?;
    Ok((store.timeline, value::formats(&store.formats)?))
}

async fn store_formats(connection: &mut Connection) -> Result<StoreFormats> {
    let (_, writable) = store(connection).await?;
    let nodes = sqlx::query!(
        r#"
        select id, address, array[history_format, definition_format, failure_event_format,
            subscription_format, registry_answer_format] as "formats!"
        from node where closed_at is null order by id limit $1"#,
        value::limit(NODES_MAX),
    );
    let nodes = connection.all(nodes).await?.into_iter().map(|row| {
        let readable = value::formats(&row.formats)?;
        Ok(NodeFormats { node: NodeId(row.id), address: row.address, readable })
    });
    Ok(StoreFormats { writable, nodes: nodes.collect::<Result<_>>()? })
}
