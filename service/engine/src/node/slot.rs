//! One execution in memory, with the commands and callers that wait for it and what is known about its attempts.

use std::collections::{BTreeMap, VecDeque};

use recoup_core::command::{Command, RequestId, TaskId};
use recoup_core::execution::{CompensationState, Execution, Started};
use recoup_core::key::{OnEnded, OnRunning};
use recoup_core::time::Timestamp;
use recoup_store::format::FIRST;
use recoup_store::{IndexRow, QuarantineRow, TaskKey};

use super::attempt::{Attempt, DispatchState};
use super::attempts::Attempts;
use super::resident::{Committed, Ending, Known};
use crate::clock::Tick;

pub(super) struct Slot<R> {
    pub known: Known,
    /// Whether this node owns the execution. Until then, its transitions carry an index row, and the first
    /// one that wins makes this node the owner.
    pub owned: bool,
    /// The index row as this node last wrote it. `None` if another node wrote it last.
    pub index: Option<IndexRow>,
    /// The highest format in its history, including the transition under way.
    pub format: u16,
    /// When the store will remind this node, as the owner, of the execution. It may leave memory until then.
    pub wake_at: Option<Timestamp>,
    pub inbox: VecDeque<Pending<R>>,
    /// How many commands at the front of the inbox must be decided one at a time. The store refused the
    /// transition that contained all of them, and deciding each one alone shows which command was the cause.
    pub singly: usize,
    /// A transition of it, or a reminder, is in the batch that is drafted or under way to the store.
    pub in_flight: bool,
    /// The state in memory may be stale: nothing is decided before it has been read again.
    pub doubted: bool,
    /// A decision about it panicked with this message. It is quarantined once it has been read again.
    pub panicked: Option<String>,
    /// No other node had written past the state known here at this time. It is when the store was asked, not
    /// when it answered: a node may be suspended in between.
    pub current_at: Tick,
    /// When this node last took it over from another one, which may not know of that yet and go on handing out
    /// what is due; none if it began here.
    pub taken_over_at: Option<Tick>,
    pub waiters: Vec<Waiter<R>>,
    pub attempts: Attempts,
    /// The rows in the overflow that this node knows of.
    pub overflow: BTreeMap<TaskKey, Row>,
    /// Tasks that were claimed from the overflow before the execution was loaded, each with the sequence of
    /// the transition that scheduled its attempt.
    pub claimed: BTreeMap<TaskKey, u64>,
    /// Attempts that these sessions gave back before this node knew of them.
    pub released: BTreeMap<TaskId, String>,
    pub timer_at: Option<Timestamp>,
    /// About how many bytes the state took when it was last weighed, and the sequence of its last transition then.
    weight: (usize, u64),
    /// The policies of a start with a key.
    pub key_policies: (OnRunning, OnEnded),
    /// The last quarantine, which was released. It is part of snapshots.
    pub quarantine: Option<QuarantineRow>,
}

/// A row in the overflow.
#[derive(Clone, Copy, Debug)]
pub(super) enum Row {
    /// Any node may claim it.
    Free,
    /// This node has claimed it, and no other node can claim it until then.
    Claimed { until: Tick, scheduled_in: u64 },
}

/// A command that has not been decided, or whose decision is not durable yet.
pub(super) struct Pending<R> {
    pub command: Command,
    pub request: Option<RequestId>,
    /// `None` for the node's own commands.
    pub reply: Option<R>,
    /// For a start whose caller waits for the end: how long it waits.
    pub until: Option<Timestamp>,
    /// The store has been asked since the command came whether the state in memory is stale.
    pub verified: bool,
    /// When the command came.
    pub since: Tick,
    /// Its caller was answered before the outcome was known.
    pub answered: bool,
}

impl<R> Pending<R> {
    /// Whether the node itself issued the command.
    pub fn is_own(&self) -> bool {
        self.reply.is_none() && !self.answered
    }

    /// Whether its caller is still waiting and asked before a given time.
    pub fn is_impatient(&self, asked_before: Tick) -> bool {
        self.reply.is_some() && self.since <= asked_before
    }

    /// Takes the reply for an answer before the outcome is known.
    pub fn take_reply(&mut self) -> Option<R> {
        self.answered |= self.reply.is_some();
        self.reply.take()
    }

