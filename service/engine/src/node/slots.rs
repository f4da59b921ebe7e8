//! Executions in memory.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use recoup_core::command::{Command, RequestId, TaskId};
use recoup_core::execution::{CompensationState, Execution, Started};
use recoup_core::id::ExecutionId;
use recoup_core::key::{OnEnded, OnRunning};
use recoup_core::outcome::Outcome;
use recoup_core::plan::Plan;
use recoup_core::time::Timestamp;
use recoup_store::format::FIRST;
use recoup_store::{IndexRow, QuarantineRow, TaskKey};

use super::attempt::{Attempt, Place};
use super::dispatch::acts_on;
use super::io::{Answer, LiveAttempt, Refusal, Snapshot, StartSpec};
use super::resident::{Committed, Resident};
use super::{Node, Timer};
use crate::clock::Tick;

pub(super) struct Slot<R> {
    pub known: Known,
    /// Its transitions carry an index row as long as it is not: the first that wins makes it so.
    pub owned: bool,
    /// As last written by this node; none if another wrote last.
    pub index: Option<IndexRow>,
    /// The highest format in its history, with what is under way.
    pub format: u16,
    /// When the store reminds this node of it, if it is the owner: until then it may leave memory.
    pub wake_at: Option<Timestamp>,
    pub inbox: VecDeque<Pending<R>>,
    /// So many commands at the front of the inbox are decided one by one: the store refused what they
    /// became together, and only alone each can be told from the others.
    pub singly: usize,
    /// Decided, and under way to the store.
    pub in_flight: bool,
    /// Memory may be old: nothing is decided before it has been read again.
    pub doubted: bool,
    /// A decision about it panicked, with these words; it is quarantined when it has been read again.
    pub panicked: Option<String>,
    /// When the store last answered that no other node had gone further.
    pub current_at: Tick,
    pub waiters: Vec<Waiter<R>>,
    pub attempts: Vec<Attempt>,
    /// Rows in the overflow that this node knows of.
    pub overflow: BTreeMap<TaskKey, Row>,
    /// Claimed from the overflow before the execution was loaded.
    /// Each with the sequence of the transition that scheduled its attempt.
    pub claimed: BTreeMap<TaskKey, u64>,
    /// Given back by these sessions before this node knew of it.
    pub released: BTreeMap<TaskId, String>,
    pub timer_at: Option<Timestamp>,
    /// About how many bytes its state takes, when it was weighed last, and after which transition.
    pub weight: (usize, u64),
    /// Of a start with a key.
    pub key_policies: (OnRunning, OnEnded),
    /// The last one, which was released: for those who ask.
    pub quarantine: Option<QuarantineRow>,
}

/// A row in the overflow.
#[derive(Clone, Copy, Debug)]
pub(super) enum Row {
    /// Any node may claim it.
    Free,
    /// Claimed here, and no other node's until then.
    Claimed { until: Tick, scheduled_in: u64 },
}

/// Whether memory needs an execution for what its owner has to do about it.
enum Rest {
    Awake,
    /// Nothing is to be done before the store reminds this node of it, if ever.
    Asleep,
    /// Nothing is to be done for long, but the store reminds nobody of it in time.
    Unreminded,
}

/// What is known of an execution.
pub(super) enum Known {
    /// Not read yet, or no longer to be believed.
    Unread,
    /// About to be started here.
    New(Arc<Plan>),
    Resident(Box<Resident>),
    /// Found here, and on its way to the store. What waits is refused when it is there, and the slot
    /// is dropped: who asks after that reads it.
    Quarantined,
}

impl Known {
    /// Whether the state says that somebody has an attempt.
    pub fn has_started(&self, task: &TaskId) -> bool {
        let Self::Resident(resident) = self else {
            return false;
        };
        let known = resident.state.as_deref().and_then(|state| state.task(&task.path));
        known.and_then(|known| known.open.as_ref()).is_some_and(|open| open.started.is_some())
    }
}

/// A command that has not been decided, or whose decision is not durable.
pub(super) struct Pending<R> {
    pub command: Command,
    pub request: Option<RequestId>,
    /// The node's own commands have none.
    pub reply: Option<R>,
    /// Of a start that waits for the end.
    pub until: Option<Timestamp>,
    /// The store has been asked since it came whether memory is old.
    pub verified: bool,
    /// When it came.
    pub since: Tick,
    /// Its caller was answered before the outcome was known.
    pub answered: bool,
}

