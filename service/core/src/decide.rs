//! From commands to events. Everything that Recoup decides about an execution is decided here and in the
//! modules below, from nothing but the state, the plan and the arguments.
//!
//! | state | command | becomes |
//! | --- | --- | --- |
//! | none | start | RUNNING, first step scheduled |
//! | RUNNING, steps | complete | next step, or `finally`, or SUCCEEDED / WARNING |
//! | RUNNING, steps | fail, time out, lose | retry; else caught or ignored, by the step or one around it: next step; else COMPENSATING |
//! | RUNNING, steps | fail, time out, lose in a branch | as above, and then FAIL_FAST stops the other branches: live attempts have a grace period |
//! | any, inside a step with a timeout | wake after the deadline | the step is stopped: live attempts have a grace period |
//! | any, inside a step that is being stopped | last live attempt ends, or the grace period is over | the step fails |
//! | RUNNING, steps | cancel | CANCELLING: live attempts have a grace period |
//! | RUNNING, steps | wake after the deadline | COMPENSATING: live attempts have a grace period |
//! | COMPENSATING, CANCELLING, steps | last live attempt ends, or the grace period is over | compensation begins |
//! | COMPENSATING, CANCELLING, compensation | complete | next compensation, in reverse order; then `on_failure` unless it is a cancel; then `finally` |
//! | COMPENSATING, CANCELLING, compensation | fail, time out, lose | retry; else PARKED, the others still run |
//! | COMPENSATING, `on_failure` | complete | next step of `on_failure`; then `finally` |
//! | COMPENSATING, `on_failure` | fail, time out, lose | retry; else caught or ignored; else the error is recorded, and `finally` |
//! | any, `finally` | complete | next step of `finally`; then the end |
//! | any, `finally` | fail, time out, lose | retry; else caught or ignored; else the error is recorded, and the end |
//! | any, cleanup | wake after the cleanup deadline | due compensations are PARKED, and the end |
//! | any but ended | terminate | TERMINATED: compensations due are PARKED, nothing else runs |
//! | ended, compensation RUNNING again | terminate | compensations due are PARKED; the end state does not change |
//! | any, compensation PARKED | retry compensation | compensation RUNNING again, whether or not the execution has ended |
//! | any, compensation PARKED | skip compensation | compensation DONE, when it was the last one parked |
//! | ended | anything else | rejected |
//!
//! How an execution ends: FAILED, TIMED_OUT and CANCELLED follow from the reason why the run stopped.
//! WARNING follows from warnings recorded on the way. Nothing that happens during cleanup changes the
//! original error.

mod attempt;
mod blocks;
mod cleanup;
mod due;
mod errors;
mod steps;
mod wake;

use std::cell::Cell;
use std::collections::HashSet;
use std::time::Duration;

use crate::command::{Command, Rejection, RequestId, StartExecution, TaskId};
use crate::error::{TaskError, builtin};
use crate::event::{AttemptFailed, AttemptOutcome, Event, ExecutionStarted, StopCause};
use crate::evolve::{begin, evolve};
use crate::execution::{CompensationState, Execution, NodeId, Phase, State};
use crate::id::StepPath;
use crate::limits::{
    EXPRESSION_READ_BYTES_MAX, HISTORY_EVENTS_CLEANUP_MAX, HISTORY_EVENTS_MAX,
    TRANSITION_BYTES_MAX, TRANSITION_EVENTS_MAX,
};
use crate::plan::Plan;
use crate::random::Random;
use crate::retry::{Decision, Reason};
use crate::time::Timestamp;

pub use due::next_wake;

use due::{Work, can_advance, next_work};

