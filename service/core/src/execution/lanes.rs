//! The scopes of a step that runs several of them at a time: the branches of a `parallel`, or the items of a
//! `for_each`.

use super::{Handled, LaneResult, Loop, Parallel, Part};
use crate::id::ItemKey;

#[derive(Clone, Debug, PartialEq)]
pub enum Lanes {
    Branches(Parallel),
    Items(Box<Loop>),
}

/// What can be done for a step that runs branches or items.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum BlockWork {
    /// Begin a branch or an item.
    Begin(Part, ItemKey),
    /// Everything inside the step has ended.
    Settle,
}

impl Lanes {
    /// The errors of the branches or items that failed, in their order.
    pub fn failures(&self) -> Vec<&Handled> {
        match self {
            Self::Branches(parallel) => parallel.failures().map(|(_, failed)| failed).collect(),
            Self::Items(items) => items.failures().map(|(_, failed)| failed).collect(),
        }
    }

    /// The error of the branch or item that failed first.
    pub fn first_failure(&self) -> Option<&Handled> {
        match self {
            Self::Branches(parallel) => parallel.first_failure().map(|(_, failed)| failed),
            Self::Items(items) => items.first_failure().map(|(_, failed)| failed),
        }
    }

    pub(super) fn has_begun_or_may_begin(&self, key: &ItemKey) -> bool {
        match self {
            Self::Branches(parallel) => parallel.has_begun_or_may_begin(key),
            Self::Items(items) => items.has_begun_or_may_begin(key),
        }
    }

    pub(super) fn begin(&mut self, key: &ItemKey) {
        match self {
            Self::Branches(parallel) => parallel.begin(key),
            Self::Items(items) => items.begin(key),
        }
    }

    /// `ready`: the branches that may begin now.
    pub(super) fn end(&mut self, key: &ItemKey, result: LaneResult, ready: &[ItemKey]) {
        match self {
            Self::Branches(parallel) => parallel.end(key, result, ready),
            Self::Items(items) => items.end(key, result),
        }
    }

    pub(super) fn close(&mut self) {
        match self {
            Self::Branches(parallel) => parallel.close(),
            Self::Items(items) => items.close(),
        }
    }

    pub(super) fn work(&self) -> Option<BlockWork> {
        let (next, part, is_over) = match self {
            Self::Branches(parallel) => {
                (parallel.next_to_begin(), Part::Branch, parallel.is_over())
            }
            Self::Items(items) => (items.next_to_begin(), Part::Item, items.is_over()),
        };
        match next {
            Some(key) => Some(BlockWork::Begin(part, key)),
            None => is_over.then_some(BlockWork::Settle),
        }
    }
}
