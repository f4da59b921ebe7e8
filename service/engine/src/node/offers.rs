//! Which tasks this node gives to other nodes, through the overflow.
//!
//! | the task | goes to the overflow |
//! | --- | --- |
//! | has a type that no worker of this node takes | at once, as far as idle workers of other nodes have credit for it |
//! | has a type whose workers on this node are busy | on the same condition, once it has waited for `overflow_after` |
//! | exceeds the `queue_max` of its queue | at once, the last tasks of the queue first |
//!
//! In one call a node publishes the credit of its idle workers and reads what the other nodes have published.
//! Until the next call it subtracts each task that it gives away from the credit that it has read. If no
//! other node takes its tasks, it keeps them and checks again at the next call.

use std::time::Duration;

use recoup_core::command::TaskId;
use recoup_core::definition::Delivery;
use recoup_store::{Error, NodeId, OverflowTask, Peers, QueueName};

use super::attempt::{DispatchState, key_of};
use super::io::{Output, SessionKey, WorkerKey};
use super::slot::Row;
use super::{Node, Timer};

impl<R> Node<R> {
    /// How often this node exchanges tasks with other nodes.
    pub(super) fn exchange_interval(&self) -> Duration {
        self.trade.interval(self.options.claim_interval, self.monotonic)
    }

    pub(super) fn publish(&mut self) {
        let Some(node) = self.node_id() else {
            return;
        };
        let idle = if self.is_stopping() { Vec::new() } else { self.workers.idle() };
        self.effects.push(Output::Publish(node, idle));
    }

    pub(super) fn published(&mut self, node: NodeId, peers: recoup_store::Result<Peers>) {
        if self.node_id() != Some(node) {
            return;
        }
        match peers {
            Ok(peers) => self.trade.read(peers),
            Err(Error::LeaseLost) => return self.lose_life(),
            Err(error) => {
                self.trade.not_read();
                tracing::warn!(%error, "could not tell other nodes which tasks workers wait for");
            }
        }
        self.queues.forget_idle(self.now);
        self.give_away();
        self.set_timer(self.exchange_interval(), Timer::Publish);
    }

    /// Marks the queue of a task that was not handed out at once, if another node may take the task right away.
    pub(super) fn offer_elsewhere(&mut self, name: &QueueName, task_type: &str) {
        let Some(queue) = self.queues.get(name) else {
            return;
        };
        let is_wanted = self.trade.credit(name, task_type) > 0;
        if is_wanted || queue.len() > self.options.queue_max {
            self.queues.crowd(name);
        }
    }

    /// Gives away the surplus tasks of those queues that have changed since the last call.
    pub(super) fn give_away_new(&mut self) {
        let mut tasks = Vec::new();
        for name in self.queues.take_crowded() {
            tasks.extend(self.surplus(&name, false));
        }
        self.overflow(tasks);
    }

    /// Gives away the surplus tasks of all queues.
    fn give_away(&mut self) {
        let mut tasks = Vec::new();
        for name in self.queues.waiting() {
            tasks.extend(self.surplus(&name, true));
        }
        self.overflow(tasks);
    }

    /// Takes the tasks out of a queue that may go to other nodes. `aged`: includes tasks that have waited too
    /// long because the workers of this node are busy.
    fn surplus(&mut self, name: &QueueName, aged: bool) -> Vec<(QueueName, TaskId)> {
        let now = self.now;
        let Some(queue) = self.queues.get(name) else {
            return Vec::new();
        };
        let attached =
            |key: WorkerKey| self.workers.get(key).map(|worker| worker.task_types.as_slice());
        let comes_back = |key: &SessionKey| {
            self.sessions.get(key).is_some_and(|session| session.comes_back(self.monotonic))
        };
        let mut taken = Vec::new();
        for task_type in queue.task_types() {
            let wanted = self.trade.credit(name, task_type);
            let is_served = queue.is_served(task_type, now, attached, comes_back);
            if wanted == 0 || (is_served && !aged) {
                continue;
            }
            let is_due = |task: &TaskId| {
                let slot = self.slots.get(task.execution);
                let content = slot.and_then(|slot| slot.attempt(task)).map(|own| &own.content);
                content.is_some_and(|own| own.scheduled_at + self.options.overflow_after <= now)
            };
            let first = queue.first_of(task_type).take(wanted);
            let due = first.filter(|(_, task)| !is_served || is_due(task));
            taken.extend(due.map(|(order, task)| (order, task, task_type.clone())));
        }
        let mut given = Vec::new();
        for (order, task, task_type) in taken {
            if self.trade.use_credit(name, &task_type) {
                self.queues.remove(name, order);
                given.push(task);
            }
        }
        given.extend(self.queues.take_excess(name, self.options.queue_max));
        given.into_iter().map(|task| (name.clone(), task)).collect()
    }

    /// Moves tasks that were taken from their queues into the overflow, where any node can claim them.
    fn overflow(&mut self, taken: Vec<(QueueName, TaskId)>) {
        let (mut tasks, mut never_left) = (Vec::new(), Vec::new());
        for (queue, task) in taken {
            let Some(slot) = self.slots.get_mut(task.execution) else {
                continue;
            };
            let Some(plan) = slot.known.plan() else {
                continue;
            };
            let Some(plan) = plan.task(&task.path) else {
                continue;
            };
            let (task_type, priority) = (plan.task_type.clone(), plan.priority);
            let Some(attempt) = slot.attempts.get_mut(&task) else {
                continue;
            };
            if attempt.unsent.is_some() && plan.delivery == Delivery::AtMostOnce {
                // The history says that the attempt has started, so no other node would take it.
                attempt.dispatch = DispatchState::Scheduled;
                never_left.push(task);
                continue;
            }
            attempt.dispatch = DispatchState::Overflowed;
            slot.overflow.insert(key_of(&task), Row::Free);
            let available_at = attempt.content.scheduled_at;
            self.slots.doubt(task.execution);
            tasks.push(OverflowTask { task, queue, task_type, priority, available_at });
        }
        if let (Some(node), false) = (self.node_id(), tasks.is_empty()) {
            self.effects.push(Output::Overflow(node, tasks));
            self.trade.traded(self.monotonic);
        }
        for task in never_left {
            self.fail_unsent(&task);
        }
    }
}
