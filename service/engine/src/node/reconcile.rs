//! Decides where an attempt is, once this node has a new state of its execution. The node has either read
//! that state from the store or committed it itself.
//!
//! After a read, every open attempt is judged. After a commit of this node's own, only the attempts that the
//! transition names are judged: those that it opens or closes, and those of which it records which worker has
//! them. All other attempts stay where they were. They cannot be judged by the state alone: an attempt's
//! start may be on record although the attempt is waiting again here, or is with a different worker by now.
//!
//! "Scheduled" in the first column also covers an attempt that is due and about to be queued. An attempt that
//! becomes due is put into its queue next.
//!
//! For an attempt that this node already knows, the first row that matches applies:
//!
//! | the attempt is | the history says | and | then the attempt is |
//! | --- | --- | --- | --- |
//! | with no worker | anything | a worker of this node holds it | with that worker |
//! | with a worker, in grace | anything | its row is claimed here, it is delivered at least once and no worker can still have it | due |
//! | starting | started by that hand-over | this node committed the state | handed over |
//! | starting | started by another hand-over | this node committed the state and has no command about it pending | with the worker on record |
//! | scheduled, queued | started by the hand-over that never left | the node had no command about it pending | where it was |
//! | scheduled, queued | started | this node committed a start | where it was; a stopping node records it as held by no worker |
//! | overflowed | started | this node committed a start | due: its row may have been removed with the start |
//! | in grace | started without a session | the state was read | with the worker on record, limited by the attempt's own clocks |
//! | with a worker that has no session | started by a session | the state was read | in grace |
//! | scheduled, queued, overflowed | started | | with the worker on record: another node has handed it out |
//! | anything | anything | | where it was |
//!
//! For an attempt that is new to this node:
//!
//! | a worker of this node holds it | the history says | and | then the attempt is |
//! | --- | --- | --- | --- |
//! | no | not started | it is not due yet | scheduled until it is due |
//! | yes | anything | | with that worker |
//! | no | anything | this very commit scheduled it, or it is claimed here and no worker can still have it | due |
//! | no | not started | | in grace |
//! | no | started | | with the worker on record |
//!
//! "With that worker" is the worker of this node that holds the attempt: the attempt is handed over. "With the
//! worker on record" depends on whether the worker that the history names has a session. With a session, the
//! attempt is in grace, because the worker will reconnect and list the attempt. Without one, the attempt is
//! handed over, and the clocks that began at its start limit it.

use std::sync::Arc;
use std::time::Duration;

use recoup_core::execution::{Execution, Open, Started};
use recoup_core::plan::Plan;

use super::attempt::{Attempt, DOUBT, DispatchState, Handed, NOBODYS};
use super::io::WorkerKey;
use super::sessions::Holder;
use crate::clock::Now;
use crate::task::TaskContent;

/// The facts that hold for all attempts of an execution.
pub(super) struct Reconciler<'a> {
    pub state: &'a Execution,
    pub plan: &'a Plan,
    /// This node committed the state itself; it was not read.
    pub committed: bool,
    pub now: Now,
    /// How long workers have to report that they hold an attempt.
    pub grace: Duration,
}

/// What this node knows about one attempt besides its dispatch state.
pub(super) struct Evidence<'a> {
    /// The worker of this node that holds the attempt.
    pub holder: Option<&'a Holder>,
    /// This node has claimed the attempt's row in the overflow.
    pub claimed: bool,
    /// A command about the attempt that this node issued itself is waiting to be decided.
    pub acting: bool,
}

/// What the node must do next about an attempt that has just been judged.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Then {
    Nothing,
    Enqueue,
    /// The start is durable: the attempt may be handed over.
    FinishStart(WorkerKey),
    /// The history says that a worker has the attempt, but no worker has it.
    Disown,
}

