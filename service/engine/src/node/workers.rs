//! Workers, and the sessions by which they live on when a connection does not.

use std::collections::BTreeSet;
use std::time::Duration;

use recoup_core::command::{Command, StartBasis, TaskId};
use recoup_core::failure_event::worker_lost;
use recoup_core::id::ExecutionId;
use recoup_core::payload::Payload;
use recoup_core::time::Timestamp;
use recoup_store::QueueName;

use super::attempt::{Attempt, DispatchState, Handed, Source};
use super::io::{Answer, Notice, Offer, Session, SessionKey, WorkerKey, WorkerMessage};
use super::notices::Notices;
use super::sessions::{Holder, SessionState};
use super::slot::Slot;
use super::worker::WorkerState;
use super::{Node, Timer};
use crate::clock::{Now, Tick};
use crate::transition::feed_row;

/// Queues that a session is remembered to take tasks from while none of its polls waits.
const SESSION_QUEUES_MAX: usize = 1000;

impl<R> Node<R> {
    pub(super) fn attach(&mut self, key: WorkerKey, offer: Offer) {
        let Offer { queues, task_types, credit, session, worker: name, held, once } = offer;
        if let Some(session) = &session {
            self.open_session(session, &name);
            if held.is_some() {
                self.supersede(&session.key);
            }
        }
        let session = session.map(|session| session.key);
        if let Some(session) = session.as_ref().and_then(|key| self.sessions.get_mut(key)) {
            session.workers.insert(key);
            for name in &queues {
                if session.queues.len() < SESSION_QUEUES_MAX {
                    session.queues.insert(name.clone());
                }
            }
        }
        // The last poll of a worker that stops takes nothing.
        let takes_more = credit > 0 || !once;
        let remembers = |session: &SessionKey, name: &QueueName| {
            let session = self.sessions.get(session);
            session.is_some_and(|session| session.queues.contains(name))
        };
        for name in &queues {
            let queue = self.queues.open(name);
            queue.workers.push_back(key);
            match &session {
                Some(session) if takes_more && remembers(session, name) => {
                    queue.offer_of_session(session, &task_types);
                }
                Some(session) => queue.withdraw_offer(session),
                None => {}
            }
        }
        let worker = WorkerState {
            queues: queues.clone(),
            task_types,
            credit,
            session: session.clone(),
            name,
            once,
            draining: false,
        };
        self.workers.insert(key, worker);
        if let Some(session) = session {
            if let Some(held) = held {
                self.reconcile(key, &session, held);
            }
            self.tell_waiting(&session, key);
        }
        if self.trade.begin_claiming() {
            self.set_timer(Duration::ZERO, Timer::Claim);
        }
        for queue in &queues {
            self.dispatch(queue);
        }
    }

    fn open_session(&mut self, session: &Session, worker: &str) {
        let Session { key, ttl } = session;
        let heard_at = self.monotonic;
        let timer_at = self.now + *ttl;
        let Some(known) = self.sessions.get_mut(key) else {
            let state = SessionState {
                worker: worker.to_owned(),
                ttl: *ttl,
                heard_at,
                asked_until: None,
                queues: BTreeSet::new(),
                workers: BTreeSet::new(),
                held: BTreeSet::new(),
                notices: Notices::default(),
            };
            self.sessions.open(key.clone(), state);
            self.timers.set(timer_at, Timer::Session(key.clone()));
            return;
        };
        worker.clone_into(&mut known.worker);
        if *ttl < known.ttl {
            // Its timer may be set for later.
            self.timers.set(timer_at, Timer::Session(key.clone()));
        }
        known.ttl = *ttl;
        known.heard_at = heard_at;
        known.asked_until = None;
    }

    /// Who says what a session holds speaks for all of it: nobody else does from now on, and what
    /// was about to go elsewhere does not.
    fn supersede(&mut self, session: &SessionKey) {
        let others = self.sessions.get(session).map(|session| session.workers.clone());
        for worker in others.unwrap_or_default() {
            self.detach(worker);
            let message = WorkerMessage::Superseded;
            self.effects.tell(worker, message);
        }
    }

