//! Undoing what was done: compensation, in reverse order, and what persons decide about it.

use super::Decider;
use crate::command::Rejection;
use crate::error::TaskError;
use crate::event::{DueCompensation, Event, PayloadSource};
use crate::execution::{CompensationOutcome, CompensationState, CompensationStepState};
use crate::id::StepPath;
use crate::limits::COMPENSATIONS_LISTED_MAX;
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
        if self.list_due() {
            return true;
        }
        if self.state().compensation == CompensationState::Pending {
            self.emit(Event::CompensationEnded { state: CompensationState::None });
        }
        false
    }

    /// Records the next steps that must be undone, as many as an event may list; false if there are
    /// none.
    fn list_due(&mut self) -> bool {
        let due: Vec<_> = self.due_compensations().take(COMPENSATIONS_LISTED_MAX).collect();
        if due.is_empty() {
            return false;
        }
        let cleanup_deadline = self.cleanup_deadline();
        self.emit(Event::CompensationStarted { due, cleanup_deadline });
        true
    }

    /// Steps that completed, or may have taken effect, and are not listed yet: the last one first.
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

    /// Begins the next compensation, or ends the whole behind the last one; none runs.
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
            return template.render(self.variables());
        }
        let task = self.state().task(step);
        Ok(task.map_or_else(Payload::null, |task| task.input.clone()))
    }

    /// Whatever is still due or runs becomes a person's matter. False if there is more than fits.
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
        // While others run, their end says how it went.
        if self.state().compensation == CompensationState::Parked
            && self.state().ledger.parked().len() == 0
        {
            self.end_compensation();
        }
        Ok(())
    }

    /// The parked compensation of a step, or all, as many as one transition takes.
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

    /// One deadline for the whole cleanup, from its beginning.
    pub(super) fn cleanup_deadline(&self) -> Option<Timestamp> {
        let begun = self.state().cleanup_deadline;
        begun.or_else(|| self.plan.cleanup_timeout.map(|timeout| self.now + timeout))
    }
}
