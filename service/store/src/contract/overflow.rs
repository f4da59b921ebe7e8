//! Tasks that the owner has no worker for, or no room: any node claims them in batches.
//!
//! A row is a hint, never the truth: what it names may be closed long ago. Who claims one loads the
//! execution and lets core judge.

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

#[async_trait]
pub trait Overflow {
    /// Puts tasks where any node finds them; one that is there already stays as it is.
    async fn overflow(&self, node: NodeId, tasks: &[OverflowTask]) -> Result<()>;

    /// Leases at most `limit` available tasks of these queues to the node for `lease`: highest
    /// priority first, then the longest available. No task is leased to two at a time. `now` is the
    /// node's store time, in which tasks became available.
    async fn claim(
        &self,
        node: NodeId,
        queues: &[QueueName],
        limit: usize,
        lease: Duration,
        now: Timestamp,
    ) -> Result<Vec<OverflowTask>>;

    /// Takes rows away that turned out to be void, or that their owner hands out itself.
    async fn withdraw(&self, tasks: &[TaskKey]) -> Result<()>;

    /// How many tasks lie there, by queue.
    async fn overflow_depth(&self) -> Result<Vec<(QueueName, u64)>>;
}
