//! The vocabulary of the cases: a fresh store, nodes on it, and rows that differ where they must.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use recoup_core::command::TaskId;
use recoup_core::execution::{CompensationState, Phase, State};
use recoup_core::failure_event::FailureKind;
use recoup_core::id::{ExecutionId, TransitionId};
use recoup_core::time::Timestamp;
use uuid::Uuid;

use crate::contract::*;

/// Longer than any case takes.
pub const LONG: Duration = Duration::from_secs(600);
/// Short enough to wait for its end.
pub const SHORT: Duration = Duration::from_millis(50);
/// How long a case waits for something that should happen before it fails.
const PATIENCE: Duration = Duration::from_secs(20);
pub const NAMESPACE: &str = "default";

pub struct World {
    pub store: Arc<dyn Store>,
    /// The time on the store's clock when the case began.
    pub now: Timestamp,
    made: AtomicU64,
}

impl World {
    pub async fn open(store: Arc<dyn Store>) -> Self {
        let now = store.now().await.expect("the store has a clock");
        Self { store, now, made: AtomicU64::new(1) }
    }

    pub async fn node(&self) -> NodeId {
        self.store.join("test:1", LONG).await.expect("a node joins").node
    }

    fn number(&self) -> u64 {
        self.made.fetch_add(1, Ordering::SeqCst)
    }

    /// An id that is greater than all earlier ones.
    pub fn id(&self) -> ExecutionId {
        execution_id(self.now, self.number())
    }

    pub fn transition_id(&self) -> TransitionId {
        TransitionId(Uuid::from_u64_pair(0x7261_6e64, self.number()))
    }

    pub fn index(&self) -> IndexRow {
        IndexRow {
            format: 1,
            namespace: NAMESPACE.into(),
            workflow: "order".into(),
            version: 1,
            key: None,
            state: State::Running.into(),
            phase: Phase::Steps.into(),
            compensation: CompensationState::None.into(),
            run: 1,
            error_type: None,
            started_at: self.now,
            ended_at: None,
            wake_at: None,
        }
    }

    pub fn in_state(&self, state: State, compensation: CompensationState) -> IndexRow {
        let ended_at = state.is_ended().then_some(self.now);
        let (state, compensation) = (state.into(), compensation.into());
        IndexRow { state, compensation, ended_at, ..self.index() }
    }

    /// The first transition of an execution.
    pub fn start(&self, execution: ExecutionId) -> Transition {
        Transition { index: Some(self.index()), ..self.next(execution, 1) }
    }

    pub fn next(&self, execution: ExecutionId, sequence: u64) -> Transition {
        Transition {
            execution,
            sequence,
            transition_id: self.transition_id(),
            format: 1,
            data: Bytes::from(format!("transition {sequence} of {execution}")),
            index: None,
            request: None,
            feed: vec![],
            overflow_done: vec![],
            may_be_gone: true,
        }
    }

    pub fn event(&self, id: &str, execution: ExecutionId) -> FeedRow {
        FeedRow { execution: Some(execution), ..self.free_event(id) }
    }

    /// An event that belongs to no execution.
    pub fn free_event(&self, id: &str) -> FeedRow {
        FeedRow {
            id: id.into(),
            namespace: NAMESPACE.into(),
            kind: FailureKind::AttemptFailed.into(),
            workflow: "order".into(),
            error_type: "payment.card_declined".into(),
            execution: None,
            fingerprint: "fingerprint".into(),
            at: self.now,
            format: 1,
            data: Bytes::from(format!("event {id}")),
        }
    }

    pub fn request(&self, id: &str, digest: u64) -> StartRequest {
        StartRequest { namespace: NAMESPACE.into(), request_id: id.into(), digest }
    }

