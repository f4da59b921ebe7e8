//! Workers, and the sessions by which they live on when a connection does not.

use std::time::Duration;

use recoup_core::command::{Command, TaskId};
use recoup_core::failure_event::worker_lost;
use recoup_core::id::Namespace;
use recoup_core::time::Timestamp;
use recoup_store::QueueName;

use super::dispatch::{Attempt, Handed, Place};
use super::io::{Answer, Offer, Output, Session, WorkerKey, WorkerMessage};
use super::slots::{Known, Slot};
use super::{Node, Timer};
use crate::transition::feed_row;

/// Handed over longer ago than this and missing in a poll's list: the reply was lost.
const REPLY_LOST_AFTER: Duration = Duration::from_secs(2);

pub(super) struct WorkerState {
    queues: Vec<QueueName>,
    pub task_types: Vec<String>,
    pub credit: u32,
    pub session: Option<String>,
    pub name: String,
    once: bool,
}

pub(super) struct SessionState {
    namespace: Namespace,
    worker: String,
    ttl: Duration,
    expires_at: Timestamp,
}

/// Who holds an attempt.
#[derive(Clone, Debug)]
pub(super) struct Holder {
    pub session: String,
    pub name: String,
    pub worker: Option<WorkerKey>,
    pub since: Timestamp,
}

impl<R> Node<R> {
    pub(super) fn attach(&mut self, key: WorkerKey, offer: Offer) {
        let Offer { queues, task_types, credit, session, worker: name, held, once } = offer;
        if let Some(session) = &session
            && let Some(queue) = queues.first()
        {
            self.open_session(session, queue.namespace.clone(), &name);
        }
        let session = session.map(|session| session.id);
        for queue in &queues {
            self.queues.entry(queue.clone()).or_default().workers.push_back(key);
        }
        let worker = WorkerState {
            queues: queues.clone(),
            task_types,
            credit,
            session: session.clone(),
            name,
            once,
        };
        self.workers.insert(key, worker);
        if let Some(session) = session {
            self.reconcile(key, &session, &held, once);
        }
        if !self.claiming {
            self.claiming = true;
            self.set_timer(Duration::ZERO, Timer::Claim);
        }
        for queue in &queues {
            self.dispatch(queue);
        }
    }

    fn open_session(&mut self, session: &Session, namespace: Namespace, worker: &str) {
        let expires_at = self.now + session.ttl;
        let state =
            SessionState { namespace, worker: worker.to_owned(), ttl: session.ttl, expires_at };
        if self.sessions.insert(session.id.clone(), state).is_none() {
            self.timers.insert((expires_at, Timer::Session(session.id.clone())));
        }
    }

    /// A session says what it holds: that goes on. What it should hold and does not was lost on the
    /// way, and is handed out again.
    fn reconcile(&mut self, key: WorkerKey, session: &str, held: &[TaskId], is_poll: bool) {
        let since = self.now;
        if !(is_poll && held.is_empty()) {
            let lost_before = if is_poll { self.now - REPLY_LOST_AFTER } else { self.now };
            let missing = self.held.iter().filter(|(task, holder)| {
                holder.session == session && holder.since <= lost_before && !held.contains(task)
            });
            for task in missing.map(|(task, _)| task.clone()).collect::<Vec<_>>() {
                self.give_back(&task, false);
            }
        }
        let name = self.workers.get(&key).map_or(String::new(), |worker| worker.name.clone());
        for task in held {
            let (session, name) = (session.to_owned(), name.clone());
            let worker = (!is_poll).then_some(key);
            self.held.insert(task.clone(), Holder { session, name, worker, since });
            self.hold(task);
        }
    }

    /// A worker of this node says that he holds an attempt.
    pub(super) fn hold(&mut self, task: &TaskId) {
        let now = self.now;
        let Some(holder) = self.held.get(task).cloned() else {
            return;
        };
        let slot = self.slots.entry(task.execution).or_insert_with(Slot::unread);
        let owned = slot.owned;
        if !matches!(slot.known, Known::State(..)) || !owned {
            // Read it; if another node owns it, the start that is recorded here makes it ours.
            let name = holder.name.clone();
            let (task, session) = (task.clone(), holder.session);
            return self.submit(
                task.execution,
                Command::RecordStart { task, worker: name, session, at: now },
                None,
                None,
            );
        }
        let Some(attempt) = slot.attempts.iter_mut().find(|attempt| attempt.id == *task) else {
            self.held.remove(task);
            if let Some(worker) = holder.worker {
                let message = WorkerMessage::Closed(task.clone());
                self.outputs.push_back(Output::Tell { worker, message });
            }
            return;
        };
        let recorded = matches!(&attempt.place, Place::Handed(handed) if handed.recorded);
        let since = match &attempt.place {
            Place::Handed(handed) => handed.since,
            _ => now,
        };
        attempt.possibly_started = true;
        let handed = Place::Handed(Handed {
            worker: holder.worker,
            name: holder.name,
            session: Some(holder.session),
            since,
            beat_at: now,
            recorded,
        });
        let mut before = attempt.clone();
        before.place = std::mem::replace(&mut attempt.place, handed);
        self.unqueue(&before);
        self.settle_slot(task.execution);
    }

    pub(super) fn credit(&mut self, key: WorkerKey, tasks: u32) {
        let Some(worker) = self.workers.get_mut(&key) else {
            return;
        };
        worker.credit = worker.credit.saturating_add(tasks);
        if let Some(session) = worker.session.clone() {
            self.touch(&session);
        }
        let queues = self.workers.get(&key).map(|worker| worker.queues.clone()).unwrap_or_default();
        for queue in &queues {
            self.dispatch(queue);
        }
    }

