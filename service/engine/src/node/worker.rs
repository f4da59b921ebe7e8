//! The streams and polls through which workers take tasks.

use std::collections::BTreeMap;

use recoup_store::{IdleCredit, QueueName};

use super::io::{SessionKey, WorkerKey};

/// How many groups of workers a node publishes or claims for. Workers beyond that get only tasks of this node.
const GROUPS_MAX: usize = 256;

pub(super) struct WorkerState {
    pub queues: Vec<QueueName>,
    pub task_types: Vec<String>,
    pub credit: u32,
    pub session: Option<SessionKey>,
    pub name: String,
    pub once: bool,
    /// Takes no more tasks.
    pub draining: bool,
}

#[derive(Default)]
pub(super) struct Workers(BTreeMap<WorkerKey, WorkerState>);

impl Workers {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn get(&self, key: WorkerKey) -> Option<&WorkerState> {
        self.0.get(&key)
    }

    pub fn get_mut(&mut self, key: WorkerKey) -> Option<&mut WorkerState> {
        self.0.get_mut(&key)
    }

    pub fn insert(&mut self, key: WorkerKey, worker: WorkerState) {
        self.0.insert(key, worker);
    }

    pub fn remove(&mut self, key: WorkerKey) -> Option<WorkerState> {
        self.0.remove(&key)
    }

    /// The task types that a worker accepts. `None` if it accepts no more tasks.
    pub fn takes(&self, key: WorkerKey) -> Option<&[String]> {
        let worker = self.get(key).filter(|worker| worker.credit > 0)?;
        Some(&worker.task_types)
    }

    pub fn add_credit(&mut self, key: WorkerKey, tasks: u32) {
        if let Some(worker) = self.0.get_mut(&key).filter(|worker| !worker.draining) {
            worker.credit = worker.credit.saturating_add(tasks);
        }
    }

    /// Stops a worker from taking tasks. Returns the queues that it took tasks from.
    pub fn drain(&mut self, key: WorkerKey) -> Option<Vec<QueueName>> {
        let worker = self.0.get_mut(&key)?;
        worker.draining = true;
        worker.credit = 0;
        Some(std::mem::take(&mut worker.queues))
    }

    /// The workers that accept more tasks, grouped by queues and task types.
    pub fn idle(&self) -> Vec<IdleCredit> {
        let mut groups: BTreeMap<(&[QueueName], &[String]), u32> = BTreeMap::new();
        for worker in self.0.values().filter(|worker| worker.credit > 0) {
            let alike = (worker.queues.as_slice(), worker.task_types.as_slice());
            if groups.len() < GROUPS_MAX || groups.contains_key(&alike) {
                let credit = groups.entry(alike).or_default();
                *credit = credit.saturating_add(worker.credit);
            }
        }
        let idle = groups.into_iter().map(|((queues, task_types), credit)| IdleCredit {
            queues: queues.to_vec(),
            task_types: task_types.to_vec(),
            credit,
        });
        idle.collect()
    }
}
