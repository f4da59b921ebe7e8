use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use recoup_core::id::ExecutionId;
use recoup_core::time::Timestamp;

use super::MemoryStore;
use super::state::Overflowed;
use crate::contract::{
    IdleCredit, NodeId, Overflow, OverflowTask, Peers, QueueName, Result, TaskKey, choose,
};

#[async_trait]
impl Overflow for MemoryStore {
    async fn overflow(&self, node: NodeId, tasks: &[OverflowTask]) -> Result<Vec<TaskKey>> {
        let mut state = self.lock();
        state.live(node)?;
        let mut left_out = Vec::new();
        for task in tasks {
            let indexed = state.executions.get(&task.task.execution);
            if indexed.is_some_and(|indexed| indexed.owner != node) {
                left_out.push(task.key());
                continue;
            }
            let row = || Overflowed { task: task.clone(), leased_until: None };
            state.overflow.entry(task.key()).or_insert_with(row);
        }
        Ok(left_out)
    }

    async fn publish_idle(&self, node: NodeId, idle: &[IdleCredit]) -> Result<Peers> {
        let mut state = self.lock();
        state.live(node)?.idle = idle.to_vec();
        let others = state.nodes.iter().filter(|(id, other)| **id != node && !other.closed);
        let published: Vec<_> = others.map(|(_, other)| other.idle.clone()).collect();
        Ok(Peers { nodes: published.len(), idle: published.concat() })
    }

    async fn claim(
        &self,
        node: NodeId,
        idle: &[IdleCredit],
        limit: usize,
        lease: Duration,
        now: Timestamp,
    ) -> Result<Vec<OverflowTask>> {
        let mut state = self.lock();
        state.live(node)?;
        let is_read = |execution: &ExecutionId| {
            let indexed = state.executions.get(execution);
            indexed.is_none_or(|indexed| indexed.row.format <= self.formats.history)
        };
        let free = state.overflow.values().filter(|row| {
            row.task.available_at <= now
                && row.leased_until.is_none_or(|until| until <= now)
                && is_read(&row.task.task.execution)
        });
        let free = free.map(|row| row.task.clone()).collect();
        let claimed = choose(free, idle, limit);
        for task in &claimed {
            if let Some(row) = state.overflow.get_mut(&task.key()) {
                row.leased_until = Some(now + lease);
            }
        }
        Ok(claimed)
    }

    async fn withdraw(&self, tasks: &[TaskKey]) -> Result<()> {
        let mut state = self.lock();
        for task in tasks {
            state.overflow.remove(task);
        }
        Ok(())
    }

    async fn overflow_depth(&self) -> Result<Vec<(QueueName, u64)>> {
        let mut depth = BTreeMap::new();
        for row in self.lock().overflow.values() {
            *depth.entry(row.task.queue.clone()).or_insert(0) += 1;
        }
        Ok(depth.into_iter().collect())
    }
}
