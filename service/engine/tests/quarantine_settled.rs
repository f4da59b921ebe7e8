//! A quarantine on its way to the store: what a node without I/O does when the way is rough.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use recoup_core::command::{Command, StartExecution, TaskId};
use recoup_core::definition::{Block, Defaults, OnError, Step, StepKind, Task, Workflow};
use recoup_core::execution::{State, TraceContext};
use recoup_core::id::{ExecutionId, Namespace, StepId};
use recoup_core::key::{OnEnded, OnRunning};
use recoup_core::payload::Payload;
use recoup_core::plan::Plan;
use recoup_core::time::Timestamp;
use recoup_engine::clock::{Now, Tick};
use recoup_engine::load::{Plans, load};
use recoup_engine::node::Node;
use recoup_engine::node::io::{Adopted, Answer, Input, Output};
use recoup_engine::{Options, Refusal, StartSpec};
use recoup_store::memory::MemoryStore;
use recoup_store::{
    Batch, Error, Executions, Feed, NewVersion, NodeId, Nodes, Overflow, PageLimit, Registry,
    Settled, Transition, Transitions,
};

const TTL: Duration = Duration::from_secs(3600);

fn order() -> Workflow {
    let task = Task { task_type: "charge".into(), ..Task::default() };
    let charge = Step {
        id: StepId::from("charge"),
        description: String::new(),
        kind: StepKind::Task(task),
        when: None,
        retry: None,
        on_error: OnError::Fail,
        allow_warning: false,
        compensate: None,
    };
    Workflow {
        name: "order".into(),
        description: String::new(),
        defaults: Defaults::default(),
        steps: Block(vec![charge]),
        finally: Block::default(),
        timeout: None,
        cleanup_timeout: None,
        cancel_grace: None,
        output: None,
    }
}

/// One node, and a store that does at once what it is asked.
struct Rig {
    clock: Arc<Mutex<i64>>,
    store: MemoryStore,
    plans: Plans,
    node: Node<u32>,
    answers: Vec<(u32, Result<Answer, Refusal>)>,
    /// How the next commit of a quarantine ends.
    rough: Option<Rough>,
    /// The store refuses what has this in it.
    poison: Option<&'static [u8]>,
    commits: usize,
}

#[derive(Clone, Copy)]
enum Rough {
    /// It is done, and no answer comes.
    Unknown,
    /// Another has closed the lease in the meantime.
    LeaseLost,
}

impl Rig {
    async fn new() -> Self {
        let clock = Arc::new(Mutex::new(1_700_000_000_000_000));
        let time = clock.clone();
        let now = move || Timestamp::from_micros(*time.lock().expect("no test panics with it"));
        let store = MemoryStore::new(Arc::new(now));
        let version = NewVersion::new(Namespace::from("default"), [1; 32], &order());
        store.register(&version, None).await.expect("the model registers");
        let panics: Option<fn(&Command) -> bool> =
            Some(|command| matches!(command, Command::CancelExecution { .. }));
        let node = Node::new(Options { panics, lease_ttl: TTL, ..Options::default() }, 1);
        let (plans, answers) = (Plans::default(), Vec::new());
        let mut rig =
            Self { clock, store, plans, node, answers, rough: None, poison: None, commits: 0 };
        rig.node.begin(rig.at());
        rig.settle().await;
        rig
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_micros(*self.clock.lock().expect("no test panics with it"))
    }

    fn at(&self) -> Now {
        let time = self.now();
        let micros = u64::try_from(time.as_micros()).expect("it is after 1970");
        Now { tick: Tick::after(Duration::from_micros(micros)), time }
    }

    /// Does what the node asks for, until it asks for nothing more.
    async fn settle(&mut self) {
        loop {
            self.node.flush(self.at());
            let mut asked = false;
            while let Some(output) = self.node.output() {
                asked = true;
                if let Some(input) = self.call(output).await {
                    self.node.handle(input, self.at());
                }
            }
            if !asked {
                return;
            }
        }
    }

