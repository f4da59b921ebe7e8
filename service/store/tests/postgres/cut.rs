//! Loses the connection around COMMIT, in every possible way, under a stream of batches. The caller sends the
//! same batch again, as the contract of the store requires, and nothing is lost or written twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use recoup_core::execution::{CompensationState, State};
use recoup_core::id::{ExecutionId, TransitionId};
use recoup_core::key::{OnEnded, OnRunning};
use recoup_store::conformance::World;
use recoup_store::postgres::{Options, PostgresStore};
use recoup_store::{
    Batch, Error, Executions, KeySettled, KeyedStart, NodeId, Overflow, Settled, Transition,
    Transitions,
};
use recoup_test_postgres::Server;
use recoup_test_postgres::proxy::{Fault, Proxy};

const BATCHES: usize = 45;
const STARTS: usize = 4;
/// Longer than a commit takes, but shorter than the time after which Postgres ends a silent transaction. The
/// old server process therefore still exists when the batch is sent again.
const COMMIT_TIMEOUT: Duration = Duration::from_millis(700);

struct Stream {
    world: World,
    store: PostgresStore,
    proxy: Proxy,
    node: NodeId,
    /// The transitions that each history must hold at the end.
    written: BTreeMap<ExecutionId, Vec<TransitionId>>,
    events: Vec<String>,
    /// The executions that have a task in the overflow.
    overflowed: BTreeSet<ExecutionId>,
    unknown: usize,
}

impl Stream {
    async fn open() -> Self {
        let database = Server::shared().database().await;
        let proxy = Proxy::start(database.port).await;
        let options = Options { commit_timeout: COMMIT_TIMEOUT, ..Options::default() };
        let url = database.url_through(proxy.port());
        let store = PostgresStore::connect(&url, options).await.expect("through the proxy");
        let world = World::open(Arc::new(store.clone())).await;
        let node = world.node().await;
        let (written, events, overflowed) = (BTreeMap::new(), Vec::new(), BTreeSet::new());
        Self { world, store, proxy, node, written, events, overflowed, unknown: 0 }
    }

    /// A batch with every kind of row that may belong to a transition. If it `is_plain`, it has no overflow rows, so
    /// that one statement can write it.
    async fn batch(&mut self, number: usize, is_plain: bool) -> Batch {
        let world = &self.world;
        let mut batch = Batch::default();
        let open: Vec<ExecutionId> = self.written.keys().rev().take(STARTS).copied().collect();
        for id in open {
            let sequence = self.written[&id].len() as u64 + 1;
            let mut next = world.next(id, sequence);
            let event = format!("of {id} at {sequence}");
            next.feed = vec![world.event(&event, id)];
            next.index = Some(world.in_state(State::Succeeded, CompensationState::None));
            if !is_plain {
                next.overflow_done = vec![world.task(id, "step").key()];
                self.overflowed.remove(&id);
            }
            batch.transitions.push(next);
        }
        for _ in 0..STARTS {
            let id = world.id();
            if !is_plain {
                let task = world.task(id, "step");
                world.store.overflow(self.node, &[task]).await.expect("the task lies there");
                self.overflowed.insert(id);
            }
            let request = Some(world.request(&format!("start of {id}"), 7));
            batch.transitions.push(Transition { request, ..world.start(id) });
        }
        batch.feed.push(world.free_event(&format!("session {number}")));
        batch
    }

    fn note(&mut self, transition: &Transition) {
        let history = self.written.entry(transition.execution).or_default();
        history.push(transition.transition_id);
        self.events.extend(transition.feed.iter().map(|event| event.id.clone()));
    }