    /// Whether the command refers to something that the state does not contain. Unless the caller is
    /// mistaken, another node has written it.
    pub fn is_ahead_of(&self, state: &Committed) -> bool {
        match &self.command {
            Command::CompleteTask { task, .. }
            | Command::FailTask { task, .. }
            | Command::RecordStart { task, .. } => task.sequence > state.sequence,
            Command::RetryCompensation { .. } | Command::SkipCompensation { .. } => {
                state.compensation != CompensationState::Parked
            }
            // An operator may have asked another node to retry the compensation that is parked in this state.
            Command::TerminateExecution { .. } => {
                state.state.is_ended() && state.compensation == CompensationState::Parked
            }
            // Another node may have taken that retry under the same request id, and this request would then
            // be refused as reused.
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
    /// When the caller came.
    pub since: Tick,
    /// How long the caller waits for the end. `None`: it is answered as soon as the state is available.
    pub until: Option<Timestamp>,
    pub reply: R,
    pub is_own: bool,
    /// The caller wants a snapshot, not just the outcome.
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
            taken_over_at: None,
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

    /// `None` also while the state is away with a transition.
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

    /// Whether nothing needs the execution in memory, apart from work that its owner may have to do later.
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

    /// About how many bytes the state takes.
    pub fn bytes(&self) -> usize {
        self.weight.0
    }

    /// Weighs the state. Returns how many bytes it took before and takes now, if it has changed.
    pub fn weigh(&mut self) -> Option<(usize, usize)> {
        let weight = match (self.known.state(), self.known.is_resident()) {
            (Some(state), _) if state.sequence != self.weight.1 => (state.weight(), state.sequence),
            (_, true) => return None,
            (_, false) => (0, 0),
        };
        let before = std::mem::replace(&mut self.weight, weight).0;
        Some((before, weight.0))
    }

    /// The worker that has an open attempt according to the history.
    pub fn started(&self, task: &TaskId) -> Option<&Started> {
        self.attempt(task)?.started.as_ref()
    }

    /// The name of the worker that has an open attempt: the worker that this node knows to have it, otherwise the
    /// one in the history. Empty if neither is known.
    pub fn worker_of(&self, task: &TaskId) -> &str {
        let attempt = self.attempt(task);
        let handed = attempt.and_then(|attempt| match &attempt.dispatch {
            DispatchState::Handed(handed) => Some(handed.name.as_str()),
            _ => None,
        });
        let recorded = attempt.and_then(|attempt| attempt.started.as_ref());
        let names = [handed, recorded.map(|started| started.worker.as_str())];
        names.into_iter().flatten().find(|name| !name.is_empty()).unwrap_or_default()
    }

    /// Whether a command about an attempt that the node issued itself is waiting to be decided.
    pub fn acts_on(&self, task: &TaskId) -> bool {
        acts_on(&self.inbox, task)
    }

    /// Which of the steps that are running should stop. Only the owner tells their workers.
    pub fn ending(&self) -> Option<&Ending> {
        let ending = self.committed().filter(|_| self.owned).map(|committed| &committed.ending);
        ending.filter(|ending| !matches!(ending, Ending::None))
    }

    /// Whether another node may write to it: another node owns it, any node may claim one of its tasks, or a
    /// worker without a session may send its result to any node.
    pub fn is_doubtful(&self) -> bool {
        let lent = |attempt: &Attempt| match &attempt.dispatch {
            DispatchState::Overflowed => true,
            DispatchState::Handed(handed) => handed.session.is_none(),
            _ => false,
        };
        self.is_foreign() || self.attempts.iter().any(lent)
    }

    /// Whether another node owns it while callers or workers of this node need it.
    pub fn is_foreign(&self) -> bool {
        !self.owned && (!self.waiters.is_empty() || self.holds())
    }

    /// Whether an attempt must not be handed out, although it is due, until the transition under way is
    /// settled. The attempt was not due when that transition was decided, so the transition may take it back.
    pub fn holds_back(&self, attempt: &Attempt) -> bool {
        self.in_flight && matches!(attempt.dispatch, DispatchState::Scheduled)
    }

    /// Whether an attempt of an execution that another node owns waits here for a worker.
    fn has_claimed(&self) -> bool {
        let waits = |attempt: &Attempt| matches!(attempt.dispatch, DispatchState::Queued { .. });
        !self.owned && self.attempts.iter().any(waits)
    }

    /// Whether a worker of this node holds one of its attempts.
    pub fn holds(&self) -> bool {
        self.attempts.iter().any(Attempt::is_handed)
    }
}

/// Whether a command about an attempt that the node issued itself is waiting to be decided.
pub(super) fn acts_on<R>(inbox: &VecDeque<Pending<R>>, task: &TaskId) -> bool {
    let own = inbox.iter().filter(|pending| pending.is_own());
    own.filter_map(|pending| pending.command.task()).any(|other| other == task)
}
