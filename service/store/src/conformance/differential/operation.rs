use std::time::Duration;

use recoup_core::id::{ExecutionId, Namespace};
use recoup_core::time::Timestamp;

use crate::conformance::world::LONG;
use crate::contract::*;

/// One operation, in words that mean the same to both stores: nodes are counted in the order in
/// which they joined.
#[derive(Clone, Debug)]
pub(super) enum Op {
    /// With a lease that is over at once, or with a long one.
    Join {
        expired: bool,
    },
    Renew(usize),
    Leave(usize),
    Adopt(usize),
    /// How many of the transitions were sent before.
    Commit(usize, Batch, usize),
    Keyed(usize, Vec<KeyedStart>, usize),
    Load(usize, Vec<ExecutionId>),
    Heads(Vec<ExecutionId>),
    Due(usize, Timestamp, Option<Due>, usize),
    List(ListFilter, Option<ExecutionId>, usize),
    /// Several executions, at the same time.
    Quarantine(usize, Vec<NewQuarantine>),
    ReleaseQuarantine(usize, ExecutionId, Release),
    Indexed(ExecutionId),
    KeyHolder(Namespace, String),
    StartedBy(Namespace, String),
    Overflow(usize, Vec<OverflowTask>),
    Claim(usize, Vec<IdleCredit>, usize),
    PublishIdle(usize, Vec<IdleCredit>),
    Withdraw(Vec<TaskKey>),
    OverflowDepth,
    /// On from where the last one ended, in pages of this size.
    ReadFeed(usize),
    /// From the start, in pages of this size; it does not move the reader.
    FeedStart(usize),
    /// The reader goes there.
    FeedEnd,
    Failure(String),
    ListFailures(FailureFilter),
    CreateNamespace(Namespace, Option<RegistryRequest>),
    Namespace(Namespace),
    ListNamespaces(Option<Namespace>, usize),
    Register(NewVersion, Option<RegistryRequest>),
    Workflow(Namespace, &'static str, Option<u32>),
    ListWorkflows(Namespace, Option<&'static str>, usize),
    ListVersions(Namespace, &'static str, Option<u32>, usize),
    Retire(Namespace, &'static str, Option<u32>, Option<RegistryRequest>),
    CreateSubscription(Namespace, &'static str, u8, Option<RegistryRequest>),
    /// With the row that was read last.
    AcceptSubscription(Namespace, &'static str, RegistryRequest),
    Subscription(Namespace, &'static str),
    ListSubscriptions(Namespace, Option<&'static str>, usize),
    /// With the row that was read last: it may have changed, or be gone, since.
    UpdateSubscription(Namespace, &'static str, u8),
    DeleteSubscription(Namespace, &'static str, Option<RegistryRequest>),
    /// In portions of this size, until nothing more is due.
    Expire(usize),
}

/// What an operation answered, in words that are the same for both stores.
#[derive(Debug, PartialEq)]
pub(super) struct Answer {
    pub kinds: Vec<String>,
    pub text: String,
    /// For the drawing of what comes next: the transitions that won.
    pub won: Vec<usize>,
}

/// Ended so long ago that any retention is over.
pub(super) fn is_over(row: &IndexRow) -> bool {
    row.ended_at.is_some_and(|at| at.as_micros() < 1_000_000)
}

/// Longer than a comparison takes.
pub(super) const LEASE: Duration = LONG;
