//! The invariants, checked against the [`Ledger`](crate::ledger::Ledger).
//!
//! This file folds every history on its own, row by row as rows are committed. Every answer of a node is compared
//! with the result at once. [`end`] checks whole histories when the run is over.

mod answers;
mod end;
mod received;
mod requests;
mod sessions;

use std::sync::Arc;

use recoup_core::evolve::{Transition, fold};
use recoup_core::execution::{CompensationState, Execution};
use recoup_core::id::ExecutionId;
use recoup_core::outcome::Outcome;
use recoup_core::plan::Plan;
use recoup_store::{Executions, ListFilter, NodeId};

use crate::ledger::Row;
use crate::trace::short;
use crate::wait::ready;
use crate::world::World;

/// No life of a node has this id, so a reader that uses it leaves no trace in the store.
pub const NOBODY: NodeId = NodeId(-1);

impl World<'_> {
    /// Folds the rows that have been added to a history.
    pub fn advance_mirror(&mut self, node: NodeId, id: ExecutionId) {
        let histories = ready(self.store.load(NOBODY, &[id])).unwrap_or_default();
        let Some(history) = histories.into_iter().next() else {
            return self.violate("what won is in the history", format!("{id} is not there"));
        };
        let known = self.ledger.histories.get(&id).map_or(0, Vec::len);
        for stored in history.transitions.into_iter().skip(known) {
            let data = match stored.decode(id) {
                Ok(data) => data,
                Err(error) => return self.violate("histories fold", format!("{id}: {error}")),
            };
            let before = self.ledger.latest(id).cloned();
            let transition = Transition {
                sequence: stored.sequence,
                decided_at: data.decided_at,
                events: data.events,
            };
            match fold(before, id, &transition) {
                Ok(state) => {
                    if stored.format > state.format {
                        let what = format!("{} #{}", short(&id), stored.sequence);
                        self.violate("an execution continues in its format", what);
                    }
                    let row = Row { state, events: transition.events };
                    self.ledger.histories.entry(id).or_default().push(row);
                    self.check_row(node, id);
                }
                Err(misfit) => return self.violate("histories fold", format!("{id}: {misfit}")),
            }
        }
    }

    fn check_row(&mut self, node: NodeId, id: ExecutionId) {
        let Some(rows) = self.ledger.histories.get(&id) else {
            return;
        };
        let [.., before, row] = &rows[..] else {
            return;
        };
        let (before, events, at) = (before.state.clone(), row.events.clone(), row.state.decided_at);
        if at < before.decided_at {
            self.violate("time never goes back in a history", short(&id));
        }
        self.check_attempts(node, id, &before, &events, at);
    }

    pub fn plan_of(&self, state: &Execution) -> Option<&Arc<Plan>> {
        self.catalog.plan(state.workflow.as_str())
    }

    /// Checks that at most one running execution holds a key.
    pub fn check_key(&mut self, key: &str) {
        let filter = ListFilter { key_prefix: Some(key.to_owned()), ..ListFilter::default() };
        let listed = ready(self.store.list(&filter, None, 1000)).unwrap_or_default();
        let running = listed.iter().filter(|listed| {
            let row = &listed.index;
            let unresolved = [CompensationState::Parked, CompensationState::Running];
            row.key.as_deref() == Some(key)
                && (row.ended_at.is_none() || unresolved.iter().any(|own| row.compensation == *own))
        });
        let running: Vec<_> = running.map(|listed| short(&listed.execution)).collect();
        if running.len() > 1 {
            self.violate("a key has one running holder", format!("{key}: {running:?}"));
        }
    }

    /// Checks that a state that a node reported equals the fold of the history at its sequence.
    pub fn check_state(&mut self, machine: usize, state: &Execution) {
        let index = usize::try_from(state.sequence).unwrap_or(0).wrapping_sub(1);
        let row = self.ledger.histories.get(&state.id).and_then(|rows| rows.get(index));
        let place = format!("machine {machine}, {} #{}", short(&state.id), state.sequence);
        match row {
            None => self.violate("nothing is told before it is committed", place),
            Some(row) if row.state != *state => {
                let what = format!("{place}: node {state:?}, history {:?}", row.state);
                self.violate("the fold of the history is the state", what);
            }
            Some(_) => {}
        }
    }

    /// Checks that the outcome that a caller is told equals the history at its sequence.
    pub fn check_outcome(&mut self, machine: usize, outcome: &Outcome) {
        let id = outcome.execution;
        if !self.check_recorded(machine, id, outcome.sequence) {
            return;
        }
        let index = usize::try_from(outcome.sequence).unwrap_or(0).wrapping_sub(1);
        let row = self.ledger.histories.get(&id).and_then(|rows| rows.get(index));
        let recorded = row.map(|row| Outcome::of(&row.state));
        if recorded.as_ref() != Some(outcome) {
            let what = format!("machine {machine}: told {outcome:?}, history {recorded:?}");
            self.violate("callers are told what the history says", what);
        }
    }

    /// Checks that the history reaches this sequence.
    pub fn check_recorded(&mut self, machine: usize, id: ExecutionId, sequence: u64) -> bool {
        let rows = self.ledger.histories.get(&id).map_or(0, Vec::len);
        let is_there = usize::try_from(sequence).is_ok_and(|sequence| sequence <= rows);
        if !is_there {
            let place = format!("machine {machine}, {} #{sequence}", short(&id));
            self.violate("nothing is told before it is committed", place);
        }
        is_there
    }

    pub fn open_executions(&self) -> Vec<ExecutionId> {
        let open = self
            .ledger
            .histories
            .iter()
            .filter(|(_, rows)| rows.last().is_some_and(|row| row.state.is_active()));
        open.map(|(id, _)| *id).collect()
    }
}