impl Reconciler<'_> {
    /// Moves a known attempt to where it is now. Returns the dispatch state that it has left, if it has
    /// moved, and the action that must follow.
    pub fn known(
        &self,
        attempt: &mut Attempt,
        open: &Open<'_>,
        evidence: &Evidence<'_>,
    ) -> (Option<DispatchState>, Then) {
        let started = open.attempt.started.as_ref();
        let was_acting = std::mem::replace(&mut attempt.acting, evidence.acting);
        attempt.started = started.cloned();
        if let DispatchState::Handed(handed) = &mut attempt.dispatch
            && started.is_some()
        {
            handed.put_on_record();
        }
        let (next, then) = self.next(attempt, started, evidence, was_acting);
        let left = next.map(|next| std::mem::replace(&mut attempt.dispatch, next));
        attempt.possibly_started |= started.is_some_and(|by| attempt.unsent != Some(by.at));
        (left, then)
    }

    /// Returns the new dispatch state. `None`: the attempt stays where it is.
    fn next(
        &self,
        attempt: &mut Attempt,
        started: Option<&Started>,
        evidence: &Evidence<'_>,
        was_acting: bool,
    ) -> (Option<DispatchState>, Then) {
        let committed = self.committed;
        let once = self.plan.is_at_most_once(&attempt.id.path);
        let is_free = evidence.claimed
            && !once
            && evidence.holder.is_none()
            && !started.is_some_and(|by| self.may_be_held(by));
        match (&attempt.dispatch, started, evidence.holder) {
            (_, _, Some(holder)) if !attempt.is_handed() => {
                attempt.possibly_started = true;
                (Some(DispatchState::Handed(holder.handed(started, self.now))), Then::Nothing)
            }
            (DispatchState::Handed(_) | DispatchState::Grace { .. }, ..) if is_free => {
                attempt.claimed = true;
                (Some(DispatchState::Scheduled), Then::Enqueue)
            }
            (DispatchState::Starting { worker, start }, Some(by), _)
                if committed && by == start =>
            {
                (None, Then::FinishStart(*worker))
            }
            // The hand-over was refused in the same transition that recorded a different start.
            (DispatchState::Starting { .. }, Some(by), _) if committed && !evidence.acting => {
                (Some(self.with_its_worker(by)), Then::Nothing)
            }
            (DispatchState::Scheduled | DispatchState::Queued { .. }, Some(by), _)
                if attempt.unsent == Some(by.at) && !was_acting =>
            {
                (None, Then::Nothing)
            }
            (DispatchState::Scheduled | DispatchState::Queued { .. }, Some(_), _)
                if committed && was_acting =>
            {
                (None, Then::Disown)
            }
            (DispatchState::Overflowed, Some(_), _) if committed && was_acting => {
                attempt.claimed = true;
                (Some(DispatchState::Scheduled), Then::Enqueue)
            }
            (DispatchState::Grace { .. }, Some(by), _) if !committed && by.session.is_empty() => {
                (Some(self.with_its_worker(by)), Then::Nothing)
            }
            (DispatchState::Handed(Handed { session: None, .. }), Some(by), _)
                if !committed && !by.session.is_empty() =>
            {
                (Some(self.with_its_worker(by)), Then::Nothing)
            }
            (
                DispatchState::Scheduled | DispatchState::Queued { .. } | DispatchState::Overflowed,
                Some(by),
                _,
            ) => {
                attempt.unsent = None;
                (Some(self.with_its_worker(by)), Then::Nothing)
            }
            _ => (None, Then::Nothing),
        }
    }

    /// Builds an attempt that is new to this node, placed where it is now.
    pub fn unknown(&self, open: &Open<'_>, evidence: &Evidence<'_>) -> (Attempt, Then) {
        let Now { tick, time: now } = self.now;
        let started = open.attempt.started.as_ref();
        let scheduled_at = open.attempt.scheduled_at;
        let is_fresh = self.committed && open.attempt.sequence == self.state.sequence;
        let once = self.plan.is_at_most_once(&open.path);
        // An overflow row is void if the attempt is delivered at most once and has already been handed over.
        let claimed = evidence.claimed && !(once && started.is_some());
        let is_free = claimed && !started.is_some_and(|by| self.may_be_held(by));
        let (dispatch, then) = match (evidence.holder, started) {
            (None, None) if scheduled_at > now => (DispatchState::Scheduled, Then::Nothing),
            // An attempt that a worker holds is due, even if the node that handed it out has a clock ahead of
            // this one.
            (Some(holder), _) => {
                (DispatchState::Handed(holder.handed(started, self.now)), Then::Nothing)
            }
            (None, _) if is_fresh || is_free => (DispatchState::Scheduled, Then::Enqueue),
            (None, None) => (DispatchState::Grace { until: tick + self.grace }, Then::Nothing),
            (None, Some(by)) => (self.with_its_worker(by), Then::Nothing),
        };
        // The previous owner's clock may be ahead of this node's.
        let is_due = scheduled_at <= now.max(self.state.decided_at) + DOUBT;
        // An attempt that is delivered at most once is handed over only after its start is on record.
        let possibly_started = started.is_some()
            || matches!(dispatch, DispatchState::Handed(_))
            || (!is_fresh && !once && is_due);
        let attempt = Attempt {
            content: Arc::new(TaskContent::of(self.state, open)),
            id: self.state.task_id(open),
            started: started.cloned(),
            dispatch,
            possibly_started,
            // A previous owner may still decide about the attempt, believing that no worker has had it.
            // Recording the start before the hand-over makes that decision lose.
            claimed: claimed || !is_fresh,
            unsent: None,
            missed: 0,
            reported: false,
            acting: false,
            withdrawn: false,
        };
        (attempt, then)
    }

    /// Whether the worker on record may still hold an attempt that this node has claimed. The owner may have
    /// handed the attempt out while the claim was under way, when the row was still there. If that worker
    /// does not have it after all, the row can be claimed again once the claim expires.
    fn may_be_held(&self, by: &Started) -> bool {
        let is_recent = by.at + self.grace > self.now.time;
        is_recent && by.session != NOBODYS
    }

    /// A worker without a session does not reconnect to list its attempts, so the attempt's own clocks limit it.
    fn with_its_worker(&self, by: &Started) -> DispatchState {
        match by.session.is_empty() {
            true => DispatchState::Handed(Handed::without_session(by, self.now)),
            false => DispatchState::Grace { until: self.now.tick + self.grace },
        }
    }
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
