//! The outputs of a node. All of them go through one queue. The tasks for workers come last, so that each
//! worker gets all of its tasks in one message.

use std::collections::{BTreeMap, VecDeque};

use recoup_store::TaskKey;

use super::io::{Answer, Output, Refusal, WorkerKey, WorkerMessage};
use crate::task::HandedTask;

pub(super) struct Effects<R> {
    outputs: VecDeque<Output<R>>,
    /// Tasks for workers. They can be taken back until the messages are put into the queue.
    handed: BTreeMap<WorkerKey, Vec<HandedTask>>,
}

impl<R> Default for Effects<R> {
    fn default() -> Self {
        Self { outputs: VecDeque::new(), handed: BTreeMap::new() }
    }
}

impl<R> Effects<R> {
    pub fn push(&mut self, output: Output<R>) {
        self.outputs.push_back(output);
    }

    pub fn reply(&mut self, reply: R, answer: Result<Answer, Refusal>) {
        self.push(Output::Reply { reply, answer });
    }

    pub fn tell(&mut self, worker: WorkerKey, message: WorkerMessage) {
        self.push(Output::Tell { worker, message });
    }

    /// Removes these rows from the overflow, if there are any.
    pub fn withdraw(&mut self, rows: Vec<TaskKey>) {
        if !rows.is_empty() {
            self.push(Output::WithdrawOverflow(rows));
        }
    }

    /// Adds a task to the worker's next message.
    pub fn hand_over(&mut self, worker: WorkerKey, task: HandedTask) {
        self.handed.entry(worker).or_default().push(task);
    }

    /// Takes back the tasks of a worker that have not left yet.
    pub fn take_back(&mut self, worker: WorkerKey) -> Vec<HandedTask> {
        self.handed.remove(&worker).unwrap_or_default()
    }

    /// As [`Self::take_back`], for all workers.
    pub fn take_all_back(&mut self) -> BTreeMap<WorkerKey, Vec<HandedTask>> {
        std::mem::take(&mut self.handed)
    }

    pub fn is_empty(&self) -> bool {
        self.outputs.is_empty()
    }

    pub fn pop(&mut self) -> Option<Output<R>> {
        self.outputs.pop_front()
    }
}
