//! Undoing what was done: compensation, in reverse order, and what persons decide about it.

use super::Decider;
use crate::command::Rejection;
use crate::error::Error;
use crate::event::{DueCompensation, Event};
use crate::execution::{CompensationOutcome, CompensationState, CompensationStepState, NodeState};
use crate::id::StepPath;
use crate::payload::Payload;
use crate::time::Timestamp;

impl Decider<'_> {
    /// The run has stopped and nothing of it lives any more.
    pub(super) fn begin_cleanup(&mut self) {
        if !self.plan_compensation() {
            self.begin_finally();
        }
    }

    /// Records what must be undone; false if there is nothing.
    pub(super) fn plan_compensation(&mut self) -> bool {
        let due = self.due_compensations();
        if due.is_empty() {
            if self.state().compensation == CompensationState::Pending {
                self.emit(Event::CompensationEnded { state: CompensationState::None });
            }
            return false;
        }
        let cleanup_deadline = self.cleanup_deadline();
        self.emit(Event::CompensationStarted { due, cleanup_deadline });
        true
    }

    /// Steps that completed, or may have taken effect: the last one first.
    pub(super) fn due_compensations(&self) -> Vec<DueCompensation> {
        let nodes = self.state().steps.nodes.iter().filter_map(|node| {
            let compensate = self.plan.step(&node.path)?.compensate.as_ref()?;
            let outcome = match &node.state {
                NodeState::Completed { .. } => CompensationOutcome::Completed,
                _ if !compensate.only_completed && node.task()?.unknown => {
                    CompensationOutcome::Unknown
                }
                _ => return None,
            };
            let (step, generation) = (node.path.clone(), node.generation);
            Some((node.closing, DueCompensation { step, generation, outcome }))
        });
        let mut nodes: Vec<_> = nodes.collect();
        nodes.sort_by_key(|(closing, _)| std::cmp::Reverse(*closing));
        nodes.into_iter().map(|(_, due)| due).collect()
    }

    /// Begins the next compensation, if none runs, and ends the whole behind the last one; false if
    /// one runs.
    pub(super) fn advance_compensation(&mut self) -> bool {
        let compensations = &self.state().compensations;
        if compensations.iter().any(|c| c.state == CompensationStepState::Running) {
            return false;
        }
        let Some(next) = compensations.iter().find(|c| c.state == CompensationStepState::Due)
        else {
            self.end_compensation();
            return true;
        };
        let (step, generation) = (next.step.clone(), next.generation);
        let path = step.compensation();
        match self.compensation_input(&step) {
            Ok(input) => {
                self.emit(Event::StepStarted { path: path.clone(), generation, input });
                let attempt = self.state().task(&path).map_or(1, |task| task.attempt + 1);
                self.emit(Event::AttemptScheduled { path, attempt, at: self.now });
                false
            }
            Err(error) => {
                let input = Payload::null();
                self.emit(Event::StepStarted { path: path.clone(), generation, input });
                self.fail_unstarted(&path, error);
                true
            }
        }
    }

    fn end_compensation(&mut self) {
        let parked =
            |state: &CompensationStepState| matches!(state, CompensationStepState::Parked { .. });
        let any_parked = self.state().compensations.iter().any(|c| parked(&c.state));
        let state = if any_parked { CompensationState::Parked } else { CompensationState::Done };
        self.emit(Event::CompensationEnded { state });
    }

    fn compensation_input(&self, step: &StepPath) -> Result<Payload, Error> {
        let plan = self.plan.step(step).and_then(|step| step.compensate.as_ref());
        if let Some(template) = plan.and_then(|plan| plan.task.input.as_ref()) {
            return template.render(self.variables());
        }
        let task = self.state().task(step);
        Ok(task.map_or_else(Payload::null, |task| task.input.clone()))
    }

    /// Whatever is still due or runs becomes a person's matter.
    pub(super) fn park_remaining(&mut self, error: &Error) {
        if self.state().compensation != CompensationState::Running {
            return;
        }
        let open = |state: &CompensationStepState| {
            matches!(state, CompensationStepState::Due | CompensationStepState::Running)
        };
        let remaining = self.state().compensations.iter().filter(|c| open(&c.state));
        let remaining: Vec<_> = remaining.map(|c| c.step.clone()).collect();
        for path in remaining {
            self.emit(Event::CompensationParked { path, error: error.clone() });
        }
        self.end_compensation();
    }

    pub(super) fn retry_compensation(
        &mut self,
        step: Option<&StepPath>,
        reason: &str,
    ) -> Result<(), Rejection> {
        let parked = self.parked(step);
        if parked.is_empty() {
            return Err(Rejection::NotParked);
        }
        for path in parked {
            self.emit(Event::CompensationRetried { path, reason: reason.to_owned() });
        }
        Ok(())
    }

    pub(super) fn skip_compensation(
        &mut self,
        step: &StepPath,
        reason: String,
    ) -> Result<(), Rejection> {
        if self.parked(Some(step)).is_empty() {
            return Err(Rejection::NotParked);
        }
        self.emit(Event::CompensationSkipped { path: step.clone(), reason });
        // While others run, their end says how it went.
        if self.state().compensation == CompensationState::Parked && self.parked(None).is_empty() {
            self.end_compensation();
        }
        Ok(())
    }

    fn parked(&self, step: Option<&StepPath>) -> Vec<StepPath> {
        let compensations = self.state().compensations.iter();
        let parked = compensations.filter(|compensation| {
            matches!(compensation.state, CompensationStepState::Parked { .. })
                && step.is_none_or(|step| *step == compensation.step)
        });
        parked.map(|compensation| compensation.step.clone()).collect()
    }

    /// One deadline for the whole cleanup, from its beginning.
    pub(super) fn cleanup_deadline(&self) -> Option<Timestamp> {
        let begun = self.state().cleanup_deadline;
        begun.or_else(|| self.plan.cleanup_timeout.map(|timeout| self.now + timeout))
    }
}
