//! The facts of a timeline: which events of a history get a line, when they happened, which attempt they
//! concern, and in which section they belong. This module knows no words, symbols or columns.

use std::collections::{HashMap, HashSet};

use recoup_proto::v1::history_entry::Event;
use recoup_proto::v1::{self, CompensationState, ExecutionInfo, HistoryEntry, StepRef, StopCause};

use super::folding::Folding;
use crate::cli::text::timestamp_nanos;

/// The type of the error of a run whose history has reached its limit.
const HISTORY_TOO_LONG: &str = "recoup.history_too_long";

/// Either a section begins, or something happened in the current section.
#[derive(Debug, PartialEq)]
pub enum Fact<'a> {
    Section(Section<'a>),
    Moment(Moment<'a>),
}

#[derive(Debug, PartialEq)]
pub enum Section<'a> {
    /// A run after the first.
    Run(u32),
    Compensation(&'a v1::CompensationStarted),
    /// A person resolves compensations after the execution has ended.
    CompensationAgain,
    OnFailure,
    Finally,
    /// The end of the execution. This section has no title.
    End,
}

/// The content of one line: something that happened, or a pending attempt.
#[derive(Debug, PartialEq)]
pub struct Moment<'a> {
    /// Nanoseconds since the start of the execution. `None` for a pending attempt.
    pub offset: Option<i128>,
    /// The attempt, if the line concerns one.
    pub attempt: Option<Attempt>,
    /// How many nanoseconds the attempt took, if its beginning is known.
    pub took: Option<i128>,
    pub what: What<'a>,
}

/// The number of an attempt, and the most that the policy allows. `None` if no limit is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub number: u32,
    pub max: Option<u32>,
}

