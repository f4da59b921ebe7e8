//! What waits for workers, by task type.

use std::collections::{BTreeMap, VecDeque};

use recoup_core::command::TaskId;

use super::io::WorkerKey;

/// Highest priority first, then first come, first served.
pub(super) type Order = (i32, u64);

#[derive(Default)]
pub(super) struct Queue {
    by_type: BTreeMap<String, BTreeMap<Order, TaskId>>,
    len: usize,
    /// Who takes tasks from it, in turn.
    pub workers: VecDeque<WorkerKey>,
    /// Somebody looks after the tasks that nobody here takes.
    pub watched: bool,
}

impl Queue {
    pub fn len(&self) -> usize {
        self.len
    }

    /// The first task that a worker of these types takes; all types if there are none.
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

    /// Takes away the last ones in the order in which they would go out.
    pub fn take_last(&mut self, count: usize) -> Vec<TaskId> {
        let orders = self.by_type.values().flat_map(|tasks| tasks.keys().copied());
        let mut orders: Vec<Order> = orders.collect();
        orders.sort_unstable();
        let last = orders.into_iter().rev().take(count);
        last.filter_map(|order| self.remove(order)).collect()
    }
}
