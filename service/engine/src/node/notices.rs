//! Notices to workers that a task they hold should stop, or that its attempt is closed.
//!
//! A notice goes to the session that holds the task: at once over its stream or a waiting poll, otherwise
//! with the next stream or poll that attaches. A worker that polls gets each notice only once, because a poll
//! ends when there is something to deliver, and later polls must be able to wait. If the session's own result
//! closed the attempt, no notice is sent: a poll that still lists the task was sent before the answer to the
//! result arrived.
//!
//! A worker may list a task in polls although it was notified that the attempt is closed: because the answer was
//! lost behind the connection, or because its handler is still running. The notice does not end those polls. A
//! poll whose wait is over and that has nothing else to deliver repeats it, so that a lost notice arrives in the
//! end and no worker polls without a pause.

use std::collections::{BTreeMap, BTreeSet};

use recoup_core::command::TaskId;

use super::io::Notice;

/// How many notices may wait for one session, and how many closed tasks that it may still list are remembered.
const NOTICES_MAX: usize = 10_000;

/// The notices that a session has received about the tasks it holds, and those that are waiting for it.
#[derive(Debug, Default)]
pub(super) struct Notices {
    /// Notices for the next stream or poll of the session.
    waiting: BTreeMap<TaskId, Notice>,
    /// Held tasks that the session was asked to stop.
    asked: BTreeSet<TaskId>,
    /// Tasks that the session's own results have closed. A poll may have been sent before the answers arrived.
    settled: BTreeSet<TaskId>,
    /// Tasks whose notice that they are closed has left with a poll. Later polls may still list them.
    told_closed: BTreeSet<TaskId>,
}

impl Notices {
    /// Notes that the session is asked to stop a task. Returns false if it was asked before.
    pub fn ask_to_stop(&mut self, task: &TaskId) -> bool {
        self.asked.insert(task.clone())
    }

    /// Takes the notices that are waiting for a stream or a poll.
    pub fn take_waiting(&mut self) -> BTreeMap<TaskId, Notice> {
        std::mem::take(&mut self.waiting)
    }

    /// The session no longer holds the task. `reported`: because its own result is recorded.
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

    /// Notes that a poll delivers the notice that a task is closed. Returns false if a poll has delivered it
    /// before.
    pub fn tell_closed(&mut self, task: &TaskId) -> bool {
        if self.told_closed.len() < NOTICES_MAX {
            return self.told_closed.insert(task.clone());
        }
        !self.told_closed.contains(task)
    }

    /// A notice has not reached the worker.
    pub fn untold(&mut self, task: &TaskId) {
        self.told_closed.remove(task);
    }

    /// Whether a poll has already delivered the notice that the task is closed.
    pub fn is_told_closed(&self, task: &TaskId) -> bool {
        self.told_closed.contains(task)
    }

    /// The tasks for which [`Self::is_told_closed`] holds.
    pub fn all_told_closed(&self) -> impl Iterator<Item = &TaskId> {
        self.told_closed.iter()
    }

    /// A poll has listed what the session holds.
    pub fn listed_by_poll(&mut self, held: &BTreeSet<TaskId>) {
        self.settled.retain(|task| held.contains(task));
        self.told_closed.retain(|task| held.contains(task));
        self.waiting.retain(|task, _| held.contains(task));
    }

    /// A stream has opened and listed what the session holds. It gets every notice again, because a message
    /// on the last stream may have been lost. It also sends results again if it does not know that the
    /// attempts are closed.
    pub fn listed_by_stream(&mut self) {
        *self = Self::default();
    }

    pub fn keep(&mut self, task: TaskId, notice: Notice) {
        if self.waiting.len() < NOTICES_MAX {
            self.waiting.insert(task, notice);
        }
    }
}
