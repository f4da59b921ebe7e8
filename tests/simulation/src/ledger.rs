//! The record of a run: the histories that nodes have written, and what callers and workers were told. The checks
//! compare every answer of a node with it.

mod sessions;

use std::collections::{BTreeMap, BTreeSet};

use recoup_core::command::TaskId;
use recoup_core::event::{AttemptFailed, Event};
use recoup_core::execution::Execution;
use recoup_core::id::{ExecutionId, StepPath};
use recoup_core::payload::Payload;
use recoup_store::NodeId;

use crate::clients::OpId;
use crate::machines::{Asker, ReplyId};

pub use sessions::{Process, Sessions};

/// An invariant that did not hold.
#[derive(Clone, Debug)]
pub struct Violation {
    pub invariant: &'static str,
    pub what: String,
}

#[derive(Default)]
pub struct Ledger {
    pub askers: BTreeMap<ReplyId, Asker>,
    pub sessions: Sessions,
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
    pub received: BTreeMap<TaskId, Vec<Receipt>>,
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

/// One row of a history, and the state after it.
pub struct Row {
    pub state: Execution,
    pub events: Vec<Event>,
}

/// A worker's process that received a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    pub worker: usize,
    pub life: u64,
    /// It has reported that it did not begin.
    pub released: bool,
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
