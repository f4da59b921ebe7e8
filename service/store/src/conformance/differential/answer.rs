//! Runs an operation on one of the two stores, and describes its outcome.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use recoup_core::id::{ExecutionId, Namespace};
use recoup_core::time::Timestamp;

use super::operation::{Answer, LEASE, Op};
use crate::contract::*;

/// A store, with the names that operations use for the things it created.
pub(super) struct Side {
    store: Arc<dyn Store>,
    nodes: Vec<NodeId>,
    cursor: Option<Cursor>,
    subscriptions: BTreeMap<(Namespace, &'static str), SubscriptionRow>,
}

impl Side {
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, nodes: vec![], cursor: None, subscriptions: BTreeMap::new() }
    }

    pub fn joined_last(&self) -> Option<NodeId> {
        self.nodes.last().copied()
    }

    pub async fn apply(&mut self, op: &Op) -> Answer {
        let store = self.store.clone();
        let node = |ordinal: &usize| self.nodes[*ordinal];
        match op {
            Op::Join { expired } => {
                let ttl = if *expired { Duration::ZERO } else { LEASE };
                let joined = store.join("differential:1", ttl).await;
                self.nodes.extend(joined.as_ref().map(|lease| lease.node));
                done("join", joined.map(drop))
            }
            Op::Renew(n) => {
                let reached = store.now().await.expect("the store has a clock");
                done("renew", store.renew(node(n), LEASE, reached).await.map(drop))
            }
            Op::Leave(n) => done("leave", store.leave(node(n)).await),
            Op::Adopt(n) => {
                let adopted = match close_expired(&*store, node(n)).await {
                    Ok(()) => store.adopt(node(n), 1_000_000).await,
                    Err(error) => Err(error),
                };
                let sorted = adopted.map(|mut ids| {
                    ids.sort();
                    ids
                });
                let mut answer = several("adopt", sorted);
                answer.kinds.push("adopt".into());
                answer
            }
            Op::Commit(n, batch, again) => commit(store.commit(node(n), batch).await, *again),
            Op::Keyed(n, starts, again) => keyed(store.start_keyed(node(n), starts).await, *again),
            Op::Load(n, ids) => {
                let loaded = store.load(node(n), ids).await.map(|mut histories| {
                    histories.sort_by_key(|history| history.execution);
                    let owned = |h: History| {
                        let quarantine = h.quarantine.map(timeless);
                        (self.ordinal(h.owner), h.execution, h.wake_at, h.transitions, quarantine)
                    };
                    histories.into_iter().map(owned).collect::<Vec<_>>()
                });
                done("load", loaded)
            }
            Op::Heads(ids) => {
                let heads = store.heads(ids).await.map(|mut heads| {
                    heads.sort_by_key(|head| head.execution);
                    let owned = |h: Head| {
                        let owner = self.ordinal(h.owner);
                        (owner, h.execution, h.sequence, h.state, h.quarantined)
                    };
                    heads.into_iter().map(owned).collect::<Vec<_>>()
                });
                done("heads", heads)
            }
            Op::Due(n, until, after, limit) => {
                several("due", store.due(node(n), *until, *after, *limit).await)
            }
            Op::List(filter, before, limit) => {
                several("list", store.list(filter, *before, *limit).await)
            }
            Op::Quarantine(n, quarantined) => {
                let batch = Batch { quarantined: quarantined.clone(), ..Batch::default() };
                done("quarantine", store.commit(node(n), &batch).await)
            }
            Op::ReleaseQuarantine(n, id, release) => {
                let released = store.release_quarantine(node(n), *id, release).await;
                done("release_quarantine", released)
            }
            Op::Indexed(id) => {
                let found = store.indexed(*id).await;
                let is_quarantined = |listed: &Listed| listed.quarantine.is_some();
                let quarantined =
                    found.as_ref().is_ok_and(|found| found.as_ref().is_some_and(is_quarantined));
                let mut answer = maybe("indexed", found);
                answer.kinds.extend(quarantined.then(|| "indexed: quarantined".into()));
                answer
            }
            Op::KeyHolder(namespace, key) => {
                maybe("key_holder", store.key_holder(namespace, key).await)
            }
            Op::StartedBy(namespace, id) => {
                maybe("started_by", store.started_by(namespace, id).await)
            }
            Op::Overflow(n, tasks) => several("overflow", store.overflow(node(n), tasks).await),
            Op::Claim(n, idle, limit) => {
                let now = store.now().await.expect("the store has a clock");
                several("claim", store.claim(node(n), idle, *limit, LEASE, now).await)
            }
            Op::PublishIdle(n, idle) => {
                let peers = store.publish_idle(node(n), idle).await;
                several("publish_idle", peers.map(|peers| peers.idle))
            }
            Op::Withdraw(tasks) => done("withdraw", store.withdraw(tasks).await),
            Op::OverflowDepth => {
                let sorted = store.overflow_depth().await.map(|mut depth| {
                    depth.sort();
                    depth
                });
                several("overflow_depth", sorted)
            }
            Op::ReadFeed(limit) => {
                let from = match self.cursor.take() {
                    Some(cursor) => cursor,
                    None => store.feed_start().await.expect("the feed has a start"),
                };
                let (answer, cursor) = self.read("read_feed", from, *limit).await;
                self.cursor = Some(cursor);
                answer
            }
            Op::FeedStart(limit) => {
                let from = store.feed_start().await.expect("the feed has a start");
                // If a lane lost events that lie between stored ones, a store may report the gap or not.
                let (mut answer, _) = self.read("feed_start", from, *limit).await;
                answer.kinds.retain(|kind| !kind.ends_with(": gap"));
                answer
            }
            Op::FeedEnd => {
                let end = store.feed_end().await;
                self.cursor = end.as_ref().ok().cloned();
                done("feed_end", end.map(drop))
            }
            Op::Failure(id) => {
                let found = store.failure(id).await;
                let found = found.map(|found| found.map(|event| self.event(&event)));
                maybe("failure", found)
            }
            Op::ListFailures(filter) => {
                let listed = store.list_failures(filter, None, 1_000_000).await;
                several("list_failures", listed.map(|events| self.by_lane(&events)))
            }
            Op::CreateNamespace(name, request) => {
                let again = self.again(RegistryOperation::CreateNamespace, request.as_ref()).await;
                let request = request.as_ref();
                let made = store.create_namespace(name, "described", LEASE, request).await;
                done("create_namespace", made.map(namespace)).again(again)
            }
            Op::Namespace(name) => {
                maybe("namespace", store.namespace(name).await.map(|row| row.map(namespace)))
            }
            Op::ListNamespaces(after, limit) => {
                let rows = store.list_namespaces(after.as_ref(), *limit).await;
                several("list_namespaces", rows.map(|rows| each(rows, namespace)))
            }
            Op::Register(new, request) => {
                let again = self.again(RegistryOperation::RegisterWorkflow, request.as_ref()).await;
                match store.register(new, request.as_ref()).await {
                    Ok((row, _)) if again.is_some() => done("register", Ok(version(row))),
                    Ok((row, true)) => done("register: new", Ok(version(row))),
                    Ok((row, false)) => done("register: same", Ok(version(row))),
                    Err(error) => done::<()>("register", Err(error)),
                }
                .again(again)
            }
            Op::Workflow(of, name, number) => {
                let row = store.workflow(of, &(*name).into(), *number).await;
                maybe("workflow", row.map(|row| row.map(version)))
            }
            Op::ListWorkflows(of, after, limit) => {
                let after = after.map(Into::into);
                let rows = store.list_workflows(of, after.as_ref(), *limit).await;
                several("list_workflows", rows.map(|rows| each(rows, version)))
            }
            Op::ListVersions(of, name, before, limit) => {
                let rows = store.list_versions(of, &(*name).into(), *before, *limit).await;
                several("list_versions", rows.map(|rows| each(rows, version)))
            }
            Op::Retire(of, name, number, request) => {
                let again = self.again(RegistryOperation::RetireWorkflow, request.as_ref()).await;
                let name = (*name).into();
                let retired = store.retire(of, &name, *number, request.as_ref()).await;
                done("retire", retired.map(drop)).again(again)
            }
            Op::CreateSubscription(of, name, byte, request) => {
                let operation = RegistryOperation::CreateSubscription;
                let again = self.again(operation, request.as_ref()).await;
                let state = Bytes::from(vec![*byte]);
                let made = store.create_subscription(of, name, 1, &state, request.as_ref()).await;
                if let (Ok(row), None) = (&made, &again) {
                    self.subscriptions.insert((of.clone(), name), row.clone());
                }
                done("create_subscription", made.map(subscription)).again(again)
            }
            Op::AcceptSubscription(of, name, request) => {
                let Some(row) = self.subscriptions.get(&(of.clone(), *name)) else {
                    return done("accept_subscription: never read", Ok(()));
                };
                let again = self.again(RegistryOperation::CreateSubscription, Some(request)).await;
                let accepted = store.accept_subscription(row, request).await;
                done("accept_subscription", accepted.map(subscription)).again(again)
            }
            Op::Subscription(of, name) => {
                let found = store.subscription(of, name).await;
                if let Ok(Some(row)) = &found {
                    self.subscriptions.insert((of.clone(), name), row.clone());
                }
                maybe("subscription", found.map(|row| row.map(subscription)))
            }
            Op::ListSubscriptions(of, after, limit) => {
                let rows = store.list_subscriptions(of, *after, *limit).await;
                several("list_subscriptions", rows.map(|rows| each(rows, subscription)))
            }
            Op::UpdateSubscription(of, name, byte) => {
                let Some(row) = self.subscriptions.get(&(of.clone(), *name)) else {
                    return done("update_subscription: never read", Ok(()));
                };
                let state = Bytes::from(vec![*byte]);
                let row = SubscriptionRow { state, ..row.clone() };
                done("update_subscription", store.update_subscription(&row).await.map(drop))
            }
            Op::DeleteSubscription(of, name, request) => {
                let operation = RegistryOperation::DeleteSubscription;
                let again = self.again(operation, request.as_ref()).await;
                let deleted = store.delete_subscription(of, name, request.as_ref()).await;
                done("delete_subscription", deleted).again(again)
            }
            Op::Expire(portion) => expire(&*store, *portion).await,
        }
    }

    /// The earlier answer to the request, without times.
    async fn again(
        &self,
        operation: RegistryOperation,
        request: Option<&RegistryRequest>,
    ) -> Option<RegistryAnswer> {
        match self.store.answered(operation, request?).await {
            Ok(answer) => Some(match answer? {
                RegistryAnswer::NamespaceCreated(row) => {
                    RegistryAnswer::NamespaceCreated(namespace(row))
                }
                RegistryAnswer::WorkflowRetired { .. } => {
                    RegistryAnswer::WorkflowRetired { retired_at: Timestamp::default() }
                }
                RegistryAnswer::SubscriptionCreated(row) => {
                    RegistryAnswer::SubscriptionCreated(subscription(row))
                }
                other => other,
            }),
            Err(Error::RequestIdReused) => None,
            Err(error) => panic!("answered: {error}"),
        }
    }

    fn ordinal(&self, node: Option<NodeId>) -> Option<usize> {
        let node = node?;
        let ordinal = self.nodes.iter().position(|joined| *joined == node);
        Some(ordinal.expect("a node that joined"))
    }

    fn event(&self, event: &Positioned) -> (Option<usize>, FeedRow) {
        (self.ordinal(Some(event.position.lane)), event.row.clone())
    }

    /// The events of one lane after the other, because the order in which lanes are merged depends on clocks.
    fn by_lane(&self, events: &[Positioned]) -> Vec<(Option<usize>, FeedRow)> {
        let mut events = events.to_vec();
        events.sort_by_key(|event| (event.position.lane, event.position.number));
        events.iter().map(|event| self.event(event)).collect()
    }

    async fn read(&self, what: &str, mut cursor: Cursor, limit: usize) -> (Answer, Cursor) {
        let (mut events, mut gap) = (Vec::new(), false);
        // Some pages end by their bytes. A drawn event has up to 255.
        let limit = PageLimit {
            events: limit,
            bytes: if limit < 100 && limit.is_multiple_of(2) { 2000 } else { usize::MAX },
        };
        loop {
            let page = self.store.read_feed(&cursor, limit).await.expect("the feed is read");
            let has_more = page.has_more;
            events.extend(page.events);
            gap |= page.gap.is_some();
            cursor = page.cursor;
            if !has_more {
                break;
            }
        }
        // This must hold across lanes: the events of each execution are in order.
        let mut executions: BTreeMap<ExecutionId, Vec<&str>> = BTreeMap::new();
        for event in &events {
            if let Some(execution) = event.row.execution {
                executions.entry(execution).or_default().push(&event.row.id);
            }
        }
        let text = format!("{:#?} {executions:#?}", self.by_lane(&events));
        let mut kinds = Vec::new();
        if !events.is_empty() {
            kinds.push(format!("{what}: some"));
        }
        if gap {
            kinds.push(format!("{what}: gap"));
        }
        (Answer { kinds, text, won: vec![] }, cursor)
    }
}