    /// A session says what it holds: that goes on. What it should hold and does not was lost on the
    /// way, and is handed out again. It is at once that it is lost: whoever says this has nothing
    /// else under way by which it might still come.
    fn reconcile(&mut self, key: WorkerKey, session: &SessionKey, held: Vec<TaskId>) {
        let held: BTreeSet<TaskId> = held.into_iter().collect();
        let known = self.sessions.get(session).map(|session| &session.held);
        let missing = known.into_iter().flat_map(|known| known.difference(&held));
        for task in missing.cloned().collect::<Vec<_>>() {
            self.give_back(&task, false);
        }
        let Some(worker) = self.workers.get(key) else {
            return;
        };
        let (name, is_poll) = (worker.name.clone(), worker.once);
        if let Some(session) = self.sessions.get_mut(session) {
            match is_poll {
                true => session.notices.listed_by_poll(&held),
                false => session.notices.listed_by_stream(),
            }
        }
        for task in held {
            if is_poll && self.has_it_already(&task, session) {
                continue;
            }
            let (session, name) = (session.clone(), name.clone());
            self.sessions.take_hold(task.clone(), Holder { session, name, started_at: None });
            self.hold(&task);
        }
    }

    /// Whether a session that lists a task says nothing new: it is on record here as the holder, or
    /// the answer to its result is on the way.
    fn has_it_already(&self, task: &TaskId, session: &SessionKey) -> bool {
        let settled = |session: &SessionState| session.notices.is_settled(task);
        if self.sessions.get(session).is_some_and(settled) {
            return true;
        }
        let holds = self.sessions.holder(task).is_some_and(|holder| holder.session == *session);
        let slot = self.slots.get(task.execution).filter(|slot| slot.owned && holds);
        slot.is_some_and(|slot| {
            slot.attempt(task).is_some_and(|attempt| match &attempt.dispatch {
                DispatchState::Handed(handed) => handed.session.as_ref() == Some(session),
                _ => false,
            })
        })
    }

    /// A worker of this node says that he holds an attempt.
    pub(super) fn hold(&mut self, task: &TaskId) {
        let Now { tick, time: now } = self.at();
        let Some(holder) = self.sessions.holder(task).cloned() else {
            return;
        };
        let slot = self.slots.open(task.execution);
        let owned = slot.owned;
        // A task that was scheduled after what is known here is of another node's doing.
        let is_known = slot.committed().is_some_and(|known| task.sequence <= known.sequence);
        if !is_known || !owned {
            // Read it; if another node owns it, the start that is recorded here makes it ours.
            let (worker, session) = (holder.name, holder.session.id);
            let task = task.clone();
            return self.submit(
                task.execution,
                Command::RecordStart { task, worker, session, at: now, basis: StartBasis::Held },
                None,
                None,
            );
        }
        let Some(attempt) = slot.attempt_mut(task) else {
            self.sessions.let_go(task);
            return self.notify(&holder.session, task.clone(), Notice::Closed);
        };
        attempt.possibly_started = true;
        if let DispatchState::Handed(handed) = &mut attempt.dispatch {
            // To hold a task is no progress with it: its heartbeat clock runs on.
            handed.heard();
            handed.name = holder.name;
            handed.session = Some(holder.session);
        } else {
            let handed = DispatchState::Handed(Handed {
                name: holder.name,
                session: Some(holder.session),
                since: now,
                began: tick,
                beat_at: tick,
                source: Source::Node,
                details: None,
            });
            let mut before = attempt.clone();
            before.dispatch = std::mem::replace(&mut attempt.dispatch, handed);
            self.unqueue(&before);
        }
        if self.slots.get(task.execution).is_some_and(Slot::is_ending) {
            self.tell_cancelled(task.execution);
        }
        self.settle_slot(task.execution);
    }

    pub(super) fn credit(&mut self, key: WorkerKey, tasks: u32) {
        let Some(worker) = self.workers.get(key) else {
            return;
        };
        if let Some(session) = worker.session.clone() {
            self.sessions.touch(&session, self.monotonic);
        }
        self.workers.add_credit(key, tasks);
        let queues = self.workers.get(key).map(|worker| worker.queues.clone()).unwrap_or_default();
        for queue in &queues {
            self.dispatch(queue);
        }
    }

