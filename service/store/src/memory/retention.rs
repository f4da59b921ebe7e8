use async_trait::async_trait;
use recoup_core::time::Timestamp;

use super::MemoryStore;
use super::state::State;
use crate::contract::{Expired, IndexRow, REQUEST_KEPT, Result, Retention};

#[async_trait]
impl Retention for MemoryStore {
    async fn expire(&self, now: Timestamp, limit: usize) -> Result<Expired> {
        let now = now.min(self.time());
        let mut state = self.lock();
        let mut expired = Expired::default();
        if state.retention_paused_at.is_some() {
            return Ok(Expired { paused: true, ..expired });
        }

        let due = state.executions.iter().filter(|(id, execution)| {
            state.has_expired(&execution.row, now) && state.quarantine(**id).is_none()
        });
        let (due, more) = first(due.map(|(id, _)| *id), limit);
        expired.executions = due.len() as u64;
        expired.more |= more;
        for execution in due {
            state.executions.remove(&execution);
            state.history.remove(&execution);
            state.last_numbers.remove(&execution);
            state.quarantines.remove(&execution);
            state.keys.retain(|_, holder| *holder != execution);
            state.overflow.retain(|task, _| task.execution != execution);
        }

        let due = state.nodes.iter().flat_map(|(&lane, node)| {
            node.lane.events.iter().map(move |(&number, row)| (lane, number, row))
        });
        let due = due.filter(|(.., row)| row.at + state.retention(&row.namespace) < now);
        let (due, more) =
            first(due.map(|(lane, number, row)| (lane, number, row.id.clone())), limit);
        expired.events = due.len() as u64;
        expired.more |= more;
        for (lane, number, id) in due {
            state.event_ids.remove(&id);
            if let Some(node) = state.nodes.get_mut(&lane) {
                node.lane.events.remove(&number);
                node.lane.removed.insert(number);
            }
        }

        let due = state.requests.iter().filter(|(_, request)| request.at + REQUEST_KEPT <= now);
        let (due, more) = first(due.map(|(place, _)| place.clone()), limit);
        expired.start_requests = due.len() as u64;
        expired.more |= more;
        for place in due {
            state.requests.remove(&place);
        }

        let due = state.registry_requests.iter().filter(|(_, past)| past.at + REQUEST_KEPT <= now);
        let (due, more) = first(due.map(|(place, _)| place.clone()), limit);
        expired.registry_requests = due.len() as u64;
        expired.more |= more;
        for place in due {
            state.registry_requests.remove(&place);
        }
        Ok(expired)
    }

    async fn pause_retention(&self) -> Result<()> {
        let now = self.time();
        self.lock().retention_paused_at.get_or_insert(now);
        Ok(())
    }

    async fn resume_retention(&self) -> Result<Option<Timestamp>> {
        Ok(self.lock().retention_paused_at.take())
    }
}

impl State {
    fn has_expired(&self, row: &IndexRow, now: Timestamp) -> bool {
        !row.is_active()
            && row.is_done_for_good()
            && row.ended_at.is_some_and(|at| at + self.retention(&row.namespace) < now)
    }
}

/// The first `limit` entries that are due, and whether there are more.
fn first<T>(mut due: impl Iterator<Item = T>, limit: usize) -> (Vec<T>, bool) {
    let taken = due.by_ref().take(limit).collect();
    (taken, due.next().is_some())
}