impl Answer {
    /// Marks the answer to a mutation that had been answered before.
    fn again(mut self, before: Option<RegistryAnswer>) -> Self {
        if let Some(before) = before {
            self.text.push_str(&format!("{before:#?}"));
            self.kinds = self.kinds.iter().map(|kind| format!("{kind}: again")).collect();
        }
        self
    }
}

fn answer(kind: impl Into<String>, text: String) -> Answer {
    Answer { kinds: vec![kind.into()], text, won: vec![] }
}

/// Names the variant only, because the wording is up to the store.
fn failed(what: &str, error: &Error) -> Answer {
    let text = format!("{error:?}");
    let variant = text.split(['(', ' ']).next().unwrap_or_default();
    match error {
        Error::LeaseLost
        | Error::NotFound
        | Error::AlreadyExists
        | Error::RequestIdReused
        | Error::Conflict
        | Error::ForeignCursor
        | Error::MalformedCursor
        | Error::Data(_) => answer(format!("{what}: {variant}"), String::new()),
        Error::Unavailable(_)
        | Error::OutcomeUnknown(_)
        | Error::Incompatible(_)
        | Error::InUse => panic!("{what}: {error}"),
    }
}

fn done<T: Debug>(what: &str, result: Result<T>) -> Answer {
    match result {
        Ok(value) => answer(what, format!("{value:#?}")),
        Err(error) => failed(what, &error),
    }
}

