//! Open attempts, in the orders in which they are asked for.

use std::collections::BTreeSet;
use std::ops::Bound;

use super::NodeId;
use crate::id::StepPath;
use crate::time::Timestamp;

/// A task of an execution: that of a step, or a compensation by its place in the ledger. Steps come
/// first, in the order of their start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TaskRef {
    Step(NodeId),
    Compensation(u32),
}

/// What the index has to know of an open attempt.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct OpenFacts {
    pub scheduled_at: Timestamp,
    pub first_scheduled_at: Timestamp,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct OpenIndex {
    tasks: BTreeSet<TaskRef>,
    scheduled: BTreeSet<(Timestamp, TaskRef)>,
    /// By step of the definition, then by the first scheduling of the task: the attempts of one step
    /// share a timeout, so the first of each step is the one whose time is over first.
    by_step: BTreeSet<(StepPath, Timestamp, TaskRef)>,
}

impl OpenIndex {
    pub(super) fn add(&mut self, task: TaskRef, step: StepPath, facts: OpenFacts) {
        self.tasks.insert(task);
        self.scheduled.insert((facts.scheduled_at, task));
        self.by_step.insert((step, facts.first_scheduled_at, task));
    }

    pub(super) fn remove(&mut self, task: TaskRef, step: StepPath, facts: OpenFacts) {
        self.tasks.remove(&task);
        self.scheduled.remove(&(facts.scheduled_at, task));
        self.by_step.remove(&(step, facts.first_scheduled_at, task));
    }

    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    pub fn tasks(&self) -> impl DoubleEndedIterator<Item = TaskRef> {
        self.tasks.iter().copied()
    }

    /// Those scheduled for a later time than this, latest first.
    pub fn scheduled_after(&self, at: Timestamp) -> impl Iterator<Item = TaskRef> {
        let last = TaskRef::Compensation(u32::MAX);
        let later = (Bound::Excluded((at, last)), Bound::Unbounded);
        self.scheduled.range(later).rev().map(|(_, task)| *task)
    }

    /// When the first of them may be handed out.
    pub fn first_scheduled(&self) -> Option<Timestamp> {
        self.scheduled.first().map(|(at, _)| *at)
    }

    /// Of the open tasks of a step of the definition the one that was scheduled first, and when.
    pub fn oldest_of(&self, step: &StepPath) -> Option<(Timestamp, TaskRef)> {
        let first = (step.clone(), Timestamp::from_micros(i64::MIN), TaskRef::Step(NodeId::FIRST));
        let (found, at, task) = self.by_step.range(first..).next()?;
        (found == step).then_some((*at, *task))
    }
}
