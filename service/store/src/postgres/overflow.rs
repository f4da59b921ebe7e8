use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use recoup_core::command::TaskId;
use recoup_core::id::ExecutionId;
use recoup_core::time::Timestamp;
use uuid::Uuid;

use super::PostgresStore;
use super::error::Failure;
use super::value::{self, At};
use crate::contract::{
    IdleCredit, NodeId, Overflow, OverflowTask, Peers, QueueName, Result, TaskKey, choose,
};
use crate::format;

#[async_trait]
impl Overflow for PostgresStore {
    async fn overflow(&self, node: NodeId, tasks: &[OverflowTask]) -> Result<Vec<TaskKey>> {
        let mut executions: Vec<Uuid> = tasks.iter().map(|task| task.task.execution.0).collect();
        executions.sort_unstable();
        executions.dedup();
        let mut connection = self.inner.connections.take().await?;
        connection.begin().await?;
        connection.check_lease(node).await?;
        // The executions are locked until the rows are written. A commit that makes another node the owner then
        // sees these rows, and deletes those whose tasks that node has handed out.
        let owners = sqlx::query!(
            "select id, owner from execution where id = any($1) order by id for share",
            &executions[..],
        );
        let owners = connection.all(owners).await?.into_iter().map(|row| (row.id, row.owner));
        let others: BTreeSet<Uuid> =
            owners.filter(|(_, owner)| *owner != node.0).map(|(id, _)| id).collect();
        let (left_out, tasks): (Vec<_>, Vec<_>) =
            tasks.iter().partition(|task| others.contains(&task.task.execution.0));
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
        let insert = sqlx::query!(
            r#"
            insert into overflow_task (execution_id, path, attempt, run, sequence, namespace, queue,
                task_type, priority, available_at)
            select * from unnest($1::uuid[], $2::text[], $3::int8[], $4::int8[], $5::int8[],
                $6::text[], $7::text[], $8::text[], $9::int4[], $10::timestamptz[])
                as task (execution_id, path, attempt, run, sequence, namespace, queue, task_type,
                    priority, available_at)
            order by execution_id, path collate "C", attempt
            on conflict (execution_id, path, attempt) do nothing"#,
            &executions[..],
            &paths[..] as _,
            &attempts[..],
            &runs[..],
            &sequences[..],
            &namespaces[..] as _,
            &queues[..] as _,
            &types[..] as _,
            &priorities[..],
            &available[..] as _,
        );
        connection.execute(insert).await?;
        connection.committed().await?;
        Ok(left_out.into_iter().map(OverflowTask::key).collect())
    }