    pub(super) fn touch(&mut self, session: &str) {
        let now = self.now;
        if let Some(session) = self.sessions.get_mut(session) {
            session.expires_at = now + session.ttl;
        }
    }

    pub(super) fn detach(&mut self, key: WorkerKey) {
        let Some(worker) = self.workers.remove(&key) else {
            return;
        };
        for name in &worker.queues {
            let Some(queue) = self.queues.get_mut(name) else {
                continue;
            };
            queue.workers.retain(|other| *other != key);
            if queue.workers.is_empty() {
                self.set_timer(self.options.overflow_after, Timer::Queue(name.clone()));
            }
        }
        // What was on its way to him and not yet sent goes back.
        for handed in self.outbox.remove(&key).unwrap_or_default() {
            self.give_back(&handed.id, true);
        }
        let parted = self.held.iter_mut().filter(|(_, holder)| holder.worker == Some(key));
        for (task, holder) in parted {
            holder.worker = None;
            let slot = self.slots.get_mut(&task.execution);
            let attempt = slot.and_then(|slot| slot.attempts.iter_mut().find(|a| a.id == *task));
            if let Some(Attempt { place: Place::Handed(handed), .. }) = attempt {
                handed.worker = None;
            }
        }
    }

    /// Polls end with the first tasks that they get.
    pub(super) fn detach_served(&mut self, key: WorkerKey) {
        if self.workers.get(&key).is_some_and(|worker| worker.once) {
            self.detach(key);
        }
    }

    pub(super) fn heartbeat(&mut self, task: TaskId, reply: R) {
        let now = self.now;
        let slot = self.slots.get(&task.execution);
        let stopping = slot.and_then(|slot| slot.state()).is_some_and(|state| state.is_stopping());
        // A task that is behind what is known here was scheduled by another node.
        let is_read =
            slot.and_then(|slot| slot.state()).is_some_and(|state| task.sequence <= state.sequence);
        let cancel_requested = stopping && task.path.compensated().is_none();
        let mut session = None;
        let known = match self.attempt_mut(&task) {
            Some(attempt) => {
                if let Place::Handed(handed) = &mut attempt.place {
                    handed.beat_at = now;
                    session = handed.session.clone();
                } else {
                    // Its worker is alive, so it is with him.
                    let before = attempt.clone();
                    attempt.possibly_started = true;
                    attempt.place = Place::Handed(Handed {
                        worker: None,
                        name: String::new(),
                        session: None,
                        since: now,
                        beat_at: now,
                        recorded: false,
                    });
                    self.unqueue(&before);
                }
                true
            }
            None => false,
        };
        if let Some(session) = session {
            self.touch(&session);
        }
        if known {
            self.settle_slot(task.execution);
            self.reply(reply, Ok(Answer::Beat { cancel_requested }));
        } else if is_read {
            self.reply(reply, Err(recoup_core::command::Rejection::AttemptClosed.into()));
        } else {
            // Not read yet: it is, before this is answered, and the start recorded.
            let command = Command::RecordStart {
                task: task.clone(),
                worker: String::new(),
                session: String::new(),
                at: now,
            };
            self.submit(task.execution, command, None, Some(reply));
        }
    }

    pub(super) fn release(&mut self, task: &TaskId) {
        self.give_back(task, true);
    }

    /// A session's time to live may be over.
    pub(super) fn check_session(&mut self, id: &str) {
        let Some(session) = self.sessions.get(id) else {
            return;
        };
        if session.expires_at > self.now {
            self.timers.insert((session.expires_at, Timer::Session(id.to_owned())));
            return;
        }
        let (namespace, worker) = (session.namespace.clone(), session.worker.clone());
        self.sessions.remove(id);
        let lost = self.held.iter().filter(|(_, holder)| holder.session == id);
        let lost: Vec<_> = lost.map(|(task, _)| task.clone()).collect();
        let gone = self.workers.iter().filter(|(_, state)| state.session.as_deref() == Some(id));
        for key in gone.map(|(key, _)| *key).collect::<Vec<_>>() {
            self.detach(key);
            let message = WorkerMessage::Detached;
            self.outputs.push_back(Output::Tell { worker: key, message });
        }
        // What the worker took to another node is that one's to judge.
        let (lost, moved): (Vec<_>, Vec<_>) = lost.into_iter().partition(|task| {
            self.slots
                .get(&task.execution)
                .is_some_and(|slot| slot.owned || !matches!(slot.known, Known::State(..)))
        });
        for task in moved {
            self.held.remove(&task);
        }
        if lost.is_empty() {
            return;
        }
        let event = worker_lost(namespace, worker.clone(), id.to_owned(), lost.len(), self.now);
        self.loose_events.push(feed_row(&event));
        for task in lost {
            self.held.remove(&task);
            let reported = self.attempt_mut(&task).is_some_and(|attempt| attempt.reported);
            if !reported {
                self.act(Command::LoseWorker { task, worker: worker.clone() });
            }
        }
    }

    /// The queues from which workers of this node would take more, and how much.
    pub(super) fn hungry(&self) -> (Vec<QueueName>, usize) {
        let mut queues: Vec<QueueName> = Vec::new();
        let mut credit = 0;
        for worker in self.workers.values().filter(|worker| worker.credit > 0) {
            credit += worker.credit as usize;
            queues.extend(worker.queues.iter().cloned());
        }
        queues.sort_unstable();
        queues.dedup();
        (queues, credit)
    }
}
