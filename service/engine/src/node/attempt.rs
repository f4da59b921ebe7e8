//! One open attempt in memory: where it is, and when it must be checked next.

use std::sync::Arc;
use std::time::Duration;

use recoup_core::command::{Command, StartBasis, TaskId};
use recoup_core::execution::Started;
use recoup_core::id::{ExecutionId, StepPath};
use recoup_core::payload::Payload;
use recoup_core::plan::{Plan, TaskPlan};
use recoup_core::time::Timestamp;
use recoup_store::{QueueName, TaskKey};

use super::io::{LiveAttempt, SessionKey, WorkerKey};
use super::queue::Order;
use crate::clock::{Now, Tick};
use crate::options::Options;
use crate::task::TaskContent;

/// Another node may already have handed out an attempt that becomes due this soon: its clock may be ahead, or
/// it may not have noticed yet that it lost the execution.
pub(super) const DOUBT: Duration = Duration::from_secs(5);
/// The session id recorded for an attempt that no worker has. No worker uses it as its own.
pub(super) const NOBODYS: &str = ".nobody";

/// One open attempt of an execution in memory. The fields besides `dispatch` are independent of each other
/// and hold in more than one dispatch state. A result may arrive, for example, while a start is under way or
/// while the attempt waits to be handed out again.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub id: TaskId,
    pub content: Arc<TaskContent>,
    /// The worker that has the attempt according to the history.
    pub started: Option<Started>,
    pub dispatch: DispatchState,
    /// A worker has had the attempt, or may have had it.
    pub possibly_started: bool,
    /// The start must be durable before the hand-over, because the attempt came from the overflow or may be there.
    pub claimed: bool,
    /// The history says that the attempt was handed over at this time, but that hand-over never left this node.
    pub unsent: Option<Timestamp>,
    /// How many times its worker may have begun the attempt and then turned out not to have it any more.
    pub missed: u32,
    /// Its result has arrived, but is not durable yet.
    pub reported: bool,
    /// A command about it that this node issued itself is under way.
    pub acting: bool,
    /// It was taken back from the queue because the run is ending.
    pub withdrawn: bool,
}

/// How far the attempt is on its way to a worker, and to which one.
#[derive(Clone, Debug)]
pub(super) enum DispatchState {
    /// It is not due yet.
    Scheduled,
    /// It waits for a worker that the previous owner knew to report that it holds the attempt.
    Grace {
        until: Tick,
    },
    Queued {
        queue: QueueName,
        order: Order,
    },
    /// A worker has been chosen, and the start is being written to the history.
    Starting {
        worker: WorkerKey,
        /// The start that the history will record. No other start of the attempt is equal to it: one that was
        /// recorded at the same moment names another worker.
        start: Started,
    },
    Handed(Handed),
    /// Any node may claim it.
    Overflowed,
}

#[derive(Clone, Debug)]
pub(super) struct Handed {
    pub name: String,
    pub session: Option<SessionKey>,
    /// Identifies the hand-over as well: no two hand-overs of an attempt have the same time.
    pub since: Timestamp,
    /// The same moment on the monotonic clock, by which the attempt's timeouts run. A step of the database's
    /// clock does not affect it.
    pub began: Tick,
    pub beat_at: Tick,
    pub source: Source,
    /// The details of its last heartbeat that had any.
    pub details: Option<Payload>,
}

/// How this node knows that a worker has an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// This node gave the attempt to the worker or has heard from the worker. The history does not say so yet.
    Node,
    /// This node knows it, and the history says so too.
    Both,
    /// Only the history says so: this node has not heard from the worker.
    History,
}

impl Source {
    /// The source of something that this node knows itself, and that the history may have `recorded`.
    pub fn known_here(recorded: bool) -> Self {
        if recorded { Self::Both } else { Self::Node }
    }
}

impl DispatchState {
    /// Whether the attempt can be with no worker at all, given that it has a row in the overflow.
    pub fn is_for_any_node(&self) -> bool {
        match self {
            Self::Overflowed => true,
            Self::Handed(handed) => handed.source == Source::History,
            _ => false,
        }
    }
}

impl Handed {
    pub fn is_recorded(&self) -> bool {
        self.source != Source::Node
    }

    /// Notes that the history now says that the worker has the attempt.
    pub fn put_on_record(&mut self) {
        if self.source == Source::Node {
            self.source = Source::Both;
        }
    }

    /// Notes that this node has heard from the worker.
    pub fn heard(&mut self) {
        if self.source == Source::History {
            self.source = Source::Both;
        }
    }

    /// The command that records this hand-over in the history. `at` is [`Self::since`] if it is not on record yet.
    pub fn record(&self, task: TaskId, at: Timestamp) -> Command {
        let (worker, session) = (self.name.clone(), id_of(self.session.as_ref()));
        Command::RecordStart { task, worker, session, at, basis: StartBasis::Held }
    }

    /// A hand-over to a worker without a session, of which only the history knows.
    pub fn without_session(started: &Started, now: Now) -> Self {
        Self {
            name: started.worker.clone(),
            session: None,
            since: started.at.min(now.time),
            began: now.tick_of(started.at),
            beat_at: now.tick,
            source: Source::History,
            details: None,
        }
    }
}

impl Attempt {
    /// Extends the grace period, because the execution has only now come to this node.
    pub fn wait_until(&mut self, then: Tick) {
        if let DispatchState::Grace { until } = &mut self.dispatch {
            *until = then;
        }
    }

