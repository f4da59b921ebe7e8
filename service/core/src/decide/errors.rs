//! Who takes an error that is not retried. It passes outwards from the step in which it arose until a
//! handler or `on_error` takes it, or until it reaches the run.

use super::Decider;
use crate::definition::OnError;
use crate::error::TaskError;
use crate::event::{Event, StopCause};
use crate::execution::{Phase, Scope};
use crate::expression::{Reading, Variables};
use crate::id::StepPath;
use crate::plan::StepPlan;

impl Decider<'_> {
    /// Passes an error outwards, beginning with a step that has begun and not ended. `origin` is the step in
    /// which the error arose.
    ///
    /// At each step the first of these takes the error: the first handler that matches, `on_error`, the
    /// step around it. An error that comes out of a handler is not offered to the handlers of the same step
    /// again; its innermost cause is then the error that the handler took.
    pub(super) fn fail_step(&mut self, path: StepPath, error: TaskError, origin: StepPath) {
        let (mut path, mut error) = (path, error);
        loop {
            let node = self.state().node(&path).expect("the step has begun");
            let (scope, handling) = (node.scope.clone(), node.handling());
            let step = self.plan.step(&path);
            if let Some((_, handled)) = handling {
                error = error.caused_by(&handled.error);
            } else if let Some(step) = step {
                match self.handler_for(step, &scope, &error, &origin) {
                    Ok(Some(handler)) => {
                        return self.emit(Event::HandlerStarted { path, handler, error, origin });
                    }
                    Ok(None) => {}
                    Err(failed) => error = failed.caused_by(&error),
                }
            }
            if step.is_some_and(|step| step.on_error == OnError::Ignore) {
                let warning = step.is_some_and(|step| !step.allow_warning);
                return self.emit(Event::StepIgnored { path, error, warning });
            }
            self.emit(Event::StepFailed { path, error: error.clone() });
            let Scope::Inside { node, part, item } = scope else { break };
            path = self.state().nodes.get(node).path.clone();
            if let Some(key) = item {
                return self.fail_lane(path, (part, key), error, origin);
            }
        }
        match self.state().phase {
            Phase::Steps | Phase::Compensation => {
                self.stop_run(StopCause::Failed, error, Some(origin));
            }
            Phase::OnFailure => {
                self.emit(Event::HandlerFailed { path: origin, error });
                self.begin_finally();
            }
            Phase::Finally => {
                self.emit(Event::HandlerFailed { path: origin, error });
                self.end();
            }
        }
    }

    /// The first handler of a step that takes the error.
    fn handler_for(
        &self,
        step: &StepPlan,
        scope: &Scope,
        error: &TaskError,
        origin: &StepPath,
    ) -> Result<Option<u32>, TaskError> {
        if step.catch.is_empty() {
            return Ok(None);
        }
        let (own, origin) = (Some(error), Some(origin));
        let mut reading = Reading::new(Variables { error: own, origin, ..self.variables(scope) });
        for (catch, index) in step.catch.iter().zip(0..) {
            if !catch.takes_type_of(error) {
                continue;
            }
            if catch.when.as_ref().map_or(Ok(true), |when| when.evaluate_in(&mut reading))? {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }
}
