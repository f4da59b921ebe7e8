//! Workers, their connections to nodes, their jobs and their reports.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use recoup_core::command::TaskId;
use recoup_core::error::TaskError;
use recoup_core::id::Namespace;
use recoup_core::payload::Payload;
use recoup_core::time::Timestamp;
use recoup_engine::node::io::{SessionKey, WorkerKey};

use crate::catalog::{NAMESPACE, QUEUES};
use crate::faults::Profile;
use crate::random::Random;

/// The time to live of a worker's session.
pub const TTL: Duration = Duration::from_millis(1_500);

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

/// The part of a [`WorkerMessage`](recoup_engine::node::io::WorkerMessage) that a worker needs.
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
    pub queues: Vec<&'static str>,
    /// The task types that it takes; an empty list means all.
    pub task_types: Vec<String>,
    /// Counts the worker's processes.
    pub life: u64,
    pub alive: bool,
    /// It begins no further task.
    pub draining: bool,
    pub slots: u32,
    pub link: Option<Link>,
    pub jobs: BTreeMap<TaskId, Job>,
}

#[derive(Clone, Debug)]
pub struct Link {
    pub key: WorkerKey,
    pub machine: usize,
    pub life: u64,
    /// Messages on a connection keep their order.
    pub to_node: Timestamp,
    pub to_worker: Timestamp,
    /// How many messages the worker has not received yet.
    pub on_the_way: u32,
}

/// A worker's report about a task.
#[derive(Clone, Debug)]
pub enum Report {
    Complete { task: TaskId, output: Payload },
    Fail { task: TaskId, error: TaskError },
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
pub struct Job {
    pub todo: Todo,
    pub report: Option<Report>,
    pub beats: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Todo {
    Complete,
    Fail,
    Hang,
    /// It reports a different result the second time.
    Twice,
    Die,
    GiveBack,
}

impl Job {
    /// The worker was asked to stop the task, and complies.
    pub fn stop(&mut self) {
        self.todo = Todo::Fail;
    }
}

#[derive(Default)]
pub struct Workers {
    pub all: Vec<Worker>,
    /// The worker and the process that each connection belongs to.
    pub links: BTreeMap<WorkerKey, (usize, u64)>,
    /// Connections that the server has ended, but whose end the node has not learned yet.
    pub ended: BTreeSet<WorkerKey>,
}

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
    pub fn new(kind: Kind, queues: Vec<&'static str>, slots: usize) -> Self {
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

/// The session of the worker's process with this name.
pub fn session_key(name: &str) -> SessionKey {
    SessionKey { namespace: Namespace::from(NAMESPACE), id: name.to_owned() }
}
