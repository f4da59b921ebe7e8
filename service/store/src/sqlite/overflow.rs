//! Tasks that any node may claim.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::Duration;

use async_trait::async_trait;
use recoup_core::command::TaskId;
use recoup_core::time::Timestamp;
use rusqlite::{Row, params};

use super::error::Failure;
use super::writer::Write;
use super::{SqliteStore, value};
use crate::contract::{
    Error, IdleCredit, NodeId, Overflow, OverflowTask, Peers, QueueName, Result, TaskKey, choose,
};

#[async_trait]
impl Overflow for SqliteStore {
    async fn overflow(&self, node: NodeId, tasks: &[OverflowTask]) -> Result<Vec<TaskKey>> {
        const IS_ANOTHERS: &str =
            "select exists (select 1 from execution where id = ?1 and owner <> ?2)";
        const ADD: &str = "
            insert into overflow_task (execution_id, path, attempt, run, sequence, namespace, queue,
                task_type, priority, available_at)
            values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) on conflict do nothing";
        let tasks = tasks.to_vec();
        self.write(move |write| {
            write.live(node)?;
            let mut left_out = Vec::new();
            for task in &tasks {
                let TaskId { execution, run, path, attempt, sequence } = &task.task;
                let asked = params![execution.0.as_bytes(), node.0];
                if write.prepare(IS_ANOTHERS)?.query_row(asked, |row| row.get(0))? {
                    left_out.push(task.key());
                    continue;
                }
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
            Ok(left_out)
        })
        .await
    }

    async fn publish_idle(&self, node: NodeId, idle: &[IdleCredit]) -> Result<Peers> {
        const LIVE: &str = "select id from node where closed_at is null";
        let live = self.read(|connection| {
            let mut statement = connection.prepare_cached(LIVE)?;
            let ids = statement.query_map([], |row| row.get(0).map(NodeId))?;
            Ok(ids.collect::<rusqlite::Result<BTreeSet<NodeId>>>()?)
        });
        let live = live.await?;
        if !live.contains(&node) {
            return Err(Error::LeaseLost);
        }
        // Only nodes of this process use the file, so published workers are kept in memory.
        let mut published = self.inner.idle.lock().unwrap_or_else(PoisonError::into_inner);
        published.retain(|other, _| live.contains(other));
        published.insert(node, idle.to_vec());
        let others = published.iter().filter(|(other, _)| **other != node);
        let idle = others.flat_map(|(_, idle)| idle.iter().cloned()).collect();
        Ok(Peers { nodes: live.len() - 1, idle })
    }

    async fn claim(
        &self,
        node: NodeId,
        idle: &[IdleCredit],
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
                and (?5 is null or task_type = ?5)
                and not exists (
                    select 1 from execution where id = execution_id and format > ?6)
            order by priority desc, available_at, execution_id, path, attempt limit ?4";
        const LEASE: &str = "
            update overflow_task set leased_until = ?4
            where execution_id = ?1 and path = ?2 and attempt = ?3";
        let (idle, newest) = (idle.to_vec(), self.formats.history);
        self.write(move |write| {
            write.live(node)?;
            let mut free = Vec::new();
            for workers in &idle {
                // None selects all types.
                let types = workers.task_types.iter().map(Some);
                let types: Vec<_> = match workers.task_types.is_empty() {
                    true => vec![None],
                    false => types.collect(),
                };
                for (QueueName { namespace, queue }, task_type) in workers
                    .queues
                    .iter()
                    .flat_map(|queue| types.iter().map(move |own| (queue, own)))
                {
                    let mut statement = write.prepare(FREE)?;
                    let limit = value::limit(limit);
                    let (namespace, now) = (namespace.as_str(), now.as_micros());
                    let wanted = params![namespace, queue, now, limit, task_type, newest];
                    let mut rows = statement.query(wanted)?;
                    while let Some(row) = rows.next()? {
                        free.push(task(row)?);
                    }
                }
            }
            let claimed = choose(free, &idle, limit);
            let until = (now + lease).as_micros();
            for task in &claimed {
                let TaskKey { execution, path, attempt } = task.key();
                let row = params![execution.0.as_bytes(), path.as_str(), attempt, until];
                write.execute(LEASE, row)?;
            }
            Ok(claimed)
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
