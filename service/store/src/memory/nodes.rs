use std::time::Duration;

use async_trait::async_trait;
use recoup_core::id::ExecutionId;

use super::MemoryStore;
use super::state::{Lane, Node};
use crate::contract::{Lease, NodeId, Nodes, Result};

#[async_trait]
impl Nodes for MemoryStore {
    async fn join(&self, _address: &str, ttl: Duration) -> Result<Lease> {
        let now = self.time();
        let mut state = self.lock();
        let node = NodeId(state.nodes.last_key_value().map_or(1, |(last, _)| last.0 + 1));
        let expires_at = now + ttl;
        let last = state.nodes.values().map(|node| node.lane.last).max().unwrap_or(0);
        let lane = Lane { last, ..Lane::default() };
        state.nodes.insert(node, Node { expires_at, closed: false, lane });
        Ok(Lease { node, now, expires_at, timeline: state.incarnation.to_string() })
    }

    async fn renew(&self, node: NodeId, ttl: Duration) -> Result<Lease> {
        let now = self.time();
        let mut state = self.lock();
        let expires_at = now + ttl;
        state.live(node)?.expires_at = expires_at;
        Ok(Lease { node, now, expires_at, timeline: state.incarnation.to_string() })
    }

    async fn leave(&self, node: NodeId) -> Result<()> {
        if let Some(node) = self.lock().nodes.get_mut(&node) {
            node.closed = true;
        }
        Ok(())
    }

    async fn adopt(&self, node: NodeId, limit: usize) -> Result<Vec<ExecutionId>> {
        let now = self.time();
        let mut state = self.lock();
        state.live(node)?;
        for (&other, row) in &mut state.nodes {
            // Who asks is alive: it is not the one to close its own lease.
            if other != node && row.expires_at <= now {
                row.closed = true;
            }
        }
        let orphaned = state
            .executions
            .iter()
            .filter(|(_, execution)| execution.row.is_active() && !state.is_live(execution.owner))
            .filter(|(id, _)| state.is_readable(**id));
        let adopted: Vec<_> = orphaned.map(|(id, _)| *id).take(limit).collect();
        for id in &adopted {
            if let Some(execution) = state.executions.get_mut(id) {
                execution.owner = node;
            }
        }
        Ok(adopted)
    }
}
