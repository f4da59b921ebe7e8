//! A batch while it is being put together, and what the node keeps about each part of it until the store has
//! settled it.

use std::collections::BTreeSet;
use std::sync::Arc;

use recoup_core::command::{Command, Rejection};
use recoup_core::event::Event;
use recoup_core::execution::Execution;
use recoup_core::id::{ExecutionId, StepPath};
use recoup_core::outcome::Outcome;
use recoup_core::plan::Plan;
use recoup_core::retry::Decision;
use recoup_store::{Batch, FeedRow, IndexRow, NewQuarantine, Reminder, TaskKey, Transition};

use super::io::Answer;
use super::resident::Committed;
use super::slot::Pending;
use crate::options::Options;

/// How full a call to the store is.
pub(super) struct Fill {
    max: Limits,
    bytes: usize,
    /// The number of events that were decided for it.
    events: usize,
}

#[derive(Clone, Copy)]
struct Limits {
    transitions: usize,
    bytes: usize,
    events: usize,
}

impl Fill {
    pub fn new(options: &Options) -> Self {
        let max = Limits {
            transitions: options.batch_transitions_max,
            bytes: options.batch_bytes_max,
            events: options.batch_events_max,
        };
        Self { max, bytes: 0, events: 0 }
    }

    /// Whether there is room for one more item, given the number of its kind that is already in the call.
    fn has_room(&self, beside: usize) -> bool {
        beside < self.max.transitions && self.bytes < self.max.bytes
    }

    /// As [`Self::has_room`], for a transition.
    pub fn may_decide(&self, beside: usize) -> bool {
        self.has_room(beside) && self.events < self.max.events
    }

    /// Counts the work of the decision as well as its bytes: the node renews its lease between two calls, so
    /// deciding for one call must not take too long.
    pub fn add_decision<R>(&mut self, entry: &Entry<R>, transition: &Transition) {
        self.bytes += transition.bytes() + entry.parsed;
        self.events += entry.events;
    }
}

/// A batch that is being put together.
pub(super) struct Draft<R> {
    fill: Fill,
    batch: Batch,
    entries: Vec<Entry<R>>,
}

impl<R> Draft<R> {
    pub fn new(options: &Options) -> Self {
        Self { fill: Fill::new(options), batch: Batch::default(), entries: Vec::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.batch == Batch::default()
    }

    /// The entries of the transitions in it.
    pub fn entries_mut(&mut self) -> impl Iterator<Item = &mut Entry<R>> {
        self.entries.iter_mut()
    }

    pub fn has_room_for_event(&self) -> bool {
        self.fill.has_room(self.batch.feed.len())
    }

    pub fn add_event(&mut self, event: FeedRow) {
        self.fill.bytes += event.bytes();
        self.batch.feed.push(event);
    }

    pub fn may_decide(&self) -> bool {
        self.fill.may_decide(self.entries.len())
    }

    pub fn add_decision(&mut self, entry: Entry<R>, transition: Transition) {
        self.fill.add_decision(&entry, &transition);
        self.entries.push(entry);
        self.batch.transitions.push(transition);
    }

    pub fn has_room_for_quarantine(&self) -> bool {
        self.fill.has_room(self.batch.quarantined.len())
    }

    pub fn add_quarantine(&mut self, new: NewQuarantine) {
        self.fill.bytes += new.bytes();
        self.batch.quarantined.push(new);
    }

    pub fn has_room_for_reminder(&self) -> bool {
        self.fill.has_room(self.batch.reminders.len())
    }

    pub fn add_reminder(&mut self, reminder: Reminder) {
        self.fill.bytes += Reminder::BYTES;
        self.batch.reminders.push(reminder);
    }

    pub fn finish(self) -> (Batch, Vec<Entry<R>>) {
        (self.batch, self.entries)
    }
}

/// What the node keeps about one execution's transition until it is settled.
pub(super) struct Entry<R> {
    pub id: ExecutionId,
    /// The state after the transition. The slot has none while the transition is under way.
    pub next: Box<Execution>,
    pub committed: Committed,
    pub plan: Arc<Plan>,
    pub index: Option<IndexRow>,
    pub overflow_done: Vec<TaskKey>,
    pub failures: Failures,
    /// The steps and compensations whose attempts this transition may have opened, closed or moved. `None`:
    /// any attempt may be affected.
    pub touched: Option<Vec<StepPath>>,
    /// How many events the decision produced.
    pub events: usize,
    /// How many bytes of JSON the decision parsed.
    pub parsed: usize,
    pub decided: Vec<Judged<R>>,
}

impl<R> Entry<R> {
    /// The commands that this transition has decided.
    pub fn pending_mut(&mut self) -> impl Iterator<Item = &mut Pending<R>> {
        self.decided.iter_mut().map(|(pending, _)| pending)
    }
}

/// The attempts that failed in a transition, so that the workers that reported them can be answered.
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

/// The steps and compensations of which a transition opened, closed or recorded attempts, in the order of the
/// decisions. `None` for a termination, because it took attempts out of their queues.
pub(super) fn touched<R>(events: &[Event], decided: &[Judged<R>]) -> Option<Vec<StepPath>> {
    let commands = decided.iter().map(|(pending, _)| &pending.command);
    if commands.clone().any(|command| matches!(command, Command::TerminateExecution { .. })) {
        return None;
    }
    let told = commands.filter_map(Command::task).map(|task| &task.path);
    let mut seen = BTreeSet::new();
    let touched = events.iter().filter_map(Event::attempt_path).chain(told);
    Some(touched.filter(|path| seen.insert(*path)).cloned().collect())
}

/// A decided command, and whether it was accepted.
pub(super) type Judged<R> = (Pending<R>, Result<(), Rejection>);

/// The answer to the caller of a command, taken from the state that the command led to.
pub(super) fn answer(
    state: &Execution,
    command: &Command,
    is_own: bool,
    decision: Option<Decision>,
) -> Answer {
    match command {
        Command::CompleteTask { .. } | Command::FailTask { .. } | Command::RecordStart { .. } => {
            let task = command.task();
            let cancel_requested = task.is_some_and(|task| state.is_ending(&task.path));
            Answer::Recorded { sequence: state.sequence, cancel_requested, decision }
        }
        _ => Answer::Done { outcome: Box::new(Outcome::of(state)), is_own },
    }
}