fn maybe<T: Debug>(what: &str, result: Result<Option<T>>) -> Answer {
    match result {
        Ok(Some(value)) => answer(format!("{what}: some"), format!("{value:#?}")),
        Ok(None) => answer(format!("{what}: none"), String::new()),
        Err(error) => failed(what, &error),
    }
}

fn several<T: Debug>(what: &str, result: Result<Vec<T>>) -> Answer {
    maybe(what, result.map(|rows| Some(rows).filter(|rows| !rows.is_empty())))
}

fn each<T, U>(rows: Vec<T>, row: impl Fn(T) -> U) -> Vec<U> {
    rows.into_iter().map(row).collect()
}

/// `again` says how many of the first transitions were sent before.
fn commit(result: Result<Vec<Settled>>, again: usize) -> Answer {
    let settled = match result {
        Ok(settled) => settled,
        Err(error) => return failed("commit", &error),
    };
    let mut answer = Answer { kinds: vec![], text: String::new(), won: vec![] };
    for (i, settled) in settled.into_iter().enumerate() {
        let (kind, text) = match settled {
            Settled::Won if i < again => ("Won again", String::new()),
            Settled::Won => ("Won", String::new()),
            Settled::Lost => ("Lost", String::new()),
            Settled::RequestTaken { .. } => ("RequestTaken", format!("{settled:?}")),
            Settled::Refused(_) => ("Refused", String::new()),
            Settled::Quarantined => ("Quarantined", String::new()),
        };
        if kind == "Won" {
            answer.won.push(i);
        }
        answer.kinds.push(format!("commit: {kind}"));
        answer.text.push_str(&text);
    }
    answer
}

