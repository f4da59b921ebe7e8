//! The steps of the scopes, one after the other: which one begins next, and what follows when a scope ends.

use std::collections::HashSet;

use super::Decider;
use super::attempt::HISTORY_FULL;
use crate::error::{TaskError, builtin};
use crate::event::{Event, FirstAttempt, PayloadSource, StopCause, TERSE};
use crate::execution::{Items, Part, Phase, Scope, State};
use crate::expression::{Reading, Variables, check_passed_on};
use crate::id::{ItemKey, StepPath};
use crate::limits::{ERROR_BYTES_MAX, HISTORY_EVENTS_MAX, ITEM_KEY_BYTES_MAX, ITEMS_MAX};
use crate::path::key_bytes;
use crate::payload::Payload;
use crate::plan::{ForEachPlan, Plan, RaisePlan, StepKind, StepPlan};
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
    Branches {
        ready: Vec<ItemKey>,
        concurrency: Option<u32>,
    },
    /// Begin the items of the step.
    Items {
        items: PayloadSource,
        keys: Option<Vec<ItemKey>>,
        concurrency: u32,
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
            (Err(error), part, Some(key)) => {
                self.fail_lane(path.clone(), (*part, key), error, path);
            }
            (Ok(output), part, Some(key)) => {
                self.complete_lane(path, (*part, key), planned, output);
            }
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
        let (step, path) = loop {
            let Some(step) = plan.step_at(planned, position) else {
                return Progress::Done;
            };
            let path = self.path_in(&step.path, scope);
            // A definition that was accepted although two steps have the same id runs only the first of
            // them. The plan finds no other by its path.
            let is_own = || plan.step(&path).is_some_and(|own| std::ptr::eq(own, step));
            if self.state().node(&path).is_none() && is_own() {
                break (step, path);
            }
            position += 1;
        };
        if self.state().phase == Phase::Steps && self.is_full(false) {
            let error = TaskError::builtin(builtin::HISTORY_TOO_LONG, HISTORY_FULL);
            self.stop_run(StopCause::Failed, error, None);
            return Progress::Made;
        }
        let turn = self.turn(step, &path, scope, planned);
        let (generation, deadline) = (0, step.timeout.map(|timeout| self.now + timeout));
        match turn {
            Ok(Turn::Skip) => self.emit(Event::StepSkipped { path }),
            Ok(Turn::Begin { input }) => self.begin(path, 0, input, 1),
            Ok(Turn::Open(part)) => {
                self.emit(Event::BlockStarted { path, generation, part: Some(part), deadline });
            }
            Ok(Turn::Items { items, keys, concurrency }) => {
                let items = self.as_written(items);
                let event =
                    Event::LoopStarted { path, generation, items, keys, concurrency, deadline };
                self.emit(event);
            }
            Ok(Turn::Branches { ready, concurrency }) => {
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
                let started = path.clone();
                self.emit(Event::StepStarted { path: started, generation: 0, input, first: None });
                self.fail_unstarted(&path, error);
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
    fn turn(
        &self,
        step: &StepPlan,
        path: &StepPath,
        scope: &Scope,
        planned: ScopeId,
    ) -> Result<Turn, TaskError> {
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
                Turn::Raise { error: self.raised(raise, scope)?, origin: path.clone() }
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
            StepKind::ForEach(each) => self.items(each, variables)?,
            StepKind::Parallel(parallel) => {
                let tree = &self.plan.tree;
                let first = self.plan.branches(&step.path).filter(|id| tree.after(*id).is_empty());
                let ready = first.filter_map(|scope| tree.branch_id(scope).cloned()).collect();
                Turn::Branches { ready, concurrency: parallel.concurrency }
            }
        })
    }

    /// Evaluates the items of a step, and their keys.
    fn items(&self, each: &ForEachPlan, variables: Variables<'_>) -> Result<Turn, TaskError> {
        let invalid = |what: String| TaskError::builtin(builtin::ITEMS_INVALID, what);
        let source = each.items.source(variables)?;
        let payload = self.state().payload(&source);
        self.parsed.set(self.parsed.get().saturating_add(payload.data.len()));
        let Some(items) = Items::of(&payload) else {
            return Err(invalid("`items` is neither a list nor a map".to_owned()));
        };
        let count = items.values.len();
        if count > ITEMS_MAX {
            return Err(invalid(format!("{count} items, at most {ITEMS_MAX} are allowed")));
        }
        // Each item takes at least an event for its first step and one for its end.
        let least = self.state().event_count as usize + 2 * count;
        if self.state().phase == Phase::Steps && least > HISTORY_EVENTS_MAX {
            let what = format!("{HISTORY_FULL}: it has no room for {count} items");
            return Err(TaskError::builtin(builtin::HISTORY_TOO_LONG, what));
        }
        let (keys, own) = match (&each.item_key, items.keys) {
            (Some(fields), None) => (Some(keys_of(&items.values, fields)?), true),
            (_, keys) => (keys, false),
        };
        let mut seen = HashSet::new();
        for key in keys.iter().flatten() {
            if key.as_str().is_empty() {
                return Err(invalid("the key of an item is empty".to_owned()));
            }
            if key_bytes(key.as_str()) > ITEM_KEY_BYTES_MAX {
                let what = format!("the key of an item has more than {ITEM_KEY_BYTES_MAX} bytes");
                return Err(invalid(what));
            }
            if !seen.insert(key) {
                return Err(invalid(format!("two items have the key `{key}`")));
            }
        }
        // The keys of a map are read from the items again.
        let keys = keys.filter(|_| own);
        Ok(Turn::Items { items: source, keys, concurrency: each.concurrency })
    }

    /// The path of a step within the items around a scope.
    fn path_in(&self, path: &StepPath, scope: &Scope) -> StepPath {
        if !path.as_str().contains("[]") {
            return path.clone();
        }
        let items = self.state().items_around(scope);
        path.with_keys(items.into_iter().map(|(_, key)| key)).into_owned()
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
    pub(super) fn variables<'s>(&'s self, scope: &'s Scope) -> Variables<'s> {
        let execution = self.state();
        let (error, origin) = match (execution.handled_in(scope), &execution.stop) {
            (Some(handled), _) => (Some(&handled.error), Some(&handled.origin)),
            (None, Some(stop)) => (Some(&stop.error), stop.step.as_ref()),
            (None, None) => (None, None),
        };
        Variables { execution, scope, error, origin, parsed: &self.parsed }
    }
}

/// The keys of items, which these fields lead to.
fn keys_of(items: &[Payload], fields: &[String]) -> Result<Vec<ItemKey>, TaskError> {
    let keys = items.iter().zip(0_usize..).map(|(item, index)| {
        let item: serde_json::Value = serde_json::from_slice(&item.data).unwrap_or_default();
        let found = fields.iter().try_fold(&item, |value, field| value.get(field));
        match found {
            Some(serde_json::Value::String(key)) => Ok(key.as_str().into()),
            Some(serde_json::Value::Number(key)) if key.is_i64() || key.is_u64() => {
                Ok(key.to_string().into())
            }
            _ => {
                let what = format!("the key of item {index} is neither a text nor a whole number");
                Err(TaskError::builtin(builtin::ITEMS_INVALID, what))
            }
        }
    });
    keys.collect()
}