    /// Sends the batch until there is a definite answer.
    async fn commit(&mut self, batch: &Batch) {
        let settled = loop {
            match self.store.commit(self.node, batch).await {
                Ok(settled) => break settled,
                Err(Error::OutcomeUnknown(_)) => self.unknown += 1,
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(settled, vec![Settled::Won; batch.transitions.len()]);
        batch.transitions.iter().for_each(|transition| self.note(transition));
        self.events.extend(batch.feed.iter().map(|event| event.id.clone()));
    }

    async fn start_keyed(&mut self, start: KeyedStart) -> KeySettled {
        let starts = [start];
        let mut settled = loop {
            match self.store.start_keyed(self.node, &starts).await {
                Ok(settled) => break settled,
                Err(Error::OutcomeUnknown(_)) => self.unknown += 1,
                Err(error) => panic!("{error}"),
            }
        };
        let settled = settled.pop().expect("one was asked");
        if settled == KeySettled::Won {
            self.note(&starts[0].transition);
        }
        settled
    }

    fn keyed(&self, key: &str, on_running: OnRunning) -> KeyedStart {
        let id = self.world.id();
        let request = Some(self.world.request(&format!("keyed start of {id}"), 7));
        let transition = Transition { request, ..self.world.start(id) };
        KeyedStart { transition, key: key.into(), on_running, on_ended: OnEnded::Allow }
    }

    /// Checks that every history holds each transition once, and that the rows which belong to it exist once.
    async fn check(&self) {
        let ids: Vec<ExecutionId> = self.written.keys().copied().collect();
        let histories = self.store.load(self.node, &ids).await.expect("loads");
        assert_eq!(histories.len(), ids.len());
        for history in histories {
            let found: Vec<TransitionId> =
                history.transitions.iter().map(|stored| stored.transition_id).collect();
            assert_eq!(found, self.written[&history.execution], "{}", history.execution);
        }
        let mut expected = self.events.clone();
        let mut found = self.world.feed_ids().await;
        expected.sort();
        found.sort();
        assert_eq!(found, expected);
        for (id, history) in &self.written {
            let namespace = self.world.index().namespace;
            let request = format!("start of {id}");
            if let Some((execution, _)) =
                self.store.started_by(&namespace, &request).await.expect("reads")
            {
                assert_eq!(execution, *id);
            } else {
                let keyed = format!("keyed start of {id}");
                let started = self.store.started_by(&namespace, &keyed).await.expect("reads");
                assert_eq!(started, Some((*id, 7)), "{history:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_cut_around_commit_lose_and_duplicate_nothing() {
    let mut stream = Stream::open().await;
    let faults = [
        Fault::CutBeforeCommit,
        Fault::CutBeforeAnswer,
        Fault::HalfOpen,
        Fault::HalfOpenBeforeSync,
    ];
    let mut struck = 0;
    for number in 0..BATCHES {
        // Each fault meets batches that are several statements and batches that are one.
        let is_plain = number / (2 * faults.len()) % 2 == 1;
        let batch = stream.batch(number, is_plain).await;
        // Every second batch is committed without a fault.
        if number % 2 == 1 {
            stream.proxy.arm(faults[number / 2 % faults.len()]);
            struck += 1;
        }
        stream.commit(&batch).await;
        assert!(!stream.proxy.is_armed(), "the fault did not strike");
    }
    let counts = stream.store.counts();
    println!(
        "{struck} faults, {} unknown outcomes: {} batches written by the second send, {} transitions \
         found committed, {} old server processes ended first, {} gone by themselves",
        stream.unknown,
        counts.written_again,
        counts.found_committed,
        counts.backends_terminated,
        counts.backends_gone,
    );
    assert_eq!(stream.unknown, struck);
    assert!(counts.written_again > 0, "no batch was written by the second send");
    assert!(counts.found_committed > 0, "no transition was settled by its id");
    assert!(counts.backends_terminated > 0, "no old server process had to be ended");
    // Only tasks that no transition closed are left, which shows that overflow rows are written together with
    // their transitions.
    let depth = stream.store.overflow_depth().await.expect("counts");
    let left: u64 = depth.iter().map(|(_, count)| count).sum();
    assert_eq!(left, stream.overflowed.len() as u64);
    stream.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keyed_start_that_was_cut_around_commit_gets_the_usual_verdict() {
    let mut stream = Stream::open().await;
    for fault in [Fault::CutBeforeCommit, Fault::CutBeforeAnswer, Fault::HalfOpen] {
        let key = format!("{fault:?}");
        stream.proxy.arm(fault);
        let first = stream.keyed(&key, OnRunning::Reject);
        let holder = first.transition.execution;
        assert_eq!(stream.start_keyed(first).await, KeySettled::Won);

        stream.proxy.arm(fault);
        let other = stream.keyed(&key, OnRunning::UseExisting);
        let request = other.transition.request.clone().expect("it has one");
        let used = stream.start_keyed(other).await;
        assert_eq!(used, KeySettled::UseExisting { execution: holder });
        let started = stream.store.started_by(&request.namespace, &request.request_id).await;
        assert_eq!(started.expect("reads"), Some((holder, 7)));

        stream.proxy.arm(fault);
        let rejected = stream.keyed(&key, OnRunning::Reject);
        let request = rejected.transition.request.clone().expect("it has one");
        let settled = stream.start_keyed(rejected).await;
        assert_eq!(settled, KeySettled::Rejected { execution: holder, state: State::Running });
        let started = stream.store.started_by(&request.namespace, &request.request_id).await;
        assert_eq!(started.expect("reads"), None);
    }
    assert_eq!(stream.unknown, 9);
    stream.check().await;
}

/// The caller drops the commit before it is answered. The lane notices that, and the next commit of the same
/// batch settles it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abandoned_commit_is_settled_when_its_batch_is_sent_again() {
    let mut stream = Stream::open().await;
    let batch = stream.batch(0, false).await;
    stream.commit(&batch).await;
    let batch = stream.batch(1, true).await;
    stream.proxy.arm(Fault::HalfOpen);
    let given_up = {
        let commit = stream.store.commit(stream.node, &batch);
        tokio::time::timeout(COMMIT_TIMEOUT / 4, commit).await
    };
    assert!(given_up.is_err(), "{given_up:?}");
    stream.commit(&batch).await;
    assert_eq!(stream.unknown, 0);
    let counts = stream.store.counts();
    assert_eq!(counts.backends_terminated, 1, "{counts:?}");
    stream.check().await;
}
