use async_trait::async_trait;
use recoup_core::time::Timestamp;

use super::MemoryStore;
use super::state::{Answered, State};
use crate::contract::{
    Error, REQUEST_KEPT, Registry, RegistryAnswer, RegistryOperation, RegistryRequest, Result,
};

#[async_trait]
impl Registry for MemoryStore {
    async fn now(&self) -> Result<Timestamp> {
        Ok(self.time())
    }

    async fn answered(
        &self,
        operation: RegistryOperation,
        request: &RegistryRequest,
    ) -> Result<Option<RegistryAnswer>> {
        let now = self.time();
        self.lock().answered(operation, request, now)
    }
}

impl MemoryStore {
    /// Runs a mutation, or returns the answer that an earlier call with the same request got.
    pub(super) fn once(
        &self,
        operation: RegistryOperation,
        request: Option<&RegistryRequest>,
        mutate: impl FnOnce(&mut State, Timestamp) -> Result<RegistryAnswer>,
    ) -> Result<RegistryAnswer> {
        let now = self.time();
        let mut state = self.lock();
        let Some(request) = request else { return mutate(&mut state, now) };
        if let Some(answer) = state.answered(operation, request, now)? {
            return Ok(answer);
        }
        let answer = mutate(&mut state, now)?;
        let place = (request.namespace.clone(), request.request_id.clone());
        let answered = Answered { digest: request.digest, answer: answer.clone(), at: now };
        state.registry_requests.insert(place, answered);
        Ok(answer)
    }
}

impl State {
    fn answered(
        &self,
        operation: RegistryOperation,
        request: &RegistryRequest,
        now: Timestamp,
    ) -> Result<Option<RegistryAnswer>> {
        let place = (request.namespace.clone(), request.request_id.clone());
        let past = self.registry_requests.get(&place).filter(|past| past.at + REQUEST_KEPT > now);
        match past {
            None => Ok(None),
            Some(past) if past.digest == request.digest && past.answer.operation() == operation => {
                Ok(Some(past.answer.clone()))
            }
            Some(_) => Err(Error::RequestIdReused),
        }
    }
}
