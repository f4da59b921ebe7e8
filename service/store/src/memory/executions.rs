use async_trait::async_trait;
use recoup_core::id::{ExecutionId, Namespace};
use recoup_core::time::Timestamp;

use super::MemoryStore;
use super::state::{Indexed, State};
use crate::contract::{
    Due, Error, Executions, Head, History, IndexRow, ListFilter, Listed, NodeId, PageLimit,
    Release, Released, Result, StoredTransition, Wanted,
};

#[async_trait]
impl Executions for MemoryStore {
    async fn load_within(
        &self,
        node: NodeId,
        wanted: &[Wanted],
        bytes: usize,
    ) -> Result<Vec<History>> {
        let mut state = self.lock();
        let numbers = wanted.iter().filter_map(|one| state.last_numbers.get(&one.execution));
        let highest = numbers.max().copied();
        if let (Some(node), Some(highest)) = (state.nodes.get_mut(&node), highest) {
            node.lane.last = node.lane.last.max(highest);
        }
        let histories = wanted.iter().filter_map(|&Wanted { execution, after }| {
            let rows = state.history.get(&execution)?.range(after.saturating_add(1)..);
            let transitions = rows.map(|(_, row)| row.clone()).collect();
            let quarantine = state.quarantines.get(&execution).map(|marked| marked.row.clone());
            let owner = state.owner(execution);
            let row = state.executions.get(&execution).map(|indexed| &indexed.row);
            let (wake_at, format) =
                (row.and_then(|row| row.wake_at), row.map_or(0, |row| row.format));
            Some(History { execution, owner, wake_at, format, transitions, quarantine })
        });
        let mut histories: Vec<_> = histories.collect();
        let limit = PageLimit { events: usize::MAX, bytes };
        histories.truncate(limit.takes(histories.iter().map(History::bytes)));
        Ok(histories)
    }

    async fn history(
        &self,
        execution: ExecutionId,
        after: u64,
        limit: usize,
    ) -> Result<Vec<StoredTransition>> {
        let state = self.lock();
        let rows = state.history.get(&execution).into_iter().flatten();
        let behind = rows.filter(|(sequence, _)| **sequence > after);
        Ok(behind.map(|(_, transition)| transition.clone()).take(limit).collect())
    }

    async fn heads(&self, executions: &[ExecutionId]) -> Result<Vec<Head>> {
        let state = self.lock();
        let heads = executions.iter().filter_map(|&execution| {
            let (&sequence, _) = state.history.get(&execution)?.last_key_value()?;
            let indexed = state.executions.get(&execution)?;
            let owner = state.owner(execution);
            let quarantined = state.quarantine(execution).is_some();
            let state = indexed.row.state.clone();
            Some(Head { execution, sequence, state, owner, quarantined })
        });
        Ok(heads.collect())
    }

    async fn due(
        &self,
        node: NodeId,
        until: Timestamp,
        after: Option<Due>,
        limit: usize,
    ) -> Result<Vec<Due>> {
        let state = self.lock();
        let owned = state.executions.iter().filter(|(_, execution)| {
            execution.owner == node && execution.row.format <= self.formats.history
        });
        let mut due: Vec<_> = owned
            .filter_map(|(&execution, indexed)| {
                Some(Due { wake_at: indexed.row.wake_at?, execution })
            })
            .filter(|due| due.wake_at <= until && after.is_none_or(|after| *due > after))
            .filter(|due| state.quarantine(due.execution).is_none())
            .collect();
        due.sort();
        due.truncate(limit);
        Ok(due)
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
            .filter(|(id, _)| !filter.quarantined || state.quarantine(**id).is_some())
            .map(|(id, indexed)| listed(&state, *id, indexed));
        Ok(listed.take(limit).collect())
    }

    async fn indexed(&self, execution: ExecutionId) -> Result<Option<Listed>> {
        let state = self.lock();
        Ok(state.executions.get(&execution).map(|indexed| listed(&state, execution, indexed)))
    }

    async fn release_quarantine(
        &self,
        node: NodeId,
        execution: ExecutionId,
        release: &Release,
    ) -> Result<()> {
        let now = self.time();
        let mut state = self.lock();
        state.live(node)?;
        let marked = state.quarantines.get_mut(&execution).ok_or(Error::NotFound)?;
        if let (Some((id, digest)), Some((last_id, last_digest))) =
            (&release.request, &marked.request)
            && id == last_id
        {
            return if digest == last_digest { Ok(()) } else { Err(Error::RequestIdReused) };
        }
        if !marked.row.in_force() {
            return Err(Error::NotFound);
        }
        marked.row.released = Some(Released { at: now, reason: release.reason.clone() });
        marked.request.clone_from(&release.request);
        if let Some(execution) = state.executions.get_mut(&execution) {
            execution.owner = node;
        }
        Ok(())
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

fn listed(state: &State, execution: ExecutionId, indexed: &Indexed) -> Listed {
    let quarantine = state.quarantine(execution).cloned();
    Listed { execution, index: indexed.row.clone(), quarantine }
}

fn takes(filter: &ListFilter, row: &IndexRow) -> bool {
    let below = |wanted: &str, error_type: &str| {
        let rest = error_type.strip_prefix(wanted);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    filter.namespace.as_ref().is_none_or(|namespace| row.namespace == *namespace)
        && (filter.states.is_empty()
            || row.state.known().is_some_and(|state| filter.states.contains(&state)))
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
