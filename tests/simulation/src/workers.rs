//! Workers: streams that list what they hold when they reconnect, and polls. [`crate::jobs`] has what they do
//! with their tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use recoup_core::command::TaskId;
use recoup_core::id::Namespace;
use recoup_core::time::Timestamp;
use recoup_engine::HandedTask;
use recoup_engine::node::Node;
use recoup_engine::node::io::{Input, Offer, Session, SessionKey, WorkerKey, WorkerMessage};

use crate::catalog::{NAMESPACE, QUEUES, queue};
use crate::faults::Profile;
use crate::jobs::{Job, Report};
use crate::machines::{ReplyId, Request};
use crate::random::Random;
use crate::trace::short;
use crate::world::{Event, World};

#[derive(Clone, Debug)]
pub enum Wake {
    /// A process begins.
    Begin(usize),
    Connect(usize, u64),
    /// A message has arrived over a connection.
    Hear(WorkerKey, Message),
    Work(usize, u64, TaskId),
    /// A report has not been answered.
    ReportAgain(usize, u64, TaskId),
    Answered(usize, u64, Report, Result<bool, bool>),
    KeepAlive(usize, u64),
    Beat(usize, u64, TaskId),
    /// The process is asked to stop in an orderly way.
    Drain(usize),
    /// The poll's wait is over.
    PollOver(WorkerKey),
    /// A task that hangs is given up in the end, because workers know how long a task may take.
    GiveUp(usize, u64, TaskId),
}

/// The part of a [`WorkerMessage`] that a worker needs.
#[derive(Clone, Debug)]
pub enum Message {
    Tasks(Vec<(TaskId, Option<Duration>, String)>),
    CancelRequested(TaskId),
    Closed(TaskId),
    Detached,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Stream,
    /// Asks for tasks, one call after the other.
    Poll {
        has_session: bool,
    },
}

pub struct Worker {
    pub kind: Kind,
    queues: Vec<&'static str>,
    /// The task types that it takes; an empty list means all.
    task_types: Vec<String>,
    /// Counts the worker's processes.
    pub life: u64,
    alive: bool,
    /// It begins no further task.
    pub draining: bool,
    slots: u32,
    pub link: Option<Link>,
    pub jobs: BTreeMap<TaskId, Job>,
}

#[derive(Clone, Debug)]
pub struct Link {
    pub key: WorkerKey,
    machine: usize,
    life: u64,
    /// Messages on a connection keep their order.
    to_node: Timestamp,
    to_worker: Timestamp,
    /// How many messages the worker has not received yet.
    on_the_way: u32,
}

#[derive(Default)]
pub struct Workers {
    pub all: Vec<Worker>,
    /// The worker and the process that each connection belongs to.
    links: BTreeMap<WorkerKey, (usize, u64)>,
    /// Connections that the server has ended, but whose end the node has not learned yet.
    ended: BTreeSet<WorkerKey>,
}

const TTL: Duration = Duration::from_millis(1_500);

impl Workers {
    pub fn new(profile: &Profile, task_types: &[String], random: &mut Random) -> Self {
        let mut all = Vec::new();
        for index in 0..profile.stream_workers + profile.poll_workers {
            let kind = match index < profile.stream_workers {
                true => Kind::Stream,
                false => Kind::Poll { has_session: random.below(2) == 0 },
            };
            let queues = match random.below(4) {
                0 => vec![QUEUES[0]],
                1 => vec![QUEUES[1]],
                _ => QUEUES.to_vec(),
            };
            let slots = 1 + random.index(3);
            let mut taken = Vec::new();
            if random.below(2) == 0 {
                taken.extend(task_types.iter().filter(|_| random.below(2) == 0).cloned());
            }
            all.push(Worker { task_types: taken, ..Worker::new(kind, queues, slots) });
        }
        Self { all, links: BTreeMap::new(), ended: BTreeSet::new() }
    }

    pub fn count(&self) -> usize {
        self.all.len()
    }
}

impl Worker {
    fn new(kind: Kind, queues: Vec<&'static str>, slots: usize) -> Self {
        let slots = u32::try_from(slots).unwrap_or(1);
        Self {
            kind,
            queues,
            task_types: Vec::new(),
            life: 0,
            alive: false,
            draining: false,
            slots,
            link: None,
            jobs: BTreeMap::new(),
        }
    }

    /// Whether a process is working on a task now.
    pub fn is_at(&self, life: u64, task: &TaskId) -> bool {
        self.alive && self.life == life && self.jobs.contains_key(task)
    }

