//! The branches of a `parallel`: which may begin, which run, and how they ended.

use std::collections::{BTreeMap, BTreeSet};

use super::Handled;
use super::nodes::BlockWork;
use crate::id::ItemKey;
use crate::payload::Payload;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parallel {
    /// The branches that may begin, because every branch that they come after has completed.
    ready: BTreeSet<ItemKey>,
    running: BTreeSet<ItemKey>,
    /// How many branches may run at a time; none: all of them.
    concurrency: Option<u32>,
    results: BTreeMap<ItemKey, BranchResult>,
    first_failed: Option<ItemKey>,
    /// The branches go on: the step has neither ended nor been stopped, and runs no handler.
    is_open: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum BranchResult {
    Completed(Payload),
    Failed(Box<Handled>),
}

impl Parallel {
    pub(crate) fn new(ready: &[ItemKey], concurrency: Option<u32>) -> Self {
        let ready = ready.iter().cloned().collect();
        Self { ready, concurrency, is_open: true, ..Self::default() }
    }

    /// Of the branches that have ended, by their ids.
    pub fn results(&self) -> impl Iterator<Item = (&ItemKey, &BranchResult)> {
        self.results.iter()
    }

    /// The outputs of the branches that completed, by their ids.
    pub fn outputs(&self) -> impl Iterator<Item = (&ItemKey, &Payload)> {
        self.results.iter().filter_map(|(id, result)| match result {
            BranchResult::Completed(output) => Some((id, output)),
            BranchResult::Failed(_) => None,
        })
    }

    pub fn output(&self, branch: &str) -> Option<&Payload> {
        match self.results.get(branch)? {
            BranchResult::Completed(output) => Some(output),
            BranchResult::Failed(_) => None,
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
            BranchResult::Failed(failed) => Some((id, &**failed)),
            BranchResult::Completed(_) => None,
        })
    }

    pub(super) fn has_begun_or_may_begin(&self, branch: &ItemKey) -> bool {
        self.ready.contains(branch) || self.running.contains(branch)
    }

    pub(super) fn begin(&mut self, branch: &ItemKey) {
        self.ready.remove(branch);
        self.running.insert(branch.clone());
    }

    pub(super) fn end(&mut self, branch: &ItemKey, result: BranchResult, ready: &[ItemKey]) {
        self.ready.remove(branch);
        self.running.remove(branch);
        self.ready.extend(ready.iter().cloned());
        if matches!(result, BranchResult::Failed(_)) {
            self.first_failed.get_or_insert_with(|| branch.clone());
        }
        self.results.insert(branch.clone(), result);
    }

    pub(super) fn close(&mut self) {
        self.ready.clear();
        self.running.clear();
        self.is_open = false;
    }

    pub(super) fn work(&self) -> Option<BlockWork> {
        let has_room = self.concurrency.is_none_or(|max| self.running.len() < max as usize);
        match self.ready.first() {
            _ if !self.is_open => None,
            Some(next) => has_room.then(|| BlockWork::BeginBranch(next.clone())),
            None => self.running.is_empty().then_some(BlockWork::Settle),
        }
    }
}