    pub(super) fn drain(&mut self, key: WorkerKey) {
        let Some(queues) = self.workers.drain(key) else {
            return;
        };
        self.queues.leave(key, &queues);
        if let Some(session) = self.session_of(key).cloned() {
            self.queues.withdraw_offers(&session, &queues);
        }
    }

    pub(super) fn detach(&mut self, key: WorkerKey) {
        let Some(worker) = self.workers.remove(key) else {
            return;
        };
        if worker.once && worker.session.is_none() && !worker.draining {
            self.queues.poll_was_here(&worker.queues, &worker.task_types, self.now);
        }
        self.queues.leave(key, &worker.queues);
        // What was on its way to him and not yet sent goes back.
        for handed in self.effects.take_back(key) {
            self.unsend(&handed.id);
        }
        let Some(session) = &worker.session else {
            return;
        };
        if worker.once {
            // To the end of a poll its worker was there.
            self.sessions.touch(session, self.monotonic);
        }
        let Some(session) = self.sessions.get_mut(session) else {
            return;
        };
        session.workers.remove(&key);
    }

    /// Polls end with the first tasks that they get.
    pub(super) fn detach_served(&mut self, key: WorkerKey) {
        if self.workers.get(key).is_some_and(|worker| worker.once) {
            self.detach(key);
        }
    }

    pub(super) fn heartbeat(&mut self, task: TaskId, details: Option<Payload>, reply: R) {
        let now = self.now;
        let slot = self.slots.get(task.execution);
        let committed = slot.and_then(|slot| slot.committed());
        let stopping = committed.is_some_and(|known| known.is_stopping);
        // A task that is behind what is known here was scheduled by another node.
        let is_read = committed.is_some_and(|known| task.sequence <= known.sequence);
        let cancel_requested = stopping && task.path.compensated().is_none();
        let is_open = slot.is_some_and(|slot| slot.attempt(&task).is_some());
        // The clock that another node's beats stop is not this one's.
        let is_foreign = is_open && !slot.is_some_and(|slot| slot.owned);
        let known = is_open && !is_foreign;
        if known {
            self.is_alive(&task, details);
        }
        self.sessions.touch_holder(&task, self.monotonic);
        if known {
            self.settle_slot(task.execution);
            self.reply(reply, Ok(Answer::Beat { cancel_requested }));
        } else if is_read && !is_foreign {
            self.reply(reply, Err(recoup_core::command::Rejection::AttemptClosed.into()));
        } else {
            // Not read yet, or another's: it is read before this is answered, and becomes this node's
            // with the start that is recorded.
            let command = Command::RecordStart {
                task: task.clone(),
                worker: String::new(),
                session: String::new(),
                at: now,
                basis: StartBasis::Held,
            };
            self.submit(task.execution, command, None, Some(reply));
        }
    }

    /// A start has been recorded because somebody spoke of it who has it.
    pub(super) fn heard_from(&mut self, task: &TaskId) {
        let place = self.attempt_mut(task).map(|attempt| &attempt.dispatch);
        if matches!(place, Some(DispatchState::Grace { .. } | DispatchState::Handed(_))) {
            self.is_alive(task, None);
        }
    }

    /// The worker of an open attempt has said that he works on it: wherever it waited, it is with him.
    pub(super) fn is_alive(&mut self, task: &TaskId, details: Option<Payload>) {
        let now = self.at();
        let Some(attempt) = self.attempt_mut(task) else {
            return;
        };
        if let DispatchState::Handed(handed) = &mut attempt.dispatch {
            handed.beat_at = now.tick;
            handed.heard();
            handed.details = details.or(handed.details.take());
            return;
        }
        let before = attempt.clone();
        attempt.possibly_started = true;
        let started = attempt.started.clone();
        let since = started.as_ref().map_or(now.time, |started| started.at.min(now.time));
        attempt.dispatch = DispatchState::Handed(Handed {
            source: Source::known_here(started.is_some()),
            // Its time runs on, whichever node its worker talks to.
            since,
            began: now.tick_of(since),
            name: started.map_or(String::new(), |started| started.worker),
            session: None,
            beat_at: now.tick,
            details,
        });
        self.unqueue(&before);
    }

