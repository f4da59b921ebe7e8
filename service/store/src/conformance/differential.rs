//! Runs the model beside another store: both get the same random operations, and every answer is compared.
//!
//! Everything that a store may choose is removed before answers are compared: ids of nodes, feed positions,
//! clock values, the wording of a refusal, and the order of lanes among each other.

mod answer;
mod draw;
mod operation;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::Harness;
use crate::contract::*;
use crate::memory::MemoryStore;
use answer::Side;
use draw::Draw;
use operation::Op;

/// The number of operations in a comparison, if every kind of answer has occurred by then.
pub const OPERATIONS_MIN: usize = 2000;
/// The number of operations after which a kind of answer that has not occurred is considered impossible.
const OPERATIONS_MAX: usize = 10_000;

/// The kinds of answers that must occur before a comparison is meaningful.
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
    "overflow: some",
    "overflow: none",
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

/// Compares a fresh store with the model. Panics at the first answer that differs, with the seed and the
/// operation.
///
/// The lanes of the store are set far apart, each ahead of those that began before it. So if the numbers of a
/// lane continue after the events of another lane, the store made them do so; the advance of the clock alone
/// would not.
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

/// Longer than a comparison takes.
const APART: Duration = Duration::from_secs(3600);
