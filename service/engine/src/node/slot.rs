//! An execution in memory, with what waits for it and what is known of its attempts.

use std::collections::{BTreeMap, VecDeque};

use recoup_core::command::{Command, RequestId, TaskId};
use recoup_core::execution::{CompensationState, Execution, Started};
use recoup_core::key::{OnEnded, OnRunning};
use recoup_core::time::Timestamp;
use recoup_store::format::FIRST;
use recoup_store::{IndexRow, QuarantineRow, TaskKey};

use super::attempt::{Attempt, DispatchState};
use super::attempts::Attempts;
use super::resident::{Committed, Known};
use crate::clock::Tick;

pub(super) struct Slot<R> {
    pub known: Known,
    /// Its transitions carry an index row as long as it is not: the first that wins makes it so.
    pub owned: bool,
    /// As last written by this node; none if another wrote last.
    pub index: Option<IndexRow>,
    /// The highest format in its history, with what is under way.
    pub format: u16,
    /// When the store reminds this node of it, if it is the owner: until then it may leave memory.
    pub wake_at: Option<Timestamp>,
    pub inbox: VecDeque<Pending<R>>,
    /// So many commands at the front of the inbox are decided one by one: the store refused what they
    /// became together, and only alone each can be told from the others.
    pub singly: usize,
    /// Decided, and under way to the store.
    pub in_flight: bool,
    /// Memory may be old: nothing is decided before it has been read again.
    pub doubted: bool,
    /// A decision about it panicked, with these words; it is quarantined when it has been read again.
    pub panicked: Option<String>,
    /// When the store last answered that no other node had gone further.
    pub current_at: Tick,
    pub waiters: Vec<Waiter<R>>,
    pub attempts: Attempts,
    /// Rows in the overflow that this node knows of.
    pub overflow: BTreeMap<TaskKey, Row>,
    /// Claimed from the overflow before the execution was loaded.
    /// Each with the sequence of the transition that scheduled its attempt.
    pub claimed: BTreeMap<TaskKey, u64>,
    /// Given back by these sessions before this node knew of it.
    pub released: BTreeMap<TaskId, String>,
    pub timer_at: Option<Timestamp>,
    /// About how many bytes its state takes, when it was weighed last, and after which transition.
    weight: (usize, u64),
    /// Of a start with a key.
    pub key_policies: (OnRunning, OnEnded),
    /// The last one, which was released: for those who ask.
    pub quarantine: Option<QuarantineRow>,
}

/// A row in the overflow.
#[derive(Clone, Copy, Debug)]
pub(super) enum Row {
    /// Any node may claim it.
    Free,
    /// Claimed here, and no other node's until then.
    Claimed { until: Tick, scheduled_in: u64 },
}

/// A command that has not been decided, or whose decision is not durable.
pub(super) struct Pending<R> {
    pub command: Command,
    pub request: Option<RequestId>,
    /// The node's own commands have none.
    pub reply: Option<R>,
    /// Of a start that waits for the end.
    pub until: Option<Timestamp>,
    /// The store has been asked since it came whether memory is old.
    pub verified: bool,
    /// When it came.
    pub since: Tick,
    /// Its caller was answered before the outcome was known.
    pub answered: bool,
}

impl<R> Pending<R> {
    /// Whether the node has thought of it itself.
    pub fn is_own(&self) -> bool {
        self.reply.is_none() && !self.answered
    }

    /// Whether its caller has waited since before a time.
    pub fn is_impatient(&self, asked_before: Tick) -> bool {
        self.reply.is_some() && self.since <= asked_before
    }

    /// For an answer before the outcome is known.
    pub fn take_reply(&mut self) -> Option<R> {
        self.answered |= self.reply.is_some();
        self.reply.take()
    }

    /// Whether it speaks of something that the state does not know: of another node's doing, if it
    /// is no mistake.
    pub fn is_ahead_of(&self, state: &Committed) -> bool {
        match &self.command {
            Command::CompleteTask { task, .. }
            | Command::FailTask { task, .. }
            | Command::RecordStart { task, .. } => task.sequence > state.sequence,
            Command::RetryCompensation { .. } | Command::SkipCompensation { .. } => {
                state.compensation != CompensationState::Parked
            }
            // Another node may have taken a person's order to try again what is parked here.
            Command::TerminateExecution { .. } => {
                state.state.is_ended() && state.compensation == CompensationState::Parked
            }
            // It may also have taken such an order under this request id, which is then refused as reused.
            Command::CancelExecution { .. } => {
                let unresolved = [CompensationState::Parked, CompensationState::Running];
                let may_go_on = state.state.is_ended() && unresolved.contains(&state.compensation);
                self.request.is_some() && may_go_on
            }
            _ => false,
        }
    }
}