/// A transition that is being decided. Commands are decided one after the other, each on the state that the
/// commands before it have left. The state is changed in place, but only once a command is known to fit: a
/// rejected command leaves the state exactly as it was.
pub struct Decider<'a> {
    plan: &'a Plan,
    /// The state with all events so far applied; none before the start.
    state: Option<Box<Execution>>,
    events: Vec<Event>,
    now: Timestamp,
    random: Random,
    /// The format of the history that a start begins.
    format: u16,
    /// An attempt that is due within this time may already have begun; see [`Decider::doubting`].
    doubt: Duration,
    /// Bytes of JSON that expressions have parsed so far.
    parsed: Cell<usize>,
    /// Bytes of the events so far.
    bytes: usize,
}

/// The result of a [`Decider`].
pub struct Decided {
    /// The state with all events applied; none if there is no execution and none was started.
    pub state: Option<Box<Execution>>,
    /// Empty if nothing changed. The state is then the one that the decider was given.
    pub events: Vec<Event>,
}

impl<'a> Decider<'a> {
    /// `now` is database time. If it is earlier than the time of the last transition, that time is used
    /// instead. `random` seeds all random choices of this transition.
    pub fn new(state: Option<Box<Execution>>, plan: &'a Plan, now: Timestamp, random: u64) -> Self {
        let now = state.as_ref().map_or(now, |state| now.max(state.decided_at));
        let (events, random) = (Vec::new(), Random::new(random));
        let parsed = Cell::new(0);
        let (format, doubt) = (1, Duration::ZERO);
        Self { plan, state, events, now, random, format, doubt, parsed, bytes: 0 }
    }

    /// Sets the history format ([`Execution::format`]) of an execution that is started by this transition;
    /// the default is 1. An existing execution keeps its own format.
    pub fn starting_in(self, format: u16) -> Self {
        Self { format, ..self }
    }

    /// For an execution whose attempts another node may still hand out, by its own clock and without
    /// knowing of this decision. An attempt that is scheduled within `doubt` from now may then already be
    /// with a worker. The default is zero.
    pub fn doubting(self, doubt: Duration) -> Self {
        Self { doubt, ..self }
    }

    /// Whether an attempt scheduled for this time cannot have begun yet.
    fn is_far(&self, scheduled_at: Timestamp) -> bool {
        scheduled_at > self.now + self.doubt
    }

    /// Continues the work for which an earlier transition had no room. To be called before any command is
    /// decided.
    pub fn resume(&mut self) {
        if self.state.as_deref().is_some_and(can_advance) {
            self.advance();
        }
    }

    /// Decides one command. If the execution remembers the request id with the same digest, the command is
    /// accepted and changes nothing.
    ///
    /// # Errors
    /// A rejected command has changed nothing.
    pub fn decide(
        &mut self,
        command: Command,
        request: Option<&RequestId>,
    ) -> Result<(), Rejection> {
        if let Command::StartExecution(start) = command {
            return self.start(*start);
        }
        let Some(state) = &self.state else {
            return Err(Rejection::NoSuchExecution);
        };
        if let Some(RequestId { id, digest }) = request
            && let Some((_, known)) = state.requests.iter().find(|(known, _)| known == id)
        {
            return if known == digest { Ok(()) } else { Err(Rejection::RequestIdReused) };
        }
        let events = self.events.len();
        self.check_growth(&command)?;
        self.decide_new(command)?;
        if request.is_some() && self.events.len() == events {
            // Without this check, repeated calls that change nothing would fill the history with request
            // ids.
            let state = self.state();
            self.check_room(state.phase != Phase::Steps || state.state.is_ended())?;
        }
        self.advance();
        if let Some(RequestId { id, digest }) = request {
            self.emit(Event::RequestRecorded { request_id: id.clone(), digest: *digest });
        }
        Ok(())
    }

