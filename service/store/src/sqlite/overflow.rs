//! Tasks for any node to claim.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use recoup_core::command::TaskId;
use recoup_core::time::Timestamp;
use rusqlite::{Row, params};

use super::error::Failure;
use super::writer::Write;
use super::{SqliteStore, value};
use crate::contract::{NodeId, Overflow, OverflowTask, QueueName, Result, TaskKey};

#[async_trait]
impl Overflow for SqliteStore {
    async fn overflow(&self, node: NodeId, tasks: &[OverflowTask]) -> Result<()> {
        const ADD: &str = "
            insert into overflow_task (execution_id, path, attempt, run, sequence, namespace, queue,
                task_type, priority, available_at)
            values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) on conflict do nothing";
        let tasks = tasks.to_vec();
        self.write(move |write| {
            write.live(node)?;
            for task in &tasks {
                let TaskId { execution, run, path, attempt, sequence } = &task.task;
                let row = params![
                    execution.0.as_bytes(),
                    path.as_str(),
                    attempt,
                    run,
                    value::signed(*sequence),
                    task.queue.namespace.as_str(),
                    task.queue.queue,
                    task.task_type,
                    task.priority,
                    task.available_at.as_micros(),
                ];
                write.execute(ADD, row)?;
            }
            Ok(())
        })
        .await
    }

    async fn claim(
        &self,
        node: NodeId,
        queues: &[QueueName],
        limit: usize,
        lease: Duration,
        now: Timestamp,
    ) -> Result<Vec<OverflowTask>> {
        const FREE: &str = "
            select execution_id, path, attempt, run, sequence, namespace, queue, task_type,
                priority, available_at
            from overflow_task
            where namespace = ?1 and queue = ?2 and available_at <= ?3
                and (leased_until is null or leased_until <= ?3)
            order by priority desc, available_at, execution_id, path, attempt limit ?4";
        const LEASE: &str = "
            update overflow_task set leased_until = ?4
            where execution_id = ?1 and path = ?2 and attempt = ?3";
        let queues: BTreeSet<_> = queues.iter().cloned().collect();
        self.write(move |write| {
            write.live(node)?;
            let mut free = Vec::new();
            for QueueName { namespace, queue } in &queues {
                let mut statement = write.prepare(FREE)?;
                let wanted =
                    params![namespace.as_str(), queue, now.as_micros(), value::limit(limit)];
                let mut rows = statement.query(wanted)?;
                while let Some(row) = rows.next()? {
                    free.push(task(row)?);
                }
            }
            free.sort_by_key(|task| (Reverse(task.priority), task.available_at, task.key()));
            free.truncate(limit);
            let until = (now + lease).as_micros();
            for task in &free {
                let TaskKey { execution, path, attempt } = task.key();
                let row = params![execution.0.as_bytes(), path.as_str(), attempt, until];
                write.execute(LEASE, row)?;
            }
            Ok(free)
        })
        .await
    }

    async fn withdraw(&self, tasks: &[TaskKey]) -> Result<()> {
        let tasks = tasks.to_vec();
        self.write(move |write| tasks.iter().try_for_each(|task| remove(write, task))).await
    }

    async fn overflow_depth(&self) -> Result<Vec<(QueueName, u64)>> {
        const DEPTH: &str = "
            select namespace, queue, count(*) from overflow_task group by namespace, queue
            order by namespace, queue";
        self.read(|connection| {
            let mut statement = connection.prepare_cached(DEPTH)?;
            let mut rows = statement.query([])?;
            let mut depth = Vec::new();
            while let Some(row) = rows.next()? {
                let queue = QueueName {
                    namespace: value::text(row, 0)?.into(),
                    queue: value::text(row, 1)?.into(),
                };
                depth.push((queue, value::sequence(row, 2)?));
            }
            Ok(depth)
        })
        .await
    }
}

pub(super) fn remove(write: &Write<'_>, task: &TaskKey) -> Result<(), Failure> {
    const REMOVE: &str = "
        delete from overflow_task where execution_id = ?1 and path = ?2 and attempt = ?3";
    let TaskKey { execution, path, attempt } = task;
    write.execute(REMOVE, params![execution.0.as_bytes(), path.as_str(), attempt])?;
    Ok(())
}

fn task(row: &Row<'_>) -> Result<OverflowTask, Failure> {
    Ok(OverflowTask {
        task: TaskId {
            execution: value::execution(row, 0)?,
            path: value::text(row, 1)?.into(),
            attempt: value::count(row, 2)?,
            run: value::count(row, 3)?,
            sequence: value::sequence(row, 4)?,
        },
        queue: QueueName {
            namespace: value::text(row, 5)?.into(),
            queue: value::text(row, 6)?.into(),
        },
        task_type: value::text(row, 7)?.into(),
        priority: row.get(8)?,
        available_at: value::at(row, 9)?,
    })
}
