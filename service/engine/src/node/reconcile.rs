//! Where an attempt is, once the state of its execution has come anew: read, or committed by this node. Of a state
//! that was read, every open attempt is judged. A transition of this node's own names the attempts that it opens or
//! closes, or of which it says who has them: those alone are judged, and every other one is where it was. Its start
//! may be on record and the attempt wait again here, or be with another worker by now.
//!
//! Of an attempt that this node knows, by the first row that fits:
//!
//! | it is | the history has it | and | then it is |
//! | --- | --- | --- | --- |
//! | with no worker | any | a worker here holds it | with that worker |
//! | with a worker, in grace | any | its row was claimed here, it is delivered at least once and no worker can still have it | due |
//! | starting | started by that hand-over | this node's commit | handed over |
//! | due, queued | started by the hand-over that never left | this node does nothing about it | where it was |
//! | due, queued | started | this node's commit, of a start | where it was; a node that stops says that no worker has it |
//! | overflowed | started | this node's commit, of a start | due: its row may have gone with the start |
//! | in grace | started without a session | read | with that worker, by its own clocks |
//! | with a worker that has no session | started by a session | read | in grace |
//! | due, queued, overflowed | started | | with its worker: another node has handed it out |
//! | anything | any | | where it was |
//!
//! Of an attempt that is new here:
//!
//! | a worker here holds it | the history has it | and | then it is |
//! | --- | --- | --- | --- |
//! | no | not started | its time has not come | due then |
//! | yes | any | | with that worker |
//! | no | any | scheduled by this very commit, or claimed here where no worker can still have it | due |
//! | no | not started | | in grace |
//! | no | started | | with its worker |
//!
//! "With its worker" is in grace if it has a session, because it comes back and says so; otherwise with it
//! by the clocks that its start set.

use std::sync::Arc;
use std::time::Duration;

use recoup_core::execution::{Execution, Open, Started};
use recoup_core::plan::Plan;

use super::attempt::{Attempt, DOUBT, DispatchState, Handed, NOBODYS};
use super::io::WorkerKey;
use super::sessions::Holder;
use crate::clock::Now;
use crate::task::TaskContent;

/// What holds for all attempts of an execution.
pub(super) struct Reconciler<'a> {
    pub state: &'a Execution,
    pub plan: &'a Plan,
    /// The state is this node's own work.
    pub committed: bool,
    pub now: Now,
    /// For workers to say that they have an attempt.
    pub grace: Duration,
}

/// What is known here of one attempt beside its dispatch state.
pub(super) struct Evidence<'a> {
    /// A worker here that holds it.
    pub holder: Option<&'a Holder>,
    /// Its row in the overflow was claimed here.
    pub claimed: bool,
    /// A command of the node's own about it waits to be decided.
    pub acting: bool,
}

/// What has to be done about an attempt that is where it now is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Then {
    Nothing,
    Enqueue,
    /// Its start is durable.
    FinishStart(WorkerKey),
    /// The history gives it to a worker that does not have it.
    Disown,
}

impl Reconciler<'_> {
    /// Puts a known attempt where it is now. Returns the state that it has left, and what has to follow.
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

    /// None: it stays where it is.
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
            (DispatchState::Starting { worker, at }, Some(by), _) if committed && by.at == *at => {
                (None, Then::FinishStart(*worker))
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

    /// An attempt that this node has not known, where it is.
    pub fn unknown(&self, open: &Open<'_>, evidence: &Evidence<'_>) -> (Attempt, Then) {
        let Now { tick, time: now } = self.now;
        let started = open.attempt.started.as_ref();
        let scheduled_at = open.attempt.scheduled_at;
        let is_fresh = self.committed && open.attempt.sequence == self.state.sequence;
        let once = self.plan.is_at_most_once(&open.path);
        // A row that outlived the hand-over of what is delivered at most once is void.
        let claimed = evidence.claimed && !(once && started.is_some());
        let is_free = claimed && !started.is_some_and(|by| self.may_be_held(by));
        let (dispatch, then) = match (evidence.holder, started) {
            (None, None) if scheduled_at > now => (DispatchState::Scheduled, Then::Nothing),
            // What is with a worker is due, though the clock of the node that handed it out is ahead.
            (Some(holder), _) => {
                (DispatchState::Handed(holder.handed(started, self.now)), Then::Nothing)
            }
            (None, _) if is_fresh || is_free => (DispatchState::Scheduled, Then::Enqueue),
            (None, None) => (DispatchState::Grace { until: tick + self.grace }, Then::Nothing),
            (None, Some(by)) => (self.with_its_worker(by), Then::Nothing),
        };
        // The clock of the node that had it may be ahead of this one.
        let is_due = scheduled_at <= now.max(self.state.decided_at) + DOUBT;
        // What is delivered at most once is handed over after its start is on record.
        let possibly_started = started.is_some()
            || matches!(dispatch, DispatchState::Handed(_))
            || (!is_fresh && !once && is_due);
        let attempt = Attempt {
            content: Arc::new(TaskContent::of(self.state, open)),
            id: self.state.task_id(open),
            started: started.cloned(),
            dispatch,
            possibly_started,
            // What an owner before this one still decides, believing that no worker has had the attempt,
            // has to lose against the start.
            claimed: claimed || !is_fresh,
            unsent: None,
            missed: 0,
            reported: false,
            acting: false,
            withdrawn: false,
        };
        (attempt, then)
    }

    /// What this node claimed its owner may have handed out while the claim was under way, and the row
    /// was still there. If it is not with that worker after all, the row is claimed again when the claim
    /// ends.
    fn may_be_held(&self, by: &Started) -> bool {
        let is_recent = by.at + self.grace > self.now.time;
        is_recent && by.session != NOBODYS
    }

    /// Without a session no worker comes back to say that it has the attempt: its own clocks bind it.
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