pub(super) struct Waiter<R> {
    /// When it came.
    pub since: Tick,
    /// None: answered as soon as the state is there, with all that is known.
    pub until: Option<Timestamp>,
    pub reply: R,
    pub is_own: bool,
    /// Wants a snapshot rather than the state alone.
    pub snapshot: bool,
}

impl<R> Slot<R> {
    pub fn unread() -> Self {
        Self {
            known: Known::default(),
            owned: false,
            index: None,
            format: FIRST,
            wake_at: None,
            inbox: VecDeque::new(),
            singly: 0,
            in_flight: false,
            doubted: false,
            panicked: None,
            current_at: Tick::default(),
            waiters: Vec::new(),
            attempts: Attempts::default(),
            overflow: BTreeMap::new(),
            claimed: BTreeMap::new(),
            released: BTreeMap::new(),
            timer_at: None,
            weight: (0, 0),
            key_policies: Default::default(),
            quarantine: None,
        }
    }

    /// None as well while it is away with a transition.
    pub fn state(&self) -> Option<&Execution> {
        self.known.state()
    }

    pub fn committed(&self) -> Option<&Committed> {
        self.known.committed()
    }

    pub fn attempt(&self, task: &TaskId) -> Option<&Attempt> {
        self.attempts.get(task)
    }

    pub fn attempt_mut(&mut self, task: &TaskId) -> Option<&mut Attempt> {
        self.attempts.get_mut(task)
    }

    /// Whether nothing but the time of its owner's next work could need it to be here.
    pub fn is_idle(&self) -> bool {
        let needed = match self.known.committed() {
            Some(committed) => {
                let keeps = !self.claimed.is_empty() || self.holds() || self.has_claimed();
                committed.is_active && keeps
            }
            None => !self.known.is_unread() || !self.claimed.is_empty(),
        };
        let is_due = self.in_flight || self.doubted || !self.inbox.is_empty();
        !needed && !is_due && self.waiters.is_empty()
    }

    /// About how many bytes its state takes.
    pub fn bytes(&self) -> usize {
        self.weight.0
    }

    /// How many bytes its state took before, and takes now, if it is another.
    pub fn weigh(&mut self) -> Option<(usize, usize)> {
        let weight = match (self.known.state(), self.known.is_resident()) {
            (Some(state), _) if state.sequence != self.weight.1 => (state.weight(), state.sequence),
            (_, true) => return None,
            (_, false) => (0, 0),
        };
        let before = std::mem::replace(&mut self.weight, weight).0;
        Some((before, weight.0))
    }

    /// Who the history says has an open attempt.
    pub fn started(&self, task: &TaskId) -> Option<&Started> {
        self.attempt(task)?.started.as_ref()
    }

    /// Whether a command of the node's own about an attempt waits to be decided.
    pub fn acts_on(&self, task: &TaskId) -> bool {
        acts_on(&self.inbox, task)
    }

    /// Whether the run is ending and its steps are to stop.
    pub fn is_ending(&self) -> bool {
        self.owned && self.committed().is_some_and(|committed| committed.is_ending)
    }

    /// Whether another node may move it on: it is another node's, any node may claim one of its
    /// tasks, or a worker without a session may turn to any node with its result.
    pub fn is_doubtful(&self) -> bool {
        let lent = |attempt: &Attempt| match &attempt.dispatch {
            DispatchState::Overflowed => true,
            DispatchState::Handed(handed) => handed.session.is_none(),
            _ => false,
        };
        self.is_foreign() || self.attempts.iter().any(lent)
    }

    /// Another node's, and of interest here.
    pub fn is_foreign(&self) -> bool {
        !self.owned && (!self.waiters.is_empty() || self.holds())
    }

    /// Whether an attempt's time has to wait for what is under way: that may take the attempt back,
    /// because it was not due when it was decided.
    pub fn holds_back(&self, attempt: &Attempt) -> bool {
        self.in_flight && matches!(attempt.dispatch, DispatchState::Scheduled)
    }

    /// Whether an attempt of another node's execution waits here for a worker.
    fn has_claimed(&self) -> bool {
        let waits = |attempt: &Attempt| matches!(attempt.dispatch, DispatchState::Queued { .. });
        !self.owned && self.attempts.iter().any(waits)
    }

    /// Whether a worker of this node holds one of its attempts.
    pub fn holds(&self) -> bool {
        self.attempts.iter().any(Attempt::is_handed)
    }
}

/// Whether a command of the node's own about an attempt waits to be decided.
pub(super) fn acts_on<R>(inbox: &VecDeque<Pending<R>>, task: &TaskId) -> bool {
    let own = inbox.iter().filter(|pending| pending.is_own());
    own.filter_map(|pending| pending.command.task()).any(|other| other == task)
}
