use async_trait::async_trait;
use recoup_core::id::{ExecutionId, Namespace};
use recoup_core::time::Timestamp;

use super::MemoryStore;
use crate::contract::{Executions, Head, History, IndexRow, ListFilter, Listed, NodeId, Result};

#[async_trait]
impl Executions for MemoryStore {
    async fn load(&self, node: NodeId, executions: &[ExecutionId]) -> Result<Vec<History>> {
        let mut state = self.lock();
        let highest = executions.iter().filter_map(|id| state.last_numbers.get(id)).max().copied();
        if let (Some(node), Some(highest)) = (state.nodes.get_mut(&node), highest) {
            node.lane.last = node.lane.last.max(highest);
        }
        let histories = executions.iter().filter_map(|&execution| {
            let transitions = state.history.get(&execution)?.values().cloned().collect();
            Some(History { execution, owner: state.owner(execution), transitions })
        });
        Ok(histories.collect())
    }

    async fn heads(&self, executions: &[ExecutionId]) -> Result<Vec<Head>> {
        let state = self.lock();
        let heads = executions.iter().filter_map(|&execution| {
            let (&sequence, _) = state.history.get(&execution)?.last_key_value()?;
            let indexed = state.executions.get(&execution)?;
            let owner = state.owner(execution);
            Some(Head { execution, sequence, state: indexed.row.state, owner })
        });
        Ok(heads.collect())
    }

    async fn due(&self, node: NodeId, until: Timestamp, limit: usize) -> Result<Vec<ExecutionId>> {
        let state = self.lock();
        let owned = state.executions.iter().filter(|(_, execution)| execution.owner == node);
        let mut due: Vec<_> = owned
            .filter_map(|(&id, execution)| Some((execution.row.wake_at?, id)))
            .filter(|(wake_at, _)| *wake_at <= until)
            .collect();
        due.sort();
        Ok(due.into_iter().map(|(_, id)| id).take(limit).collect())
    }

    async fn list(
        &self,
        filter: &ListFilter,
        before: Option<ExecutionId>,
        limit: usize,
    ) -> Result<Vec<Listed>> {
        let state = self.lock();
        let newest_first = state.executions.iter().rev();
        let listed = newest_first
            .filter(|(id, _)| before.is_none_or(|before| **id < before))
            .filter(|(_, execution)| takes(filter, &execution.row))
            .map(|(&execution, indexed)| Listed { execution, index: indexed.row.clone() });
        Ok(listed.take(limit).collect())
    }

    async fn key_holder(&self, namespace: &Namespace, key: &str) -> Result<Option<ExecutionId>> {
        Ok(self.lock().keys.get(&(namespace.clone(), key.to_owned())).copied())
    }

    async fn started_by(
        &self,
        namespace: &Namespace,
        request_id: &str,
    ) -> Result<Option<(ExecutionId, u64)>> {
        let now = self.time();
        let request = self.lock().request(namespace, request_id, now);
        Ok(request.map(|request| (request.execution, request.digest)))
    }
}

fn takes(filter: &ListFilter, row: &IndexRow) -> bool {
    let below = |wanted: &str, error_type: &str| {
        let rest = error_type.strip_prefix(wanted);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    filter.namespace.as_ref().is_none_or(|namespace| row.namespace == *namespace)
        && (filter.states.is_empty() || filter.states.contains(&row.state))
        && filter.workflow.as_ref().is_none_or(|workflow| row.workflow == *workflow)
        && filter.error_type.as_ref().is_none_or(|wanted| {
            row.error_type.as_ref().is_some_and(|error_type| below(wanted, error_type))
        })
        && filter
            .key_prefix
            .as_ref()
            .is_none_or(|prefix| row.key.as_ref().is_some_and(|key| key.starts_with(prefix)))
        && filter.started_after.is_none_or(|after| row.started_at >= after)
        && filter.started_before.is_none_or(|before| row.started_at < before)
}