impl<R> Pending<R> {
    /// Whether the node has thought of it itself.
    pub fn is_own(&self) -> bool {
        self.reply.is_none() && !self.answered
    }

    /// Whether its caller has waited since before a time.
    pub fn is_impatient(&self, asked_before: Tick) -> bool {
        self.reply.is_some() && self.since <= asked_before
    }

    /// For an answer before the outcome is known.
    pub fn take_reply(&mut self) -> Option<R> {
        self.answered |= self.reply.is_some();
        self.reply.take()
    }

    /// Whether it speaks of something that the state does not know: of another node's doing, if it
    /// is no mistake.
    pub fn is_ahead_of(&self, state: &Committed) -> bool {
        match &self.command {
            Command::CompleteTask { task, .. }
            | Command::FailTask { task, .. }
            | Command::RecordStart { task, .. } => task.sequence > state.sequence,
            Command::RetryCompensation { .. } | Command::SkipCompensation { .. } => {
                state.compensation != CompensationState::Parked
            }
            // Another node may have taken a person's order to try again what is parked here.
            Command::TerminateExecution { .. } => {
                state.state.is_ended() && state.compensation == CompensationState::Parked
            }
            // It may also have taken such an order under this request id, which is then refused as reused.
            Command::CancelExecution { .. } => {
                let unresolved = [CompensationState::Parked, CompensationState::Running];
                let may_go_on = state.state.is_ended() && unresolved.contains(&state.compensation);
                self.request.is_some() && may_go_on
            }
            _ => false,
        }
    }
}

pub(super) struct Waiter<R> {
    /// When it came.
    pub since: Tick,
    /// None: answered as soon as the state is there, with all that is known.
    pub until: Option<Timestamp>,
    pub reply: R,
    pub is_own: bool,
    /// Wants a snapshot rather than the state alone.
    pub snapshot: bool,
}

impl<R> Slot<R> {
    pub fn unread() -> Self {
        Self {
            known: Known::Unread,
            owned: false,
            index: None,
            format: FIRST,
            wake_at: None,
            inbox: VecDeque::new(),
            singly: 0,
            in_flight: false,
            doubted: false,
            panicked: None,
            current_at: Tick::default(),
            waiters: Vec::new(),
            attempts: Vec::new(),
            overflow: BTreeMap::new(),
            claimed: BTreeMap::new(),
            released: BTreeMap::new(),
            timer_at: None,
            weight: (0, 0),
            key_policies: Default::default(),
            quarantine: None,
        }
    }

    pub fn resident(&self) -> Option<&Resident> {
        match &self.known {
            Known::Resident(resident) => Some(resident),
            _ => None,
        }
    }

    /// None as well while it is away with a transition.
    pub fn state(&self) -> Option<&Execution> {
        self.resident()?.state.as_deref()
    }

    pub fn committed(&self) -> Option<&Committed> {
        self.resident().map(|resident| &resident.committed)
    }

    pub fn attempt(&self, task: &TaskId) -> Option<&Attempt> {
        self.attempts.iter().find(|attempt| attempt.id == *task)
    }

    pub fn attempt_mut(&mut self, task: &TaskId) -> Option<&mut Attempt> {
        self.attempts.iter_mut().find(|attempt| attempt.id == *task)
    }

    /// Whether nothing but the time of its owner's next work could need it to be here.
    fn is_idle(&self) -> bool {
        let needed = match &self.known {
            Known::Resident(resident) => {
                let keeps = !self.claimed.is_empty() || self.holds() || self.has_claimed();
                resident.committed.is_active && keeps
            }
            Known::Unread => !self.claimed.is_empty(),
            Known::New(_) | Known::Quarantined => true,
        };
        let is_due = self.in_flight || self.doubted || !self.inbox.is_empty();
        !needed && !is_due && self.waiters.is_empty()
    }

    /// Who the history says has an open attempt.
    pub fn started(&self, task: &TaskId) -> Option<&Started> {
        self.attempt(task)?.started.as_ref()
    }

    /// Whether a command of the node's own about an attempt waits to be decided.
    pub fn acts_on(&self, task: &TaskId) -> bool {
        acts_on(&self.inbox, task)
    }

    /// Whether the run is ending and its steps are to stop.
    pub fn is_ending(&self) -> bool {
        self.owned && self.committed().is_some_and(|committed| committed.is_ending)
    }

