//! The open attempts, indexed in the orders in which decisions need them.

use std::collections::BTreeSet;
use std::ops::Bound;

use super::NodeId;
use crate::id::StepPath;
use crate::time::Timestamp;

/// Refers to a task of an execution: the task of a step, or a compensation by its index in the ledger.
/// Steps sort first, in the order of their start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TaskRef {
    Step(NodeId),
    Compensation(u32),
}

impl From<NodeId> for TaskRef {
    fn from(step: NodeId) -> Self {
        Self::Step(step)
    }
}

/// The values of an open attempt by which it is indexed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct OpenFacts {
    pub scheduled_at: Timestamp,
    pub first_scheduled_at: Timestamp,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct OpenIndex {
    tasks: BTreeSet<TaskRef>,
    scheduled: BTreeSet<(Timestamp, TaskRef)>,
    /// Ordered by step of the definition, then by the time at which the task was first scheduled. All tasks
    /// of one step have the same timeout, so the first entry of a step is the first to time out.
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

    /// The steps with open attempts, from the given one on, in the order of their start.
    pub fn steps_from(&self, first: NodeId) -> impl Iterator<Item = NodeId> {
        let steps = TaskRef::Step(first)..TaskRef::Compensation(0);
        self.tasks.range(steps).filter_map(|task| match task {
            TaskRef::Step(id) => Some(*id),
            TaskRef::Compensation(_) => None,
        })
    }

    /// The tasks scheduled for later than `at`, the latest first.
    pub fn scheduled_after(&self, at: Timestamp) -> impl Iterator<Item = TaskRef> {
        let last = TaskRef::Compensation(u32::MAX);
        let later = (Bound::Excluded((at, last)), Bound::Unbounded);
        self.scheduled.range(later).rev().map(|(_, task)| *task)
    }

    /// The earliest time at which one of the attempts may be handed out.
    pub fn first_scheduled(&self) -> Option<Timestamp> {
        self.scheduled.first().map(|(at, _)| *at)
    }

    /// The task that was scheduled first among the open tasks of a step of the definition, and when that
    /// was.
    pub fn oldest_of(&self, step: &StepPath) -> Option<(Timestamp, TaskRef)> {
        let first = (step.clone(), Timestamp::from_micros(i64::MIN), TaskRef::Step(NodeId::FIRST));
        let (found, at, task) = self.by_step.range(first..).next()?;
        (found == step).then_some((*at, *task))
    }
}
