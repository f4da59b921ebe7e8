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
use crate::contract::{NodeId, Overflow, OverflowTask, QueueName, Result, TaskKey};

const INSERT: &str = "
    insert into overflow_task (execution_id, path, attempt, run, sequence, namespace, queue,
        task_type, priority, available_at)
    select * from unnest($1::uuid[], $2::text[], $3::int8[], $4::int8[], $5::int8[], $6::text[],
        $7::text[], $8::text[], $9::int4[], $10::timestamptz[])
        as task (execution_id, path, attempt, run, sequence, namespace, queue, task_type, priority,
            available_at)
    order by execution_id, path collate \"C\", attempt
    on conflict (execution_id, path, attempt) do nothing";
/// Locks at most `$4` of each queue, and leases the best of all. What another claim has locked is
/// passed over: it will be leased to that one.
const CLAIM: &str = "
    with free as (
        select task.*
        from (select distinct * from unnest($1::text[], $2::text[]) as asked (namespace, queue))
            as asked
        cross join lateral (
            select execution_id, path, attempt, priority, available_at
            from overflow_task as task
            where task.namespace = asked.namespace and task.queue = asked.queue
                and task.available_at <= $5
                and (task.leased_until is null or task.leased_until <= $5)
            order by task.priority desc, task.available_at, task.execution_id, task.path,
                task.attempt
            limit $4
            for update skip locked) as task
        order by task.priority desc, task.available_at, task.execution_id, task.path, task.attempt
        limit $4)
    update overflow_task as task
    set leased_until = $5::timestamptz + $3::int8 * interval '1 microsecond'
    from free
    where task.execution_id = free.execution_id and task.path = free.path
        and task.attempt = free.attempt
    returning task.execution_id, task.path, task.attempt, task.run, task.sequence, task.namespace,
        task.queue, task.task_type, task.priority, task.available_at";
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

    async fn claim(
        &self,
        node: NodeId,
        queues: &[QueueName],
        limit: usize,
        lease: Duration,
        now: Timestamp,
    ) -> Result<Vec<OverflowTask>> {
        let namespaces: Vec<&str> = queues.iter().map(|queue| queue.namespace.as_str()).collect();
        let names: Vec<&str> = queues.iter().map(|queue| queue.queue.as_str()).collect();
        let mut session = self.inner.pool.take().await?;
        session.begin().await?;
        session.query(FENCE, &[&node.0]).await?;
        let parameters: [&(dyn ToSql + Sync); 5] =
            [&namespaces, &names, &value::ttl_us(lease), &value::limit(limit), &At(now)];
        let rows = session.query(CLAIM, &parameters).await?;
        session.committed().await?;
        let mut tasks = rows.iter().map(task).collect::<Result<Vec<_>, Failure>>()?;
        // What an update returns has no order.
        tasks.sort_by_cached_key(|task| {
            (std::cmp::Reverse(task.priority), task.available_at, task.key())
        });
        Ok(tasks)
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
