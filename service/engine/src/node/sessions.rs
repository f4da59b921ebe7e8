//! Sessions, by which workers outlive a connection, and the attempts that they hold.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use recoup_core::command::TaskId;
use recoup_core::execution::Started;
use recoup_core::id::ExecutionId;
use recoup_core::time::Timestamp;
use recoup_store::QueueName;

use super::attempt::{Handed, Source, first_task};
use super::io::{SessionKey, WorkerKey};
use super::notices::Notices;
use super::queue::POLL_GAP;
use crate::clock::{Now, Tick};

/// After this much silence, a worker may have connected to another node.
pub(super) const PARTED_AFTER: Duration = Duration::from_secs(1);

/// What the sessions hold survives the loss of the lease.
#[derive(Default)]
pub(super) struct Sessions {
    known: BTreeMap<SessionKey, SessionState>,
    /// The holder of each task. Every holder's session is in `known`, and lists the task as well.
    held: BTreeMap<TaskId, Holder>,
    /// The last task that [`Self::next_held`] returned; `None` between two rounds.
    asked: Option<TaskId>,
    round_began: Tick,
}

pub(super) struct SessionState {
    pub worker: String,
    pub ttl: Duration,
    /// When it last sent a message.
    pub heard_at: Tick,
    /// Set when its time to live has passed: until then, the store is asked whether its worker has connected
    /// to another node.
    pub asked_until: Option<Tick>,
    /// All queues that its streams and polls have named so far.
    pub queues: BTreeSet<QueueName>,
    /// Its stream, or its polls that are waiting.
    pub workers: BTreeSet<WorkerKey>,
    /// The tasks that it holds.
    pub held: BTreeSet<TaskId>,
    pub notices: Notices,
}

impl SessionState {
    /// Its stream, or the latest of its polls that are waiting.
    pub fn newest_worker(&self) -> Option<WorkerKey> {
        self.workers.last().copied()
    }

    /// After this much silence, its worker may have connected to another node.
    pub fn parted_after(&self) -> Duration {
        PARTED_AFTER.min(self.ttl / 3)
    }

    /// How long it has neither sent a message nor had a stream or a poll open.
    pub fn silence(&self, now: Tick) -> Duration {
        match self.workers.is_empty() || self.asked_until.is_some() {
            true => now.since(self.heard_at),
            false => Duration::ZERO,
        }
    }

    /// Whether its worker is expected to take tasks again: it is connected, holds tasks, or was connected a
    /// moment ago.
    pub fn comes_back(&self, now: Tick) -> bool {
        !self.held.is_empty() || self.silence(now) < POLL_GAP
    }
}

/// The session and worker that hold an attempt.
#[derive(Clone, Debug)]
pub(super) struct Holder {
    pub session: SessionKey,
    pub name: String,
    /// When the attempt started, as the history said when this node last owned the execution.
    pub started_at: Option<Timestamp>,
}

impl Holder {
    /// The dispatch of an attempt that this holder has.
    pub fn handed(&self, started: Option<&Started>, now: Now) -> Handed {
        let Now { tick, time } = now;
        Handed {
            name: self.name.clone(),
            session: Some(self.session.clone()),
            // Its timeouts continue to run, whichever node its worker is connected to.
            since: started.map_or(time, |started| started.at.min(time)),
            began: started.map_or(tick, |started| now.tick_of(started.at)),
            beat_at: tick,
            source: Source::known_here(started.is_some()),
            details: None,
        }
    }
}

impl Sessions {
    pub fn get(&self, key: &SessionKey) -> Option<&SessionState> {
        self.known.get(key)
    }

    pub fn get_mut(&mut self, key: &SessionKey) -> Option<&mut SessionState> {
        self.known.get_mut(key)
    }

    pub fn all(&self) -> impl Iterator<Item = &SessionState> {
        self.known.values()
    }

    pub fn open(&mut self, key: SessionKey, session: SessionState) {
        self.known.insert(key, session);
    }

    /// Ends a session, which then holds nothing. The returned state lists the tasks that it held.
    pub fn end(&mut self, key: &SessionKey) -> Option<SessionState> {
        let session = self.known.remove(key)?;
        for task in &session.held {
            self.held.remove(task);
        }
        Some(session)
    }

    /// A message has come from a session.
    pub fn touch(&mut self, key: &SessionKey, now: Tick) {
        if let Some(session) = self.known.get_mut(key) {
            session.heard_at = now;
            session.asked_until = None;
        }
    }

    /// The session that holds a task has sent a message about it.
    pub fn touch_holder(&mut self, task: &TaskId, now: Tick) {
        if let Some(key) = self.held.get(task).map(|holder| holder.session.clone()) {
            self.touch(&key, now);
        }
    }

    pub fn holder(&self, task: &TaskId) -> Option<&Holder> {
        self.held.get(task)
    }

    pub fn holder_mut(&mut self, task: &TaskId) -> Option<&mut Holder> {
        self.held.get_mut(task)
    }

    pub fn is_held(&self, task: &TaskId) -> bool {
        self.held.contains_key(task)
    }

    /// All tasks that sessions of this node hold.
    pub fn held(&self) -> impl Iterator<Item = (&TaskId, &Holder)> {
        self.held.iter()
    }

    pub fn held_of(&self, execution: ExecutionId) -> impl Iterator<Item = (&TaskId, &Holder)> {
        let from_there = self.held.range(first_task(execution)..);
        from_there.take_while(move |(task, _)| task.execution == execution)
    }

    pub fn holds_nothing(&self) -> bool {
        self.held.is_empty()
    }

    /// Makes a session the only holder of a task, if the session is known.
    pub fn take_hold(&mut self, task: TaskId, holder: Holder) {
        self.let_go(&task);
        if let Some(session) = self.known.get_mut(&holder.session) {
            session.held.insert(task.clone());
            self.held.insert(task, holder);
        }
    }

    /// From now on no session holds the task.
    pub fn let_go(&mut self, task: &TaskId) -> Option<Holder> {
        self.drop_hold(task, false)
    }

    /// As [`Self::let_go`]. `reported`: because the result of its holder is recorded.
    pub fn drop_hold(&mut self, task: &TaskId, reported: bool) -> Option<Holder> {
        let holder = self.held.remove(task)?;
        if let Some(session) = self.known.get_mut(&holder.session) {
            session.held.remove(task);
            session.notices.let_go(task, reported);
        }
        Some(holder)
    }

    /// The next of all held tasks, at most `max`. If `max` allows it and this is called once per `interval`, each
    /// task is returned once per `pause`.
    pub fn next_held(
        &mut self,
        pause: Duration,
        interval: Duration,
        max: usize,
        now: Tick,
    ) -> Vec<TaskId> {
        if self.asked.is_none() {
            if now < self.round_began + pause {
                return Vec::new();
            }
            self.round_began = now;
        }
        let calls = pause.as_micros() / interval.as_micros().max(1);
        let share = self.held.len() / usize::try_from(calls).unwrap_or(1).max(1) + 1;
        let share = share.min(max);
        let after = match &self.asked {
            Some(task) => Bound::Excluded(task),
            None => Bound::Unbounded,
        };
        let next = self.held.range((after, Bound::Unbounded)).take(share);
        let next: Vec<TaskId> = next.map(|(task, _)| task.clone()).collect();
        self.asked = next.last().filter(|_| next.len() == share).cloned();
        next
    }
}
