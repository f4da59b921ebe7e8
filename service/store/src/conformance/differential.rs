//! The model beside another store: the same random operations on both, every answer compared.
//!
//! What stores may choose is taken out before answers are compared: ids of nodes, feed positions,
//! clock values, the words of a refusal, the order of lanes among each other.

mod answer;
mod draw;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use recoup_core::id::{ExecutionId, Namespace};
use recoup_core::time::Timestamp;

use super::Harness;
use super::world::LONG;
use crate::contract::*;
use crate::memory::MemoryStore;
use answer::Side;
use draw::Draw;

/// Operations of a comparison, if every kind of answer came by then.
pub const OPERATIONS_MIN: usize = 2000;
/// If it did not come by then, it never will.
const OPERATIONS_MAX: usize = 10_000;

/// What must have happened before a comparison says anything.
const KINDS: &[&str] = &[
    "join",
    "renew",
    "renew: LeaseLost",
    "leave",
    "adopt",
    "adopt: some",
    "commit: Won",
    "commit: Won again",
    "commit: Lost",
    "commit: RequestTaken",
    "commit: Refused",
    "commit: Quarantined",
    "commit: LeaseLost",
    "keyed: Won",
    "keyed: Won again",
    "keyed: RequestTaken",
    "keyed: UseExisting",
    "keyed: Rejected",
    "keyed: Refused",
    "keyed: LeaseLost",
    "load",
    "heads",
    "due: some",
    "list: some",
    "quarantine",
    "release_quarantine",
    "release_quarantine: NotFound",
    "release_quarantine: RequestIdReused",
    "indexed: some",
    "indexed: quarantined",
    "key_holder: some",
    "started_by: some",
    "overflow",
    "overflow: LeaseLost",
    "claim: some",
    "claim: LeaseLost",
    "publish_idle: some",
    "publish_idle: LeaseLost",
    "withdraw",
    "overflow_depth: some",
    "read_feed: some",
    "read_feed: gap",
    "feed_start: some",
    "feed_end",
    "failure: some",
    "list_failures: some",
    "create_namespace",
    "create_namespace: AlreadyExists",
    "create_namespace: RequestIdReused",
    "create_namespace: again",
    "namespace: some",
    "list_namespaces: some",
    "register: new",
    "register: same",
    "register: NotFound",
    "register: RequestIdReused",
    "register: again",
    "workflow: some",
    "list_workflows: some",
    "list_versions: some",
    "retire",
    "retire: NotFound",
    "retire: RequestIdReused",
    "retire: again",
    "create_subscription",
    "create_subscription: AlreadyExists",
    "create_subscription: RequestIdReused",
    "create_subscription: again",
    "accept_subscription",
    "accept_subscription: RequestIdReused",
    "accept_subscription: again",
    "subscription: some",
    "list_subscriptions: some",
    "update_subscription",
    "update_subscription: Conflict",
    "update_subscription: NotFound",
    "delete_subscription",
    "delete_subscription: NotFound",
    "delete_subscription: RequestIdReused",
    "delete_subscription: again",
    "expire: executions",
    "expire: events",
];

/// One operation, in words that mean the same to both stores: nodes are counted in the order in
/// which they joined.
#[derive(Clone, Debug)]
enum Op {
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
struct Answer {
    kinds: Vec<String>,
    text: String,
    /// For the drawing of what comes next: the transitions that won.
    won: Vec<usize>,
}

/// Compares a fresh store with the model. Panics at the first answer that differs, naming the seed
/// and what was asked.
///
/// The store's lanes are far apart, each ahead of those that began before it: what goes on behind
/// another lane's events does so because the store made it, and not because the clock has gone on.
pub async fn compare(harness: &dyn Harness, seed: u64) {
    let store = harness.fresh().await;
    let model: Arc<dyn Store> = Arc::new(MemoryStore::with_system_clock());
    let now = store.now().await.expect("the store has a clock");
    let (mut model, mut store) = (Side::new(model), Side::new(store));
    let mut ahead = now;
    let mut draw = Draw::new(seed, now);
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut last: VecDeque<String> = VecDeque::new();
    for count in 0.. {
        let missing = || KINDS.iter().filter(|kind| !seen.contains_key(**kind)).collect::<Vec<_>>();
        if count >= OPERATIONS_MIN && missing().is_empty() {
            return;
        }
        assert!(count < OPERATIONS_MAX, "never happened in {count} operations: {:?}", missing());

        let op = draw.op();
        let expected = model.apply(&op).await;
        let answer = store.apply(&op).await;
        if let (Op::Join { .. }, Some(node)) = (&op, store.joined_last()) {
            ahead = ahead + APART;
            harness.set_lane(node, ahead.as_micros()).await;
        }
        let before = last.make_contiguous().join("\n");
        assert_eq!(
            answer, expected,
            "the store (left) and the model (right) differ; seed {seed}, operation {count}: \
             {op:#?}\nbefore it:\n{before}"
        );
        last.push_back(format!("{:.300}", format!("{op:?}")));
        if last.len() > 12 {
            last.pop_front();
        }
        draw.learn(&op, &expected);
        for kind in expected.kinds {
            *seen.entry(kind).or_default() += 1;
        }
    }
}

/// Ended so long ago that any retention is over.
fn is_over(row: &IndexRow) -> bool {
    row.ended_at.is_some_and(|at| at.as_micros() < 1_000_000)
}

const LEASE: Duration = LONG;
/// More than a comparison takes.
const APART: Duration = Duration::from_secs(3600);
