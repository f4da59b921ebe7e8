//! Which executions must be read from the store, and which are being read.

use std::collections::BTreeSet;

use recoup_core::id::ExecutionId;

use crate::clock::Tick;

/// How many executions are read in one call, and in all calls under way together.
const LOAD_MAX: usize = 512;
const LOADING_MAX: usize = 4096;

#[derive(Default)]
pub(super) struct Loader {
    wanted: BTreeSet<ExecutionId>,
    loading: BTreeSet<ExecutionId>,
    /// Since when calls to read executions have been waiting for an answer.
    unread_since: Option<Tick>,
}

impl Loader {
    /// Asks for an execution to be read, even if it is being read already, because that answer may be older
    /// than this request.
    pub fn want(&mut self, id: ExecutionId) {
        self.wanted.insert(id);
    }

    /// As [`Self::want`], but an answer that is already under way will do.
    pub fn need(&mut self, id: ExecutionId) {
        if !self.loading.contains(&id) {
            self.wanted.insert(id);
        }
    }

    /// Whether the execution was wanted again after the call under way was made.
    pub fn is_wanted(&self, id: ExecutionId) -> bool {
        self.wanted.contains(&id)
    }

    pub fn is_loading(&self, id: ExecutionId) -> bool {
        self.loading.contains(&id)
    }

    /// Whether the execution will be read without any further request.
    pub fn is_expected(&self, id: ExecutionId) -> bool {
        self.is_wanted(id) || self.is_loading(id)
    }

    pub fn wanted(&self) -> usize {
        self.wanted.len()
    }

    /// The executions to ask for in the next call. `None` if nothing is wanted, or if enough calls are under way.
    pub fn ask(&mut self, now: Tick) -> Option<Vec<ExecutionId>> {
        if self.loading.len() >= LOADING_MAX {
            return None;
        }
        // An execution that is being read is not asked for again until the answer has come.
        let next = self.wanted.difference(&self.loading).take(LOAD_MAX);
        let ids: Vec<_> = next.copied().collect();
        if ids.is_empty() {
            return None;
        }
        for id in &ids {
            self.wanted.remove(id);
            self.loading.insert(*id);
        }
        self.unread_since.get_or_insert(now);
        Some(ids)
    }

    /// A call has failed, so its executions are wanted again.
    pub fn failed(&mut self, asked: &[ExecutionId]) {
        for id in asked {
            self.loading.remove(id);
            self.wanted.insert(*id);
        }
    }

    /// An execution that a call asked for has been read, or does not exist.
    pub fn arrived(&mut self, id: ExecutionId) {
        self.loading.remove(&id);
    }

    /// A call has been answered.
    pub fn answered(&mut self, now: Tick) {
        self.unread_since = (!self.loading.is_empty()).then_some(now);
    }

    pub fn unread_since(&self) -> Option<Tick> {
        self.unread_since
    }
}
