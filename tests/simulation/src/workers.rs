//! Workers: streams that reconnect with what they hold, and polls; they complete, fail, hang, die,
//! answer twice, answer late, give tasks back, and beat or do not.

use std::collections::BTreeMap;
use std::time::Duration;

use recoup_core::command::{Command, Rejection, TaskId};
use recoup_core::error::Error;
use recoup_core::id::Namespace;
use recoup_core::payload::Payload;
use recoup_core::time::Timestamp;
use recoup_engine::node::Node;
use recoup_engine::node::io::{
    Answer, HandedTask, Input, Offer, Refusal, Session, SessionKey, WorkerKey, WorkerMessage,
};

use crate::calls::short;
use crate::catalog::{NAMESPACE, QUEUES, queue};
use crate::faults::Profile;
use crate::machines::{Asker, ReplyId, Request};
use crate::random::Random;
use crate::world::{Event, World};

/// What a worker tells about a task.
#[derive(Clone, Debug)]
pub enum Report {
    Complete { task: TaskId, output: Payload },
    Fail { task: TaskId, error: Error },
    Beat { task: TaskId },
    Release { task: TaskId },
}

impl Report {
    pub fn task(&self) -> &TaskId {
        match self {
            Self::Complete { task, .. }
            | Self::Fail { task, .. }
            | Self::Beat { task }
            | Self::Release { task } => task,
        }
    }
}

#[derive(Clone, Debug)]
pub enum Wake {
    /// A process begins.
    Begin(usize),
    Connect(usize, u64),
    /// A message has come over a connection.
    Hear(WorkerKey, Message),
    Work(usize, u64, TaskId),
    /// No answer to a report.
    ReportAgain(usize, u64, TaskId),
    Answered(usize, u64, Report, Result<bool, bool>),
    KeepAlive(usize, u64),
    Beat(usize, u64, TaskId),
    /// The poll's wait is over.
    PollOver(WorkerKey),
    /// What hangs is cut off in the end: workers know the time that a task may take.
    GiveUp(usize, u64, TaskId),
}

/// Of [`WorkerMessage`], what a worker needs.
#[derive(Clone, Debug)]
pub enum Message {
    Tasks(Vec<(TaskId, Option<Duration>, String)>),
    CancelRequested(TaskId),
    Closed(TaskId),
    Detached,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Stream,
    /// Asks for tasks, one call after the other.
    Poll {
        has_session: bool,
    },
}

pub struct Worker {
    kind: Kind,
    queues: Vec<&'static str>,
    /// Counts processes.
    life: u64,
    alive: bool,
    slots: u32,
    link: Option<Link>,
    jobs: BTreeMap<TaskId, Job>,
}

#[derive(Clone, Debug)]
struct Link {
    key: WorkerKey,
    machine: usize,
    life: u64,
    /// Messages on a connection keep their order.
    to_node: Timestamp,
    to_worker: Timestamp,
}

#[derive(Clone, Debug)]
struct Job {
    todo: Todo,
    report: Option<Report>,
    beats: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Todo {
    Complete,
    Fail,
    Hang,
    /// Says something else the second time.
    Twice,
    Die,
    GiveBack,
}

#[derive(Default)]
pub struct Workers {
    all: Vec<Worker>,
    /// Who is behind a connection.
    links: BTreeMap<WorkerKey, (usize, u64)>,
}

const TTL: Duration = Duration::from_millis(1_500);

impl Workers {
    pub fn new(profile: &Profile, random: &mut Random) -> Self {
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
            all.push(Worker::new(kind, queues, 1 + random.index(3)));
        }
        Self { all, links: BTreeMap::new() }
    }
}

impl Worker {
    fn new(kind: Kind, queues: Vec<&'static str>, slots: usize) -> Self {
        let slots = u32::try_from(slots).unwrap_or(1);
        Self { kind, queues, life: 0, alive: false, slots, link: None, jobs: BTreeMap::new() }
    }

    fn has_session(&self) -> bool {
        self.kind == Kind::Stream || self.kind == (Kind::Poll { has_session: true })
    }
}

fn session_key(name: &str) -> SessionKey {
    SessionKey { namespace: Namespace::from(NAMESPACE), id: name.to_owned() }
}