    /// As [`Self::wait_until`], for an execution whose previous owner is still alive and may not know yet
    /// that it has lost it. That node hands out attempts that are due before `soon` as if nothing had
    /// happened.
    pub fn wait_for_last_owner(&mut self, then: Tick, soon: Timestamp) {
        if matches!(self.dispatch, DispatchState::Scheduled) && self.content.scheduled_at < soon {
            self.dispatch = DispatchState::Grace { until: then };
            self.possibly_started = true;
        }
        self.wait_until(then);
    }

    /// Another node has owned the execution since this node knew where the attempt was. Unless a worker of
    /// this node has the attempt, one of the other node's workers may have it. Returns the dispatch state
    /// that it leaves, if it does.
    pub fn doubt(&mut self, plan: &Plan, then: Tick, soon: Timestamp) -> Option<DispatchState> {
        let may_be_out = match &self.dispatch {
            DispatchState::Scheduled => self.content.scheduled_at < soon,
            DispatchState::Queued { .. } | DispatchState::Overflowed => true,
            DispatchState::Grace { .. }
            | DispatchState::Starting { .. }
            | DispatchState::Handed(_) => false,
        };
        self.wait_until(then);
        // An attempt that is delivered at most once has its start on record if a worker has had it.
        self.possibly_started |= may_be_out && !plan.is_at_most_once(&self.id.path);
        may_be_out
            .then(|| std::mem::replace(&mut self.dispatch, DispatchState::Grace { until: then }))
    }

    /// The command that records the start of an attempt which this node gave to a worker without a session,
    /// if the history has no start yet. Such a worker cannot report that it holds the attempt before it sends
    /// its result.
    pub fn unrecorded_start(&self) -> Option<Command> {
        let DispatchState::Handed(handed) = &self.dispatch else {
            return None;
        };
        let is_known_here_alone =
            handed.session.is_none() && !handed.is_recorded() && self.started.is_none();
        (is_known_here_alone && !self.reported)
            .then(|| handed.record(self.id.clone(), handed.since))
    }

    /// The command that records that no worker has the attempt, if the history names one without a session and
    /// the attempt never left this node. Another owner would wait for that worker until its timeout expires.
    pub fn unsent_start(&self, now: Timestamp) -> Option<Command> {
        let started = self.started.as_ref().filter(|by| by.session.is_empty())?;
        let never_left = self.unsent == Some(started.at) && !self.reported;
        never_left.then(|| record_of_nobody(self.id.clone(), now))
    }

    pub fn is_handed(&self) -> bool {
        matches!(self.dispatch, DispatchState::Handed(_) | DispatchState::Starting { .. })
    }

    /// Whether no worker has it and none has had it, as far as the owner knows.
    pub fn is_with_nobody(&self) -> bool {
        let waits = matches!(
            self.dispatch,
            DispatchState::Queued { .. } | DispatchState::Overflowed | DispatchState::Scheduled
        );
        waits && !self.possibly_started
    }

    pub fn live(&self) -> Option<LiveAttempt> {
        let DispatchState::Handed(Handed { name, session, since, details, .. }) = &self.dispatch
        else {
            return None;
        };
        Some(LiveAttempt {
            task: self.id.clone(),
            worker: name.clone(),
            session: session.as_ref().map(|session| session.id.clone()),
            since: *since,
            details: details.clone(),
        })
    }

    /// When the attempt must be checked next.
    pub fn due(&self, plan: &TaskPlan, options: &Options, now: Now) -> Option<Timestamp> {
        if self.acting || self.reported {
            return None;
        }
        match &self.dispatch {
            DispatchState::Scheduled => Some(self.content.scheduled_at),
            DispatchState::Grace { until } => Some(now.time_of(*until)),
            DispatchState::Queued { .. } | DispatchState::Overflowed => {
                plan.schedule_to_start.map(|timeout| self.content.scheduled_at + timeout)
            }
            DispatchState::Starting { .. } => None,
            DispatchState::Handed(handed) => {
                let record =
                    (!handed.is_recorded()).then(|| handed.began + options.record_start_after);
                let beat = plan.heartbeat.map(|timeout| handed.beat_at + timeout);
                let close = Some(handed.began + plan.start_to_close);
                [record, beat, close].into_iter().flatten().min().map(|tick| now.time_of(tick))
            }
        }
    }
}

/// The command that records that no worker has an attempt.
pub(super) fn record_of_nobody(task: TaskId, at: Timestamp) -> Command {
    let (worker, session, basis) = (String::new(), NOBODYS.to_owned(), StartBasis::Held);
    Command::RecordStart { task, worker, session, at, basis }
}

/// Whether a command records that a worker without a session has an attempt. The node records this on the
/// worker's behalf, because such a worker cannot list the attempts that it holds.
pub(super) fn is_bare_start(command: &Command) -> bool {
    match command {
        Command::RecordStart { worker, session, basis: StartBasis::Held, .. } => {
            session.is_empty() && !worker.is_empty()
        }
        _ => false,
    }
}

/// A bound that sorts before every task of an execution.
pub(super) fn first_task(execution: ExecutionId) -> TaskId {
    TaskId { execution, run: 0, path: StepPath::from(""), attempt: 0, sequence: 0 }
}

/// A session id as histories record it: empty means no session.
pub(super) fn id_of(session: Option<&SessionKey>) -> String {
    session.map_or(String::new(), |session| session.id.clone())
}

/// The key of the task's row in the overflow.
pub(super) fn key_of(task: &TaskId) -> TaskKey {
    TaskKey { execution: task.execution, path: task.path.clone(), attempt: task.attempt }
}