    /// Whoever a task was handed to, a session or a poll without one, has not begun it and does not
    /// want it. What somebody else holds by now stays with him.
    pub(super) fn release(&mut self, task: TaskId, session: &str, reply: R) {
        let slot = self.slots.get(task.execution);
        let known = slot.filter(|slot| slot.owned).and_then(|slot| slot.committed());
        if known.is_none_or(|known| task.sequence > known.sequence) {
            // Not read, or another's: with the start that is recorded here it becomes this node's.
            let slot = self.slots.open(task.execution);
            if slot.inbox.len() < self.options.inbox_max {
                // Else it is turned away.
                slot.released.insert(task.clone(), session.to_owned());
            }
            let (worker, session, at) = (String::new(), session.to_owned(), self.now);
            // What is known of another node's may be old: who has it is read before this is decided.
            if slot.known.is_resident() && !slot.in_flight {
                slot.doubted = true;
                self.loader.want(task.execution);
            }
            let basis = StartBasis::GivenBack;
            let command = Command::RecordStart { task: task.clone(), worker, session, at, basis };
            return self.submit(task.execution, command, None, Some(reply));
        }
        let Some(attempt) = self.attempt_mut(&task).cloned() else {
            let closed = recoup_core::command::Rejection::AttemptClosed;
            return self.reply(reply, Err(closed.into()));
        };
        let is_holder = match &attempt.dispatch {
            DispatchState::Handed(handed) => {
                handed.session.as_ref().map_or("", |session| session.id.as_str()) == session
            }
            DispatchState::Grace { .. } => {
                attempt.started.as_ref().is_none_or(|started| started.session == session)
            }
            // Given back already.
            _ => false,
        };
        if is_holder {
            self.sessions.touch_holder(&task, self.monotonic);
            self.give_back(&task, true);
        }
        self.reply(reply, Ok(Answer::Released));
    }

    /// What was given back before it was read here, and is with another session by now, stays there.
    pub(super) fn void_releases(&mut self, id: ExecutionId) {
        let Some(slot) = self.slots.get_mut(id).filter(|slot| !slot.released.is_empty()) else {
            return;
        };
        let is_void = |task: &TaskId, session: &str| {
            slot.started(task).is_some_and(|started| started.session != session)
        };
        let void = slot.released.iter().filter(|(task, session)| is_void(task, session));
        for (task, session) in void.map(|(task, of)| (task.clone(), of.clone())).collect::<Vec<_>>()
        {
            slot.released.remove(&task);
            let place = slot.inbox.iter().position(|pending| match &pending.command {
                Command::RecordStart { task: of, session: by, basis, .. } => {
                    *of == task && *by == session && *basis == StartBasis::GivenBack
                }
                _ => false,
            });
            let pending = place.and_then(|place| slot.inbox.remove(place));
            if let Some(reply) = pending.and_then(|pending| pending.reply) {
                self.effects.reply(reply, Ok(Answer::Released));
            }
        }
    }

    /// A hand-over never left this process.
    pub(super) fn undelivered(&mut self, task: &TaskId, handed_at: Timestamp) {
        self.void_start(task, handed_at);
        let is_that = |attempt: &mut Attempt| match &attempt.dispatch {
            DispatchState::Handed(handed) => handed.since == handed_at,
            _ => false,
        };
        if self.attempt_mut(task).is_some_and(is_that) {
            self.unsend(task);
        }
    }

    /// Before a session counts as lost, the store is asked about what it holds: its worker may have
    /// turned to another node a moment ago. Returns when the answers are expected.
    fn ask_before_loss(&mut self, key: &SessionKey) -> Option<Tick> {
        let (now, pause) = (self.monotonic, self.options.head_interval);
        let session = self.sessions.get_mut(key).filter(|session| !session.held.is_empty())?;
        let until = *session.asked_until.get_or_insert(now + 2 * pause);
        let mut executions = session.held.iter().map(|task| task.execution);
        if until > now {
            executions.for_each(|id| self.slots.doubt(id));
            return Some(until);
        }
        let is_read = |id| self.loader.is_expected(id);
        (self.life.is_alive() && executions.any(is_read)).then(|| now + pause)
    }