    /// Whether another node may move it on: it is another node's, any node may claim one of its
    /// tasks, or a worker without a session may turn to any node with its result.
    pub fn is_doubtful(&self) -> bool {
        let lent = |attempt: &Attempt| match &attempt.place {
            Place::Overflowed => true,
            Place::Handed(handed) => handed.session.is_none(),
            _ => false,
        };
        self.is_foreign() || self.attempts.iter().any(lent)
    }

    /// Another node's, and of interest here.
    pub fn is_foreign(&self) -> bool {
        !self.owned && (!self.waiters.is_empty() || self.holds())
    }

    /// Whether an attempt's time has to wait for what is under way: that may take the attempt back,
    /// because it was not due when it was decided.
    pub fn holds_back(&self, attempt: &Attempt) -> bool {
        self.in_flight && matches!(attempt.place, Place::Scheduled)
    }

    /// Whether an attempt of another node's execution waits here for a worker.
    fn has_claimed(&self) -> bool {
        let waits = |attempt: &Attempt| matches!(attempt.place, Place::Queued { .. });
        !self.owned && self.attempts.iter().any(waits)
    }

    /// Whether a worker of this node holds one of its attempts.
    pub fn holds(&self) -> bool {
        self.attempts.iter().any(Attempt::is_handed)
    }
}

impl<R> Node<R> {
    pub(super) fn start(&mut self, spec: StartSpec, reply: R) {
        if self.stopping {
            return self.reply(reply, Err(Refusal::Stopping));
        }
        if !self.life.is_alive() || self.room() == 0 {
            let retry_after = self.options.lease_ttl / 10;
            return self.reply(reply, Err(Refusal::Overloaded { retry_after }));
        }
        let id = spec.start.id;
        let has_key = spec.start.key.is_some();
        let mut slot = Slot::unread();
        slot.known = Known::New(spec.plan);
        slot.key_policies = (spec.on_running, spec.on_ended);
        slot.inbox.push_back(Pending {
            command: Command::StartExecution(Box::new(spec.start)),
            request: spec.request,
            reply: Some(reply),
            until: spec.until,
            verified: false,
            since: self.monotonic,
            answered: false,
        });
        self.slots.insert(id, slot);
        if has_key {
            self.keyed.push_back(id);
        } else {
            self.ready.push_back(id);
        }
    }

    pub(super) fn submit(
        &mut self,
        id: ExecutionId,
        mut command: Command,
        request: Option<RequestId>,
        reply: Option<R>,
    ) {
        // Done work is never turned away; everything else has its bound.
        let is_result = matches!(command, Command::CompleteTask { .. } | Command::FailTask { .. });
        let mut reported = None;
        let slot = self.slots.entry(id).or_insert_with(Slot::unread);
        if let Some(reply) = reply {
            if slot.inbox.len() >= self.options.inbox_max && !is_result {
                let retry_after = self.options.commit_retry;
                return self.reply(reply, Err(Refusal::Overloaded { retry_after }));
            }
            if let Command::CompleteTask { task, worker, .. }
            | Command::FailTask { task, worker, .. } = &mut command
                && let Some(attempt) = slot.attempt_mut(task)
            {
                attempt.reported = true;
                // A bare call names nobody: it was whoever got the attempt.
                if worker.is_empty()
                    && let Place::Handed(handed) = &attempt.place
                {
                    worker.clone_from(&handed.name);
                }
                reported = Some(task.clone());
            }
            slot.inbox.push_back(Pending {
                command,
                request,
                reply: Some(reply),
                until: None,
                verified: false,
                since: self.monotonic,
                answered: false,
            });
        } else {
            // The node's own commands repeat themselves if they are still due.
            if slot.inbox.iter().any(|pending| pending.command == command) {
                return;
            }
            slot.inbox.push_back(Pending {
                command,
                request,
                reply: None,
                until: None,
                verified: false,
                since: self.monotonic,
                answered: false,
            });
        }
        if let Some(task) = reported {
            self.sessions.touch_holder(&task, self.monotonic);
        }
        self.touch_slot(id);
    }

    /// Waits for the end until a time, or asks for what is known.
    pub(super) fn wait(&mut self, id: ExecutionId, until: Option<Timestamp>, reply: R) {
        let snapshot = until.is_none();
        self.add_waiter(
            id,
            Waiter { since: self.monotonic, until, reply, is_own: false, snapshot },
        );
    }

