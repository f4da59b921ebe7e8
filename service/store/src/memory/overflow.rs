use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use recoup_core::time::Timestamp;

use super::MemoryStore;
use super::state::Overflowed;
use crate::contract::{NodeId, Overflow, OverflowTask, QueueName, Result, TaskKey};

#[async_trait]
impl Overflow for MemoryStore {
    async fn overflow(&self, node: NodeId, tasks: &[OverflowTask]) -> Result<()> {
        let mut state = self.lock();
        state.live(node)?;
        for task in tasks {
            let row = || Overflowed { task: task.clone(), leased_until: None };
            state.overflow.entry(task.key()).or_insert_with(row);
        }
        Ok(())
    }

    async fn claim(
        &self,
        node: NodeId,
        queues: &[QueueName],
        limit: usize,
        lease: Duration,
        now: Timestamp,
    ) -> Result<Vec<OverflowTask>> {
        let mut state = self.lock();
        state.live(node)?;
        let free = state.overflow.values_mut().filter(|row| {
            queues.contains(&row.task.queue)
                && row.task.available_at <= now
                && row.leased_until.is_none_or(|until| until <= now)
        });
        let mut free: Vec<_> = free.collect();
        free.sort_by_key(|row| (Reverse(row.task.priority), row.task.available_at));
        let claimed = free.into_iter().take(limit).map(|row| {
            row.leased_until = Some(now + lease);
            row.task.clone()
        });
        Ok(claimed.collect())
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