impl World<'_> {
    pub fn begin_workers(&mut self) {
        for worker in 0..self.workers.all.len() {
            let after = self.random.millis(0, 3_000);
            self.after(after, Event::Worker(Wake::Begin(worker)));
        }
    }

    /// From now on there is somebody for every queue.
    pub fn heal_workers(&mut self) {
        for _ in 0..2 {
            let worker = Worker::new(Kind::Stream, QUEUES.to_vec(), 4);
            self.workers.all.push(worker);
            let index = self.workers.all.len() - 1;
            let after = self.random.millis(0, 300);
            self.after(after, Event::Worker(Wake::Begin(index)));
        }
    }

    fn name(&self, worker: usize) -> String {
        format!("w{worker}.{}", self.workers.all[worker].life)
    }

    /// The worker, if it is still the same process.
    fn process(&mut self, worker: usize, life: u64) -> Option<&mut Worker> {
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
        }
    }

    fn begin_worker(&mut self, worker: usize) {
        let process = &mut self.workers.all[worker];
        process.life += 1;
        process.alive = true;
        process.jobs.clear();
        process.link = None;
        let life = process.life;
        let name = self.name(worker);
        self.note(format_args!("worker {name} begins"));
        self.ledger.session_ttl.insert(name, TTL);
        self.connect(worker, life);
        self.after(TTL / 3, Event::Worker(Wake::KeepAlive(worker, life)));
    }

    fn die(&mut self, worker: usize, life: u64) {
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

    fn connect(&mut self, worker: usize, life: u64) {
        let machine = self.random.index(self.machines.len());
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
        if is_poll && credit == 0 {
            // Polls again when something is done.
            return;
        }
        let session = process.has_session().then(|| Session { key: session_key(&name), ttl: TTL });
        let queues = process.queues.iter().map(|name| queue(name)).collect();
        let key = self.new_worker_key();
        let offer = Offer {
            queues,
            task_types: Vec::new(),
            credit,
            session,
            worker: name.clone(),
            held: Some(held),
            once: is_poll,
        };
        let node_life = self.machines[machine].life;
        let now = self.now();
        let link = Link { key, machine, life: node_life, to_node: now, to_worker: now };
        self.workers.all[worker].link = Some(link);
        self.workers.links.insert(key, (worker, life));
        let held = offer.held.as_ref().map_or(0, Vec::len);
        self.note(format_args!("worker {name} attaches to machine {machine}, holds {held}"));
        if self.machines[machine].node.is_none() {
            return self.lose_link(worker, life);
        }
        self.over_link(worker, Input::Attach { worker: key, offer });
        if is_poll {
            let wait = self.random.millis(300, 2_000);
            self.after(wait, Event::Worker(Wake::PollOver(key)));
        }
    }

    /// Sends something over a worker's connection, in order; the connection may break.
    fn over_link(&mut self, worker: usize, input: Input<ReplyId>) {
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

    /// A connection ends: the node notices in a while, the worker too.
    fn break_link(&mut self, worker: usize) {
        let Some(link) = self.workers.all[worker].link.clone() else {
            return;
        };
        let noticed = match self.is_faulty() {
            true => self.random.millis(1, 2_500),
            false => self.random.millis(1, 100),
        };
        let at = (self.now() + noticed).max(link.to_node);
        let request = Request::Input(Box::new(Input::Detach { worker: link.key }));
        let (machine, life) = (link.machine, Some(link.life));
        self.at(at, Event::Deliver { machine, life, request });
        let life = self.workers.all[worker].life;
        self.lose_link(worker, life);
    }

    fn lose_link(&mut self, worker: usize, life: u64) {
        if let Some(link) = self.workers.all[worker].link.take() {
            self.workers.links.remove(&link.key);
        }
        let after = self.random.millis(1, 600);
        self.after(after, Event::Worker(Wake::Connect(worker, life)));
    }

    /// A machine has crashed: so have its connections.
    pub fn break_links_to(&mut self, machine: usize) {
        for worker in 0..self.workers.all.len() {
            let process = &self.workers.all[worker];
            if process.link.as_ref().is_some_and(|link| link.machine == machine) {
                let life = process.life;
                self.lose_link(worker, life);
            }
        }
    }

    /// A node says something to a worker.
    pub fn tell(
        &mut self,
        machine: usize,
        node: &Node<ReplyId>,
        key: WorkerKey,
        message: WorkerMessage,
    ) {
        if !matches!(message, WorkerMessage::CancelRequested(_) | WorkerMessage::Closed(_)) {
            let now = self.now();
            self.ledger.poll_ends(key, now);
        }
        let message = match message {
            WorkerMessage::Tasks(tasks) => {
                let mut told = Vec::new();
                for handed in &tasks {
                    self.check_hand_out(machine, node, handed);
                    told.push(self.describe_task(machine, key, handed));
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
        self.workers.all[worker].link = Some(link);
        self.at(at, Event::Worker(Wake::Hear(key, message)));
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
        match message {
            Message::Tasks(tasks) => {
                for (task, beats, task_type) in tasks {
                    self.take_task(worker, life, task, beats, &task_type);
                }
                if self.workers.all[worker].kind != Kind::Stream {
                    // This poll is over; the node has detached it.
                    self.lose_link(worker, life);
                }
            }
            Message::CancelRequested(task) => {
                let stops = self.random.below(2) == 0;
                if let Some(job) = self.workers.all[worker].jobs.get_mut(&task)
                    && job.report.is_none()
                    && stops
                {
                    job.todo = Todo::Fail;
                    self.work(worker, life, &task);
                }
            }
            Message::Closed(task) => self.job_over(worker, life, &task),
            Message::Detached => self.lose_link(worker, life),
        }
    }

    fn take_task(
        &mut self,
        worker: usize,
        life: u64,
        task: TaskId,
        beats: Option<Duration>,
        task_type: &str,
    ) {
        if self.workers.all[worker].jobs.contains_key(&task) {
            // Handed out again to who has it: nothing new, but for the credit.
            if self.workers.all[worker].kind == Kind::Stream {
                let key = self.workers.all[worker].link.as_ref().map_or(0, |link| link.key);
                self.over_link(worker, Input::Credit { worker: key, tasks: 1 });
            }
            return;
        }
        let roll = self.random.below(100);
        let prone = task_type.contains("fails") && self.random.below(3) > 0;
        let todo = match (self.is_faulty(), roll) {
            _ if prone => Todo::Fail,
            (true, 0..=66) | (false, 0..=91) => Todo::Complete,
            (true, 67..=83) | (false, _) => Todo::Fail,
            (true, 84..=88) => Todo::Hang,
            (true, 89..=92) => Todo::Twice,
            (true, 93..=95) => Todo::Die,
            (true, _) => Todo::GiveBack,
        };
        let duration = match self.random.below(12) {
            0 if self.is_faulty() => self.random.millis(2_000, 4_500),
            1 | 2 => self.random.millis(300, 1_500),
            _ => self.random.millis(1, 250),
        };
        let job = Job { todo, report: None, beats };
        self.workers.all[worker].jobs.insert(task.clone(), job);
        if let Some(beats) = beats {
            self.after(beats / 3, Event::Worker(Wake::Beat(worker, life, task.clone())));
        }
        self.after(duration, Event::Worker(Wake::Work(worker, life, task)));
    }

    /// A job is done, one way or the other.
    fn work(&mut self, worker: usize, life: u64, task: &TaskId) {
        let number = self.random.below(100);
        let error = match self.random.below(4) {
            0 => Error::new("user.declined", "no"),
            1 => Error {
                next_retry_delay: Some(Duration::from_millis(90)),
                ..Error::new("user.slow", "later")
            },
            _ => Error::new("user.transient", "try again"),
        };
        let name = self.name(worker);
        let Some(process) = self.process(worker, life) else {
            return;
        };
        let Some(job) = process.jobs.get_mut(task).filter(|job| job.report.is_none()) else {
            return;
        };
        let output = Payload::json(format!("{{\"n\":{number},\"by\":\"{name}\"}}"));
        let complete = |output| Report::Complete { task: task.clone(), output };
        match job.todo {
            Todo::Complete => job.report = Some(complete(output)),
            Todo::Fail => job.report = Some(Report::Fail { task: task.clone(), error }),
            Todo::Twice => {
                job.report = Some(complete(output));
                let other = Payload::json(format!("{{\"n\":{number},\"by\":\"other\"}}"));
                let other = complete(other);
                self.send_report(worker, life, other);
            }
            Todo::Hang => {
                let give_up = Wake::GiveUp(worker, life, task.clone());
                return self.after(Duration::from_secs(7), Event::Worker(give_up));
            }
            Todo::Die => return self.die(worker, life),
            Todo::GiveBack => {
                self.send_report(worker, life, Report::Release { task: task.clone() });
                return self.job_over(worker, life, task);
            }
        }
        self.report(worker, life, task);
    }

    fn report(&mut self, worker: usize, life: u64, task: &TaskId) {
        let report = self
            .process(worker, life)
            .and_then(|process| process.jobs.get(task).and_then(|job| job.report.clone()));
        let Some(report) = report else {
            return;
        };
        self.send_report(worker, life, report);
        let after = self.random.millis(2_000, 4_000);
        self.after(after, Event::Worker(Wake::ReportAgain(worker, life, task.clone())));
    }

    fn send_report(&mut self, worker: usize, life: u64, report: Report) {
        let name = self.name(worker);
        let doubled = self.profile.doubled;
        let copies = if self.random.permille(doubled) { 2 } else { 1 };
        for _ in 0..copies {
            let reply = self.ask(Asker::Worker { worker, life, report: report.clone() });
            let execution = report.task().execution;
            let input = match report.clone() {
                Report::Complete { task, output } => {
                    let command = Command::CompleteTask { task, output, worker: name.clone() };
                    Input::Submit { execution, command, request: None, reply }
                }
                Report::Fail { task, error } => {
                    let command = Command::FailTask { task, error, worker: name.clone() };
                    Input::Submit { execution, command, request: None, reply }
                }
                Report::Beat { task } => Input::Heartbeat { task, details: None, reply },
                Report::Release { task } => {
                    let has_session = self.workers.all[worker].has_session();
                    let session = if has_session { name.clone() } else { String::new() };
                    Input::Release { task, session, reply }
                }
            };
            let touch = Input::Touch { session: session_key(&name) };
            if self.workers.all[worker].kind == Kind::Stream {
                self.over_link(worker, touch);
                self.over_link(worker, input);
            } else {
                let machine = self.random.index(self.machines.len());
                self.send(machine, None, Request::Input(Box::new(touch)));
                self.send(machine, None, Request::Input(Box::new(input)));
            }
        }
    }

    /// A node answers a report.
    pub fn worker_answered(
        &mut self,
        machine: usize,
        worker: usize,
        life: u64,
        report: Report,
        answer: Result<Answer, Refusal>,
    ) {
        let task = report.task();
        let (execution, path, attempt) = (short(&task.execution), &task.path, task.attempt);
        let name = self.name(worker);
        let text = match &answer {
            Ok(_) => "ok".to_owned(),
            Err(refusal) => refusal.to_string(),
        };
        let place = format!("{execution} {path}:{attempt}");
        self.note(format_args!("machine {machine} answers {name} about {place}: {text}"));
        self.check_worker_answer(machine, &report, &answer);
        let lost = self.profile.lost;
        if self.random.permille(lost) {
            return;
        }
        let answer = match answer {
            Ok(_) => Ok(true),
            Err(Refusal::Rejected(Rejection::AttemptClosed)) => Err(true),
            Err(_) => Err(false),
        };
        let delay = self.network_delay();
        self.after(delay, Event::Worker(Wake::Answered(worker, life, report, answer)));
    }

    fn hear_answer(
        &mut self,
        worker: usize,
        life: u64,
        report: &Report,
        answer: Result<bool, bool>,
    ) {
        let is_beat = matches!(report, Report::Beat { .. } | Report::Release { .. });
        match answer {
            Ok(_) if is_beat => {}
            Ok(_) | Err(true) => self.job_over(worker, life, report.task()),
            // Not done: it is told again in a while.
            Err(false) => {}
        }
    }

    fn job_over(&mut self, worker: usize, life: u64, task: &TaskId) {
        let Some(process) = self.process(worker, life) else {
            return;
        };
        if process.jobs.remove(task).is_none() {
            return;
        }
        let key = process.link.as_ref().map(|link| link.key);
        match (process.kind, key) {
            (Kind::Stream, Some(key)) => {
                self.over_link(worker, Input::Credit { worker: key, tasks: 1 });
            }
            (Kind::Stream, None) => {}
            (Kind::Poll { .. }, _) => self.connect(worker, life),
        }
    }

    fn keep_alive(&mut self, worker: usize, life: u64) {
        let name = self.name(worker);
        let Some(process) = self.process(worker, life) else {
            return;
        };
        if process.kind == Kind::Stream {
            self.over_link(worker, Input::Touch { session: session_key(&name) });
        }
        self.after(TTL / 3, Event::Worker(Wake::KeepAlive(worker, life)));
    }

    fn beat(&mut self, worker: usize, life: u64, task: TaskId) {
        let Some(process) = self.process(worker, life) else {
            return;
        };
        let Some(job) = process.jobs.get(&task).filter(|job| job.todo != Todo::Hang) else {
            return;
        };
        let Some(beats) = job.beats else {
            return;
        };
        self.send_report(worker, life, Report::Beat { task: task.clone() });
        self.after(beats / 3, Event::Worker(Wake::Beat(worker, life, task)));
    }

    /// The API answers a poll that has got nothing, and detaches it.
    fn poll_over(&mut self, key: WorkerKey) {
        let Some((worker, _)) = self.workers.links.get(&key).copied() else {
            return;
        };
        if self.workers.all[worker].link.as_ref().is_some_and(|link| link.key == key) {
            self.break_link(worker);
        }
    }
}
