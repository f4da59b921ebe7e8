use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use recoup_core::command::TaskId;
use recoup_core::id::ExecutionId;
use recoup_core::time::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::PostgresStore;
use super::commit::FENCE;
use super::error::Failure;
use super::rows::Tasks;
use super::value::{self, At};
use crate::contract::{
    IdleCredit, NodeId, Overflow, OverflowTask, Peers, QueueName, Result, TaskKey, choose,
};
use crate::format;

const INSERT: &str = "
    insert into overflow_task (execution_id, path, attempt, run, sequence, namespace, queue,
        task_type, priority, available_at)
    select * from unnest($1::uuid[], $2::text[], $3::int8[], $4::int8[], $5::int8[], $6::text[],
        $7::text[], $8::text[], $9::int4[], $10::timestamptz[])
        as task (execution_id, path, attempt, run, sequence, namespace, queue, task_type, priority,
            available_at)
    order by execution_id, path collate \"C\", attempt
    on conflict (execution_id, path, attempt) do nothing";
/// Locks at most `$6` of each queue that these workers take. What another claim has locked is passed
/// over: it will be leased to that one.
const FREE: &str = "
    with typed as (
        select * from unnest($4::int4[], $5::text[]) as typed (workers, task_type))
    select task.*
    from unnest($1::int4[], $2::text[], $3::text[]) as asked (workers, namespace, queue)
    cross join lateral (
        select execution_id, path, attempt, run, sequence, namespace, queue, task_type, priority,
            available_at
        from overflow_task as task
        where task.namespace = asked.namespace and task.queue = asked.queue
            and (not exists (select from typed where typed.workers = asked.workers)
                or exists (
                    select from typed
                    where typed.workers = asked.workers and typed.task_type = task.task_type))
            and task.available_at <= $7
            and (task.leased_until is null or task.leased_until <= $7)
            and not exists (
                select from execution where id = task.execution_id and format > $8)
        order by task.priority desc, task.available_at, task.execution_id, task.path, task.attempt
        limit $6
        for update skip locked) as task";
const LEASE: &str = "
    update overflow_task as task
    set leased_until = $5::timestamptz + $4::int8 * interval '1 microsecond'
    from unnest($1::uuid[], $2::text[], $3::int8[]) as claimed (execution_id, path, attempt)
    where task.execution_id = claimed.execution_id and task.path = claimed.path
        and task.attempt = claimed.attempt";
const PUBLISH: &str = "
    insert into node_idle (node_id, idle) values ($1, $2)
    on conflict (node_id) do update set idle = excluded.idle
    where node_idle.idle is distinct from excluded.idle";
const PEERS: &str = "
    select node_idle.idle
    from node left join node_idle on node_idle.node_id = node.id
    where node.closed_at is null and node.id <> $1
    order by node.id";
/// What lives that have ended had published.
const FORGET: &str = "
    delete from node_idle using node
    where node.id = node_idle.node_id and node.closed_at is not null";
const DEPTH: &str = "
    select namespace, queue, count(*) from overflow_task
    group by namespace, queue order by namespace, queue";

#[async_trait]
impl Overflow for PostgresStore {
    async fn overflow(&self, node: NodeId, tasks: &[OverflowTask]) -> Result<()> {
        let executions: Vec<Uuid> = tasks.iter().map(|task| task.task.execution.0).collect();
        let paths: Vec<&str> = tasks.iter().map(|task| task.task.path.as_str()).collect();
        let attempts: Vec<i64> = tasks.iter().map(|task| task.task.attempt.into()).collect();
        let runs: Vec<i64> = tasks.iter().map(|task| task.task.run.into()).collect();
        let sequences: Vec<i64> =
            tasks.iter().map(|task| task.task.sequence.cast_signed()).collect();
        let namespaces: Vec<&str> =
            tasks.iter().map(|task| task.queue.namespace.as_str()).collect();
        let queues: Vec<&str> = tasks.iter().map(|task| task.queue.queue.as_str()).collect();
        let types: Vec<&str> = tasks.iter().map(|task| task.task_type.as_str()).collect();
        let priorities: Vec<i32> = tasks.iter().map(|task| task.priority).collect();
        let available: Vec<At> = tasks.iter().map(|task| At(task.available_at)).collect();
        let parameters: [&(dyn ToSql + Sync); 10] = [
            &executions,
            &paths,
            &attempts,
            &runs,
            &sequences,
            &namespaces,
            &queues,
            &types,
            &priorities,
            &available,
        ];
        let mut session = self.inner.pool.take().await?;
        session.begin().await?;
        session.query(FENCE, &[&node.0]).await?;
        session.execute(INSERT, &parameters).await?;
        session.committed().await
    }