    /// Rejects commands that begin something new when the history is full. Commands that end something are
    /// always accepted, because a run must come to its end however long its history is. Where such a
    /// command leads to something new (a retry of a failed attempt, the next step, another record of a
    /// start), the code that begins it checks for room itself.
    fn check_growth(&self, command: &Command) -> Result<(), Rejection> {
        match command {
            Command::RetryCompensation { .. } => self.check_room(true),
            Command::StartExecution(_)
            | Command::CompleteTask { .. }
            | Command::FailTask { .. }
            | Command::TimeOutTask { .. }
            | Command::LoseWorker { .. }
            | Command::RecordStart { .. }
            | Command::WithdrawTask { .. }
            | Command::CancelExecution { .. }
            | Command::TerminateExecution { .. }
            | Command::SkipCompensation { .. }
            | Command::Wake => Ok(()),
        }
    }

    fn check_room(&self, is_cleanup: bool) -> Result<(), Rejection> {
        if self.is_full(is_cleanup) {
            return Err(Rejection::HistoryFull { events_max: events_max(is_cleanup) });
        }
        Ok(())
    }

    /// Whether the history holds as many events as it may while steps run, or, with `is_cleanup`, during
    /// cleanup.
    fn is_full(&self, is_cleanup: bool) -> bool {
        self.state().event_count as usize >= events_max(is_cleanup)
    }

    /// Bytes of JSON that this transition has parsed. When a decision takes long, most of its time goes
    /// into parsing.
    pub fn parsed(&self) -> usize {
        self.parsed.get()
    }

    /// The events that have been decided, and the state after them.
    pub fn finish(self) -> Decided {
        Decided { state: self.state, events: self.events }
    }

    fn decide_new(&mut self, command: Command) -> Result<(), Rejection> {
        match command {
            Command::StartExecution(_) => Err(Rejection::AlreadyStarted),
            Command::CompleteTask { task, output, worker } => self.complete(&task, output, worker),
            Command::FailTask { task, error, worker } => {
                self.fail(&task, error, AttemptOutcome::Known, worker)
            }
            Command::TimeOutTask { task, timeout, possibly_started, worker } => {
                self.time_out(&task, timeout, possibly_started, worker)
            }
            Command::LoseWorker { task, worker } => self.lose(&task, worker),
            Command::RecordStart { task, worker, session, at, basis } => {
                self.record_start(&task, worker, session, at, basis)
            }
            Command::WithdrawTask { task } => self.withdraw(&task),
            Command::CancelExecution { reason } => self.cancel(reason),
            Command::TerminateExecution { reason, unstarted } => {
                self.terminate(&reason, &unstarted)
            }
            Command::RetryCompensation { step, reason } => {
                self.retry_compensation(step.as_ref(), &reason)
            }
            Command::SkipCompensation { step, reason } => self.skip_compensation(&step, reason),
            Command::Wake => self.wake(),
        }
    }

    fn start(&mut self, start: StartExecution) -> Result<(), Rejection> {
        if self.state.is_some() {
            return Err(Rejection::AlreadyStarted);
        }
        let needed = self.plan.needs_format;
        if needed > self.format {
            return Err(Rejection::FormatTooOld { needed, format: self.format });
        }
        let timeouts = start.timeout.into_iter().chain(self.plan.timeout);
        let started = ExecutionStarted {
            namespace: start.namespace,
            workflow: self.plan.name.clone(),
            version: self.plan.version,
            key: start.key,
            input: start.input,
            deadline: timeouts.min().map(|timeout| self.now + timeout),
            trace: start.trace,
            format: self.format,
        };
        self.state = Some(Box::new(begin(start.id, &started, self.now)));
        self.events.push(Event::ExecutionStarted(Box::new(started)));
        self.advance();
        Ok(())
    }

    fn cancel(&mut self, reason: String) -> Result<(), Rejection> {
        let state = self.state();
        if state.state.is_ended() {
            return Err(Rejection::ExecutionEnded(state.state));
        }
        if state.cancel_reason.is_some() {
            return Ok(());
        }
        // During cleanup, and after the last step, the request is recorded and has no other effect.
        let stops = state.phase == Phase::Steps && !state.is_stopping();
        self.emit(Event::CancelRequested { reason: reason.clone() });
        if stops {
            self.stop_run(
                StopCause::Cancelled,
                TaskError::builtin(builtin::CANCELLED, reason),
                None,
            );
        }
        Ok(())
    }

