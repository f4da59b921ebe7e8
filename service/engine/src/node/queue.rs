//! The tasks of one queue that wait for workers, by task type.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use recoup_core::command::TaskId;
use recoup_core::time::Timestamp;

use super::io::{SessionKey, WorkerKey};

/// Highest priority first; within a priority, first come, first served.
pub(super) type Order = (i32, u64);

#[derive(Default)]
pub(super) struct Queue {
    by_type: BTreeMap<String, BTreeMap<Order, TaskId>>,
    len: usize,
    /// The workers that take tasks from it, in turn.
    pub workers: VecDeque<WorkerKey>,
    /// The task types that each session takes, even between its polls.
    sessions: BTreeMap<SessionKey, Vec<String>>,
    /// The task types of polls without a session that have just ended, and until when the next poll is expected.
    recent: BTreeMap<Vec<String>, Timestamp>,
}

/// The next poll is expected within this time, unless the worker still holds tasks.
pub(super) const POLL_GAP: Duration = Duration::from_secs(1);
/// How many different lists of task types are remembered for polls without a session.
const RECENT_MAX: usize = 1000;

/// Whether a worker of these task types takes a task type. An empty list means all types.
pub(super) fn takes(task_types: &[String], task_type: &str) -> bool {
    task_types.is_empty() || task_types.iter().any(|taken| taken == task_type)
}

impl Queue {
    pub fn len(&self) -> usize {
        self.len
    }

    /// The first task that a worker of these types takes. An empty list means all types.
    pub fn first(&self, task_types: &[String]) -> Option<(Order, TaskId)> {
        let first = |tasks: &BTreeMap<Order, TaskId>| {
            tasks.first_key_value().map(|(order, id)| (*order, id.clone()))
        };
        if task_types.is_empty() {
            self.by_type.values().filter_map(first).min()
        } else {
            task_types.iter().filter_map(|name| self.by_type.get(name)).filter_map(first).min()
        }
    }

    pub fn insert(&mut self, task_type: &str, order: Order, id: TaskId) {
        self.len += 1;
        match self.by_type.get_mut(task_type) {
            Some(tasks) => {
                tasks.insert(order, id);
            }
            None => {
                self.by_type.insert(task_type.to_owned(), BTreeMap::from([(order, id)]));
            }
        }
    }

    pub fn remove(&mut self, order: Order) -> Option<TaskId> {
        let id = self.by_type.values_mut().find_map(|tasks| tasks.remove(&order))?;
        self.len -= 1;
        if self.by_type.len() > 64 {
            self.by_type.retain(|_, tasks| !tasks.is_empty());
        }
        Some(id)
    }

    /// Notes that a session takes tasks of these types until it drains or ends.
    pub fn offer_of_session(&mut self, session: &SessionKey, task_types: &[String]) {
        match self.sessions.get_mut(session) {
            Some(known) if known == task_types => {}
            Some(known) => known.clone_from(&task_types.to_vec()),
            None => {
                self.sessions.insert(session.clone(), task_types.to_vec());
            }
        }
    }

    pub fn withdraw_offer(&mut self, session: &SessionKey) {
        self.sessions.remove(session);
    }

    /// A poll without a session is over; its worker is expected to poll again.
    pub fn poll_was_here(&mut self, task_types: &[String], now: Timestamp) {
        if let Some(until) = self.recent.get_mut(task_types) {
            *until = now + POLL_GAP;
            return;
        }
        self.recent.retain(|_, until| *until > now);
        if self.recent.len() < RECENT_MAX {
            self.recent.insert(task_types.to_vec(), now + POLL_GAP);
        }
    }

    /// Whether a worker of this node takes a task type, even if it is busy or between two polls. `attached`
    /// returns the task types of an attached worker, and `comes_back` says whether a session is expected to
    /// take tasks again.
    pub fn is_served<'a>(
        &self,
        task_type: &str,
        now: Timestamp,
        attached: impl Fn(WorkerKey) -> Option<&'a [String]>,
        comes_back: impl Fn(&SessionKey) -> bool,
    ) -> bool {
        let mut workers = self.workers.iter().filter_map(|worker| attached(*worker));
        let mut sessions = self.sessions.iter();
        let mut recent = self.recent.iter().filter(|(_, until)| **until > now);
        workers.any(|types| takes(types, task_type))
            || sessions.any(|(session, types)| takes(types, task_type) && comes_back(session))
            || recent.any(|(types, _)| takes(types, task_type))
    }

    /// Whether it has no tasks and no worker that may return.
    pub fn is_idle(&self, now: Timestamp) -> bool {
        let gone = self.workers.is_empty() && self.sessions.is_empty();
        gone && self.len == 0 && self.recent.values().all(|until| *until <= now)
    }

    /// The task types of the tasks that are waiting.
    pub fn task_types(&self) -> impl Iterator<Item = &String> {
        self.by_type.iter().filter(|(_, tasks)| !tasks.is_empty()).map(|(name, _)| name)
    }

    /// The tasks of a type, in the order in which they will be handed out.
    pub fn first_of(&self, task_type: &str) -> impl Iterator<Item = (Order, TaskId)> {
        let tasks = self.by_type.get(task_type);
        tasks.into_iter().flatten().map(|(order, task)| (*order, task.clone()))
    }

    /// Removes the tasks that would be handed out last.
    pub fn take_last(&mut self, count: usize) -> Vec<TaskId> {
        let orders = self.by_type.values().flat_map(|tasks| tasks.keys().copied());
        let mut orders: Vec<Order> = orders.collect();
        orders.sort_unstable();
        let last = orders.into_iter().rev().take(count);
        last.filter_map(|order| self.remove(order)).collect()
    }
}
