//! Tasks that their owner gives away: it has no worker for them and another node has, or it has no room
//! for them. Any node whose workers take such tasks claims them in batches.
//!
//! A row is a hint, never the truth: what it names may be closed long ago. The node that claims one
//! loads the execution and lets core judge.

use std::cmp::Reverse;
use std::time::Duration;

use async_trait::async_trait;
use recoup_core::command::TaskId;
use recoup_core::id::{ExecutionId, Namespace, StepPath};
use recoup_core::time::Timestamp;

use super::{NodeId, Result};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskKey {
    pub execution: ExecutionId,
    pub path: StepPath,
    pub attempt: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueName {
    pub namespace: Namespace,
    pub queue: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverflowTask {
    pub task: TaskId,
    pub queue: QueueName,
    pub task_type: String,
    pub priority: i32,
    pub available_at: Timestamp,
}

impl OverflowTask {
    pub fn key(&self) -> TaskKey {
        let TaskId { execution, path, attempt, .. } = self.task.clone();
        TaskKey { execution, path, attempt }
    }
}

/// Workers of one node that wait for tasks, and take the same ones.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IdleCredit {
    pub queues: Vec<QueueName>,
    /// Empty: all.
    pub task_types: Vec<String>,
    /// How many tasks they take now, in all.
    pub credit: u32,
}

impl IdleCredit {
    pub fn takes(&self, queue: &QueueName, task_type: &str) -> bool {
        let takes_type =
            self.task_types.is_empty() || self.task_types.iter().any(|taken| taken == task_type);
        takes_type && self.queues.contains(queue)
    }
}

/// What the other nodes have published.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    /// Nodes beside this one whose lease is not closed.
    pub nodes: usize,
    pub idle: Vec<IdleCredit>,
}

/// Chooses what a claim leases: at most `limit` tasks, by priority, then age, and no more for any
/// workers than their credit. One rule for all stores.
pub(crate) fn choose(
    mut free: Vec<OverflowTask>,
    idle: &[IdleCredit],
    limit: usize,
) -> Vec<OverflowTask> {
    free.sort_by_cached_key(|task| (Reverse(task.priority), task.available_at, task.key()));
    free.dedup_by_key(|task| task.key());
    let mut left: Vec<u32> = idle.iter().map(|idle| idle.credit).collect();
    free.retain(|task| {
        let mut takers = idle.iter().zip(&mut left);
        let taker =
            takers.find(|(idle, left)| **left > 0 && idle.takes(&task.queue, &task.task_type));
        taker.map(|(_, left)| *left -= 1).is_some()
    });
    free.truncate(limit);
    free
}

#[async_trait]
pub trait Overflow {
    /// Puts tasks where any node finds them; one that is there already stays as it is. Returns those that were
    /// left out because another node owns their execution: that node may have handed them out already, so
    /// a row would offer what a worker has. A commit that changes the owner is over before or begins after.
    async fn overflow(&self, node: NodeId, tasks: &[OverflowTask]) -> Result<Vec<TaskKey>>;

    /// Replaces what the node has published of its idle workers, and answers with what the other nodes
    /// have published. What a node published ends with its lease.
    async fn publish_idle(&self, node: NodeId, idle: &[IdleCredit]) -> Result<Peers>;

    /// Leases at most `limit` available tasks that these workers take to the node for `lease`: highest
    /// priority first, then the longest available, and no more for any workers than their credit. No
    /// task is leased to two at a time, and none of an execution in a format that this binary cannot read. `now` is the node's store time, in which tasks became available.
    async fn claim(
        &self,
        node: NodeId,
        idle: &[IdleCredit],
        limit: usize,
        lease: Duration,
        now: Timestamp,
    ) -> Result<Vec<OverflowTask>>;

    /// Takes rows away that turned out to be void, or that their owner hands out itself.
    async fn withdraw(&self, tasks: &[TaskKey]) -> Result<()>;

    /// How many tasks lie there, by queue.
    async fn overflow_depth(&self) -> Result<Vec<(QueueName, u64)>>;
}
