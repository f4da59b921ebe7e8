//! Compensation: undoing steps in reverse order, and the operators' decisions about parked compensations.

use super::Decider;
use crate::command::Rejection;
use crate::error::TaskError;
use crate::event::{DueCompensation, Event, PayloadSource};
use crate::execution::{CompensationOutcome, CompensationState, CompensationStepState, Scope};
use crate::expression::Variables;
use crate::id::StepPath;
use crate::limits::COMPENSATIONS_LISTED_MAX;
use crate::payload::Payload;
use crate::time::Timestamp;

impl Decider<'_> {
    /// Begins the cleanup, once the run has stopped and none of its attempts is live.
    pub(super) fn begin_cleanup(&mut self) {
        if !self.plan_compensation() {
            self.begin_handlers();
        }
    }

    /// Records the compensations that are due; returns false if there are none.
    pub(super) fn plan_compensation(&mut self) -> bool {
        if self.list_due() {
            return true;
        }
        if self.state().compensation == CompensationState::Pending {
            self.emit(Event::CompensationEnded { state: CompensationState::None });
        }
        false
    }

    /// Records the next compensations that are due, as many as one event may list; returns false if there
    /// are none.
    fn list_due(&mut self) -> bool {
        let due: Vec<_> = self.due_compensations().take(COMPENSATIONS_LISTED_MAX).collect();
        if due.is_empty() {
            return false;
        }
        let cleanup_deadline = self.cleanup_deadline();
        self.emit(Event::CompensationStarted { due, cleanup_deadline });
        true
    }

    /// The steps that must be compensated and are not listed yet, the latest first. These are the steps
    /// that completed and, unless the definition opts out, those that may have taken effect.
    pub(super) fn due_compensations(&self) -> impl Iterator<Item = DueCompensation> {
        self.state().ledger.unlisted().filter_map(|effect| {
            let compensate = self.plan.step(&effect.step)?.compensate.as_ref()?;
            let is_due =
                effect.outcome == CompensationOutcome::Completed || !compensate.only_completed;
            is_due.then(|| DueCompensation {
                step: effect.step.clone(),
                generation: effect.generation,
                outcome: effect.outcome,
            })
        })
    }

    /// Begins the next compensation, or ends the compensation as a whole after the last one. To be called
    /// while no compensation is running.
    pub(super) fn advance_compensation(&mut self) {
        let Some(next) = self.state().ledger.next_due() else {
            if !self.list_due() {
                self.end_compensation();
            }
            return;
        };
        let (step, generation) = (next.step.clone(), next.generation);
        let path = step.compensation();
        match self.compensation_input(&step) {
            Ok(input) => {
                let attempt = self.state().task(&path).map_or(1, |task| task.attempt + 1);
                self.begin(path, generation, PayloadSource::Inline(input), attempt);
            }
            Err(error) => {
                let (input, first) = (PayloadSource::Inline(Payload::null()), None);
                self.emit(Event::StepStarted { path: path.clone(), generation, input, first });
                self.fail_unstarted(&path, error);
            }
        }
    }

    fn end_compensation(&mut self) {
        let any_parked = self.state().ledger.parked().len() > 0;
        let state = if any_parked { CompensationState::Parked } else { CompensationState::Done };
        self.emit(Event::CompensationEnded { state });
    }

    fn compensation_input(&self, step: &StepPath) -> Result<Payload, TaskError> {
        let plan = self.plan.step(step).and_then(|step| step.compensate.as_ref());
        if let Some(template) = plan.and_then(|plan| plan.task.input.as_ref()) {
            let stop = self.variables(&Scope::Steps);
            let scope = self.state().node(step).map_or(&Scope::Steps, |node| &node.scope);
            return template.render(Variables { scope, ..stop });
        }
        let task = self.state().task(step);
        Ok(task.map_or_else(Payload::null, |task| task.input.clone()))
    }

    /// Parks every compensation that is still due or running, so that it is left to an operator. Returns
    /// false if not all of them fit into this transition.
    pub(super) fn park_remaining(&mut self, error: &TaskError) -> bool {
        if self.state().compensation != CompensationState::Running {
            return true;
        }
        loop {
            let remaining = self.state().ledger.unfinished().take(self.room());
            let remaining: Vec<_> = remaining.map(|one| one.step.clone()).collect();
            for path in remaining {
                if self.is_spent() {
                    return false;
                }
                self.emit(Event::CompensationParked { path, error: error.clone() });
            }
            if self.state().ledger.unfinished_count() > 0 {
                return false;
            }
            if !self.list_due() {
                break;
            }
        }
        self.end_compensation();
        true
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
        // While other compensations run, the end of the last one decides the state of the compensation.
        if self.state().compensation == CompensationState::Parked
            && self.state().ledger.parked().len() == 0
        {
            self.end_compensation();
        }
        Ok(())
    }

    /// The given step if its compensation is parked. Without a step, all parked compensations, as many as
    /// one transition has room for.
    fn parked(&self, step: Option<&StepPath>) -> Vec<StepPath> {
        let state = self.state();
        let Some(step) = step else {
            let room = self.room().max(1);
            return state.ledger.parked().take(room).map(|parked| parked.step.clone()).collect();
        };
        let compensation = state.compensation_of(step);
        let parked =
            compensation.filter(|one| matches!(one.state, CompensationStepState::Parked { .. }));
        parked.map(|parked| parked.step.clone()).into_iter().collect()
    }

    /// The deadline of the whole cleanup, which is fixed when the cleanup begins.
    pub(super) fn cleanup_deadline(&self) -> Option<Timestamp> {
        let begun = self.state().cleanup_deadline;
        begun.or_else(|| self.plan.cleanup_timeout.map(|timeout| self.now + timeout))
    }
}
