//! What a node wants done. All of it goes through one queue, and the tasks that workers get come last: together,
//! one message a worker.

use std::collections::{BTreeMap, VecDeque};

use recoup_store::TaskKey;

use super::io::{Answer, Output, Refusal, WorkerKey, WorkerMessage};
use crate::task::HandedTask;

pub(super) struct Effects<R> {
    outputs: VecDeque<Output<R>>,
    /// Tasks for workers: until the queue is closed they can be taken back.
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

    /// These rows of the overflow are void, if there are any.
    pub fn withdraw(&mut self, rows: Vec<TaskKey>) {
        if !rows.is_empty() {
            self.push(Output::WithdrawOverflow(rows));
        }
    }

    /// A worker gets a task with the next message.
    pub fn hand_over(&mut self, worker: WorkerKey, task: HandedTask) {
        self.handed.entry(worker).or_default().push(task);
    }

    /// What a worker was to get has not left yet, and does not.
    pub fn take_back(&mut self, worker: WorkerKey) -> Vec<HandedTask> {
        self.handed.remove(&worker).unwrap_or_default()
    }

    /// As [`Self::take_back`], of all workers.
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
