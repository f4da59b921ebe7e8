use std::time::Duration;

use recoup_core::id::{ExecutionId, Namespace};
use recoup_core::time::Timestamp;

use crate::conformance::world::LONG;
use crate::contract::*;

/// One operation, in terms that mean the same to both stores. Nodes are numbered in the order in which they
/// joined.
#[derive(Clone, Debug)]
pub(super) enum Op {
    /// The lease is over at once, or it is long.
    Join {
        expired: bool,
    },
    Renew(usize),
    Leave(usize),
    Adopt(usize),
    /// The last field says how many of the transitions were sent before.
    Commit(usize, Batch, usize),
    Keyed(usize, Vec<KeyedStart>, usize),
    Load(usize, Vec<ExecutionId>),
    Heads(Vec<ExecutionId>),
    Due(usize, Timestamp, Option<Due>, usize),
    List(ListFilter, Option<ExecutionId>, usize),
    /// Quarantines several executions at once.
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
    /// Continues from where the last read ended, in pages of this size.
    ReadFeed(usize),
    /// Reads from the start, in pages of this size, without moving the reader.
    FeedStart(usize),
    /// Moves the reader to the end.
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
    /// Uses the row that was read last.
    AcceptSubscription(Namespace, &'static str, RegistryRequest),
    Subscription(Namespace, &'static str),
    ListSubscriptions(Namespace, Option<&'static str>, usize),
    /// Uses the row that was read last, which may have changed or disappeared since.
    UpdateSubscription(Namespace, &'static str, u8),
    DeleteSubscription(Namespace, &'static str, Option<RegistryRequest>),
    /// Expires in portions of this size until nothing more is due.
    Expire(usize),
}

/// The answer to an operation, in terms that are the same for both stores.
#[derive(Debug, PartialEq)]
pub(super) struct Answer {
    pub kinds: Vec<String>,
    pub text: String,
    /// The transitions that won, for drawing the next operations.
    pub won: Vec<usize>,
}

/// Whether the execution ended so long ago that any retention has passed.
pub(super) fn is_over(row: &IndexRow) -> bool {
    row.ended_at.is_some_and(|at| at.as_micros() < 1_000_000)
}

/// Longer than a comparison takes.
pub(super) const LEASE: Duration = LONG;