#[derive(Debug, PartialEq)]
pub enum What<'a> {
    Started {
        event: &'a v1::ExecutionStarted,
        /// How many nanoseconds the execution may take.
        limit: Option<i128>,
    },
    StepSkipped(&'a v1::StepSkipped),
    AttemptFailed {
        event: &'a v1::AttemptFailed,
        /// The attempt that a retry would make.
        next: Attempt,
        /// A step around it is being stopped.
        is_stopped: bool,
    },
    AttemptWithdrawn(&'a v1::AttemptWithdrawn),
    StepCompleted(&'a v1::StepCompleted),
    /// A step failed, and no failed attempt has a line that says so.
    StepFailed(&'a v1::StepFailed),
    StepIgnored(&'a v1::StepIgnored),
    /// A case of a `switch` was taken, or its default.
    CaseTaken(&'a v1::BlockStarted),
    BlockCompleted(&'a v1::BlockCompleted),
    ParallelStarted(&'a v1::ParallelStarted),
    BranchFailed(&'a v1::BranchFailed),
    ParallelCompleted(&'a v1::ParallelCompleted),
    LoopStarted {
        event: &'a v1::LoopStarted,
        /// How many items there are. `None` if it is not known.
        count: Option<u32>,
    },
    ItemFailed(&'a v1::ItemFailed),
    LoopCompleted(&'a v1::LoopCompleted),
    /// Further items of a `for_each` have no lines of their own.
    MoreItems {
        of: &'a str,
        count: usize,
    },
    /// A step that runs other steps is being stopped.
    BlockStopped {
        event: &'a v1::BlockStopped,
        /// The branch or item whose failure is the reason. `None` if the reason is a timeout.
        failed: Option<Lane<'a>>,
        /// How many nanoseconds live attempts have to end.
        grace: i128,
    },
    ScopeReturned(&'a v1::ScopeReturned),
    HandlerStarted(&'a v1::HandlerStarted),
    StepCaught(&'a v1::StepCaught),
    /// Every step is done, but the output cannot be produced.
    OutputFailed(&'a v1::RunStopped),
    TimedOut(&'a v1::RunStopped),
    Cancelling,
    Terminating,
    /// The history has reached its limit.
    HistoryFull(&'a v1::RunStopped),
    CancelRequested(&'a v1::CancelRequested),
    CompensationParked(&'a v1::CompensationParked),
    CompensationRetried(&'a v1::CompensationRetried),
    CompensationSkipped(&'a v1::CompensationSkipped),
    /// Compensation has ended, and at least one compensation is parked.
    CompensationIncomplete,
    /// After retries and skips by a person, no compensation is parked any more.
    CompensationComplete,
    HandlerFailed(&'a v1::HandlerFailed),
    Ended(&'a v1::ExecutionEnded),
    Pending {
        attempt: &'a v1::PendingAttempt,
        /// Nanoseconds from the start of the execution to the retry for which the attempt waits.
        retry_offset: Option<i128>,
    },
}

/// One of the lists of steps that a step runs at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane<'a> {
    Branch(&'a str),
    Item(&'a str),
}

/// The facts of an execution: first those of its history, then the pending attempts.
pub fn facts<'a>(execution: &'a ExecutionInfo, history: &'a [HistoryEntry]) -> Vec<Fact<'a>> {
    let mut model = Model::new(execution, Folding::of(execution, history));
    for entry in history {
        model.entry(entry);
    }
    for (of, count) in std::mem::take(&mut model.folding).into_rest() {
        model.more_items(None, of, count);
    }
    for pending in &execution.pending_attempts {
        model.pending(pending);
    }
    model.facts
}

/// The step that has ended, or inside which everything has ended, if it may be a `for_each`.
fn ended(event: &Event) -> Option<&str> {
    let step = match event {
        Event::LoopCompleted(own) => &own.step,
        Event::StepFailed(own) => &own.step,
        Event::StepIgnored(own) => &own.step,
        Event::HandlerStarted(own) => &own.step,
        _ => return None,
    };
    step.as_ref().map(|step| step.step_path.as_str())
}

/// A step or its compensation.
type Task = (String, bool);

fn task(step: Option<&StepRef>) -> Task {
    step.map(|step| (step.step_path.clone(), step.compensation)).unwrap_or_default()
}

struct Model<'a> {
    facts: Vec<Fact<'a>>,
    /// Which items of loops have no lines.
    folding: Folding<'a>,
    started_at: i128,
    /// The earliest time at which the open attempt of a task could begin.
    due_at: HashMap<Task, i128>,
    /// The most attempts of a task, as recorded when the history scheduled them.
    attempts_max: HashMap<Task, u32>,
    /// Tasks whose last attempt failed. The line of that attempt also reports the failure of the step.
    attempt_failed: HashSet<Task>,
    /// The path of the step that failed last. The steps around it fail with the same error, which has its line
    /// already.
    failed: String,
    /// For each `parallel` and `for_each`, the branch or item that failed first.
    failed_lanes: HashMap<&'a str, Lane<'a>>,
    /// How many items each `for_each` has.
    item_counts: HashMap<&'a str, u32>,
    /// Steps that are being stopped.
    stopped: HashSet<&'a str>,
    /// Steps whose compensation was retried by a person.
    retried: HashSet<String>,
    has_ended: bool,
    /// Whether the section for actions of a person after the end has begun.
    is_again: bool,
    run: u32,
}

impl<'a> Model<'a> {
    fn new(execution: &'a ExecutionInfo, folding: Folding<'a>) -> Self {
        let counts = execution.loops.iter().map(|own| (own.step_path.as_str(), own.item_count));
        Self {
            facts: Vec::new(),
            folding,
            started_at: execution.started_at.as_ref().map_or(0, timestamp_nanos),
            due_at: HashMap::new(),
            attempts_max: HashMap::new(),
            attempt_failed: HashSet::new(),
            failed: String::new(),
            failed_lanes: HashMap::new(),
            item_counts: counts.collect(),
            stopped: HashSet::new(),
            retried: HashSet::new(),
            has_ended: false,
            is_again: false,
            run: 1,
        }
    }

    fn entry(&mut self, entry: &'a HistoryEntry) {
        let at = entry.time.as_ref().map_or(self.started_at, timestamp_nanos);
        if entry.run > self.run {
            self.has_ended = false;
            self.run = entry.run;
            self.section(Section::Run(entry.run));
        }
        // The server may be newer than this binary. An event that this binary does not know gets no line.
        let Some(event) = &entry.event else { return };
        if self.folding.hides(event) {
            return;
        }
        if let Some(of) = ended(event)
            && let Some(count) = self.folding.take_count(of)
        {
            self.more_items(Some(self.offset(at)), of, count);
        }
        match event {
            Event::ExecutionStarted(event) => {
                let limit = event.deadline.as_ref().map(|deadline| timestamp_nanos(deadline) - at);
                self.moment(at, What::Started { event, limit });
            }
            Event::StepStarted(_) | Event::RunSucceeded(_) | Event::RequestRecorded(_) => {}
            Event::StepSkipped(event) => self.moment(at, What::StepSkipped(event)),
            Event::AttemptScheduled(scheduled) => self.scheduled(at, scheduled),
            Event::AttemptStarted(started) => {
                // The hand-over is a more precise beginning than the scheduled time.
                if let Some(begun) = &started.started_at {
                    self.due_at.insert(task(started.step.as_ref()), timestamp_nanos(begun));
                }
            }
            Event::AttemptFailed(event) => {
                let step = event.step.as_ref();
                let next = self.attempt(step, event.attempt + 1);
                let is_stopped = step.is_some_and(|step| self.is_stopped(step));
                let what = What::AttemptFailed { event, next, is_stopped };
                self.attempt_moment(at, step, event.attempt, what);
                self.attempt_failed.insert(task(step));
            }
            Event::AttemptWithdrawn(event) => {
                let what = What::AttemptWithdrawn(event);
                self.attempt_moment(at, event.step.as_ref(), event.attempt, what);
            }
            Event::StepCompleted(event) => {
                let what = What::StepCompleted(event);
                self.attempt_moment(at, event.step.as_ref(), event.attempt, what);
            }
            Event::StepFailed(event) => {
                let task = task(event.step.as_ref());
                let is_around = self.failed.starts_with(&format!("{}.", task.0));
                if !is_around && !self.attempt_failed.contains(&task) {
                    self.moment(at, What::StepFailed(event));
                }
                let path = event.step.as_ref().map_or("", |step| &step.step_path);
                self.stopped.remove(path);
                self.failed = task.0;
            }
            Event::StepIgnored(event) => {
                let path = event.step.as_ref().map_or("", |step| &step.step_path);
                self.stopped.remove(path);
                self.moment(at, What::StepIgnored(event));
            }
            Event::BlockStarted(event) => {
                if event.scope.starts_with("cases") || event.scope == "default" {
                    self.moment(at, What::CaseTaken(event));
                }
            }
            Event::BlockCompleted(event) => self.moment(at, What::BlockCompleted(event)),
            Event::ParallelStarted(event) => self.moment(at, What::ParallelStarted(event)),
            // The lines of its steps name the branch.
            Event::BranchCompleted(_) => {}
            Event::BranchFailed(event) => {
                let path = event.step.as_ref().map_or("", |step| &step.step_path);
                self.failed_lanes.entry(path).or_insert(Lane::Branch(&event.branch));
                self.moment(at, What::BranchFailed(event));
            }
            Event::ParallelCompleted(event) => self.moment(at, What::ParallelCompleted(event)),
            Event::LoopStarted(event) => {
                let path = event.step.as_ref().map_or("", |step| step.step_path.as_str());
                let count = self.item_counts.get(path).copied();
                self.moment(at, What::LoopStarted { event, count });
            }
            Event::ItemCompleted(_) => {}
            Event::ItemFailed(event) => {
                // The loop fails with an error of its own, which gets a line.
                self.failed.clear();
                let path = event.step.as_ref().map_or("", |step| &step.step_path);
                self.failed_lanes.entry(path).or_insert(Lane::Item(&event.item));
                self.moment(at, What::ItemFailed(event));
            }
            Event::LoopCompleted(event) => self.moment(at, What::LoopCompleted(event)),
            Event::BlockStopped(event) => self.block_stopped(at, event),
            Event::ScopeReturned(event) => self.moment(at, What::ScopeReturned(event)),
            Event::HandlerStarted(event) => {
                // An error of the handler is another error, and gets a line.
                self.failed.clear();
                let path = event.step.as_ref().map_or("", |step| &step.step_path);
                self.stopped.remove(path);
                self.moment(at, What::HandlerStarted(event));
            }
            Event::StepCaught(event) => self.moment(at, What::StepCaught(event)),
            Event::RunStopped(event) => self.run_stopped(at, event),
            Event::CancelRequested(event) => self.moment(at, What::CancelRequested(event)),
            Event::CompensationStarted(event) => self.section(Section::Compensation(event)),
            Event::CompensationParked(event) => self.moment(at, What::CompensationParked(event)),
            Event::CompensationRetried(event) => {
                self.again();
                self.retried.insert(event.step_path.clone());
                self.moment(at, What::CompensationRetried(event));
            }
            Event::CompensationSkipped(event) => {
                self.again();
                self.moment(at, What::CompensationSkipped(event));
            }
            Event::CompensationEnded(ended) => {
                if ended.state() == CompensationState::Parked {
                    self.moment(at, What::CompensationIncomplete);
                } else if self.is_again {
                    self.moment(at, What::CompensationComplete);
                }
                self.is_again = false;
            }
            Event::OnFailureStarted(_) => self.section(Section::OnFailure),
            Event::FinallyStarted(_) => self.section(Section::Finally),
            Event::HandlerFailed(event) => self.moment(at, What::HandlerFailed(event)),
            Event::ExecutionEnded(event) => {
                self.has_ended = true;
                self.section(Section::End);
                self.moment(at, What::Ended(event));
            }
        }
    }

    fn more_items(&mut self, offset: Option<i128>, of: &'a str, count: usize) {
        let what = What::MoreItems { of, count };
        self.facts.push(Fact::Moment(Moment { offset, attempt: None, took: None, what }));
    }

    fn scheduled(&mut self, at: i128, scheduled: &v1::AttemptScheduled) {
        let due = scheduled.due_at.as_ref().map_or(at, timestamp_nanos);
        let task = task(scheduled.step.as_ref());
        match scheduled.max_attempts {
            0 => self.attempts_max.remove(&task),
            max => self.attempts_max.insert(task.clone(), max),
        };
        self.due_at.insert(task, due);
    }

    fn block_stopped(&mut self, at: i128, event: &'a v1::BlockStopped) {
        let path = event.step.as_ref().map_or("", |step| &step.step_path);
        let failed = match event.error {
            Some(_) => None,
            None => self.failed_lanes.get(path).copied(),
        };
        let grace = event.grace_until.as_ref().map_or(0, |until| timestamp_nanos(until) - at);
        self.stopped.insert(path);
        self.moment(at, What::BlockStopped { event, failed, grace });
    }

    /// Whether a step around this one is being stopped. Compensations go on.
    fn is_stopped(&self, step: &StepRef) -> bool {
        let is_inside = |around: &str| {
            let inside = step.step_path.strip_prefix(around);
            inside.is_some_and(|inside| inside.starts_with(['.', '[']))
        };
        !step.compensation && self.stopped.iter().any(|around| is_inside(around))
    }

    fn run_stopped(&mut self, at: i128, event: &'a v1::RunStopped) {
        match event.cause() {
            StopCause::Failed if event.step_path.is_empty() => {
                let is_full =
                    event.error.as_ref().is_some_and(|error| error.r#type == HISTORY_TOO_LONG);
                // If the history is not full, every step is done but the output cannot be produced.
                self.moment(
                    at,
                    match is_full {
                        true => What::HistoryFull(event),
                        false => What::OutputFailed(event),
                    },
                );
            }
            // The line of the failed step already says this.
            StopCause::Failed | StopCause::Unspecified => {}
            StopCause::TimedOut => self.moment(at, What::TimedOut(event)),
            StopCause::Cancelled => self.moment(at, What::Cancelling),
            StopCause::Terminated => self.moment(at, What::Terminating),
        }
    }

    /// Begins a section for the actions of a person after the execution has ended.
    fn again(&mut self) {
        if self.has_ended && !self.is_again {
            self.is_again = true;
            self.section(Section::CompensationAgain);
        }
    }

    /// A compensation that a person retried has all its attempts again, but their numbers continue from the
    /// previous ones. The limit is left out, because `attempt 4 of 3` would be wrong.
    fn attempt(&self, step: Option<&StepRef>, number: u32) -> Attempt {
        let task = task(step);
        let is_retried = task.1 && self.retried.contains(&task.0);
        let max = self.attempts_max.get(&task).copied().filter(|_| !is_retried);
        Attempt { number, max }
    }

    fn pending(&mut self, pending: &'a v1::PendingAttempt) {
        let retry_at = pending.next_retry_at.as_ref().map(timestamp_nanos);
        let is_retried = pending.compensation && self.retried.contains(&pending.step_path);
        let max = Some(pending.max_attempts).filter(|max| *max > 0 && !is_retried);
        let what = What::Pending {
            attempt: pending,
            retry_offset: retry_at.map(|at| at - self.started_at),
        };
        self.facts.push(Fact::Moment(Moment {
            offset: None,
            attempt: Some(Attempt { number: pending.attempt, max }),
            took: None,
            what,
        }));
    }

    fn section(&mut self, section: Section<'a>) {
        self.facts.push(Fact::Section(section));
    }

    fn moment(&mut self, at: i128, what: What<'a>) {
        let offset = Some(self.offset(at));
        self.facts.push(Fact::Moment(Moment { offset, attempt: None, took: None, what }));
    }

    fn attempt_moment(&mut self, at: i128, step: Option<&StepRef>, number: u32, what: What<'a>) {
        let due = self.due_at.remove(&task(step));
        self.facts.push(Fact::Moment(Moment {
            offset: Some(self.offset(at)),
            attempt: Some(self.attempt(step, number)),
            took: due.map(|due| (at - due).max(0)),
            what,
        }));
    }

    fn offset(&self, at: i128) -> i128 {
        (at - self.started_at).max(0)
    }
}
