//! The open attempts of an execution, as far as this node knows them.

use std::collections::BTreeMap;

use recoup_core::command::TaskId;
use recoup_core::id::StepPath;

use super::attempt::Attempt;

/// By the path of the step or compensation, each of which has at most one open attempt.
#[derive(Debug, Default)]
pub(super) struct Attempts(BTreeMap<StepPath, Box<Attempt>>);

impl Attempts {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn get(&self, task: &TaskId) -> Option<&Attempt> {
        self.of(&task.path).filter(|attempt| attempt.id == *task)
    }

    pub fn get_mut(&mut self, task: &TaskId) -> Option<&mut Attempt> {
        let attempt = self.0.get_mut(&task.path)?;
        (attempt.id == *task).then_some(attempt)
    }

    /// The open attempt of a step or a compensation.
    pub fn of(&self, path: &StepPath) -> Option<&Attempt> {
        self.0.get(path).map(Box::as_ref)
    }

    pub fn insert(&mut self, attempt: Box<Attempt>) {
        self.0.insert(attempt.id.path.clone(), attempt);
    }

    pub fn remove(&mut self, path: &StepPath) -> Option<Box<Attempt>> {
        self.0.remove(path)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Attempt> {
        self.0.values().map(Box::as_ref)
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Attempt> {
        self.0.values_mut().map(Box::as_mut)
    }

    pub fn into_all(self) -> impl Iterator<Item = Attempt> {
        self.0.into_values().map(|attempt| *attempt)
    }
}
