//! Which executions are to be read from the store, and which are being read.

use std::collections::BTreeSet;

use recoup_core::id::ExecutionId;

use crate::clock::Tick;

/// Executions read in one call, and in all calls under way.
const LOAD_MAX: usize = 512;
const LOADING_MAX: usize = 4096;

#[derive(Default)]
pub(super) struct Loader {
    wanted: BTreeSet<ExecutionId>,
    loading: BTreeSet<ExecutionId>,
    /// Since when executions have been asked for without an answer.
    unread_since: Option<Tick>,
}

impl Loader {
    /// It is read, and read again if it is being read: what comes may be older than this wish.
    pub fn want(&mut self, id: ExecutionId) {
        self.wanted.insert(id);
    }

    /// As [`Self::want`], where anything that comes will do.
    pub fn need(&mut self, id: ExecutionId) {
        if !self.loading.contains(&id) {
            self.wanted.insert(id);
        }
    }

    /// What comes next was asked for before it was last wanted.
    pub fn is_wanted(&self, id: ExecutionId) -> bool {
        self.wanted.contains(&id)
    }

    pub fn is_loading(&self, id: ExecutionId) -> bool {
        self.loading.contains(&id)
    }

    /// Whether it will be read without anything more being done.
    pub fn is_expected(&self, id: ExecutionId) -> bool {
        self.is_wanted(id) || self.is_loading(id)
    }

    pub fn wanted(&self) -> usize {
        self.wanted.len()
    }

    /// The next call to make; none if nothing is wanted, or enough is under way.
    pub fn ask(&mut self, now: Tick) -> Option<Vec<ExecutionId>> {
        if self.loading.len() >= LOADING_MAX {
            return None;
        }
        // What is being read waits for its answer before it is asked for once more.
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

    /// A call has come to nothing: all of it is wanted as before.
    pub fn failed(&mut self, asked: &[ExecutionId]) {
        for id in asked {
            self.loading.remove(id);
            self.wanted.insert(*id);
        }
    }

    /// One of those that a call asked for has come, or is known not to be there.
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