    async fn call(&mut self, output: Output<u32>) -> Option<Input<u32>> {
        let store = &self.store;
        Some(match output {
            Output::Join => Input::Joined(store.join("", TTL).await),
            Output::Renew { node, reached } => {
                Input::Renewed(node, store.renew(node, TTL, reached).await)
            }
            Output::Commit(node, batch) => {
                let rough = self.rough.take_if(|_| !batch.quarantined.is_empty());
                self.commits += usize::from(!batch.quarantined.is_empty());
                if let Some(Rough::LeaseLost) = rough {
                    store.leave(node).await.expect("the model closes it");
                }
                let settled = self.commit(node, &batch).await;
                match rough {
                    Some(Rough::Unknown) => {
                        Input::Committed(node, Err(Error::OutcomeUnknown("cut".into())))
                    }
                    _ => Input::Committed(node, settled),
                }
            }
            Output::Load(node, asked) => {
                let loaded = load(store, &self.plans, node, &asked).await;
                Input::Loaded { node, asked, loaded }
            }
            Output::Adopt { node, silent, limit } => {
                Input::Adopted(node, Adopted::ask(store, node, &silent, limit).await)
            }
            Output::Heads(node, ids) => Input::Heads(node, store.heads(&ids).await),
            Output::Due(node, at, after, limit) => {
                Input::Due(node, store.due(node, at, after, limit).await)
            }
            Output::Publish(node, idle) => {
                Input::Published(node, store.publish_idle(node, &idle).await)
            }
            Output::Reply { reply, answer } => {
                self.answers.push((reply, answer));
                return None;
            }
            Output::FeedWritten | Output::Tell { .. } => return None,
            other => panic!("not asked for in these cases: {other:?}"),
        })
    }

    /// As a store does that finds the culprit: what it refuses is left out, the rest is done.
    async fn commit(&self, node: NodeId, batch: &Batch) -> recoup_store::Result<Vec<Settled>> {
        let is_refused = |transition: &Transition| {
            self.poison.is_some_and(|poison| {
                transition.data.windows(poison.len()).any(|bytes| bytes == poison)
            })
        };
        let mut sound = batch.clone();
        sound.transitions.retain(|transition| !is_refused(transition));
        let mut settled = self.store.commit(node, &sound).await?.into_iter();
        let answers = batch.transitions.iter().map(|transition| match is_refused(transition) {
            true => Settled::Refused("poison".into()),
            false => settled.next().expect("an answer for each"),
        });
        Ok(answers.collect())
    }

    /// Lets the timers strike that are due within a second.
    async fn a_second_later(&mut self) {
        *self.clock.lock().expect("no test panics with it") += 1_000_000;
        self.node.tick(self.at());
        self.settle().await;
    }

    async fn started(&mut self) -> ExecutionId {
        self.started_within(None).await
    }

    async fn started_within(&mut self, timeout: Option<Duration>) -> ExecutionId {
        let id = ExecutionId::new(self.now(), [7; 10]);
        let spec = StartSpec {
            start: StartExecution {
                id,
                namespace: Namespace::from("default"),
                key: None,
                input: Payload::null(),
                timeout,
                trace: TraceContext::default(),
            },
            plan: Arc::new(Plan::compile(&order(), 1).expect("it compiles")),
            on_running: OnRunning::Reject,
            on_ended: OnEnded::Reject,
            request: None,
            until: None,
        };
        self.node.handle(Input::Start { spec: Box::new(spec), reply: 0 }, self.at());
        self.settle().await;
        assert!(matches!(self.answers.pop(), Some((0, Ok(_)))), "it starts");
        id
    }

    fn cancel(&mut self, execution: ExecutionId, reply: u32) {
        let command = Command::CancelExecution { reason: "enough".into() };
        let input = Input::Submit { execution, command, request: None, reply };
        self.node.handle(input, self.at());
    }

