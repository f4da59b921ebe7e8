//! What must hold, and the books that say whether it does.
//!
//! [`Ledger`] keeps a fold of every history of its own, row by row as rows are committed; whatever a
//! node says is compared with it at once. [`end`] looks at whole histories when all is over.

mod answers;
mod end;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use recoup_core::command::TaskId;
use recoup_core::error::{Error, builtin};
use recoup_core::event::{AttemptFailed, AttemptOutcome, Event};
use recoup_core::evolve::{Transition, fold};
use recoup_core::execution::{CompensationState, Execution};
use recoup_core::id::{ExecutionId, StepPath};
use recoup_core::payload::Payload;
use recoup_core::time::Timestamp;
use recoup_engine::node::io::WorkerKey;
use recoup_store::{Executions, FeedRow, ListFilter, NodeId, format};

use crate::calls::short;
use crate::catalog::NAMESPACE;
use crate::machines::{Asker, ReplyId};
use crate::wait::ready;
use crate::world::World;

/// No life of a node has this id: who reads as it leaves no trace in the store.
pub const NOBODY: NodeId = NodeId(-1);

/// One row of a history, and the state that it made.
pub struct Row {
    pub state: Execution,
    pub events: Vec<Event>,
}

#[derive(Default)]
pub struct Ledger {
    pub askers: BTreeMap<ReplyId, Asker>,
    /// Sessions behind connections.
    pub links: BTreeMap<WorkerKey, String>,
    pub session_ttl: BTreeMap<String, Duration>,
    /// When a machine heard of a session: it lives and ends on each by itself.
    touches: BTreeMap<(usize, String), BTreeSet<Timestamp>>,
    /// Polls that wait, where and since when: each is its session's life all the time.
    polls: BTreeMap<WorkerKey, (usize, String, Timestamp)>,
    pub machine_of: BTreeMap<NodeId, usize>,
    /// What a life of a node has read or written.
    pub read_in_life: BTreeSet<(NodeId, ExecutionId)>,
    pub histories: BTreeMap<ExecutionId, Vec<Row>>,
    /// Executions whose start somebody was told of.
    pub known: BTreeSet<ExecutionId>,
    /// What request ids of starts have started.
    pub started: BTreeMap<String, ExecutionId>,
    pub completed: BTreeMap<(ExecutionId, u32, StepPath), Payload>,
    pub handed_once: BTreeMap<TaskId, u32>,
    /// Ids of the events that say so.
    pub sessions_lost: BTreeSet<String>,
}

impl Ledger {
    pub fn touched(&mut self, machine: usize, session: &str, at: Timestamp) {
        self.touches.entry((machine, session.to_owned())).or_default().insert(at);
    }

    pub fn poll_begins(&mut self, machine: usize, poll: WorkerKey, session: &str, at: Timestamp) {
        self.polls.insert(poll, (machine, session.to_owned(), at));
    }

    pub fn poll_ends(&mut self, poll: WorkerKey, at: Timestamp) {
        let Some((machine, session, since)) = self.polls.remove(&poll) else {
            return;
        };
        let ttl = self.session_ttl.get(&session).copied().unwrap_or_default();
        self.touches.entry((machine, session)).or_default().extend(life(since, at, ttl));
    }

    /// A machine has crashed: nobody there knows of its polls any more.
    pub fn polls_break(&mut self, machine: usize) {
        self.polls.retain(|_, (at, ..)| *at != machine);
    }

    pub fn touched_by(&mut self, machine: usize, link: WorkerKey, at: Timestamp) {
        if let Some(session) = self.links.get(&link).cloned() {
            self.touched(machine, &session, at);
        }
    }

    /// Whether a node can have seen a session end between two times: for its time to live nothing
    /// had come.
    fn session_ended(&self, node: NodeId, session: &str, from: Timestamp, to: Timestamp) -> bool {
        let Some((machine, ttl)) =
            self.machine_of.get(&node).copied().zip(self.session_ttl.get(session).copied())
        else {
            return false;
        };
        let touches = self.touches.get(&(machine, session.to_owned()));
        let mut touches: BTreeSet<_> = touches.into_iter().flatten().copied().collect();
        for (at, of, since) in self.polls.values() {
            if (*at, of.as_str()) == (machine, session) {
                touches.extend(life(*since, to, ttl));
            }
        }
        let touches: Vec<_> = touches.into_iter().collect();
        touches.iter().enumerate().any(|(index, last)| {
            let end = *last + ttl;
            let next = touches.get(index + 1).copied().unwrap_or(Timestamp::MAX);
            // Over somewhere between: what lay unread in a node that slept makes it last longer.
            end <= to && end <= next && next >= from
        })
    }

    pub fn latest(&self, id: ExecutionId) -> Option<&Execution> {
        self.histories.get(&id)?.last().map(|row| &row.state)
    }

    pub fn events(&self, id: ExecutionId) -> impl Iterator<Item = &Event> {
        self.histories.get(&id).into_iter().flatten().flat_map(|row| &row.events)
    }