    fn terminate(&mut self, reason: &str, unstarted: &[TaskId]) -> Result<(), Rejection> {
        let state = self.state();
        let ended = state.state.is_ended();
        // Only compensations that an operator retried can still run in an ended execution. They can be
        // terminated.
        if ended && state.compensation != CompensationState::Running {
            return Err(Rejection::ExecutionEnded(state.state));
        }
        if state.termination.is_some() {
            return Ok(());
        }
        let error = TaskError::builtin(builtin::TERMINATED, reason);
        if self.is_too_much_to_close(&error) {
            // The following transitions continue from this event, on any node.
            let (cause, error) = (StopCause::Terminated, error.clone());
            let (step, grace_until, compensation_due) = (None, self.now, false);
            self.emit(Event::RunStopped { cause, error, step, grace_until, compensation_due });
        }
        self.close(&error, unstarted);
        Ok(())
    }

    /// Whether the termination may need more than one transition.
    fn is_too_much_to_close(&self, error: &TaskError) -> bool {
        let state = self.state();
        // The steps of open attempts may have to be compensated too.
        let due = self.due_compensations().count() + state.open_attempt_count();
        let count = state.open_attempt_count() + state.ledger.unfinished_count() + due;
        let bytes = count.saturating_mul(error.size());
        // Besides these events, the compensation has a start and an end, and the execution has an end.
        self.events.len() + count + 3 > TRANSITION_EVENTS_MAX
            || self.bytes + bytes >= TRANSITION_BYTES_MAX
    }

    /// Ends everything that a termination ends, as far as this transition has room for it.
    fn close(&mut self, error: &TaskError, unstarted: &[TaskId]) {
        if !self.close_attempts(error, unstarted, None) {
            return;
        }
        let ended = self.state().state.is_ended();
        if !ended && self.state().phase == Phase::Steps {
            self.plan_compensation();
        }
        if !self.park_remaining(error) || ended {
            return;
        }
        self.emit(Event::ExecutionEnded { state: State::Terminated, error: Some(error.clone()) });
    }

    /// Stops the run: no further step begins. Attempts that wait for their retry never start, and live
    /// attempts have the grace period.
    fn stop_run(&mut self, cause: StopCause, error: TaskError, step: Option<StepPath>) {
        let grace_until = self.now + self.plan.cancel_grace;
        let compensation_due = self.due_compensations().next().is_some();
        self.emit(Event::RunStopped { cause, error, step, grace_until, compensation_due });
        let state = self.state();
        let waiting = state.open.scheduled_after(self.now + self.doubt);
        // An attempt whose start is on record was handed out by a node whose clock is ahead of this one, so
        // it is not withdrawn even if it is not due yet.
        let waiting = waiting
            .filter_map(|task| state.open_attempt(task))
            .filter(|open| open.attempt.started.is_none());
        // Waiting attempts beyond the room of this transition are withdrawn by the owner, which knows that
        // no worker has them, or end with the grace period.
        let waiting = waiting.take(self.room()).map(|open| (open.path, open.task.attempt));
        let mut waiting: Vec<_> = waiting.collect();
        waiting.reverse();
        for (path, attempt) in waiting {
            self.emit(Event::AttemptWithdrawn { path, attempt });
        }
    }

