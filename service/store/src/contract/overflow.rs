//! Tasks that their owner gives away, either because it has no worker for them and another node has, or because
//! it has no room for them. Any node whose workers take such tasks claims them in batches.
//!
//! An overflow row is only a hint: the attempt that it names may have been closed long ago. The node that
//! claims a row loads the execution and lets core decide.

use std::cmp::Reverse;
use std::time::Duration;

use async_trait::async_trait;
use recoup_core::command::TaskId;
use recoup_core::id::{ExecutionId, Namespace, StepPath};
use recoup_core::time::Timestamp;

use super::{NodeId, Result};

/// Identifies an overflow row: one attempt of one step of an execution.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskKey {
    pub execution: ExecutionId,
    pub path: StepPath,
    pub attempt: u32,
}

/// A queue of tasks in a namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueName {
    pub namespace: Namespace,
    pub queue: String,
}

/// A task that any node may claim. Tasks with a higher priority are claimed first.
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

/// Workers of one node that are waiting for tasks and take the same kinds of task.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IdleCredit {
    pub queues: Vec<QueueName>,
    /// Empty means all task types.
    pub task_types: Vec<String>,
    /// How many tasks these workers can take now, in total.
    pub credit: u32,
}

impl IdleCredit {
    /// Whether these workers take such a task, regardless of their credit.
    pub fn takes(&self, queue: &QueueName, task_type: &str) -> bool {
        let takes_type =
            self.task_types.is_empty() || self.task_types.iter().any(|taken| taken == task_type);
        takes_type && self.queues.contains(queue)
    }
}

/// The idle workers that the other nodes have published.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    /// The number of other nodes whose lease is open.
    pub nodes: usize,
    pub idle: Vec<IdleCredit>,
}

/// Chooses the tasks that a claim leases: at most `limit`, by priority and then by age, and for each group of
/// workers no more than its credit. All stores use this rule.
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

/// Offers tasks to all nodes, and claims them.
#[async_trait]
pub trait Overflow {
    /// Puts tasks where any node can find them. A task that is there already is left unchanged.
    ///
    /// Returns the tasks that were left out because another node owns their execution. That node may have
    /// handed them out already, so a row would offer a task that a worker is already running. A commit that
    /// changes the owner is either finished before this call looks, or begins after it.
    async fn overflow(&self, node: NodeId, tasks: &[OverflowTask]) -> Result<Vec<TaskKey>>;

    /// Replaces the idle workers that this node has published, and returns those that the other nodes have
    /// published. Whatever a node has published ends with its lease.
    async fn publish_idle(&self, node: NodeId, idle: &[IdleCredit]) -> Result<Peers>;

    /// Leases at most `limit` available tasks that these workers take to the node, for the time `lease`. Tasks
    /// with the highest priority come first, then those that have been available longest; each group of workers
    /// gets no more tasks than its credit.
    ///
    /// No task is leased to two nodes at a time. Tasks of executions in a format that this binary cannot read
    /// are left out. `now` is the node's store time; the times at which tasks became available are compared
    /// with it.
    async fn claim(
        &self,
        node: NodeId,
        idle: &[IdleCredit],
        limit: usize,
        lease: Duration,
        now: Timestamp,
    ) -> Result<Vec<OverflowTask>>;

    /// Deletes rows that turned out to be void, or whose tasks the owner hands out itself.
    async fn withdraw(&self, tasks: &[TaskKey]) -> Result<()>;

    /// The number of tasks in overflow, by queue.
    async fn overflow_depth(&self) -> Result<Vec<(QueueName, u64)>>;
}
