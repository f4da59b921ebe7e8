//! Nodes on one store. Nothing happens but what a test does, and what follows from it at once.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use recoup_core::command::{StartExecution, TaskId};
use recoup_core::definition::{Block, Defaults, OnError, Step, StepKind, Task, Workflow};
use recoup_core::execution::TraceContext;
use recoup_core::id::{ExecutionId, Namespace, StepId};
use recoup_core::key::{OnEnded, OnRunning};
use recoup_core::payload::Payload;
use recoup_core::plan::Plan;
use recoup_core::retry::{Limits, RetryPolicy, Schedule};
use recoup_core::time::Timestamp;
use recoup_engine::clock::{Now, Reading, StoreClock, Tick};
use recoup_engine::load::{Plans, load};
use recoup_engine::node::Node;
use recoup_engine::node::io::{
    Adopted, Answer, Input, Offer, Output, Refusal, Session, SessionKey, Snapshot, StartSpec,
    WorkerKey, WorkerMessage,
};
use recoup_engine::options::Options;
use recoup_store::memory::MemoryStore;
use recoup_store::{
    Batch, Error, Executions, KeyedStart, NewVersion, Nodes, Overflow, QueueName, Registry,
    Settled, Transitions,
};

/// The model never waits.
pub fn ready<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("the store in memory never waits"),
    }
}

pub type Reply = u64;

pub struct Machine {
    pub node: Node<Reply>,
    clock: StoreClock,
    /// It does nothing any more, as if its process had been killed.
    pub is_dead: bool,
    pub replies: BTreeMap<Reply, Result<Answer, Refusal>>,
    /// What workers were told and no test has looked at yet.
    told: Vec<(WorkerKey, WorkerMessage)>,
    /// The calls of the store, by name.
    pub calls: Vec<&'static str>,
    /// The batches that the store was given.
    pub batches: Vec<Arc<Batch>>,
    /// And the starts with keys.
    pub keyed: Vec<Arc<Vec<KeyedStart>>>,
    /// A batch of more transitions comes back without an outcome.
    pub overwhelmed_by: Option<usize>,
    /// It is written all the same.
    pub written_anyway: bool,
    /// The questions about heads.
    pub heads: Vec<Vec<ExecutionId>>,
    /// Answers to calls of these names wait in `late`.
    pub hold_back: &'static [&'static str],
    /// The store refuses every transition, for this reason.
    pub refuses: Option<&'static str>,
    pub late: Vec<Input<Reply>>,
}

pub struct World {
    pub store: MemoryStore,
    pub machines: Vec<Machine>,
    plans: Plans,
    /// How much time has passed.
    elapsed: Duration,
    /// The database's clock, in microseconds.
    clock: Arc<AtomicI64>,
    last: u64,
}

impl World {
    /// With that many nodes, each with a lease, and two workflows of one step in `default` and `team`:
    /// `order`, and `watched`, whose step has a heartbeat timeout of 2 s.
    pub fn new(nodes: usize) -> Self {
        Self::with_order(nodes, &order())
    }

    /// As [`World::new`], with another definition of the workflow `order`.
    pub fn with_order(nodes: usize, order: &Workflow) -> Self {
        // The rarest round is made as often as others are.
        let sleep_horizon = Duration::from_secs(4);
        Self::of(nodes, Options { sleep_horizon, ..Options::default() }, order)
    }

    /// As [`World::new`], with other options of the nodes.
    pub fn with(nodes: usize, options: Options) -> Self {
        Self::of(nodes, options, &order())
    }

    fn of(nodes: usize, options: Options, order: &Workflow) -> Self {
        let clock = Arc::new(AtomicI64::new(1_700_000_000_000_000));
        let tell = clock.clone();
        let now = move || Timestamp::from_micros(tell.load(Ordering::Relaxed));
        let store = MemoryStore::new(Arc::new(now));
        let team = Namespace::from("team");
        let created = ready(store.create_namespace(&team, "", Duration::from_secs(3600), None));
        created.expect("it is new");
        for namespace in ["default", "team"] {
            for workflow in [order, &watched()] {
                let version = NewVersion::new(Namespace::from(namespace), [1; 32], workflow);
                ready(store.register(&version, None)).expect("the model registers");
            }
        }
        let (plans, elapsed) = (Plans::default(), Duration::ZERO);
        let mut world = Self { store, machines: Vec::new(), plans, elapsed, clock, last: 0 };
        for _ in 0..nodes {
            world.add(options.clone());
        }
        world
    }