    pub(super) fn add_waiter(&mut self, id: ExecutionId, mut waiter: Waiter<R>) {
        waiter.until = waiter.until.map(|until| self.end_of_wait(until));
        let slot = self.slots.entry(id).or_insert_with(Slot::unread);
        // What another node owns may have moved on: ask the store, not the memory.
        let reread = !slot.owned && !slot.in_flight && matches!(slot.known, Known::Resident(_));
        slot.waiters.push(waiter);
        if reread {
            self.loader.want(id);
        } else {
            self.touch_slot(id);
            self.serve_waiters(id);
            self.settle_slot(id);
        }
    }

    pub(super) fn end_of_wait(&self, until: Timestamp) -> Timestamp {
        if self.impatient { until.min(self.now) } else { until }
    }

    /// Answers whoever waits for an end with the state as it is, now and from now on.
    pub(super) fn answer_waiters(&mut self) {
        self.impatient = true;
        let now = self.now;
        let waiting = self.slots.iter_mut().filter(|(_, slot)| !slot.waiters.is_empty());
        let waiting = waiting.map(|(id, slot)| {
            for waiter in &mut slot.waiters {
                waiter.until = waiter.until.map(|until| until.min(now));
            }
            *id
        });
        for id in waiting.collect::<Vec<_>>() {
            self.serve_waiters(id);
            self.settle_slot(id);
        }
    }

    /// Makes sure that what waits in a slot is looked at.
    pub(super) fn touch_slot(&mut self, id: ExecutionId) {
        let Some(slot) = self.slots.get(&id) else {
            return;
        };
        match &slot.known {
            Known::Unread => {
                if !slot.in_flight {
                    self.loader.need(id);
                }
            }
            Known::Quarantined => {}
            Known::Resident(_) | Known::New(_) => {
                if !slot.in_flight && !slot.inbox.is_empty() {
                    self.ready.push_back(id);
                }
            }
        }
    }

    /// Answers everything that waits in a slot with a refusal.
    pub(super) fn refuse_all(&mut self, id: ExecutionId, refusal: &Refusal) {
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        let pending = std::mem::take(&mut slot.inbox).into_iter().filter_map(|one| one.reply);
        let waiters = std::mem::take(&mut slot.waiters).into_iter().map(|waiter| waiter.reply);
        for reply in pending.chain(waiters).collect::<Vec<_>>() {
            self.reply(reply, Err(refusal.clone()));
        }
    }

    /// Answers those who wait for what has come.
    pub(super) fn serve_waiters(&mut self, id: ExecutionId) {
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        if slot.waiters.is_empty() {
            return;
        }
        let Known::Resident(resident) = &slot.known else {
            return;
        };
        // While it is away, it is waited for.
        let Some(state) = &resident.state else {
            return;
        };
        let ended = state.state.is_ended();
        let now = self.now;
        let (served, waiting) = std::mem::take(&mut slot.waiters)
            .into_iter()
            .partition::<Vec<_>, _>(|waiter| ended || waiter.until.is_none_or(|at| at <= now));
        slot.waiters = waiting;
        if served.is_empty() {
            return;
        }
        let live: Vec<LiveAttempt> = match served.iter().any(|waiter| waiter.snapshot) {
            true => slot.attempts.iter().filter_map(Attempt::live).collect(),
            false => Vec::new(),
        };
        let answer = |waiter: &Waiter<R>| {
            if waiter.snapshot {
                let (state, plan, live) = (state.clone(), resident.plan.clone(), live.clone());
                let quarantine = slot.quarantine.clone();
                Answer::Snapshot(Snapshot { state, plan, live, quarantine })
            } else {
                let outcome = Box::new(Outcome::of(state));
                Answer::Done { outcome, is_own: waiter.is_own }
            }
        };
        let answered = served.into_iter().map(|waiter| (answer(&waiter), waiter.reply));
        for (answer, reply) in answered.collect::<Vec<_>>() {
            self.reply(reply, Ok(answer));
        }
    }

    /// After any change: sets the slot's timer, or lets go of a slot that nobody needs.
    pub(super) fn settle_slot(&mut self, id: ExecutionId) {
        self.weigh(id);
        let Some(slot) = self.slots.get(&id) else {
            return;
        };
        // What is being read is wanted: this node may have become the owner of it.
        let wanted = self.loader.is_expected(id);
        if slot.is_idle() && !wanted {
            match self.rest(slot) {
                Rest::Awake => {}
                Rest::Asleep => return self.drop_slot(id),
                Rest::Unreminded => {
                    self.reminders.insert(id);
                }
            }
        }
        let Some(slot) = self.slots.get(&id) else {
            return;
        };
        if slot.is_doubtful() {
            self.doubtful.insert(id);
        }
        let due = self.slot_due(slot);
        self.arm(id, due);
    }