fn keyed(result: Result<Vec<KeySettled>>, again: usize) -> Answer {
    let settled = match result {
        Ok(settled) => settled,
        Err(error) => return failed("keyed", &error),
    };
    let mut answer = Answer { kinds: vec![], text: String::new(), won: vec![] };
    for (i, settled) in settled.into_iter().enumerate() {
        let (kind, text) = match settled {
            KeySettled::Won if i < again => ("Won again", String::new()),
            KeySettled::Won => ("Won", String::new()),
            KeySettled::RequestTaken { .. } => ("RequestTaken", format!("{settled:?}")),
            KeySettled::UseExisting { .. } => ("UseExisting", format!("{settled:?}")),
            KeySettled::Rejected { .. } => ("Rejected", format!("{settled:?}")),
            KeySettled::TooNew { .. } => ("TooNew", format!("{settled:?}")),
            KeySettled::Refused(_) => ("Refused", String::new()),
        };
        if kind == "Won" {
            answer.won.push(i);
        }
        answer.kinds.push(format!("keyed: {kind}"));
        answer.text.push_str(&text);
    }
    answer
}

/// Closes the leases with a length of zero, as if the node had watched them for long enough.
async fn close_expired(store: &dyn Store, node: NodeId) -> Result<()> {
    let open = store.leases(node, &[]).await?;
    let expired: Vec<_> = open.into_iter().filter(|lease| lease.ttl.is_zero()).collect();
    store.leases(node, &expired).await.map(drop)
}