    async fn events(&self) -> usize {
        let start = self.store.feed_start().await.expect("the feed has a start");
        let page = self.store.read_feed(&start, PageLimit::events(100)).await;
        page.expect("the feed is read").events.len()
    }

    fn refused(&mut self) -> Vec<u32> {
        let refused = std::mem::take(&mut self.answers).into_iter().map(|(reply, answer)| {
            assert!(matches!(answer, Err(Refusal::Quarantined(_))), "{answer:?}");
            reply
        });
        refused.collect()
    }
}

#[tokio::test]
async fn nobody_is_refused_before_the_quarantine_is_durable() {
    let mut rig = Rig::new().await;
    let id = rig.started().await;
    rig.rough = Some(Rough::Unknown);
    rig.cancel(id, 1);
    rig.settle().await;
    // It is written, but the node does not know. Who comes now waits as well.
    rig.cancel(id, 2);
    rig.node.handle(Input::Get { execution: id, reply: 3 }, rig.at());
    rig.settle().await;
    assert!(rig.answers.is_empty(), "{:?}", rig.answers);
    assert_eq!((rig.commits, rig.events().await), (1, 1));

    rig.a_second_later().await;
    assert_eq!(rig.refused(), [1, 2, 3]);
    assert_eq!((rig.commits, rig.events().await), (2, 1), "sent again, and written once");
    // Nothing of it is left in memory; who asks reads the store.
    assert_eq!(rig.node.belief(id), "nothing");
    rig.node.handle(Input::Get { execution: id, reply: 4 }, rig.at());
    rig.settle().await;
    assert_eq!(rig.refused(), [4]);
    assert_eq!((rig.commits, rig.events().await), (2, 1));
}

#[tokio::test]
async fn a_quarantine_outlives_the_lease_under_which_it_was_found() {
    let mut rig = Rig::new().await;
    let id = rig.started().await;
    rig.rough = Some(Rough::LeaseLost);
    rig.cancel(id, 1);
    rig.settle().await;
    rig.a_second_later().await;
    assert_eq!(rig.refused(), [1]);
    assert_eq!((rig.commits, rig.events().await), (2, 1), "the new life has sent it");
    let head = rig.store.heads(&[id]).await.expect("heads").remove(0);
    assert_eq!((head.sequence, head.quarantined), (1, true));
    // The new life adopts it once, and leaves it alone.
    for _ in 0..5 {
        rig.a_second_later().await;
    }
    assert_eq!(rig.node.belief(id), "nothing");
    assert_eq!((rig.commits, rig.events().await), (2, 1));
}

#[tokio::test]
async fn a_result_that_the_store_refuses_spares_what_was_decided_with_it() {
    let mut rig = Rig::new().await;
    let id = rig.started_within(Some(Duration::from_millis(100))).await;
    rig.poison = Some(b"poison");
    let result = |output: &'static str| Command::CompleteTask {
        task: TaskId { execution: id, run: 1, path: "charge".into(), attempt: 1, sequence: 1 },
        output: Payload::json(output),
        worker: "w".into(),
    };
    // The timeout strikes, and two results come, before anything is decided.
    *rig.clock.lock().expect("no test panics with it") += 200_000;
    rig.node.tick(rig.at());
    for (reply, output) in [(1, "\"poison\""), (2, "\"sound\"")] {
        let command = result(output);
        let input = Input::Submit { execution: id, command, request: None, reply };
        rig.node.handle(input, rig.at());
    }
    rig.settle().await;
    let head = rig.store.heads(&[id]).await.expect("heads").remove(0);
    assert!(!head.quarantined, "the timeout is sound");
    let [(1, Err(Refusal::Refused(reason))), (2, Ok(Answer::Recorded { .. }))] = &rig.answers[..]
    else {
        panic!("{:?}", rig.answers);
    };
    assert_eq!(reason, "poison");
    let listed = rig.store.indexed(id).await.expect("the store answers").expect("it is there");
    assert_eq!(
        listed.index.state,
        State::TimedOut,
        "a success within the grace of a run that timed out"
    );
}