    pub fn has_session(&self) -> bool {
        self.kind == Kind::Stream || self.kind == (Kind::Poll { has_session: true })
    }
}

pub fn session_key(name: &str) -> SessionKey {
    SessionKey { namespace: Namespace::from(NAMESPACE), id: name.to_owned() }
}

impl World<'_> {
    pub fn begin_workers(&mut self) {
        for worker in 0..self.workers.all.len() {
            let after = self.random.millis(0, 3_000);
            self.after(after, Event::Worker(Wake::Begin(worker)));
        }
    }

    /// Makes sure that from now on every queue has a worker.
    pub fn heal_workers(&mut self) {
        for _ in 0..2 {
            let worker = Worker::new(Kind::Stream, QUEUES.to_vec(), 4);
            self.workers.all.push(worker);
            let index = self.workers.all.len() - 1;
            let after = self.random.millis(0, 300);
            self.after(after, Event::Worker(Wake::Begin(index)));
        }
    }

    pub fn name(&self, worker: usize) -> String {
        format!("w{worker}.{}", self.workers.all[worker].life)
    }

    /// The worker, if it is still the same process.
    pub fn process(&mut self, worker: usize, life: u64) -> Option<&mut Worker> {
        let process = self.workers.all.get_mut(worker)?;
        (process.alive && process.life == life).then_some(process)
    }

    pub fn worker(&mut self, wake: Wake) {
        match wake {
            Wake::Begin(worker) => self.begin_worker(worker),
            Wake::Connect(worker, life) => self.connect(worker, life),
            Wake::Hear(key, message) => self.hear(key, message),
            Wake::Work(worker, life, task) => self.work(worker, life, &task),
            Wake::ReportAgain(worker, life, task) => self.report(worker, life, &task),
            Wake::Answered(worker, life, report, answer) => {
                self.hear_answer(worker, life, &report, answer);
            }
            Wake::KeepAlive(worker, life) => self.keep_alive(worker, life),
            Wake::Beat(worker, life, task) => self.beat(worker, life, task),
            Wake::PollOver(key) => self.poll_over(key),
            Wake::GiveUp(worker, life, task) => self.job_over(worker, life, &task),
            Wake::Drain(worker) => self.drain(worker),
        }
    }

    fn begin_worker(&mut self, worker: usize) {
        let process = &mut self.workers.all[worker];
        process.life += 1;
        process.alive = true;
        process.draining = false;
        process.jobs.clear();
        process.link = None;
        let life = process.life;
        let name = self.name(worker);
        self.note(format_args!("worker {name} begins"));
        if self.workers.all[worker].has_session() {
            self.ledger.sessions.begin(name, TTL);
        }
        self.connect(worker, life);
        self.after(TTL / 3, Event::Worker(Wake::KeepAlive(worker, life)));
    }

    pub fn die(&mut self, worker: usize, life: u64) {
        let Some(process) = self.process(worker, life) else {
            return;
        };
        process.alive = false;
        process.jobs.clear();
        let name = self.name(worker);
        self.note(format_args!("worker {name} dies"));
        self.break_link(worker);
        let after = match self.random.below(2) {
            0 => self.random.millis(50, 1_000),
            _ => self.random.millis(1_000, 6_000),
        };
        self.after(after, Event::Worker(Wake::Begin(worker)));
    }

    pub fn connect(&mut self, worker: usize, life: u64) {
        let machine = self.pick_machine(worker);
        let name = self.name(worker);
        let Some(process) = self.process(worker, life) else {
            return;
        };
        if process.link.is_some() {
            return;
        }
        let held: Vec<_> = process.jobs.keys().cloned().collect();
        let busy = u32::try_from(held.len()).unwrap_or(u32::MAX);
        let credit = process.slots.saturating_sub(busy);
        let is_poll = process.kind != Kind::Stream;
        if is_poll && (credit == 0 || process.draining) {
            // It polls again when a task is finished.
            return;
        }
        let credit = if process.draining { 0 } else { credit };
        let session = process.has_session().then(|| Session { key: session_key(&name), ttl: TTL });
        let queues = process.queues.iter().map(|name| queue(name)).collect();
        let task_types = process.task_types.clone();
        let key = self.new_worker_key();
        let offer = Offer {
            queues,
            task_types,
            credit,
            session,
            worker: name.clone(),
            held: Some(held),
            once: is_poll,
        };
        let node_life = self.machines[machine].life;
        let now = self.now();
        let link =
            Link { key, machine, life: node_life, to_node: now, to_worker: now, on_the_way: 0 };
        self.workers.all[worker].link = Some(link);
        self.workers.links.insert(key, (worker, life));
        let held = offer.held.as_ref().map_or(0, Vec::len);
        self.note(format_args!("worker {name} attaches to machine {machine}, holds {held}"));
        if self.machines[machine].node.is_none() || self.machines[machine].stopping.is_some() {
            return self.lose_link(worker, life);
        }
        self.over_link(worker, Input::Attach { worker: key, offer });
        if is_poll {
            let wait = self.random.millis(300, 2_000);
            self.after(wait, Event::Worker(Wake::PollOver(key)));
        }
    }

    /// Picks a machine to connect to. In a run without faults, no worker picks a machine that refuses connections.
    pub fn pick_machine(&mut self, worker: usize) -> usize {
        if !self.profile.polite {
            return self.random.index(self.machines.len());
        }
        // A session is alive only on the node that hears from it, so a worker stays with one machine if it can.
        let first = worker % self.machines.len();
        let all = (0..self.machines.len()).map(|step| (first + step) % self.machines.len());
        let serves = |machine: &usize| {
            let place = &self.machines[*machine];
            place.node.is_some() && place.stopping.is_none()
        };
        all.clone().find(serves).unwrap_or(first)
    }

    /// Sends a message over a worker's connection, in order. The connection may break.
    pub fn over_link(&mut self, worker: usize, input: Input<ReplyId>) {
        let Some(mut link) = self.workers.all[worker].link.clone() else {
            return;
        };
        let broken = self.profile.broken;
        if self.random.permille(broken) {
            let name = self.name(worker);
            self.note(format_args!("the connection of {name} breaks"));
            return self.break_link(worker);
        }
        let at = (self.now() + self.network_delay()).max(link.to_node);
        link.to_node = at;
        let (machine, life) = (link.machine, Some(link.life));
        self.workers.all[worker].link = Some(link);
        self.at(at, Event::Deliver { machine, life, request: Request::Input(Box::new(input)) });
    }

    /// A connection breaks. The node and the worker both notice after a while.
    fn break_link(&mut self, worker: usize) {
        let Some(link) = self.workers.all[worker].link.clone() else {
            return;
        };
        let noticed = match self.is_rough() {
            true => self.random.millis(1, 2_500),
            false => self.random.millis(1, 100),
        };
        self.end_link(worker, &link, self.now() + noticed);
    }

    /// The server ends a connection, and from now on accepts nothing more on it.
    fn end_at_server(&mut self, worker: usize, link: &Link) -> Timestamp {
        self.workers.ended.insert(link.key);
        self.end_link(worker, link, self.now())
    }

    /// The node learns of the end after everything that was sent before.
    fn end_link(&mut self, worker: usize, link: &Link, noticed: Timestamp) -> Timestamp {
        let at = noticed.max(link.to_node);
        let request = Request::Input(Box::new(Input::Detach { worker: link.key }));
        let (machine, life) = (link.machine, Some(link.life));
        self.at(at, Event::Deliver { machine, life, request });
        let life = self.workers.all[worker].life;
        self.lose_link(worker, life);
        at
    }

    /// A server that is stopping ends the connections on which nothing is under way, or finally all. Returns
    /// when its node learns of the last one, if none is left.
    pub fn end_links(&mut self, machine: usize, all: bool) -> Option<Timestamp> {
        let (mut last, mut left) = (self.now(), false);
        for worker in 0..self.workers.all.len() {
            let process = &self.workers.all[worker];
            let Some(link) = process.link.clone().filter(|link| link.machine == machine) else {
                continue;
            };
            let busy = process.kind == Kind::Stream && !process.jobs.is_empty();
            if !all && (busy || link.on_the_way > 0) {
                left = true;
                continue;
            }
            last = self.end_at_server(worker, &link).max(last);
        }
        (!left).then_some(last)
    }

    /// A process finishes the tasks that it has begun, and ends.
    fn drain(&mut self, worker: usize) {
        let process = &mut self.workers.all[worker];
        if !process.alive || process.draining {
            return;
        }
        process.draining = true;
        let life = process.life;
        let name = self.name(worker);
        self.note(format_args!("worker {name} drains"));
        if let Some(key) = self.stream_key(worker) {
            self.over_link(worker, Input::Drain { worker: key });
        }
        self.end_if_drained(worker, life);
    }

    fn stream_key(&self, worker: usize) -> Option<WorkerKey> {
        let process = &self.workers.all[worker];
        process.link.as_ref().filter(|_| process.kind == Kind::Stream).map(|link| link.key)
    }

    /// A server that is stopping hands no more tasks to its streams.
    pub fn drain_links(&mut self, machine: usize) {
        for worker in 0..self.workers.all.len() {
            let link = self.workers.all[worker].link.as_ref();
            let here = link.is_some_and(|link| link.machine == machine);
            if let Some(key) = self.stream_key(worker).filter(|_| here) {
                let life = Some(self.machines[machine].life);
                let request = Request::Input(Box::new(Input::Drain { worker: key }));
                self.after(Duration::ZERO, Event::Deliver { machine, life, request });
            }
        }
    }

    pub fn end_if_drained(&mut self, worker: usize, life: u64) {
        let Some(process) = self.process(worker, life) else {
            return;
        };
        let waits = process.link.as_ref().is_some_and(|link| link.on_the_way > 0);
        // The answer to a poll may be on its way, so it is waited for.
        let polls = process.kind != Kind::Stream && process.link.is_some();
        if !process.draining || !process.jobs.is_empty() || waits || polls {
            return;
        }
        process.alive = false;
        let link = process.link.clone();
        let name = self.name(worker);
        self.note(format_args!("worker {name} ends"));
        if let Some(link) = link {
            self.end_at_server(worker, &link);
        }
        self.drained += 1;
        let after = self.random.millis(50, 2_000);
        self.after(after, Event::Worker(Wake::Begin(worker)));
    }

    fn lose_link(&mut self, worker: usize, life: u64) {
        if let Some(link) = self.workers.all[worker].link.take() {
            self.workers.links.remove(&link.key);
        }
        let after = self.random.millis(1, if self.profile.polite { 200 } else { 600 });
        self.after(after, Event::Worker(Wake::Connect(worker, life)));
        if self.workers.all[worker].draining {
            self.end_if_drained(worker, life);
        }
    }

    /// A machine has crashed, and its connections with it.
    pub fn break_links_to(&mut self, machine: usize) {
        for worker in 0..self.workers.all.len() {
            let process = &self.workers.all[worker];
            if process.link.as_ref().is_some_and(|link| link.machine == machine) {
                let life = process.life;
                self.lose_link(worker, life);
            }
        }
    }

    /// Sends a message of a node to a worker.
    pub fn tell(
        &mut self,
        machine: usize,
        node: &Node<ReplyId>,
        key: WorkerKey,
        message: WorkerMessage,
    ) {
        let own = self.machines[machine].clock.elapsed(self.now());
        let is_stream = self
            .workers
            .links
            .get(&key)
            .is_some_and(|(worker, _)| self.workers.all[*worker].kind == Kind::Stream);
        let ends = match &message {
            WorkerMessage::CancelRequested(_) | WorkerMessage::Closed(_) => false,
            WorkerMessage::Tasks(_) => !is_stream,
            WorkerMessage::Detached | WorkerMessage::Superseded => true,
        };
        if ends {
            self.ledger.sessions.link_ends(key, own);
        }
        let message = match message {
            WorkerMessage::Tasks(tasks) => {
                let mut told = Vec::new();
                for handed in &tasks {
                    self.check_hand_out(machine, node, handed);
                    told.push(self.describe_task(machine, key, handed));
                }
                let ended = self.workers.ended.contains(&key);
                if ended || (is_stream && self.machines[machine].stopping.is_some()) {
                    // A stream that is ending passes no new tasks on.
                    return self.give_back(machine, key, ended, tasks);
                }
                for handed in &tasks {
                    self.check_sent(handed);
                    self.ledger.sessions.handed(key, &handed.id, own);
                }
                Message::Tasks(told)
            }
            WorkerMessage::CancelRequested(task) => Message::CancelRequested(task),
            WorkerMessage::Closed(task) => Message::Closed(task),
            WorkerMessage::Detached | WorkerMessage::Superseded => Message::Detached,
        };
        let Some((worker, _)) = self.workers.links.get(&key).copied() else {
            return;
        };
        let Some(mut link) = self.workers.all[worker].link.clone().filter(|link| link.key == key)
        else {
            return;
        };
        let (broken, lost) = (self.profile.broken, self.profile.lost);
        let is_poll = self.workers.all[worker].kind != Kind::Stream;
        if is_poll && self.random.permille(lost) {
            return self.note(format_args!("the answer to a poll is lost"));
        }
        if self.random.permille(broken) {
            let name = self.name(worker);
            self.note(format_args!("the connection of {name} breaks"));
            return self.break_link(worker);
        }
        let at = (self.now() + self.network_delay()).max(link.to_worker);
        link.to_worker = at;
        link.on_the_way += 1;
        self.workers.all[worker].link = Some(link);
        self.at(at, Event::Worker(Wake::Hear(key, message)));
    }

    /// Returns tasks that did not reach the worker to the node. The driver, which finds that the link is
    /// gone, detaches the worker first; otherwise the node would hand the same tasks to it again and again.
    fn give_back(&mut self, machine: usize, key: WorkerKey, gone: bool, tasks: Vec<HandedTask>) {
        let undelivered = tasks.into_iter().map(|handed| {
            let HandedTask { id: task, handed_at, .. } = handed;
            Input::Undelivered { task, handed_at }
        });
        if gone {
            // The driver does so at once, before it takes in anything else.
            let inputs = std::iter::once(Input::Detach { worker: key }).chain(undelivered);
            return self.put_first(machine, inputs.collect());
        }
        let life = Some(self.machines[machine].life);
        for input in undelivered {
            let request = Request::Input(Box::new(input));
            self.after(Duration::ZERO, Event::Deliver { machine, life, request });
        }
    }

    fn describe_task(
        &mut self,
        machine: usize,
        key: WorkerKey,
        handed: &HandedTask,
    ) -> (TaskId, Option<Duration>, String) {
        let task = handed.id.clone();
        let plan = handed.plan.task(&task.path);
        let beats = plan.and_then(|plan| plan.heartbeat);
        let task_type = plan.map_or(String::new(), |plan| plan.task_type.clone());
        let (execution, path, attempt) = (short(&task.execution), &task.path, task.attempt);
        self.note(format_args!("machine {machine} hands {execution} {path}:{attempt} to {key}"));
        (task, beats, task_type)
    }

    fn hear(&mut self, key: WorkerKey, message: Message) {
        let Some((worker, life)) = self.workers.links.get(&key).copied() else {
            return;
        };
        if self.process(worker, life).is_none() {
            return;
        }
        if let Some(link) = &mut self.workers.all[worker].link {
            link.on_the_way = link.on_the_way.saturating_sub(1);
        }
        match message {
            Message::Tasks(tasks) => {
                for (task, beats, task_type) in tasks {
                    let taken = &self.workers.all[worker].task_types;
                    if !taken.is_empty() && !taken.contains(&task_type) {
                        let what = format!("worker {worker} gets {task_type} of {task:?}");
                        return self
                            .violate("a worker gets only the task types that it takes", what);
                    }
                    self.take_task(worker, life, task, beats, &task_type);
                }
                if self.workers.all[worker].kind != Kind::Stream {
                    // This poll is over, and the node has detached it.
                    self.lose_link(worker, life);
                }
            }
            Message::CancelRequested(task) => {
                let stops = self.random.below(2) == 0;
                if let Some(job) = self.workers.all[worker].jobs.get_mut(&task)
                    && job.report.is_none()
                    && stops
                {
                    job.stop();
                    self.work(worker, life, &task);
                }
            }
            Message::Closed(task) => self.job_over(worker, life, &task),
            Message::Detached => self.lose_link(worker, life),
        }
        // It may have been waiting only for this message.
        self.end_if_drained(worker, life);
    }

    fn keep_alive(&mut self, worker: usize, life: u64) {
        let name = self.name(worker);
        let Some(process) = self.process(worker, life) else {
            return;
        };
        match process.kind {
            Kind::Stream => self.over_link(worker, Input::Touch { session: session_key(&name) }),
            // A worker that polls shows that it is alive by sending heartbeats for its tasks.
            Kind::Poll { has_session: false } => {}
            Kind::Poll { has_session: true } => {
                for task in process.jobs.keys().cloned().collect::<Vec<_>>() {
                    self.send_report(worker, life, Report::Beat { task });
                }
            }
        }
        self.after(TTL / 3, Event::Worker(Wake::KeepAlive(worker, life)));
    }

    /// The API answers a poll that has got nothing, and detaches it.
    fn poll_over(&mut self, key: WorkerKey) {
        let Some((worker, _)) = self.workers.links.get(&key).copied() else {
            return;
        };
        let link = self.workers.all[worker].link.clone();
        if let Some(link) = link.filter(|link| link.key == key && link.on_the_way == 0) {
            self.end_at_server(worker, &link);
        }
    }
}