    /// Ends every open attempt, or those inside one step, for a reason that lies outside the attempt itself.
    /// No worker has received those in `unstarted`. Returns false if not all of them fit into this
    /// transition.
    fn close_attempts(
        &mut self,
        error: &TaskError,
        unstarted: &[TaskId],
        inside: Option<NodeId>,
    ) -> bool {
        let (state, sequence) = (self.state(), self.sequence());
        let unstarted: HashSet<_> = unstarted.iter().collect();
        let all = inside.is_none().then(|| state.open_attempts()).into_iter().flatten();
        let live = inside.into_iter().flat_map(|id| state.nodes.live_inside(id));
        let live = live.filter_map(|id| state.open_attempt(id.into()));
        let open = all.chain(live).take(self.room()).map(|open| {
            let taken_back = unstarted.contains(&state.task_id(&open));
            // No attempt is handed out before its time, or before the transition that schedules it is
            // committed.
            let is_far = self.is_far(open.attempt.scheduled_at);
            let is_early = is_far || open.attempt.sequence == sequence;
            let outcome = match open.attempt.started.is_none() && (taken_back || is_early) {
                true => AttemptOutcome::NotStarted,
                false => AttemptOutcome::Unknown,
            };
            AttemptFailed {
                path: open.path,
                attempt: open.task.attempt,
                error: error.clone(),
                outcome,
                decision: Decision::stop(Reason::Cancelled, None),
                worker: open.attempt.started.as_ref().map_or(String::new(), |s| s.worker.clone()),
                warning: false,
            }
        });
        let open: Vec<_> = open.collect();
        for failed in open {
            if self.is_spent() {
                break;
            }
            self.emit(Event::AttemptFailed(Box::new(failed)));
        }
        match inside {
            Some(id) => self.state().nodes.live_inside(id).next().is_none(),
            None => self.state().open.is_empty(),
        }
    }

    /// Does everything that follows from the state without waiting. Commands only change the state; this
    /// loop draws the consequences one by one, so that a long chain of them needs no deep recursion. The
    /// next piece of work follows from the state alone.
    ///
    /// If a chain fills the transition, it is left in the middle. The resulting state is due to be woken at
    /// once, on any node.
    fn advance(&mut self) {
        while !self.is_spent()
            && let Some(work) = next_work(self.state())
        {
            match work {
                Work::Terminate => {
                    let error = self.state().termination.clone().unwrap_or_default();
                    self.close(&error, &[]);
                }
                Work::Compensation => self.advance_compensation(),
                Work::Cleanup => self.begin_cleanup(),
                Work::Inside => {
                    let idle = self.state().nodes.first_idle().cloned();
                    self.run_inside(&idle.expect("there is work in such a scope"));
                }
                Work::Block(id) => self.advance_block(id),
                Work::Steps => self.run_steps(),
                Work::BeginHandlers => self.begin_handlers(),
                Work::OnFailure => self.run_on_failure(),
                Work::Finally => self.run_finally(),
            }
        }
    }

    /// Whether this transition is full, or has used its share of the thread that decides about all
    /// executions. Further commands belong in the next transition.
    pub fn is_spent(&self) -> bool {
        self.parsed.get() >= EXPRESSION_READ_BYTES_MAX
            || self.events.len() >= TRANSITION_EVENTS_MAX
            || self.bytes >= TRANSITION_BYTES_MAX
    }

    /// How many more events this transition has room for.
    fn room(&self) -> usize {
        TRANSITION_EVENTS_MAX.saturating_sub(self.events.len())
    }

    /// The sequence of the transition that is being decided.
    fn sequence(&self) -> u64 {
        self.state().sequence + u64::from(self.events.is_empty())
    }

    fn state(&self) -> &Execution {
        self.state.as_deref().expect("commands other than a start are decided on a state")
    }

    fn emit(&mut self, event: Event) {
        let state = self.state.as_mut().expect("the start makes the state before other events");
        if self.events.is_empty() {
            state.sequence += 1;
            state.decided_at = self.now;
        }
        let fitted = evolve(state, &event);
        fitted.expect("an event fits the state on which it was decided");
        self.bytes += event.size();
        self.events.push(event);
    }
}

fn events_max(is_cleanup: bool) -> usize {
    if is_cleanup { HISTORY_EVENTS_CLEANUP_MAX } else { HISTORY_EVENTS_MAX }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