    /// The events of a row in a few words.
    pub fn described(&self, id: ExecutionId, sequence: u64) -> String {
        let index = usize::try_from(sequence).unwrap_or(0).wrapping_sub(1);
        let row = self.histories.get(&id).and_then(|rows| rows.get(index));
        let events = row.into_iter().flat_map(|row| &row.events).map(describe);
        events.collect::<Vec<_>>().join(", ")
    }
}

/// Times that are nowhere a time to live apart.
fn life(since: Timestamp, until: Timestamp, ttl: Duration) -> Vec<Timestamp> {
    let mut times = vec![until];
    let (mut at, step) = (since, (ttl / 2).max(Duration::from_millis(1)));
    while at < until {
        times.push(at);
        at = at + step;
    }
    times
}

pub fn describe(event: &Event) -> String {
    match event {
        Event::ExecutionStarted(started) => format!("started {}", started.workflow),
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

/// Whether a lost worker is what ended the attempt, be it as the cause of another error.
fn is_worker_lost(error: &Error) -> bool {
    error.error_type == builtin::WORKER_LOST || error.cause.as_deref().is_some_and(is_worker_lost)
}

impl World<'_> {
    /// Follows a history as far as it has got.
    pub fn advance_mirror(&mut self, node: NodeId, id: ExecutionId) {
        let histories = ready(self.store.load(NOBODY, &[id])).unwrap_or_default();
        let Some(history) = histories.into_iter().next() else {
            return self.violate("what won is in the history", format!("{id} is not there"));
        };
        let known = self.ledger.histories.get(&id).map_or(0, Vec::len);
        for stored in history.transitions.into_iter().skip(known) {
            let data = match format::decode_transition(stored.format, &stored.data) {
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
                    let row = Row { state, events: transition.events };
                    self.ledger.histories.entry(id).or_default().push(row);
                    self.check_row(node, id);
                }
                Err(misfit) => return self.violate("histories fold", format!("{id}: {misfit}")),
            }
        }
    }

    fn check_row(&mut self, node: NodeId, id: ExecutionId) {
        let Some(row) = self.ledger.histories.get(&id).and_then(|rows| rows.last()) else {
            return;
        };
        let at = row.state.decided_at;
        let mut wrong = Vec::new();
        for event in &row.events {
            let Event::AttemptFailed(failed) = event else {
                continue;
            };
            // Delivered at most once, an attempt is given up when nobody says that he has it.
            let given_up = failed.error.error_type == builtin::OUTCOME_UNKNOWN;
            if !is_worker_lost(&failed.error) || given_up {
                continue;
            }
            // Decided when the last commit was done: the session may have begun anew by then.
            let rows = self.ledger.histories.get(&id).into_iter().flatten();
            let scheduled = rows.rev().find(|row| {
                row.events.iter().any(|event| {
                    matches!(event, Event::AttemptScheduled { path, attempt, .. }
                        if *path == failed.path && *attempt == failed.attempt)
                })
            });
            let from = scheduled.map_or(at, |row| row.state.decided_at);
            let ended = self.ledger.session_ended(node, &failed.worker, from, at);
            if !ended || failed.outcome != AttemptOutcome::Unknown {
                let (path, attempt, worker) = (&failed.path, failed.attempt, &failed.worker);
                wrong.push(format!("{}, {path}:{attempt}, worker `{worker}`", short(&id)));
            }
        }
        for what in wrong {
            self.violate("a lost worker's session has ended", what);
        }
    }

    pub fn check_lost_session(&mut self, node: NodeId, row: &FeedRow) {
        let name = row.id.strip_prefix("session-").and_then(|rest| rest.rsplit_once('-'));
        let name = name.and_then(|(name, _)| name.split_once('/'));
        let Some((_, session)) = name.filter(|(namespace, _)| *namespace == NAMESPACE) else {
            return self.violate("loose events are of sessions", row.id.clone());
        };
        let ttl = self.ledger.session_ttl.get(session).copied().unwrap_or_default();
        if !self.ledger.session_ended(node, session, row.at - ttl * 8, row.at) {
            let what = format!("{session} at {:?}", row.at);
            self.violate("a lost worker's session has ended", what);
        }
        self.ledger.sessions_lost.insert(row.id.clone());
    }

    /// A key has one holder that runs.
    pub fn check_key(&mut self, key: &str) {
        let filter = ListFilter { key_prefix: Some(key.to_owned()), ..ListFilter::default() };
        let listed = ready(self.store.list(&filter, None, 1000)).unwrap_or_default();
        let running = listed.iter().filter(|listed| {
            let row = &listed.index;
            let unresolved = [CompensationState::Parked, CompensationState::Running];
            row.key.as_deref() == Some(key)
                && (!row.state.is_ended() || unresolved.contains(&row.compensation))
        });
        let running: Vec<_> = running.map(|listed| short(&listed.execution)).collect();
        if running.len() > 1 {
            self.violate("a key has one running holder", format!("{key}: {running:?}"));
        }
    }

    /// What a node says is the state must be what the history folds to at that place.
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

    pub fn open_executions(&self) -> Vec<ExecutionId> {
        let open = self
            .ledger
            .histories
            .iter()
            .filter(|(_, rows)| rows.last().is_some_and(|row| row.state.is_active()));
        open.map(|(id, _)| *id).collect()
    }
}
