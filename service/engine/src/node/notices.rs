//! Telling workers that a task they hold should stop, or that its attempt is over.
//!
//! A notice goes to the session that holds the task: at once over its stream or a poll of it that
//! waits, else with the next one that attaches. A worker that polls is told once of each task: its
//! polls end when there is news, and must be able to wait again afterwards. A task whose attempt was
//! closed by the session's own result is no news: the poll that lists it was sent before the answer
//! to the result had arrived.

use std::collections::{BTreeMap, BTreeSet};

use recoup_core::command::TaskId;

use super::io::Notice;

/// Notices that wait for one session, and closed tasks that it may still list.
const NOTICES_MAX: usize = 10_000;

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
    /// The session is asked to stop a task. False: it was asked before.
    pub fn ask_to_stop(&mut self, task: &TaskId) -> bool {
        self.asked.insert(task.clone())
    }

    /// What has waited for a stream or a poll.
    pub fn take_waiting(&mut self) -> BTreeMap<TaskId, Notice> {
        std::mem::take(&mut self.waiting)
    }

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

    pub fn keep(&mut self, task: TaskId, notice: Notice) {
        if self.waiting.len() < NOTICES_MAX {
            self.waiting.insert(task, notice);
        }
    }
}