    /// One more node begins its life.
    pub fn boot(&mut self) -> usize {
        self.add(Options { sleep_horizon: Duration::from_secs(4), ..Options::default() })
    }

    /// The same with other options.
    pub fn add(&mut self, options: Options) -> usize {
        let mut node = Node::new(options, 7);
        let clock = StoreClock::new(self.now(), self.tick());
        node.begin(clock.now(self.tick()));
        self.machines.push(Machine {
            node,
            clock,
            is_dead: false,
            replies: BTreeMap::new(),
            told: Vec::new(),
            calls: Vec::new(),
            batches: Vec::new(),
            keyed: Vec::new(),
            overwhelmed_by: None,
            written_anyway: false,
            heads: Vec::new(),
            hold_back: &[],
            refuses: None,
            late: Vec::new(),
        });
        let machine = self.machines.len() - 1;
        self.settle(machine);
        assert!(self.machines[machine].node.node_id().is_some());
        machine
    }

    /// The database's clock.
    pub fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.clock.load(Ordering::Relaxed))
    }

    /// The database's clock is set back, or forward.
    pub fn set_clock(&mut self, to: Timestamp) {
        self.clock.store(to.as_micros(), Ordering::Relaxed);
    }

    fn tick(&self) -> Tick {
        Tick::after(self.elapsed)
    }

    /// What a machine's clocks say.
    pub fn at(&self, machine: usize) -> Now {
        self.machines[machine].clock.now(self.tick())
    }

    /// Time passes, and everybody does what is due.
    pub fn pass(&mut self, time: Duration) {
        let mut left = time;
        let mut idle_turns = 0;
        loop {
            let alive = (0..self.machines.len()).filter(|machine| !self.machines[*machine].is_dead);
            let alive: Vec<_> = alive.collect();
            let wait = |machine: &usize| {
                let next = self.machines[*machine].node.next_timer();
                next.map(|at| at.since(self.at(*machine).time))
            };
            let next = alive.iter().filter_map(wait).min();
            let Some(wait) = next.filter(|wait| *wait <= left) else {
                break;
            };
            idle_turns = if wait.is_zero() { idle_turns + 1 } else { 0 };
            assert!(
                idle_turns < 1000,
                "nodes have something to do again and again, and no time passes"
            );
            self.go_on(wait);
            left -= wait;
            for machine in alive {
                let now = self.at(machine);
                self.machines[machine].node.tick(now);
                self.settle(machine);
            }
        }
        self.go_on(left);
    }

    fn go_on(&mut self, time: Duration) {
        self.elapsed += time;
        self.set_clock(self.now() + time);
    }

    pub fn put(&mut self, machine: usize, input: Input<Reply>) {
        let now = self.at(machine);
        self.machines[machine].node.handle(input, now);
        self.machines[machine].node.tick(now);
        self.settle(machine);
    }

    /// Several inputs that have come before the node does anything.
    pub fn put_all(&mut self, machine: usize, inputs: Vec<Input<Reply>>) {
        let now = self.at(machine);
        for input in inputs {
            self.machines[machine].node.handle(input, now);
        }
        self.machines[machine].node.tick(now);
        self.settle(machine);
    }

    /// Puts a question, and says what came of it at once.
    pub fn ask(
        &mut self,
        machine: usize,
        input: impl FnOnce(Reply) -> Input<Reply>,
    ) -> Option<Result<Answer, Refusal>> {
        self.last += 1;
        let reply = self.last;
        self.put(machine, input(reply));
        self.machines[machine].replies.remove(&reply)
    }

    fn settle(&mut self, machine: usize) {
        loop {
            let now = self.at(machine);
            self.machines[machine].node.flush(now);
            let Some(output) = self.machines[machine].node.output() else {
                return;
            };
            let mut outputs = vec![output];
            while let Some(output) = self.machines[machine].node.output() {
                outputs.push(output);
            }
            for output in outputs {
                self.carry_out(machine, output);
            }
        }
    }

    fn carry_out(&mut self, at: usize, output: Output<Reply>) {
        let (store, ttl) = (&self.store, Options::default().lease_ttl);
        let machine = &mut self.machines[at];
        let (name, input) = match output {
            Output::Reply { reply, answer } => {
                machine.replies.insert(reply, answer);
                return;
            }
            Output::Tell { worker, message } => return machine.told.push((worker, message)),
            Output::FeedWritten => return,
            Output::Join => ("join", Input::Joined(ready(store.join("", ttl)))),
            Output::Renew { node, reached } => {
                ("renew", Input::Renewed(node, ready(store.renew(node, ttl, reached))))
            }
            Output::Commit(node, batch) => {
                machine.batches.push(batch.clone());
                let is_too_much =
                    machine.overwhelmed_by.is_some_and(|max| batch.transitions.len() > max);
                let settled = match machine.refuses {
                    Some(reason) => {
                        let refused =
                            batch.transitions.iter().map(|_| Settled::Refused(reason.into()));
                        Ok(refused.collect())
                    }
                    None if !is_too_much || machine.written_anyway => {
                        ready(store.commit(node, &batch))
                    }
                    None => Ok(Vec::new()),
                };
                let unknown = || Err(Error::OutcomeUnknown("no answer in time".to_owned()));
                ("commit", Input::Committed(node, if is_too_much { unknown() } else { settled }))
            }
            Output::StartKeyed(node, starts) => {
                machine.keyed.push(starts.clone());
                ("start_keyed", Input::KeyedStarted(node, ready(store.start_keyed(node, &starts))))
            }
            Output::Load(node, asked) => {
                let loaded = ready(load(store, &self.plans, node, &asked));
                ("load", Input::Loaded { node, asked, loaded })
            }
            Output::Adopt { node, silent, limit } => {
                ("adopt", Input::Adopted(node, ready(Adopted::ask(store, node, &silent, limit))))
            }
            Output::Heads(node, ids) => {
                machine.heads.push(ids.clone());
                ("heads", Input::Heads(node, ready(store.heads(&ids))))
            }
            Output::Due(node, until, after, limit) => {
                ("due", Input::Due(node, ready(store.due(node, until, after, limit))))
            }
            Output::Publish(node, idle) => {
                ("publish", Input::Published(node, ready(store.publish_idle(node, &idle))))
            }
            Output::Claim { node, idle, limit, lease, now } => {
                let claimed = ready(store.claim(node, &idle, limit, lease, now));
                ("claim", Input::Claimed(node, claimed))
            }
            Output::Overflow(node, tasks) => {
                let result = ready(store.overflow(node, &tasks));
                ("overflow", Input::Overflowed { node, tasks, result })
            }
            Output::WithdrawOverflow(keys) => {
                return ready(store.withdraw(&keys)).expect("the model does not fail");
            }
            other => unreachable!("no test here asks for {other:?}"),
        };
        machine.calls.push(name);
        if machine.hold_back.contains(&name) {
            return machine.late.push(input);
        }
        if let Input::Joined(Ok(lease)) | Input::Renewed(_, Ok(lease)) = &input {
            let tick = self.tick();
            let clock = &mut self.machines[at].clock;
            let (database, reached) = (lease.now, lease.reached);
            clock.correct(Reading { database, reached, ..Reading::default() }, tick);
        }
        let now = self.at(at);
        self.machines[at].node.handle(input, now);
    }

    /// Starts an execution and answers with its id.
    pub fn start(&mut self, machine: usize, namespace: &str) -> ExecutionId {
        self.start_of(machine, namespace, "order")
    }

    /// Starts an execution of a workflow and answers with its id.
    pub fn start_of(&mut self, machine: usize, namespace: &str, workflow: &str) -> ExecutionId {
        let (id, answer) = self.asks_to_start(machine, namespace, workflow, None, "1");
        answer.expect("at once").expect("it starts");
        id
    }

    /// Asks for an execution that is not there at once.
    pub fn start_later(&mut self, machine: usize, namespace: &str) -> ExecutionId {
        let (id, answer) = self.asks_to_start(machine, namespace, "order", None, "1");
        assert!(answer.is_none(), "{answer:?}");
        id
    }

    /// Starts an execution in `default` with an input of so many bytes, if there is room.
    pub fn start_sized(&mut self, machine: usize, bytes: usize) -> Result<ExecutionId, Refusal> {
        let input = format!("\"{}\"", "x".repeat(bytes));
        let (id, answer) = self.asks_to_start(machine, "default", "order", None, &input);
        answer.expect("at once").map(|_| id)
    }

    /// The same in `default`, under a key and with an input of this text.
    pub fn start_keyed_later(&mut self, machine: usize, key: &str, text: &str) -> ExecutionId {
        let input = format!("\"{text}\"");
        let (id, answer) = self.asks_to_start(machine, "default", "order", Some(key), &input);
        assert!(answer.is_none(), "{answer:?}");
        id
    }

    fn asks_to_start(
        &mut self,
        machine: usize,
        namespace: &str,
        workflow: &str,
        key: Option<&str>,
        input: &str,
    ) -> (ExecutionId, Option<Result<Answer, Refusal>>) {
        let namespace = Namespace::from(namespace);
        let plan = ready(self.plans.find(&self.store, &namespace, &workflow.into(), None));
        let plan: Arc<Plan> = plan.expect("it compiles").expect("it is registered");
        let number = self.last.to_be_bytes();
        let mut random = [0; 10];
        random[2..].copy_from_slice(&number);
        let id = ExecutionId::new(self.now(), random);
        let spec = Box::new(StartSpec {
            start: StartExecution {
                id,
                namespace,
                key: key.map(str::to_owned),
                input: Payload::json(input.to_owned()),
                timeout: None,
                trace: TraceContext::default(),
            },
            plan,
            on_running: OnRunning::Reject,
            on_ended: OnEnded::Allow,
            request: None,
            until: None,
        });
        (id, self.ask(machine, |reply| Input::Start { spec, reply }))
    }

    pub fn attach(&mut self, machine: usize, offer: Offer) -> WorkerKey {
        self.last += 1;
        let worker = self.last;
        self.put(machine, Input::Attach { worker, offer });
        worker
    }

    /// What a worker was told since a test looked last.
    pub fn told(&mut self, machine: usize, worker: WorkerKey) -> Vec<WorkerMessage> {
        let told = &mut self.machines[machine].told;
        let (own, others) = std::mem::take(told).into_iter().partition(|(to, _)| *to == worker);
        *told = others;
        let own: Vec<(WorkerKey, WorkerMessage)> = own;
        own.into_iter().map(|(_, message)| message).collect()
    }

    /// The tasks that a worker was handed since a test looked last.
    pub fn handed(&mut self, machine: usize, worker: WorkerKey) -> Vec<TaskId> {
        let tasks = self.told(machine, worker).into_iter().flat_map(|message| match message {
            WorkerMessage::Tasks(tasks) => tasks,
            _ => Vec::new(),
        });
        tasks.map(|handed| handed.id).collect()
    }

    pub fn snapshot(&mut self, machine: usize, execution: ExecutionId) -> Snapshot {
        match self.ask(machine, |reply| Input::Get { execution, reply }) {
            Some(Ok(Answer::Snapshot(snapshot))) => snapshot,
            other => panic!("no snapshot of {execution}: {other:?}"),
        }
    }
}

