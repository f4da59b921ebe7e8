//! The steps of the scopes, one after the other: which one begins next, and what follows when a scope ends.

use super::Decider;
use super::attempt::HISTORY_FULL;
use crate::error::{TaskError, builtin};
use crate::event::{Event, FirstAttempt, PayloadSource, StopCause, TERSE};
use crate::execution::{Part, Phase, Scope, State};
use crate::expression::{Reading, Variables, check_passed_on};
use crate::id::{ItemKey, StepPath};
use crate::limits::ERROR_BYTES_MAX;
use crate::payload::Payload;
use crate::plan::{Plan, RaisePlan, StepKind, StepPlan};
use crate::tree::ScopeId;

/// What happens to a step when its turn comes.
enum Turn {
    Skip,
    /// Hand the task to a worker.
    Begin {
        input: PayloadSource,
    },
    /// Begin one of the lists of steps inside the step.
    Open(Part),
    /// Begin the branches of the step that come after no other one.
    Branch {
        ready: Vec<ItemKey>,
        concurrency: Option<u32>,
    },
    /// The step completes at once.
    Complete {
        output: PayloadSource,
    },
    /// The step ends its scope.
    Return {
        output: PayloadSource,
    },
    /// The step raises an error, which arose in `origin`: in the step itself, unless it raises an error
    /// again.
    Raise {
        error: TaskError,
        origin: StepPath,
    },
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
        if self.run_next(&Scope::Steps, ScopeId::STEPS) == Progress::Done {
            self.succeed();
        }
    }

    pub(super) fn run_on_failure(&mut self) {
        if self.run_next(&Scope::OnFailure, ScopeId::ON_FAILURE) == Progress::Done {
            self.begin_finally();
        }
    }

    pub(super) fn run_finally(&mut self) {
        if self.run_next(&Scope::Finally, ScopeId::FINALLY) == Progress::Done {
            self.end();
        }
    }

    /// Begins the next step of a scope inside a step, or ends that scope. To be called while none of its
    /// steps is running.
    pub(super) fn run_inside(&mut self, scope: &Scope) {
        let Scope::Inside { node, part, item } = scope else {
            unreachable!("the workflow's own scopes are not inside a step");
        };
        let owner = self.state().nodes.get(*node).path.clone();
        let Some(planned) = self.plan.part(&owner, *part, item.as_ref()) else {
            unreachable!("a scope that is open is one of the plan that its execution began with");
        };
        if self.run_next(scope, planned) == Progress::Made {
            return;
        }
        let (path, output) = (owner, self.output_of(scope, planned));
        match (output, part, item.clone()) {
            (Err(error), _, Some(branch)) => self.fail_branch(path.clone(), branch, error, path),
            (Ok(output), _, Some(branch)) => self.complete_branch(path, branch, planned, output),
            (Err(error), _, None) => self.fail_step(path.clone(), error, path),
            (Ok(output), Part::Handler(_), None) => self.emit(Event::StepCaught { path, output }),
            (Ok(output), _, None) => self.emit(Event::BlockCompleted { path, output }),
        }
    }

    /// The output of a scope whose steps have ended.
    fn output_of(&self, scope: &Scope, planned: ScopeId) -> Result<PayloadSource, TaskError> {
        let counters = self.state().counters(scope);
        let source = match (counters.returned, self.plan.output(planned)) {
            (None, Some(template)) => template.source(self.variables(scope))?,
            (returned, _) => match returned.or(counters.last_output) {
                Some(last) => PayloadSource::Output(self.state().nodes.get(last).path.clone()),
                None => PayloadSource::Inline(Payload::null()),
            },
        };
        check_passed_on(&source, self.state())?;
        Ok(self.as_written(source))
    }

    /// Begins or skips the step after the last one that has begun.
    fn run_next(&mut self, scope: &Scope, planned: ScopeId) -> Progress {
        let plan: &'a Plan = self.plan;
        let counters = self.state().counters(scope);
        if counters.returned.is_some() {
            return Progress::Done;
        }
        let mut position = counters.begun as usize;
        let step = loop {
            match plan.step_at(planned, position) {
                None => return Progress::Done,
                Some(step) if self.state().node(&step.path).is_some() => position += 1,
                // A definition that was accepted although two steps have the same id runs only the first of
                // them. The plan finds no other by its path.
                Some(step) if !plan.step(&step.path).is_some_and(|own| std::ptr::eq(own, step)) => {
                    position += 1;
                }
                Some(step) => break step,
            }
        };
        if self.state().phase == Phase::Steps && self.is_full(false) {
            let error = TaskError::builtin(builtin::HISTORY_TOO_LONG, HISTORY_FULL);
            self.stop_run(StopCause::Failed, error, None);
            return Progress::Made;
        }
        let path = step.path.clone();
        let turn = self.turn(step, scope, planned);
        match turn {
            Ok(Turn::Skip) => self.emit(Event::StepSkipped { path }),
            Ok(Turn::Begin { input }) => self.begin(path, 0, input, 1),
            Ok(Turn::Open(part)) => {
                let (part, deadline) = (Some(part), step.timeout.map(|timeout| self.now + timeout));
                self.emit(Event::BlockStarted { path, generation: 0, part, deadline });
            }
            Ok(Turn::Branch { ready, concurrency }) => {
                let (generation, deadline) = (0, step.timeout.map(|timeout| self.now + timeout));
                let event =
                    Event::ParallelStarted { path, generation, ready, concurrency, deadline };
                self.emit(event);
            }
            Ok(Turn::Complete { output }) => {
                self.begin_block(&path);
                self.emit(Event::BlockCompleted { path, output });
            }
            Ok(Turn::Return { output }) => {
                self.begin_block(&path);
                self.emit(Event::ScopeReturned { path, output });
            }
            Ok(Turn::Raise { error, origin }) => {
                self.begin_block(&path);
                self.fail_step(path, error, origin);
            }
            Err(error) if step.kind.task().is_some() => {
                let input = PayloadSource::Inline(Payload::null());
                self.emit(Event::StepStarted { path, generation: 0, input, first: None });
                self.fail_unstarted(&step.path, error);
            }
            Err(error) => {
                self.begin_block(&path);
                self.fail_step(path.clone(), error, path);
            }
        }
        Progress::Made
    }

    /// Begins a step that is not a task and runs no steps inside it.
    fn begin_block(&mut self, path: &StepPath) {
        let (path, deadline) = (path.clone(), None);
        self.emit(Event::BlockStarted { path, generation: 0, part: None, deadline });
    }

    /// Evaluates the step's `when`, and what the step needs in order to begin.
    fn turn(&self, step: &StepPlan, scope: &Scope, planned: ScopeId) -> Result<Turn, TaskError> {
        let variables = self.variables(scope);
        if let Some(when) = &step.when
            && !when.evaluate(variables)?
        {
            return Ok(Turn::Skip);
        }
        Ok(match &step.kind {
            StepKind::Task(task) => Turn::Begin {
                input: match &task.input {
                    Some(template) => template.source(variables)?,
                    None => PayloadSource::Input,
                },
            },
            StepKind::Set(value) => {
                Turn::Complete { output: self.as_written(value.source(variables)?) }
            }
            StepKind::Raise(raise) => {
                Turn::Raise { error: self.raised(raise, scope)?, origin: step.path.clone() }
            }
            StepKind::Rethrow => {
                // Registration refuses such a step outside handlers, but another release may accept it.
                let Some(handled) = self.state().handled_in(scope) else {
                    let what = "`rethrow`: there is no error to raise again here";
                    return Err(TaskError::builtin(builtin::EXPRESSION, what));
                };
                Turn::Raise { error: handled.error.clone(), origin: handled.origin.clone() }
            }
            StepKind::Return(Some(output)) => {
                Turn::Return { output: self.as_written(output.source(variables)?) }
            }
            StepKind::Return(None) => Turn::Return { output: self.output_of(scope, planned)? },
            StepKind::Switch(cases) => {
                let mut reading = Reading::new(variables);
                for (case, index) in cases.iter().zip(0..) {
                    if case.evaluate_in(&mut reading)? {
                        return Ok(Turn::Open(Part::Case(index)));
                    }
                }
                match self.plan.part(&step.path, Part::Default, None) {
                    Some(_) => Turn::Open(Part::Default),
                    None => Turn::Complete { output: PayloadSource::Inline(Payload::null()) },
                }
            }
            StepKind::Try => Turn::Open(Part::Body),
            StepKind::Parallel(parallel) => {
                let tree = &self.plan.tree;
                let first = self.plan.branches(&step.path).filter(|id| tree.after(*id).is_empty());
                let ready = first.filter_map(|scope| tree.branch_id(scope).cloned()).collect();
                Turn::Branch { ready, concurrency: parallel.concurrency }
            }
        })
    }

    fn raised(&self, raise: &RaisePlan, scope: &Scope) -> Result<TaskError, TaskError> {
        let variables = self.variables(scope);
        let details = raise.details.as_ref().map(|details| details.render(variables));
        let error = TaskError {
            details: details.transpose()?,
            non_retryable: raise.non_retryable.then_some(true),
            source: "workflow".into(),
            ..TaskError::new(&raise.error_type, raise.message.render_text(variables)?)
        };
        if error.size() > ERROR_BYTES_MAX {
            let what = format!(
                "the error `{}` would have {} bytes, at most {ERROR_BYTES_MAX} are allowed",
                raise.error_type,
                error.size()
            );
            return Err(TaskError::builtin(builtin::PAYLOAD_TOO_LARGE, what));
        }
        Ok(error)
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

    pub(super) fn succeed(&mut self) {
        match self.output_of(&Scope::Steps, ScopeId::STEPS) {
            Ok(output) => {
                self.emit(Event::RunSucceeded { output });
                self.begin_finally();
            }
            Err(error) => self.stop_run(StopCause::Failed, error, None),
        }
    }

    /// The first step of `on_failure`; none if there is none, or if the run has not failed or timed out.
    pub(super) fn first_of_on_failure(&self) -> Option<&StepPlan> {
        let cause = self.state().stop.as_ref()?.cause;
        let is_failure = matches!(cause, StopCause::Failed | StopCause::TimedOut);
        self.plan.on_failure().next().filter(|_| is_failure)
    }

    /// Begins what follows compensation: `on_failure` if the run failed or timed out, otherwise `finally`.
    pub(super) fn begin_handlers(&mut self) {
        if self.first_of_on_failure().is_none() {
            return self.begin_finally();
        }
        let cleanup_deadline = self.cleanup_deadline();
        self.emit(Event::OnFailureStarted { cleanup_deadline });
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

    /// The variables of expressions in a scope.
    pub(super) fn variables(&self, scope: &Scope) -> Variables<'_> {
        let execution = self.state();
        let (error, origin) = match (execution.handled_in(scope), &execution.stop) {
            (Some(handled), _) => (Some(&handled.error), Some(&handled.origin)),
            (None, Some(stop)) => (Some(&stop.error), stop.step.as_ref()),
            (None, None) => (None, None),
        };
        Variables { execution, error, origin, parsed: &self.parsed }
    }
}
