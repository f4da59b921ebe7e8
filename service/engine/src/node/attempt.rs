//! One open attempt in memory: where it is, and when it must be looked at.

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

/// What is due so soon another node may have handed out, by its clock or before it hears that the
/// execution is no longer its own.
pub(super) const DOUBT: Duration = Duration::from_secs(5);
/// The session on record of what is with nobody: no worker calls its own so.
pub(super) const NOBODYS: &str = ".nobody";

/// One open attempt of an execution in memory. What is beside `dispatch` holds in more than one of its states, and
/// independently of the rest: a result may come while a start is under way, and of an attempt that waits again.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub id: TaskId,
    pub content: Arc<TaskContent>,
    /// Who the history says has it.
    pub started: Option<Started>,
    pub dispatch: DispatchState,
    /// A worker had it, or may have had it.
    pub possibly_started: bool,
    /// Its start must be durable before the hand-over: it came from the overflow, or may be there.
    pub claimed: bool,
    /// The history says that it has been handed over at this time, and it never left this node then.
    pub unsent: Option<Timestamp>,
    /// So often its worker, who may have begun it, did not have it any more.
    pub missed: u32,
    /// Its result is here, and not yet durable.
    pub reported: bool,
    /// A command of the node's own about it is under way.
    pub acting: bool,
    /// It was taken back from the queue because the run is ending.
    pub withdrawn: bool,
}

/// How far it is on its way to a worker, and which one that is.
#[derive(Clone, Debug)]
pub(super) enum DispatchState {
    /// Its time has not come.
    Scheduled,
    /// A worker that the last owner knew may say that he holds it.
    Grace {
        until: Tick,
    },
    Queued {
        queue: QueueName,
        order: Order,
    },
    /// Chosen for a worker; the start is on its way into the history.
    Starting {
        worker: WorkerKey,
        /// As the history will have it.
        at: Timestamp,
    },
    Handed(Handed),
    /// Any node may claim it.
    Overflowed,
}

#[derive(Clone, Debug)]
pub(super) struct Handed {
    pub name: String,
    pub session: Option<SessionKey>,
    /// Also what names the hand-over: no two of an attempt have the same.
    pub since: Timestamp,
    /// The same for the clocks that judge it, which no step of the database's clock may strike.
    pub began: Tick,
    pub beat_at: Tick,
    pub source: Source,
    /// What its heartbeats said last.
    pub details: Option<Payload>,
}

/// Who says that a worker has an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// This node, which has given it to the worker or has heard from it. It is not on record yet.
    Node,
    /// The history says so too.
    Both,
    /// Only the history: its worker has not been heard of here.
    History,
}

impl Source {
    /// What a node knows for itself, and may be `recorded`.
    pub fn known_here(recorded: bool) -> Self {
        if recorded { Self::Both } else { Self::Node }
    }
}

impl DispatchState {
    /// Whether no worker has it, if there is a row in the overflow.
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

    /// The history says that a worker has it.
    pub fn put_on_record(&mut self) {
        if self.source == Source::Node {
            self.source = Source::Both;
        }
    }

    /// Its worker has said so here.
    pub fn heard(&mut self) {
        if self.source == Source::History {
            self.source = Source::Both;
        }
    }

    /// What puts this on record, as of a time: [`Self::since`] if it is not on record yet.
    pub fn record(&self, task: TaskId, at: Timestamp) -> Command {
        let (worker, session) = (self.name.clone(), id_of(self.session.as_ref()));
        Command::RecordStart { task, worker, session, at, basis: StartBasis::Held }
    }

    /// As the history says of a worker that has no session.
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
    /// Whoever has it may still say so until then: its execution has come to this node only now.
    pub fn wait_until(&mut self, then: Tick) {
        if let DispatchState::Grace { until } = &mut self.dispatch {
            *until = then;
        }
    }

    /// As [`Self::wait_until`], where the owner before lives on and does not know that it is the owner no
    /// more: what is due before `soon` it hands out as if nothing had happened.
    pub fn wait_for_last_owner(&mut self, then: Tick, soon: Timestamp) {
        if matches!(self.dispatch, DispatchState::Scheduled) && self.content.scheduled_at < soon {
            self.dispatch = DispatchState::Grace { until: then };
            self.possibly_started = true;
        }
        self.wait_until(then);
    }

    /// Another node has been the owner since this one knew where the attempt is: unless a worker here has it,
    /// it may be with one there. Returns the state that it leaves.
    pub fn doubt(&mut self, plan: &Plan, then: Tick, soon: Timestamp) -> Option<DispatchState> {
        let may_be_out = match &self.dispatch {
            DispatchState::Scheduled => self.content.scheduled_at < soon,
            DispatchState::Queued { .. } | DispatchState::Overflowed => true,
            DispatchState::Grace { .. }
            | DispatchState::Starting { .. }
            | DispatchState::Handed(_) => false,
        };
        self.wait_until(then);
        // What is delivered at most once is on record where a worker has had it.
        self.possibly_started |= may_be_out && !plan.is_at_most_once(&self.id.path);
        may_be_out
            .then(|| std::mem::replace(&mut self.dispatch, DispatchState::Grace { until: then }))
    }

    /// The start of an attempt that a worker without a session got here, if no history has it yet. That
    /// worker has no way to speak up for itself before its result.
    pub fn unrecorded_start(&self) -> Option<Command> {
        let DispatchState::Handed(handed) = &self.dispatch else {
            return None;
        };
        let is_known_here_alone =
            handed.session.is_none() && !handed.is_recorded() && self.started.is_none();
        (is_known_here_alone && !self.reported)
            .then(|| handed.record(self.id.clone(), handed.since))
    }

    pub fn is_handed(&self) -> bool {
        matches!(self.dispatch, DispatchState::Handed(_) | DispatchState::Starting { .. })
    }

    /// As the owner knows: no worker has it, and none has had it.
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

    /// When it must be looked at next.
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

/// Whether a command records what the node says for a worker without a session, which has no way to say it
/// itself: that it has an attempt.
pub(super) fn is_bare_start(command: &Command) -> bool {
    match command {
        Command::RecordStart { worker, session, basis: StartBasis::Held, .. } => {
            session.is_empty() && !worker.is_empty()
        }
        _ => false,
    }
}

/// Before every task of an execution.
pub(super) fn first_task(execution: ExecutionId) -> TaskId {
    TaskId { execution, run: 0, path: StepPath::from(""), attempt: 0, sequence: 0 }
}

/// As histories have it: none is empty.
pub(super) fn id_of(session: Option<&SessionKey>) -> String {
    session.map_or(String::new(), |session| session.id.clone())
}

/// Its row in the overflow.
pub(super) fn key_of(task: &TaskId) -> TaskKey {
    TaskKey { execution: task.execution, path: task.path.clone(), attempt: task.attempt }
}