    async fn publish_idle(&self, node: NodeId, idle: &[IdleCredit]) -> Result<Peers> {
        let own = format::encode_idle(idle);
        let mut connection = self.inner.connections.take().await?;
        connection.begin().await?;
        connection.check_lease(node).await?;
        let publish = sqlx::query!(
            "insert into node_idle (node_id, idle) values ($1, $2)
            on conflict (node_id) do update set idle = excluded.idle
            where node_idle.idle is distinct from excluded.idle",
            node.0,
            &own[..],
        );
        connection.execute(publish).await?;
        // Deletes what nodes with a closed lease have published.
        let forget = sqlx::query!(
            "delete from node_idle using node
            where node.id = node_idle.node_id and node.closed_at is not null"
        );
        connection.execute(forget).await?;
        let peers = sqlx::query_scalar!(
            r#"
            select node_idle.idle as "idle?"
            from node left join node_idle on node_idle.node_id = node.id
            where node.closed_at is null and node.id <> $1
            order by node.id"#,
            node.0,
        );
        let rows = connection.all(peers).await?;
        connection.committed().await?;
        let mut peers = Peers { nodes: rows.len(), idle: Vec::new() };
        for published in rows {
            // A newer node may publish more than this binary understands, but never less.
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
        let mut connection = self.inner.connections.take().await?;
        connection.begin().await?;
        connection.check_lease(node).await?;
        // Locks at most `$6` tasks of each queue that these workers take. Tasks that another claim has locked
        // are skipped, because that claim will lease them.
        let free = sqlx::query_as!(
            TaskRow,
            r#"
            with typed as (
                select * from unnest($4::int4[], $5::text[]) as typed (workers, task_type))
            select task.execution_id as "execution_id!", task.path as "path!",
                task.attempt as "attempt!", task.run as "run!", task.sequence as "sequence!",
                task.namespace as "namespace!", task.queue as "queue!",
                task.task_type as "task_type!", task.priority as "priority!",
                task.available_at as "available_at!: At"
            from unnest($1::int4[], $2::text[], $3::text[]) as asked (workers, namespace, queue)
            cross join lateral (
                select execution_id, path, attempt, run, sequence, namespace, queue, task_type,
                    priority, available_at
                from overflow_task as task
                where task.namespace = asked.namespace and task.queue = asked.queue
                    and (not exists (select from typed where typed.workers = asked.workers)
                        or exists (
                            select from typed
                            where typed.workers = asked.workers
                                and typed.task_type = task.task_type))
                    and task.available_at <= $7
                    and (task.leased_until is null or task.leased_until <= $7)
                    and not exists (
                        select from execution where id = task.execution_id and format > $8)
                order by task.priority desc, task.available_at, task.execution_id, task.path,
                    task.attempt
                limit $6
                for update skip locked) as task"#,
            &asked.0[..],
            &asked.1[..] as _,
            &asked.2[..] as _,
            &typed.0[..],
            &typed.1[..] as _,
            value::limit(limit),
            At(now) as _,
            i32::from(self.formats.history),
        );
        let free = connection.all(free).await?;
        let free = free.into_iter().map(task).collect::<Result<Vec<_>, Failure>>()?;
        let claimed = choose(free, idle, limit);
        if !claimed.is_empty() {
            let executions: Vec<Uuid> = claimed.iter().map(|task| task.task.execution.0).collect();
            let paths: Vec<&str> = claimed.iter().map(|task| task.task.path.as_str()).collect();
            let attempts: Vec<i64> = claimed.iter().map(|task| task.task.attempt.into()).collect();
            let leased = sqlx::query!(
                "update overflow_task as task
                set leased_until = $5::timestamptz + $4::int8 * interval '1 microsecond'
                from unnest($1::uuid[], $2::text[], $3::int8[])
                    as claimed (execution_id, path, attempt)
                where task.execution_id = claimed.execution_id and task.path = claimed.path
                    and task.attempt = claimed.attempt",
                &executions[..],
                &paths[..] as _,
                &attempts[..],
                value::ttl_us(lease),
                At(now) as _,
            );
            connection.execute(leased).await?;
        }
        connection.committed().await?;
        Ok(claimed)
    }

    async fn withdraw(&self, tasks: &[TaskKey]) -> Result<()> {
        let executions: Vec<Uuid> = tasks.iter().map(|task| task.execution.0).collect();
        let paths: Vec<&str> = tasks.iter().map(|task| task.path.as_str()).collect();
        let attempts: Vec<i64> = tasks.iter().map(|task| task.attempt.into()).collect();
        let mut connection = self.inner.connections.take().await?;
        let withdraw = sqlx::query!(
            "delete from overflow_task
            using unnest($1::uuid[], $2::text[], $3::int8[]) as void (execution_id, path, attempt)
            where overflow_task.execution_id = void.execution_id and overflow_task.path = void.path
                and overflow_task.attempt = void.attempt",
            &executions[..],
            &paths[..] as _,
            &attempts[..],
        );
        connection.execute(withdraw).await?;
        Ok(())
    }

    async fn overflow_depth(&self) -> Result<Vec<(QueueName, u64)>> {
        let mut connection = self.inner.connections.take().await?;
        let depth = sqlx::query!(
            r#"select namespace, queue, count(*) as "tasks!" from overflow_task
            group by namespace, queue order by namespace, queue"#
        );
        let depth = connection.all(depth).await?.into_iter().map(|row| {
            let name = QueueName { namespace: row.namespace.as_str().into(), queue: row.queue };
            (name, value::unsigned(row.tasks))
        });
        Ok(depth.collect())
    }
}

struct TaskRow {
    execution_id: Uuid,
    path: String,
    attempt: i64,
    run: i64,
    sequence: i64,
    namespace: String,
    queue: String,
    task_type: String,
    priority: i32,
    available_at: At,
}

fn task(row: TaskRow) -> Result<OverflowTask, Failure> {
    Ok(OverflowTask {
        task: TaskId {
            execution: ExecutionId(row.execution_id),
            path: row.path.as_str().into(),
            attempt: value::count(row.attempt)?,
            run: value::count(row.run)?,
            sequence: value::unsigned(row.sequence),
        },
        queue: QueueName { namespace: row.namespace.as_str().into(), queue: row.queue },
        task_type: row.task_type,
        priority: row.priority,
        available_at: row.available_at.0,
    })
}
