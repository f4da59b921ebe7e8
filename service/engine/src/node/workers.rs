//! Workers, and their sessions, which outlive a connection.

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
use super::worker::WorkerState;
use super::{Node, Timer};
use crate::clock::{Now, Tick};
use crate::transition::feed_row;

/// How many queues a session is remembered to take tasks from while none of its polls is waiting.
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
        // A worker that is stopping sends a last poll with no credit.
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
            // The session's timer may be set for a later time.
            self.timers.set(timer_at, Timer::Session(key.clone()));
        }
        known.ttl = *ttl;
        known.heard_at = heard_at;
        known.asked_until = None;
    }

    /// A stream or poll that lists what a session holds speaks for the whole session. All other streams and
    /// polls of the session are detached, and tasks that were about to go to them are taken back.
    fn supersede(&mut self, session: &SessionKey) {
        let others = self.sessions.get(session).map(|session| session.workers.clone());
        for worker in others.unwrap_or_default() {
            self.detach(worker);
            let message = WorkerMessage::Superseded;
            self.effects.tell(worker, message);
        }
    }

    /// A session lists the attempts that it holds, and they stay with it. An attempt that this node believes
    /// to be with the session, but that is not in the list, was lost on the way and is handed out again at
    /// once: a worker that sends such a list has no other message under way by which the attempt could still
    /// arrive.
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

    /// Whether a poll that lists a task tells this node nothing new: this node already has the session as the
    /// holder, the answer to the session's result is on its way, or a poll of the session was answered that the
    /// attempt is closed.
    fn has_it_already(&self, task: &TaskId, session: &SessionKey) -> bool {
        let notices = self.sessions.get(session).map(|session| &session.notices);
        if notices.is_some_and(|told| told.is_settled(task) || told.is_told_closed(task)) {
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

    /// A worker of this node has reported that it holds an attempt.
    pub(super) fn hold(&mut self, task: &TaskId) {
        let Now { tick, time: now } = self.at();
        let Some(holder) = self.sessions.holder(task).cloned() else {
            return;
        };
        let slot = self.slots.open(task.execution);
        let owned = slot.owned;
        // A task that was scheduled after the state in memory was scheduled by another node.
        let is_known = slot.committed().is_some_and(|known| task.sequence <= known.sequence);
        if !is_known || !owned {
            // The execution is read first. If another node owns it, the start that is recorded here makes
            // this node the owner.
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
            // Holding a task is not progress with it, so the heartbeat timeout continues to run.
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
        self.tell_cancelled(task.execution);
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
        // Tasks that were on their way to the worker and have not been sent go back to their queues.
        for handed in self.effects.take_back(key) {
            self.unsend(&handed.id);
        }
        let Some(session) = &worker.session else {
            return;
        };
        if worker.once {
            // A poll is a sign of life of its worker until the poll ends.
            self.sessions.touch(session, self.monotonic);
        }
        let Some(session) = self.sessions.get_mut(session) else {
            return;
        };
        session.workers.remove(&key);
    }

    /// Detaches a poll that has received tasks: a poll ends with the first tasks that it gets.
    pub(super) fn detach_served(&mut self, key: WorkerKey) {
        if self.workers.get(key).is_some_and(|worker| worker.once) {
            self.detach(key);
        }
    }

    pub(super) fn heartbeat(&mut self, task: TaskId, details: Option<Payload>, reply: R) {
        let now = self.now;
        let slot = self.slots.get(task.execution);
        let committed = slot.and_then(|slot| slot.committed());
        // A task that was scheduled after the state in memory was scheduled by another node.
        let is_read = committed.is_some_and(|known| task.sequence <= known.sequence);
        let cancel_requested = committed.is_some_and(|known| known.ending.includes(&task.path));
        let is_open = slot.is_some_and(|slot| slot.attempt(&task).is_some());
        // While another node owns the execution, a heartbeat that arrives here does not reset that node's timeout.
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
            // The execution has not been read, or another node owns it. It is read before the heartbeat is
            // answered, and the start that is recorded makes this node the owner.
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

    /// A start has been recorded because the worker that has the attempt sent something about it.
    pub(super) fn heard_from(&mut self, task: &TaskId) {
        let place = self.attempt_mut(task).map(|attempt| &attempt.dispatch);
        if matches!(place, Some(DispatchState::Grace { .. } | DispatchState::Handed(_))) {
            self.is_alive(task, None);
        }
    }

    /// The worker of an open attempt has reported that it is working on it. Wherever the attempt was waiting,
    /// it is with that worker now.
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
            // Its timeouts continue to run, whichever node its worker talks to.
            since,
            began: now.tick_of(since),
            name: started.map_or(String::new(), |started| started.worker),
            session: None,
            beat_at: now.tick,
            details,
        });
        self.unqueue(&before);
    }

    /// The worker that a task was handed to gives it back unstarted. `session` is empty for a poll without a
    /// session. If a different worker holds the task by now, the task stays with that worker.
    pub(super) fn release(&mut self, task: TaskId, session: &str, reply: R) {
        let slot = self.slots.get(task.execution);
        let known = slot.filter(|slot| slot.owned).and_then(|slot| slot.committed());
        if known.is_none_or(|known| task.sequence > known.sequence) {
            // The execution has not been read, or another node owns it. The start that is recorded here makes
            // this node the owner.
            let slot = self.slots.open(task.execution);
            if slot.inbox.len() < self.options.inbox_max {
                // If the inbox is full, the request is refused.
                slot.released.insert(task.clone(), session.to_owned());
            }
            let (worker, session, at) = (String::new(), session.to_owned(), self.now);
            // If another node owns the execution, the state in memory may be out of date. It is read before
            // this is decided.
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
            // It has been given back already.
            _ => false,
        };
        if is_holder {
            self.sessions.touch_holder(&task, self.monotonic);
            self.give_back(&task, true);
        }
        self.reply(reply, Ok(Answer::Released));
    }

    /// Drops releases that arrived before the execution was read here, for attempts that are with a different
    /// session by now: those attempts stay there.
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

    /// Asks the store about the attempts that a session holds before the session counts as lost: its worker
    /// may have connected to another node a moment ago. Returns when the answers are expected; `None` once
    /// there is nothing left to wait for.
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

    /// The session's time to live may have passed.
    pub(super) fn check_session(&mut self, key: &SessionKey) {
        let Some(session) = self.sessions.get(key) else {
            return;
        };
        // A poll that is waiting is a sign of life.
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
            // The next owner of the attempts that it holds will wait for the worker.
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
        // Attempts that the worker took to another node are judged by that node.
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

    /// Asks the worker of a task to stop, unless it has been asked before.
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
            Some(worker) => self.tell(key, worker, task, notice),
            None => session.notices.keep(task, notice),
        }
    }

    /// Sends a notice to a stream or poll of a session.
    fn tell(&mut self, key: &SessionKey, worker: WorkerKey, task: TaskId, notice: Notice) {
        let is_poll = self.workers.get(worker).is_some_and(|worker| worker.once);
        if is_poll
            && notice == Notice::Closed
            && let Some(session) = self.sessions.get_mut(key)
            && !session.notices.tell_closed(&task)
        {
            return;
        }
        self.effects.tell(worker, notice.message(task));
    }

    /// A stream or poll of a session has attached and receives the notices that were waiting for it.
    pub(super) fn tell_waiting(&mut self, key: &SessionKey, worker: WorkerKey) {
        let session = self.sessions.get_mut(key);
        let waiting = session.map(|session| session.notices.take_waiting());
        for (task, notice) in waiting.unwrap_or_default() {
            self.tell(key, worker, task, notice);
        }
    }

    /// Tasks that the latest poll of a session listed although an earlier poll has delivered the notice that
    /// their attempts are closed.
    pub fn told_closed(&self, key: &SessionKey) -> Vec<TaskId> {
        let session = self.sessions.get(key);
        session.into_iter().flat_map(|session| session.notices.all_told_closed()).cloned().collect()
    }

    /// A notice has not reached its worker. It goes to the next stream or poll of the session.
    pub(super) fn untold(&mut self, key: &SessionKey, task: TaskId, notice: Notice) {
        if let Some(session) = self.sessions.get_mut(key) {
            session.notices.untold(&task);
        }
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
