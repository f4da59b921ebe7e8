//! The queues of all namespaces: the tasks that wait in each, and the workers that take them.

use std::collections::{BTreeMap, BTreeSet};

use recoup_core::command::TaskId;
use recoup_core::time::Timestamp;
use recoup_store::QueueName;

use super::io::{SessionKey, WorkerKey};
use super::queue::{Order, Queue};

#[derive(Default)]
pub(super) struct Queues {
    by_name: BTreeMap<QueueName, Queue>,
    /// Queues with tasks that may go to other nodes at once.
    crowded: BTreeSet<QueueName>,
    next_order: u64,
}

impl Queues {
    pub fn get(&self, name: &QueueName) -> Option<&Queue> {
        self.by_name.get(name)
    }

    /// Returns the queue, and creates it if necessary.
    pub fn open(&mut self, name: &QueueName) -> &mut Queue {
        self.by_name.entry(name.clone()).or_default()
    }

    pub fn names(&self) -> Vec<QueueName> {
        self.by_name.keys().cloned().collect()
    }

    /// The queues in which tasks are waiting.
    pub fn waiting(&self) -> Vec<QueueName> {
        let waiting = self.by_name.iter().filter(|(_, queue)| queue.len() > 0);
        waiting.map(|(name, _)| name.clone()).collect()
    }

    /// Adds a task after the waiting tasks of the same priority. Returns its place, by which it can be removed.
    pub fn insert(
        &mut self,
        name: &QueueName,
        task_type: &str,
        priority: i32,
        task: TaskId,
    ) -> Order {
        let order = (priority.saturating_neg(), self.next_order);
        self.next_order += 1;
        self.open(name).insert(task_type, order, task);
        order
    }

    pub fn remove(&mut self, name: &QueueName, order: Order) {
        if let Some(queue) = self.by_name.get_mut(name) {
            queue.remove(order);
        }
    }

    /// Takes the first task that a worker accepts, for the worker whose turn it is. `takes` returns the task
    /// types of a worker that accepts more tasks.
    pub fn next<'a>(
        &mut self,
        name: &QueueName,
        takes: impl Fn(WorkerKey) -> Option<&'a [String]>,
    ) -> Option<(WorkerKey, TaskId)> {
        let queue = self.by_name.get_mut(name).filter(|queue| queue.len() > 0)?;
        for _ in 0..queue.workers.len() {
            queue.workers.rotate_left(1);
            let worker = queue.workers.back().copied()?;
            if let Some((order, task)) = takes(worker).and_then(|types| queue.first(types)) {
                queue.remove(order);
                return Some((worker, task));
            }
        }
        None
    }

    /// Removes the last tasks of a queue that exceed `max`.
    pub fn take_excess(&mut self, name: &QueueName, max: usize) -> Vec<TaskId> {
        let queue = self.by_name.get_mut(name);
        queue.map_or(Vec::new(), |queue| queue.take_last(queue.len().saturating_sub(max)))
    }

    /// A worker takes no more tasks from these queues.
    pub fn leave(&mut self, worker: WorkerKey, names: &[QueueName]) {
        for name in names {
            if let Some(queue) = self.by_name.get_mut(name) {
                queue.workers.retain(|other| *other != worker);
            }
        }
    }

    /// A session takes no more tasks from these queues.
    pub fn withdraw_offers<'a>(
        &mut self,
        session: &SessionKey,
        names: impl IntoIterator<Item = &'a QueueName>,
    ) {
        for name in names {
            if let Some(queue) = self.by_name.get_mut(name) {
                queue.withdraw_offer(session);
            }
        }
    }

    /// A poll without a session is over; its worker is expected to poll again.
    pub fn poll_was_here(&mut self, names: &[QueueName], task_types: &[String], now: Timestamp) {
        for name in names {
            if let Some(queue) = self.by_name.get_mut(name) {
                queue.poll_was_here(task_types, now);
            }
        }
    }

    /// Notes that a task in the queue may go to another node at once.
    pub fn crowd(&mut self, name: &QueueName) {
        self.crowded.insert(name.clone());
    }

    /// The queues that were noted by [`Self::crowd`] since the last call.
    pub fn take_crowded(&mut self) -> BTreeSet<QueueName> {
        std::mem::take(&mut self.crowded)
    }

    /// Drops the queues in which nothing waits and for which no worker is expected.
    pub fn forget_idle(&mut self, now: Timestamp) {
        self.by_name.retain(|_, queue| !queue.is_idle(now));
    }
}

#[cfg(test)]
mod tests {
    use recoup_core::id::{ExecutionId, Namespace, StepPath};

    use super::*;

    fn name() -> QueueName {
        QueueName { namespace: Namespace::from("default"), queue: "mail".into() }
    }

    fn task(path: &str) -> TaskId {
        let execution = ExecutionId(uuid::Uuid::nil());
        TaskId { execution, run: 1, path: StepPath::from(path), attempt: 1, sequence: 1 }
    }

    fn all(_: WorkerKey) -> Option<&'static [String]> {
        Some(&[])
    }

    #[test]
    fn tasks_are_handed_out_by_priority_then_in_order_of_arrival() {
        let mut queues = Queues::default();
        queues.open(&name()).workers.push_back(1);
        for (path, priority) in [("first", 0), ("urgent", 5), ("second", 0)] {
            queues.insert(&name(), "send", priority, task(path));
        }
        let next = |queues: &mut Queues| queues.next(&name(), all).map(|(_, task)| task);
        assert_eq!(next(&mut queues), Some(task("urgent")));
        assert_eq!(next(&mut queues), Some(task("first")));
        assert_eq!(next(&mut queues), Some(task("second")));
        assert_eq!(next(&mut queues), None);
    }

    #[test]
    fn workers_with_free_capacity_get_tasks_in_turn() {
        let mut queues = Queues::default();
        queues.open(&name()).workers.extend([1, 2, 3]);
        for path in ["a", "b", "c"] {
            queues.insert(&name(), "send", 0, task(path));
        }
        let takes = |worker: WorkerKey| (worker != 2).then_some([].as_slice());
        let mut workers = std::iter::from_fn(|| queues.next(&name(), takes));
        let workers: Vec<_> = workers.by_ref().map(|(worker, _)| worker).collect();
        assert_eq!(workers, [1, 3, 1]);
    }

    #[test]
    fn a_worker_that_left_gets_nothing() {
        let mut queues = Queues::default();
        queues.open(&name()).workers.push_back(1);
        queues.insert(&name(), "send", 0, task("a"));
        queues.leave(1, &[name()]);
        assert_eq!(queues.next(&name(), all), None);
    }

    #[test]
    fn excess_tasks_are_taken_from_the_end_of_a_queue() {
        let mut queues = Queues::default();
        for path in ["a", "b", "c"] {
            queues.insert(&name(), "send", 0, task(path));
        }
        assert_eq!(queues.take_excess(&name(), 1), [task("c"), task("b")]);
        assert_eq!(queues.take_excess(&name(), 1), []);
    }
}
