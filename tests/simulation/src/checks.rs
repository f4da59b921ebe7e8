//! The invariants, and the records by which they are checked.
//!
//! [`Ledger`] folds every history on its own, row by row as rows are committed. Every answer of a node is
//! compared with it at once. [`end`] checks whole histories when the run is over.

mod answers;
mod end;
mod received;
mod requests;
pub mod sessions;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use recoup_core::command::TaskId;
use recoup_core::error::{TaskError, builtin};
use recoup_core::event::{AttemptFailed, Event};
use recoup_core::evolve::{Transition, fold};
use recoup_core::execution::{CompensationState, Execution};
use recoup_core::id::{ExecutionId, StepPath};
use recoup_core::outcome::Outcome;
use recoup_core::payload::Payload;
use recoup_core::plan::Plan;
use recoup_store::{Executions, ListFilter, NodeId};

use crate::clients::OpId;
use crate::machines::{Asker, ReplyId};
use crate::trace::short;
use crate::wait::ready;
use crate::world::World;

/// No life of a node has this id, so a reader that uses it leaves no trace in the store.
pub const NOBODY: NodeId = NodeId(-1);

/// One row of a history, and the state after it.
pub struct Row {
    pub state: Execution,
    pub events: Vec<Event>,
}

#[derive(Default)]
pub struct Ledger {
    pub askers: BTreeMap<ReplyId, Asker>,
    pub sessions: sessions::Sessions,
    /// The executions that each life of a node has read or written.
    pub read_in_life: BTreeSet<(NodeId, ExecutionId)>,
    pub histories: BTreeMap<ExecutionId, Vec<Row>>,
    /// Executions of whose start a caller was informed.
    pub known: BTreeSet<ExecutionId>,
    /// The execution that each request id of a start has started.
    pub started: BTreeMap<String, ExecutionId>,
    pub completed: BTreeMap<(ExecutionId, u32, StepPath), (u32, Payload)>,
    pub handed_once: BTreeMap<TaskId, u32>,
    /// The receipts of tasks by workers, on the workers' side of the network.
    pub received: BTreeMap<TaskId, Vec<received::Receipt>>,
    /// Ops that were refused because another request body had used their request id.
    pub refused_ops: BTreeSet<OpId>,
    /// The ids of the events about lost sessions.
    pub sessions_lost: BTreeSet<String>,
}

impl Ledger {
    pub fn latest(&self, id: ExecutionId) -> Option<&Execution> {
        self.histories.get(&id)?.last().map(|row| &row.state)
    }

    pub fn events(&self, id: ExecutionId) -> impl Iterator<Item = &Event> {
        self.histories.get(&id).into_iter().flatten().flat_map(|row| &row.events)
    }

    /// A short description of the events of a row.
    pub fn described(&self, id: ExecutionId, sequence: u64) -> String {
        let index = usize::try_from(sequence).unwrap_or(0).wrapping_sub(1);
        let row = self.histories.get(&id).and_then(|rows| rows.get(index));
        let events = row.into_iter().flat_map(|row| &row.events).map(describe);
        events.collect::<Vec<_>>().join(", ")
    }
}

pub fn describe(event: &Event) -> String {
    match event {
        Event::ExecutionStarted(started) => format!("started {}", started.workflow),
        Event::StepStarted { path, first: Some(first), .. } => {
            format!("{path} begins, {path}:{} scheduled", first.number)
        }
        Event::StepStarted { path, .. } => format!("{path} begins"),
        Event::AttemptScheduled { path, attempt, .. } => format!("{path}:{attempt} scheduled"),
        Event::AttemptStarted { path, attempt, worker, .. } => {
            format!("{path}:{attempt} with {worker}")
        }
        Event::AttemptFailed(failed) => {
            let AttemptFailed { path, attempt, error, outcome, decision, .. } = &**failed;
            let (error, reason) = (&error.error_type, decision.reason);
            format!("{path}:{attempt} failed {error} {outcome:?} {reason:?}")
        }
        Event::StepCompleted { path, attempt, output, .. } => {
            format!("{path}:{attempt} completed {output:?}")
        }
        Event::ExecutionEnded { state, .. } => format!("ended {state:?}"),
        other => {
            let text = format!("{other:?}");
            text.split([' ', '{']).next().unwrap_or_default().to_owned()
        }
    }
}

/// Whether a lost worker ended the attempt, directly or as the cause of another error.
fn is_worker_lost(error: &TaskError) -> bool {
    error.error_type == builtin::WORKER_LOST || error.cause.as_deref().is_some_and(is_worker_lost)
}

/// The error type at the end of the chain of causes.
fn root_cause(error: &TaskError) -> &str {
    error.cause.as_deref().map_or(error.error_type.as_str(), root_cause)
}

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
