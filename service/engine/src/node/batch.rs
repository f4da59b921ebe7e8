//! What is under way to the store, and what is remembered about each part of it until it is settled.

use std::sync::Arc;

use recoup_core::command::{Command, Rejection};
use recoup_core::event::Event;
use recoup_core::execution::Execution;
use recoup_core::id::{ExecutionId, StepPath};
use recoup_core::outcome::Outcome;
use recoup_core::plan::Plan;
use recoup_core::retry::Decision;
use recoup_store::{Batch, IndexRow, KeyedStart, TaskKey};

use super::flight::Flight;
use super::io::Answer;
use super::resident::Committed;
use super::slot::Pending;

/// The batch under way.
pub(super) type InFlight<R> = Flight<Entry<R>, Batch>;
/// The starts with keys under way.
pub(super) type KeyedInFlight<R> = Flight<Entry<R>, Vec<KeyedStart>>;

/// One execution's part of a batch.
pub(super) struct Entry<R> {
    pub id: ExecutionId,
    /// The state that the slot has given away for the time.
    pub next: Box<Execution>,
    pub committed: Committed,
    pub plan: Arc<Plan>,
    pub index: Option<IndexRow>,
    pub overflow_done: Vec<TaskKey>,
    pub failures: Failures,
    /// How many events the decision made.
    pub events: usize,
    /// Bytes of JSON that it took to parse.
    pub parsed: usize,
    pub decided: Vec<Judged<R>>,
}

impl<R> Entry<R> {
    /// What is under way.
    pub fn pending_mut(&mut self) -> impl Iterator<Item = &mut Pending<R>> {
        self.decided.iter_mut().map(|(pending, _)| pending)
    }
}

/// The attempts that failed in a transition, for the workers that reported them.
#[derive(Default)]
pub(super) struct Failures(Vec<(StepPath, u32, Decision)>);

impl Failures {
    pub fn of<R>(events: &[Event], decided: &[Judged<R>]) -> Self {
        let reported = |(pending, _): &Judged<R>| {
            pending.reply.is_some() && matches!(pending.command, Command::FailTask { .. })
        };
        if !decided.iter().any(reported) {
            return Self::default();
        }
        let failed = events.iter().filter_map(|event| match event {
            Event::AttemptFailed(failed) => {
                Some((failed.path.clone(), failed.attempt, failed.decision))
            }
            _ => None,
        });
        Self(failed.collect())
    }

    pub fn decision(&self, command: &Command) -> Option<Decision> {
        let Command::FailTask { task, .. } = command else {
            return None;
        };
        let mut failed = self.0.iter();
        let found =
            failed.find(|(path, attempt, _)| *path == task.path && *attempt == task.attempt);
        found.map(|(_, _, decision)| *decision)
    }
}

/// A command, and whether it fitted.
pub(super) type Judged<R> = (Pending<R>, Result<(), Rejection>);

/// What the caller of a command is told that the state has come of.
pub(super) fn answer(
    state: &Execution,
    command: &Command,
    is_own: bool,
    decision: Option<Decision>,
) -> Answer {
    match command {
        Command::CompleteTask { .. } | Command::FailTask { .. } | Command::RecordStart { .. } => {
            let (sequence, is_stopping) = (state.sequence, state.is_stopping());
            Answer::Recorded { sequence, is_stopping, decision }
        }
        _ => Answer::Done { outcome: Box::new(Outcome::of(state)), is_own },
    }
}