pub fn session(namespace: &str, id: &str) -> SessionKey {
    SessionKey { namespace: Namespace::from(namespace), id: id.to_owned() }
}

/// A poll for one task.
pub fn poll(namespace: &str, id: &str, held: Option<&[&TaskId]>) -> Offer {
    let key = session(namespace, id);
    Offer {
        queues: vec![QueueName { namespace: key.namespace.clone(), queue: "default".into() }],
        task_types: Vec::new(),
        credit: 1,
        session: (!id.is_empty()).then_some(Session { key, ttl: Duration::from_secs(3) }),
        worker: format!("worker of {id}"),
        held: held.map(|held| held.iter().map(|task| (*task).clone()).collect()),
        once: true,
    }
}

pub fn stream(namespace: &str, id: &str, held: &[&TaskId]) -> Offer {
    Offer { once: false, ..poll(namespace, id, Some(held)) }
}

fn watched() -> Workflow {
    let mut workflow = order();
    workflow.name = "watched".into();
    let StepKind::Task(task) = &mut workflow.steps.0[0].kind;
    task.timeouts.heartbeat = Some(Duration::from_secs(2));
    workflow
}

/// One step, `charge`, three attempts a second apart.
pub fn order() -> Workflow {
    let interval = Duration::from_secs(1);
    let step = Step {
        id: StepId::from("charge"),
        description: String::new(),
        kind: StepKind::Task(Task { task_type: "charge".into(), ..Task::default() }),
        when: None,
        retry: Some(RetryPolicy {
            schedule: Some(Schedule::Constant { interval }),
            limits: Limits { max_attempts: Some(3), max_duration: None },
            ..RetryPolicy::default()
        }),
        on_error: OnError::Fail,
        allow_warning: false,
        compensate: None,
    };
    Workflow {
        name: "order".into(),
        description: String::new(),
        defaults: Defaults::default(),
        steps: Block(vec![step]),
        finally: Block::default(),
        timeout: None,
        cleanup_timeout: None,
        cancel_grace: None,
        output: None,
    }
}
