//! The effects that steps had, or may have had, and how far these have been undone. An entry belongs to a
//! path and a generation, not to a node: it remains when the step is tried again.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Compensation, CompensationOutcome, CompensationStepState};
use crate::id::StepPath;

/// The effect of a step that completed or that may have taken effect.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Effect {
    pub step: StepPath,
    pub generation: u32,
    pub outcome: CompensationOutcome,
    /// Index in the list of compensations, once the compensation has been listed as due.
    pub compensation: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Ledger {
    /// Keyed by place in the order of completions and unknown ends.
    effects: BTreeMap<u32, Effect>,
    /// Number of completions and unknown ends so far.
    last_closing: u32,
    /// Place of the earliest effect for which a compensation has been listed. Effects that closed after it
    /// have been considered already.
    listed_from: Option<u32>,
    /// In the order in which they are due.
    compensations: Vec<Compensation>,
    by_step: HashMap<StepPath, u32>,
    due: BTreeSet<u32>,
    parked: BTreeSet<u32>,
    running: BTreeSet<u32>,
}

impl Ledger {
    /// Records an effect as the latest one and returns its place in the order. `earlier` is the place of
    /// the entry with the same path and generation, if there is one. That entry is replaced, because it
    /// describes the same effect.
    pub fn record(
        &mut self,
        earlier: Option<u32>,
        step: &StepPath,
        generation: u32,
        outcome: CompensationOutcome,
    ) -> u32 {
        self.last_closing += 1;
        let closing = self.last_closing;
        let earlier = earlier.and_then(|earlier| self.effects.remove(&earlier));
        let compensation = earlier.and_then(|earlier| earlier.compensation);
        let effect = Effect { step: step.clone(), generation, outcome, compensation };
        self.effects.insert(closing, effect);
        closing
    }

    /// Takes a place in the order without recording an effect.
    pub fn next_closing(&mut self) -> u32 {
        self.last_closing += 1;
        self.last_closing
    }

    /// Effects that have not been considered for compensation yet, the latest first.
    pub fn unlisted(&self) -> impl Iterator<Item = &Effect> {
        let from = self.listed_from.unwrap_or(u32::MAX);
        let open = self.effects.range(..from).rev();
        open.map(|(_, effect)| effect).filter(|effect| effect.compensation.is_none())
    }

    /// Appends a compensation to the list and returns its index; `closing` is the place of its effect.
    pub fn list(&mut self, compensation: Compensation, closing: Option<u32>) -> u32 {
        let index = u32::try_from(self.compensations.len()).unwrap_or(u32::MAX);
        if let Some(closing) = closing {
            self.listed_from = Some(self.listed_from.map_or(closing, |from| from.min(closing)));
            if let Some(effect) = self.effects.get_mut(&closing) {
                effect.compensation = Some(index);
            }
        }
        self.by_step.insert(compensation.step.clone(), index);
        self.count(index, &compensation.state, true);
        self.compensations.push(compensation);
        index
    }

    pub fn change(&mut self, index: u32, change: impl FnOnce(&mut Compensation)) {
        let mut compensations = std::mem::take(&mut self.compensations);
        let compensation = &mut compensations[index as usize];
        self.count(index, &compensation.state, false);
        change(compensation);
        self.count(index, &compensation.state, true);
        self.compensations = compensations;
    }

    fn count(&mut self, index: u32, state: &CompensationStepState, is_so: bool) {
        let set = match state {
            CompensationStepState::Due => &mut self.due,
            CompensationStepState::Parked { .. } => &mut self.parked,
            CompensationStepState::Running => &mut self.running,
            CompensationStepState::Done { .. } | CompensationStepState::Skipped { .. } => return,
        };
        if is_so {
            set.insert(index);
        } else {
            set.remove(&index);
        }
    }

    pub fn find(&self, step: &StepPath) -> Option<u32> {
        self.by_step.get(step).copied()
    }

    pub fn get(&self, index: u32) -> &Compensation {
        &self.compensations[index as usize]
    }

    pub fn compensations(&self) -> &[Compensation] {
        &self.compensations
    }

    /// The next compensation to begin.
    pub fn next_due(&self) -> Option<&Compensation> {
        self.due.first().map(|index| self.get(*index))
    }

    /// Compensations that are due or running, in the order of the list.
    pub fn unfinished(&self) -> impl Iterator<Item = &Compensation> {
        self.running.union(&self.due).map(|index| self.get(*index))
    }

    pub fn unfinished_count(&self) -> usize {
        self.due.len() + self.running.len()
    }

    pub fn is_running(&self) -> bool {
        !self.running.is_empty()
    }

    pub fn parked(&self) -> impl ExactSizeIterator<Item = &Compensation> {
        self.parked.iter().map(|index| self.get(*index))
    }
}