    /// How many more executions there is room for, of whatever size: none when those in memory take as many
    /// bytes as they may.
    pub(super) fn room(&self) -> usize {
        if self.resident_bytes >= self.options.resident_bytes_max {
            return 0;
        }
        self.options.executions_max.saturating_sub(self.slots.len())
    }

    fn weigh(&mut self, id: ExecutionId) {
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        let weight = match &slot.known {
            Known::Resident(resident) => match &resident.state {
                Some(state) if state.sequence != slot.weight.1 => (state.weight(), state.sequence),
                _ => return,
            },
            _ => (0, 0),
        };
        let before = std::mem::replace(&mut slot.weight, weight).0;
        self.resident_bytes = (self.resident_bytes + weight.0).saturating_sub(before);
    }

    /// Whether an execution that nobody asks about can leave memory.
    fn rest(&self, slot: &Slot<R>) -> Rest {
        let Some(committed) = slot.committed().filter(|known| slot.owned && known.is_active) else {
            return Rest::Asleep;
        };
        let Some(until) = self.sleeps_until(committed) else {
            return Rest::Awake;
        };
        // One that is nearer has been scanned for already, or will be at once.
        let scanned = self.now + self.options.sleep_horizon / 2;
        match slot.wake_at {
            Some(at) if scanned < at && at <= until => Rest::Asleep,
            _ => Rest::Unreminded,
        }
    }

    fn arm(&mut self, id: ExecutionId, due: Option<Timestamp>) {
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        if slot.timer_at == due {
            return;
        }
        if let Some(at) = std::mem::replace(&mut slot.timer_at, due) {
            self.timers.cancel(at, Timer::Execution(id));
        }
        if let Some(at) = due {
            self.timers.set(at, Timer::Execution(id));
        }
    }

    pub(super) fn drop_slot(&mut self, id: ExecutionId) {
        let Some(slot) = self.slots.remove(&id) else {
            return;
        };
        self.resident_bytes = self.resident_bytes.saturating_sub(slot.weight.0);
        self.doubtful.remove(&id);
        self.reminders.remove(&id);
        if let Some(at) = slot.timer_at {
            self.timers.cancel(at, Timer::Execution(id));
        }
        for attempt in &slot.attempts {
            self.unqueue(attempt);
        }
    }

    /// When this slot must be looked at next.
    fn slot_due(&self, slot: &Slot<R>) -> Option<Timestamp> {
        // While the state is away, those who wait are answered when it comes back, and no sooner.
        let answerable = slot.state().is_some();
        let waiters = slot.waiters.iter().filter(|_| answerable);
        let waiters = waiters.filter_map(|waiter| waiter.until);
        let Known::Resident(resident) = &slot.known else {
            // Whoever waits is answered when it is read; before that no time is the time to look.
            return None;
        };
        if !slot.owned {
            return waiters.min();
        }
        let attempts = slot.attempts.iter().filter(|attempt| !slot.holds_back(attempt)).filter_map(
            |attempt| attempt.due(resident.plan.task(&attempt.id.path)?, &self.options, self.at()),
        );
        // While its own command to wake is under way, it needs no other.
        let waking = slot.in_flight || slot.inbox.iter().any(|one| one.command == Command::Wake);
        let wake = resident.committed.wake.filter(|_| !waking);
        waiters.chain(attempts).chain(wake).min()
    }

    /// A slot's time has come.
    pub(super) fn wake(&mut self, id: ExecutionId) {
        let now = self.now;
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        slot.timer_at = None;
        if slot.owned
            && let Some(committed) = slot.committed()
        {
            let wake = committed.wake.is_some_and(|at| at <= now);
            if wake && !slot.in_flight {
                self.submit(id, Command::Wake, None, None);
            }
            self.check_attempts(id);
        }
        self.serve_waiters(id);
        self.settle_slot(id);
    }

    /// Where an attempt is known.
    pub(super) fn attempt_mut(&mut self, task: &TaskId) -> Option<&mut Attempt> {
        self.slots.get_mut(&task.execution)?.attempt_mut(task)
    }
}
