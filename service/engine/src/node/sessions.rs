//! The sessions by which workers live on when a connection does not, and what they hold.

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

/// So long after a worker was last heard from, it may have turned to another node.
pub(super) const PARTED_AFTER: Duration = Duration::from_secs(1);

/// What they hold survives the loss of the lease.
#[derive(Default)]
pub(super) struct Sessions {
    known: BTreeMap<SessionKey, SessionState>,
    /// By whom each task is held: of sessions that are known, and in their own lists as well.
    held: BTreeMap<TaskId, Holder>,
    /// The last task of [`Self::next_held`]; none between two rounds.
    asked: Option<TaskId>,
    round_began: Tick,
}

pub(super) struct SessionState {
    pub worker: String,
    pub ttl: Duration,
    /// When it last sent a message.
    pub heard_at: Tick,
    /// Its time is over, and until then the store is asked whether its worker has turned to another
    /// node.
    pub asked_until: Option<Tick>,
    /// All that its streams and polls have named so far.
    pub queues: BTreeSet<QueueName>,
    /// Its stream, or its polls that wait.
    pub workers: BTreeSet<WorkerKey>,
    /// What it holds.
    pub held: BTreeSet<TaskId>,
    pub notices: Notices,
}

impl SessionState {
    /// Its stream, or the latest of its polls that wait.
    pub fn newest_worker(&self) -> Option<WorkerKey> {
        self.workers.last().copied()
    }

    /// After such a silence its worker may have turned to another node.
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

    /// Whether its worker is expected to take tasks again: it is here, has work in hand, or was here a
    /// moment ago.
    pub fn comes_back(&self, now: Tick) -> bool {
        !self.held.is_empty() || self.silence(now) < POLL_GAP
    }

    /// Whether a stream or a poll of it is here.
    pub fn is_connected(&self) -> bool {
        !self.workers.is_empty()
    }
}

/// Who holds an attempt.
#[derive(Clone, Debug)]
pub(super) struct Holder {
    pub session: SessionKey,
    pub name: String,
    /// When the attempt started, as the history had it while this node last owned its execution.
    pub started_at: Option<Timestamp>,
}

impl Holder {
    /// Where an attempt is that this holder has.
    pub fn handed(&self, started: Option<&Started>, now: Now) -> Handed {
        let Now { tick, time } = now;
        Handed {
            name: self.name.clone(),
            session: Some(self.session.clone()),
            // Its time runs on, whichever node its worker is at.
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

    /// It is over, and holds nothing any more. What it held is in what is returned.
    pub fn end(&mut self, key: &SessionKey) -> Option<SessionState> {
        let session = self.known.remove(key)?;
        for task in &session.held {
            self.held.remove(task);
        }
        Some(session)
    }

    /// A session has been heard from.
    pub fn touch(&mut self, key: &SessionKey, now: Tick) {
        if let Some(session) = self.known.get_mut(key) {
            session.heard_at = now;
            session.asked_until = None;
        }
    }

    /// The session that holds a task has said something about it.
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

    /// All that is held by a session here.
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

    /// From now on that session holds the task, if it is known, and no other.
    pub fn take_hold(&mut self, task: TaskId, holder: Holder) {
        self.let_go(&task);
        if let Some(session) = self.known.get_mut(&holder.session) {
            session.held.insert(task.clone());
            self.held.insert(task, holder);
        }
    }

    /// No session holds the task any more.
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

    /// The next few of all that is held, so many that each comes once in `pause`, if it is asked for every
    /// `interval`.
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
