//! The steps of the workflow, one after the other, and those of `finally`.

use super::Decider;
use super::attempt::HISTORY_FULL;
use crate::definition::OnError;
use crate::error::{TaskError, builtin};
use crate::event::{Event, FirstAttempt, PayloadSource, StopCause, TERSE};
use crate::execution::{Phase, Scope, State};
use crate::expression::Variables;
use crate::id::StepPath;
use crate::payload::Payload;
use crate::plan::{Plan, StepKind, StepPlan};
use crate::tree::ScopeId;

/// What happens to a step when its turn comes.
enum Turn {
    Skip,
    Begin { input: PayloadSource },
}

/// Whether a scope had a next step.
#[derive(PartialEq, Eq)]
enum Progress {
    Made,
    Done,
}

impl<'a> Decider<'a> {
    /// Begins the next of the workflow's steps. To be called while none of them is running.
    pub(super) fn run_steps(&mut self) {
        if self.run_next(Scope::Steps, ScopeId::STEPS) == Progress::Done {
            self.succeed();
        }
    }

    pub(super) fn run_finally(&mut self) {
        if self.run_next(Scope::Finally, ScopeId::FINALLY) == Progress::Done {
            self.end();
        }
    }

    /// Begins or skips the step after the last one that has begun.
    fn run_next(&mut self, scope: Scope, planned: ScopeId) -> Progress {
        let plan: &'a Plan = self.plan;
        let mut position = self.state().counters(&scope).begun as usize;
        let step = loop {
            match plan.step_at(planned, position) {
                None => return Progress::Done,
                // A definition that was accepted although two steps have the same id runs only the first of
                // them.
                Some(step) if self.state().node(&step.path).is_some() => position += 1,
                Some(step) => break step,
            }
        };
        if scope == Scope::Steps && self.is_full(false) {
            let error = TaskError::builtin(builtin::HISTORY_TOO_LONG, HISTORY_FULL);
            self.stop_run(StopCause::Failed, error, None);
            return Progress::Made;
        }
        let path = step.path.clone();
        match self.turn(step) {
            Ok(Turn::Skip) => self.emit(Event::StepSkipped { path }),
            Ok(Turn::Begin { input }) => {
                self.begin(path, 0, input, 1);
            }
            Err(error) => {
                let input = PayloadSource::Inline(Payload::null());
                self.emit(Event::StepStarted { path, generation: 0, input, first: None });
                self.fail_unstarted(&step.path, error);
            }
        }
        Progress::Made
    }

    /// Evaluates the step's `when` and its input.
    fn turn(&self, step: &StepPlan) -> Result<Turn, TaskError> {
        let variables = self.variables();
        if let Some(when) = &step.when
            && !when.evaluate(variables)?
        {
            return Ok(Turn::Skip);
        }
        let StepKind::Task(task) = &step.kind;
        let input = match &task.input {
            Some(template) => template.source(variables)?,
            None => PayloadSource::Input,
        };
        Ok(Turn::Begin { input })
    }

    /// The payload in the form in which the history's format writes it: only formats from [`TERSE`] on
    /// refer to payloads that the history already holds.
    fn as_written(&self, source: PayloadSource) -> PayloadSource {
        match self.state().format {
            TERSE.. => source,
            _ => PayloadSource::Inline(self.state().payload(&source)),
        }
    }

    /// Begins a step or a compensation and schedules its first attempt.
    pub(super) fn begin(
        &mut self,
        path: StepPath,
        generation: u32,
        input: PayloadSource,
        attempt: u32,
    ) {
        let (at, input) = (self.now, self.as_written(input));
        if self.state().format >= TERSE {
            let first = Some(FirstAttempt { number: attempt, at });
            return self.emit(Event::StepStarted { path, generation, input, first });
        }
        self.emit(Event::StepStarted { path: path.clone(), generation, input, first: None });
        self.emit(Event::AttemptScheduled { path, attempt, at });
    }

    /// Handles an error that is not retried: it is ignored, or the step has failed for good.
    pub(super) fn fail_step(&mut self, path: StepPath, error: TaskError) {
        let step = self.plan.step(&path);
        let ignore = step.is_some_and(|step| step.on_error == OnError::Ignore);
        if ignore {
            let warning = step.is_some_and(|step| !step.allow_warning);
            return self.emit(Event::StepIgnored { path, error, warning });
        }
        self.emit(Event::StepFailed { path: path.clone(), error: error.clone() });
        if self.state().phase == Phase::Finally {
            self.emit(Event::HandlerFailed { path, error });
            self.end();
        } else {
            self.stop_run(StopCause::Failed, error, Some(path));
        }
    }

    pub(super) fn succeed(&mut self) {
        let output = match &self.plan.output {
            Some(template) => template.source(self.variables()),
            // By default the output of the last step that has one.
            None => Ok(match self.state().steps().rev().find(|step| step.output().is_some()) {
                Some(last) => PayloadSource::Output(last.path.clone()),
                None => PayloadSource::Inline(Payload::null()),
            }),
        };
        match output {
            Ok(output) => {
                self.emit(Event::RunSucceeded { output: self.as_written(output) });
                self.begin_finally();
            }
            Err(error) => self.stop_run(StopCause::Failed, error, None),
        }
    }

    pub(super) fn begin_finally(&mut self) {
        if self.plan.finally().len() == 0 {
            return self.end();
        }
        let cleanup_deadline = self.cleanup_deadline();
        self.emit(Event::FinallyStarted { cleanup_deadline });
    }

    pub(super) fn end(&mut self) {
        let state = self.state();
        let (ended, error) = match &state.stop {
            None if state.warnings.is_empty() => (State::Succeeded, None),
            None => (State::Warning, None),
            Some(stop) => {
                let ended = match stop.cause {
                    StopCause::Failed => State::Failed,
                    StopCause::TimedOut => State::TimedOut,
                    StopCause::Cancelled => State::Cancelled,
                    StopCause::Terminated => State::Terminated,
                };
                (ended, Some(stop.error.clone()))
            }
        };
        self.emit(Event::ExecutionEnded { state: ended, error });
    }

    pub(super) fn variables(&self) -> Variables<'_> {
        let execution = self.state();
        let error = execution.stop.as_ref().map(|stop| &stop.error);
        Variables { execution, error, parsed: &self.parsed }
    }
}