    fn look_at_session(&mut self, key: &SessionKey, at: Tick) {
        let at = self.at().time_of(at);
        self.timers.set(at, Timer::Session(key.clone()));
    }

    /// A session's time to live may be over.
    pub(super) fn check_session(&mut self, key: &SessionKey) {
        let Some(session) = self.sessions.get(key) else {
            return;
        };
        // A poll that waits is a sign of life.
        let is_once = |key: &WorkerKey| self.workers.get(*key).is_some_and(|worker| worker.once);
        if session.workers.iter().any(is_once) {
            self.sessions.touch(key, self.monotonic);
        }
        let Some(session) = self.sessions.get(key) else {
            return;
        };
        let expires_at = session.heard_at + session.ttl;
        if expires_at > self.monotonic {
            return self.look_at_session(key, expires_at);
        }
        if !self.is_reachable() {
            // The next owner of what it holds waits for it.
            let later = self.monotonic + session.ttl;
            return self.look_at_session(key, later);
        }
        if let Some(until) = self.ask_before_loss(key) {
            return self.look_at_session(key, until);
        }
        let Some(session) = self.sessions.get(key) else {
            return;
        };
        for worker in session.workers.clone() {
            self.detach(worker);
            let message = WorkerMessage::Detached;
            self.effects.tell(worker, message);
        }
        let Some(session) = self.sessions.end(key) else {
            return;
        };
        self.queues.withdraw_offers(key, &session.queues);
        // What the worker took to another node is that one's to judge.
        let is_ours = |task: &TaskId| {
            self.slots
                .get(task.execution)
                .is_some_and(|slot| slot.owned || !slot.known.is_resident())
        };
        let lost: Vec<_> = session.held.into_iter().filter(is_ours).collect();
        if lost.is_empty() {
            return;
        }
        let (namespace, worker) = (key.namespace.clone(), session.worker);
        let (id, node) = (key.id.clone(), self.node_id().map_or(0, |node| node.0));
        let event = worker_lost(namespace, worker.clone(), id, lost.len(), node, self.now);
        self.committer.publish(feed_row(&event));
        for task in lost {
            let reported = self.attempt_mut(&task).is_some_and(|attempt| attempt.reported);
            if !reported {
                self.act(Command::LoseWorker { task, worker: worker.clone() });
            }
        }
    }

    /// Asks the worker of a task to stop, unless it was asked before.
    pub(super) fn ask_to_stop(&mut self, task: &TaskId) {
        let Some(holder) = self.sessions.holder(task) else {
            return;
        };
        let key = holder.session.clone();
        let session = self.sessions.get_mut(&key);
        if session.is_some_and(|session| session.notices.ask_to_stop(task)) {
            self.notify(&key, task.clone(), Notice::CancelRequested);
        }
    }

    pub(super) fn notify(&mut self, key: &SessionKey, task: TaskId, notice: Notice) {
        let Some(session) = self.sessions.get_mut(key) else {
            return;
        };
        match session.newest_worker() {
            Some(worker) => {
                let message = notice.message(task);
                self.effects.tell(worker, message);
            }
            None => session.notices.keep(task, notice),
        }
    }

    /// A stream or poll of a session has attached: it hears what has waited for it.
    pub(super) fn tell_waiting(&mut self, key: &SessionKey, worker: WorkerKey) {
        let session = self.sessions.get_mut(key);
        let waiting = session.map(|session| session.notices.take_waiting());
        for (task, notice) in waiting.unwrap_or_default() {
            let message = notice.message(task);
            self.effects.tell(worker, message);
        }
    }

    /// A notice has not reached its worker: the next stream or poll of the session gets it.
    pub(super) fn untold(&mut self, key: &SessionKey, task: TaskId, notice: Notice) {
        let holds = self.sessions.holder(&task).is_some_and(|holder| holder.session == *key);
        if holds || notice == Notice::Closed {
            self.notify(key, task, notice);
        }
    }

    /// The session of a stream or poll that is attached.
    pub(crate) fn session_of(&self, worker: WorkerKey) -> Option<&SessionKey> {
        self.workers.get(worker)?.session.as_ref()
    }
}
