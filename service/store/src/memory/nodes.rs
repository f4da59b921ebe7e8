use std::time::Duration;

use async_trait::async_trait;
use recoup_core::id::ExecutionId;
use recoup_core::time::Timestamp;

use super::MemoryStore;
use super::state::{Lane, Node};
use crate::contract::{Lease, NodeId, Nodes, Renewals, Result, StoreFormats, UNREAD_MAX};

#[async_trait]
impl Nodes for MemoryStore {
    async fn join(&self, address: &str, ttl: Duration) -> Result<Lease> {
        let now = self.time();
        let mut state = self.lock();
        let latest = state.nodes.last_key_value();
        let node = NodeId(latest.map_or(1, |(last, _)| last.0 + 1));
        let renewed_before = latest.map(|(_, node)| node.renewed_at);
        let last = state.nodes.values().map(|node| node.lane.last).max().unwrap_or(0);
        let lane = Lane { last, ..Lane::default() };
        let reached = Timestamp::default();
        let row = Node {
            address: address.to_owned(),
            readable: self.formats,
            ttl,
            renewals: 0,
            renewed_at: now,
            reached,
            closed: false,
            lane,
            idle: Vec::new(),
        };
        state.nodes.insert(node, row);
        let (reached, timeline) = (state.reached(), state.incarnation.to_string());
        Ok(Lease { node, now, reached, renewed_before, timeline, writable: state.writable })
    }

    async fn renew(&self, node: NodeId, ttl: Duration, reached: Timestamp) -> Result<Lease> {
        let now = self.time();
        let mut state = self.lock();
        let row = state.live(node)?;
        row.ttl = ttl;
        row.renewals += 1;
        row.renewed_at = now;
        row.reached = row.reached.max(reached);
        let (reached, timeline) = (state.reached(), state.incarnation.to_string());
        let writable = state.writable;
        Ok(Lease { node, now, reached, renewed_before: None, timeline, writable })
    }

    async fn leave(&self, node: NodeId) -> Result<()> {
        if let Some(node) = self.lock().nodes.get_mut(&node) {
            node.closed = true;
        }
        Ok(())
    }

    async fn leases(&self, node: NodeId, silent: &[Renewals]) -> Result<Vec<Renewals>> {
        let mut state = self.lock();
        state.live(node)?;
        for seen in silent {
            if let Some(row) = state.nodes.get_mut(&seen.node)
                && row.renewals == seen.count
            {
                row.closed = true;
            }
        }
        let open = state.nodes.iter().filter(|(other, row)| **other != node && !row.closed);
        let open = open.map(|(&node, row)| Renewals { node, count: row.renewals, ttl: row.ttl });
        Ok(open.collect())
    }

    async fn adopt(&self, node: NodeId, limit: usize) -> Result<Vec<ExecutionId>> {
        let mut state = self.lock();
        state.live(node)?;
        let orphaned = state
            .executions
            .iter()
            .filter(|(_, execution)| execution.row.is_active() && !state.is_live(execution.owner))
            .filter(|(_, execution)| execution.row.format <= self.formats.history);
        let adopted: Vec<_> = orphaned.map(|(id, _)| *id).take(limit).collect();
        for id in &adopted {
            if let Some(execution) = state.executions.get_mut(id) {
                execution.owner = node;
            }
        }
        Ok(adopted)
    }

    async fn unread(&self) -> Result<u64> {
        let state = self.lock();
        let live = state.nodes.values().filter(|node| !node.closed);
        let newest = live.map(|node| node.readable.history).max().unwrap_or(0);
        let active = state.executions.values().filter(|execution| execution.row.is_active());
        let unread = active.filter(|execution| execution.row.format > newest);
        Ok(u64::try_from(unread.count()).unwrap_or(u64::MAX).min(UNREAD_MAX))
    }

    async fn formats(&self) -> Result<StoreFormats> {
        Ok(self.lock().formats())
    }

    async fn finalize(&self) -> Result<StoreFormats> {
        let mut state = self.lock();
        if let Some(readable) = state.formats().readable() {
            state.writable = state.writable.max(readable);
        }
        Ok(state.formats())
    }
}