    async fn publish_idle(&self, node: NodeId, idle: &[IdleCredit]) -> Result<Peers> {
        let own = format::encode_idle(idle);
        let mut session = self.inner.pool.take().await?;
        session.begin().await?;
        session.query(FENCE, &[&node.0]).await?;
        session.execute(PUBLISH, &[&node.0, &&own[..]]).await?;
        session.execute(FORGET, &[]).await?;
        let rows = session.query(PEERS, &[&node.0]).await?;
        session.committed().await?;
        let mut peers = Peers { nodes: rows.len(), idle: Vec::new() };
        for row in rows {
            let published: Option<Vec<u8>> = row.try_get(0).map_err(Failure::from)?;
            // A newer node may say more than is understood here, never less.
            peers.idle.extend(published.map(|own| format::decode_idle(&own)).unwrap_or_default());
        }
        Ok(peers)
    }

    async fn claim(
        &self,
        node: NodeId,
        idle: &[IdleCredit],
        limit: usize,
        lease: Duration,
        now: Timestamp,
    ) -> Result<Vec<OverflowTask>> {
        let mut asked = (Vec::new(), Vec::new(), Vec::new());
        let mut typed = (Vec::new(), Vec::new());
        for (workers, own) in (0_i32..).zip(idle) {
            for queue in own.queues.iter().collect::<BTreeSet<_>>() {
                asked.0.push(workers);
                asked.1.push(queue.namespace.as_str());
                asked.2.push(queue.queue.as_str());
            }
            for task_type in &own.task_types {
                typed.0.push(workers);
                typed.1.push(task_type.as_str());
            }
        }
        let mut session = self.inner.pool.take().await?;
        session.begin().await?;
        session.query(FENCE, &[&node.0]).await?;
        let most = value::limit(limit);
        let now = At(now);
        let newest = i32::from(self.formats.history);
        let parameters: [&(dyn ToSql + Sync); 8] =
            [&asked.0, &asked.1, &asked.2, &typed.0, &typed.1, &most, &now, &newest];
        let rows = session.query(FREE, &parameters).await?;
        let free = rows.iter().map(task).collect::<Result<Vec<_>, Failure>>()?;
        let claimed = choose(free, idle, limit);
        if !claimed.is_empty() {
            let executions: Vec<Uuid> = claimed.iter().map(|task| task.task.execution.0).collect();
            let paths: Vec<&str> = claimed.iter().map(|task| task.task.path.as_str()).collect();
            let attempts: Vec<i64> = claimed.iter().map(|task| task.task.attempt.into()).collect();
            let lease = value::ttl_us(lease);
            let parameters: [&(dyn ToSql + Sync); 5] =
                [&executions, &paths, &attempts, &lease, &now];
            session.execute(LEASE, &parameters).await?;
        }
        session.committed().await?;
        Ok(claimed)
    }

    async fn withdraw(&self, tasks: &[TaskKey]) -> Result<()> {
        let mut columns = Tasks::default();
        tasks.iter().for_each(|task| columns.push(task));
        let (sql, parameters) = columns.delete();
        let mut session = self.inner.pool.take().await?;
        session.execute(sql, &parameters).await?;
        Ok(())
    }

    async fn overflow_depth(&self) -> Result<Vec<(QueueName, u64)>> {
        let mut session = self.inner.pool.take().await?;
        let rows = session.query(DEPTH, &[]).await?;
        let depth = rows.iter().map(|row| {
            let namespace = row.try_get::<_, &str>(0)?.into();
            let name = QueueName { namespace, queue: row.try_get(1)? };
            Ok((name, value::unsigned(row.try_get(2)?)))
        });
        depth.collect()
    }
}

fn task(row: &Row) -> Result<OverflowTask, Failure> {
    let text = |at: usize| -> Result<&str, Failure> { Ok(row.try_get(at)?) };
    Ok(OverflowTask {
        task: TaskId {
            execution: ExecutionId(row.try_get(0)?),
            path: text(1)?.into(),
            attempt: value::count(row.try_get(2)?)?,
            run: value::count(row.try_get(3)?)?,
            sequence: value::unsigned(row.try_get(4)?),
        },
        queue: QueueName { namespace: text(5)?.into(), queue: text(6)?.into() },
        task_type: text(7)?.into(),
        priority: row.try_get(8)?,
        available_at: row.try_get::<_, At>(9)?.0,
    })
}