async fn expire(store: &dyn Store, portion: usize) -> Answer {
    let (mut executions, mut events, mut requests, mut registry_requests) = (0, 0, 0, 0);
    loop {
        let expired = store.expire(Timestamp::MAX, portion).await.expect("expires");
        executions += expired.executions;
        events += expired.events;
        requests += expired.start_requests;
        registry_requests += expired.registry_requests;
        if !expired.more {
            break;
        }
    }
    let mut kinds = Vec::new();
    if executions > 0 {
        kinds.push("expire: executions".into());
    }
    if events > 0 {
        kinds.push("expire: events".into());
    }
    let text = format!("{executions} {events} {requests} {registry_requests}");
    Answer { kinds, text, won: vec![] }
}

fn namespace(row: NamespaceRow) -> NamespaceRow {
    // The retention of `default` is up to the store.
    let retention = if row.name.as_str() == "default" { Duration::ZERO } else { row.retention };
    NamespaceRow { retention, created_at: Timestamp::default(), ..row }
}

/// The row without the time of its release.
fn timeless(mut row: QuarantineRow) -> QuarantineRow {
    if let Some(released) = &mut row.released {
        released.at = Timestamp::default();
    }
    row
}

fn version(row: WorkflowVersion) -> WorkflowVersion {
    let retired_at = row.retired_at.map(|_| Timestamp::default());
    WorkflowVersion { created_at: Timestamp::default(), retired_at, ..row }
}

fn subscription(row: SubscriptionRow) -> SubscriptionRow {
    SubscriptionRow { version: 0, created_at: Timestamp::default(), ..row }
}
