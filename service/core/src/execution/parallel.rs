//! The branches of a `parallel`: which may begin, which run, and how they ended.

use std::collections::{BTreeMap, BTreeSet};

use super::{Handled, LaneResult};
use crate::id::ItemKey;
use crate::payload::Payload;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parallel {
    /// The branches that may begin, because every branch that they come after has completed.
    ready: BTreeSet<ItemKey>,
    running: BTreeSet<ItemKey>,
    /// How many branches may run at a time; none: all of them.
    concurrency: Option<u32>,
    results: BTreeMap<ItemKey, LaneResult>,
    first_failed: Option<ItemKey>,
    /// The branches go on: the step has neither ended nor been stopped, and runs no handler.
    is_open: bool,
}

impl Parallel {
    pub(crate) fn new(ready: &[ItemKey], concurrency: Option<u32>) -> Self {
        let ready = ready.iter().cloned().collect();
        Self { ready, concurrency, is_open: true, ..Self::default() }
    }

    /// Of the branches that have ended, by their ids.
    pub fn results(&self) -> impl Iterator<Item = (&ItemKey, &LaneResult)> {
        self.results.iter()
    }

    /// The outputs of the branches that completed, by their ids.
    pub fn outputs(&self) -> impl Iterator<Item = (&ItemKey, &Payload)> {
        self.results.iter().filter_map(|(id, result)| match result {
            LaneResult::Completed(output) => Some((id, output)),
            LaneResult::Failed(_) => None,
        })
    }

    pub fn output(&self, branch: &str) -> Option<&Payload> {
        match self.results.get(branch)? {
            LaneResult::Completed(output) => Some(output),
            LaneResult::Failed(_) => None,
        }
    }

    /// The error of the branch that failed first.
    pub fn first_failure(&self) -> Option<(&ItemKey, &Handled)> {
        let first = self.first_failed.as_ref()?;
        self.failures().find(|(id, _)| *id == first)
    }

    /// The branches that failed, by their ids.
    pub fn failures(&self) -> impl Iterator<Item = (&ItemKey, &Handled)> {
        self.results.iter().filter_map(|(id, result)| match result {
            LaneResult::Failed(failed) => Some((id, &**failed)),
            LaneResult::Completed(_) => None,
        })
    }

    pub(super) fn has_begun_or_may_begin(&self, branch: &ItemKey) -> bool {
        self.ready.contains(branch) || self.running.contains(branch)
    }

    pub(super) fn begin(&mut self, branch: &ItemKey) {
        self.ready.remove(branch);
        self.running.insert(branch.clone());
    }

    pub(super) fn end(&mut self, branch: &ItemKey, result: LaneResult, ready: &[ItemKey]) {
        self.ready.remove(branch);
        self.running.remove(branch);
        self.ready.extend(ready.iter().cloned());
        if matches!(result, LaneResult::Failed(_)) {
            self.first_failed.get_or_insert_with(|| branch.clone());
        }
        self.results.insert(branch.clone(), result);
    }

    pub(super) fn close(&mut self) {
        self.ready.clear();
        self.running.clear();
        self.is_open = false;
    }

    /// The next branch, if it may begin.
    pub(super) fn next_to_begin(&self) -> Option<ItemKey> {
        let has_room = self.concurrency.is_none_or(|max| self.running.len() < max as usize);
        self.ready.first().filter(|_| self.is_open && has_room).cloned()
    }

    /// Whether every branch has ended that could begin.
    pub(super) fn is_over(&self) -> bool {
        self.is_open && self.running.is_empty() && self.ready.is_empty()
    }
}
