//! Telling workers that a task they hold should stop, or that its attempt is over.
//!
//! A notice goes to the session that holds the task: at once over its stream or a poll of it that
//! waits, else with the next one that attaches. A worker that polls is told once of each task: its
//! polls end when there is news, and must be able to wait again afterwards. A task whose attempt was
//! closed by the session's own result is no news: the poll that lists it was sent before the answer
//! to the result had arrived.

use std::collections::{BTreeMap, BTreeSet};

use recoup_core::command::TaskId;

use super::Node;
use super::io::{Output, SessionKey, WorkerKey, WorkerMessage};

/// Notices that wait for one session, and closed tasks that it may still list.
const NOTICES_MAX: usize = 10_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The run is ending: a result within the grace still counts.
    CancelRequested,
    /// The attempt has ended: no result counts any more.
    Closed,
}

impl Notice {
    fn message(self, task: TaskId) -> WorkerMessage {
        match self {
            Self::CancelRequested => WorkerMessage::CancelRequested(task),
            Self::Closed => WorkerMessage::Closed(task),
        }
    }
}

/// What a session has been told of the tasks that it holds, and what it is still to be told.
#[derive(Debug, Default)]
pub(super) struct Notices {
    /// For the next stream or poll of the session.
    waiting: BTreeMap<TaskId, Notice>,
    /// Held tasks that it was asked to stop.
    asked: BTreeSet<TaskId>,
    /// Closed by results of its own. A poll may have been sent before their answers arrived.
    settled: BTreeSet<TaskId>,
}

impl Notices {
    /// The session does not hold the task any more. `reported`: because its own result is recorded.
    pub fn let_go(&mut self, task: &TaskId, reported: bool) {
        self.asked.remove(task);
        self.waiting.remove(task);
        if reported && self.settled.len() < NOTICES_MAX {
            self.settled.insert(task.clone());
        }
    }

    /// Whether a poll lists the task only because the answer to its result was still on its way.
    pub fn is_settled(&self, task: &TaskId) -> bool {
        self.settled.contains(task)
    }

    /// A poll has said what the session holds.
    pub fn listed_by_poll(&mut self, held: &BTreeSet<TaskId>) {
        self.settled.retain(|task| held.contains(task));
        self.waiting.retain(|task, _| held.contains(task));
    }

    /// A stream has been opened and has said what the session holds. It hears of everything again: a
    /// message of the last stream may be lost, and it sends results again that it does not know to be
    /// closed.
    pub fn listed_by_stream(&mut self) {
        *self = Self::default();
    }

    fn keep(&mut self, task: TaskId, notice: Notice) {
        if self.waiting.len() < NOTICES_MAX {
            self.waiting.insert(task, notice);
        }
    }
}

impl<R> Node<R> {
    /// Asks the worker of a task to stop, unless it was asked before.
    pub(super) fn ask_to_stop(&mut self, task: &TaskId) {
        let Some(holder) = self.sessions.holder(task) else {
            return;
        };
        let key = holder.session.clone();
        let session = self.sessions.get_mut(&key);
        if session.is_some_and(|session| session.notices.asked.insert(task.clone())) {
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
                self.outputs.push_back(Output::Tell { worker, message });
            }
            None => session.notices.keep(task, notice),
        }
    }

    /// A stream or poll of a session has attached: it hears what has waited for it.
    pub(super) fn tell_waiting(&mut self, key: &SessionKey, worker: WorkerKey) {
        let session = self.sessions.get_mut(key);
        let waiting = session.map(|session| std::mem::take(&mut session.notices.waiting));
        for (task, notice) in waiting.unwrap_or_default() {
            let message = notice.message(task);
            self.outputs.push_back(Output::Tell { worker, message });
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
        self.workers.get(&worker)?.session.as_ref()
    }
}