    /// An available task of queue `a`.
    pub fn task(&self, execution: ExecutionId, path: &str) -> OverflowTask {
        OverflowTask {
            task: TaskId { execution, run: 1, path: path.into(), attempt: 1, sequence: 1 },
            queue: queue("a"),
            task_type: "charge".into(),
            priority: 0,
            available_at: Timestamp::from_micros(1_000_000),
        }
    }

    pub async fn commit(
        &self,
        node: NodeId,
        transitions: impl IntoIterator<Item = Transition>,
    ) -> Vec<Settled> {
        let batch = batch(transitions);
        self.store.commit(node, &batch).await.expect("the batch is committed")
    }

    /// Commits transitions, all of which must win.
    pub async fn won(&self, node: NodeId, transitions: impl IntoIterator<Item = Transition>) {
        for settled in self.commit(node, transitions).await {
            assert_eq!(settled, Settled::Won);
        }
    }

    /// Starts an execution in this state, owned by the node.
    pub async fn begun(&self, node: NodeId, index: IndexRow) -> ExecutionId {
        let id = self.id();
        self.won(node, [Transition { index: Some(index), ..self.start(id) }]).await;
        id
    }

    pub async fn load(&self, node: NodeId, execution: ExecutionId) -> Option<History> {
        let mut histories = self.store.load(node, &[execution]).await.expect("loads");
        assert!(histories.len() <= 1, "one was asked for");
        histories.pop()
    }

    pub async fn head(&self, execution: ExecutionId) -> Option<Head> {
        self.store.heads(&[execution]).await.expect("heads").pop()
    }

    pub async fn feed(&self) -> Vec<Positioned> {
        let start = self.store.feed_start().await.expect("the feed has a start");
        self.read_on(&start, 1000).await.0
    }

    /// The ids of all events on the feed, in order.
    pub async fn feed_ids(&self) -> Vec<String> {
        ids(&self.feed().await)
    }

    /// Follows the cursor, in its text form like a client, until a page is not full. Also returns how many
    /// events were reported as a gap.
    pub async fn read_on(
        &self,
        after: &Cursor,
        limit: usize,
    ) -> (Vec<Positioned>, Cursor, Option<u64>) {
        let (mut events, mut cursor, mut gap) = (Vec::new(), after.clone(), None);
        loop {
            let page = self.store.read_feed(&cursor, PageLimit::events(limit)).await;
            let page = page.expect("the feed is read");
            let (count, has_more) = (page.events.len(), page.has_more);
            assert!(count <= limit, "{count} events in a page of {limit}");
            events.extend(page.events);
            gap = gap.max(page.gap);
            cursor = Cursor::decode(&page.cursor.encode()).expect("the cursor's own text");
            assert_eq!(cursor, page.cursor);
            assert_eq!(has_more, count == limit);
            if !has_more {
                return (events, cursor, gap);
            }
        }
    }
}

pub fn execution_id(now: Timestamp, number: u64) -> ExecutionId {
    let mut random = [0; 10];
    random[2..].copy_from_slice(&number.to_be_bytes());
    ExecutionId::new(now, random)
}

pub fn batch(transitions: impl IntoIterator<Item = Transition>) -> Batch {
    Batch { transitions: transitions.into_iter().collect(), ..Batch::default() }
}

pub fn ids(events: &[Positioned]) -> Vec<String> {
    events.iter().map(|event| event.row.id.clone()).collect()
}

pub fn queue(name: &str) -> QueueName {
    QueueName { namespace: NAMESPACE.into(), queue: name.into() }
}

/// Workers that take tasks of all types from these queues.
pub fn idle(queues: &[&str], credit: u32) -> IdleCredit {
    let queues = queues.iter().map(|name| queue(name)).collect();
    IdleCredit { queues, task_types: Vec::new(), credit }
}

/// Asks again until there is an answer. For conditions that become true only as time passes.
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut ask: impl FnMut() -> F,
) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok(answer) => answer,
        Err(_) => panic!("waited {PATIENCE:?} for {what}"),
    }
}
