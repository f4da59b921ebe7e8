use async_trait::async_trait;
use recoup_core::id::{Namespace, WorkflowName};
use recoup_core::time::Timestamp;

use super::MemoryStore;
use super::state::State;
use crate::contract::{
    Error, NewVersion, RegistryAnswer, RegistryOperation, RegistryRequest, Result, WorkflowVersion,
    Workflows,
};

#[async_trait]
impl Workflows for MemoryStore {
    async fn register(
        &self,
        new: &NewVersion,
        request: Option<&RegistryRequest>,
    ) -> Result<(WorkflowVersion, bool)> {
        let answer = self.once(RegistryOperation::RegisterWorkflow, request, |state, now| {
            let (version, is_new) = state.register(new, now)?;
            Ok(RegistryAnswer::WorkflowRegistered { name: new.name.clone(), version, is_new })
        });
        answer?.into_version(self, &new.namespace).await
    }

    async fn workflow(
        &self,
        namespace: &Namespace,
        name: &WorkflowName,
        version: Option<u32>,
    ) -> Result<Option<WorkflowVersion>> {
        let state = self.lock();
        let versions = state.workflows.get(&(namespace.clone(), name.clone()));
        let found = versions.and_then(|versions| match version {
            Some(number) => versions.get(&number),
            None => versions.values().rev().find(|version| version.retired_at.is_none()),
        });
        Ok(found.cloned())
    }

    async fn list_workflows(
        &self,
        namespace: &Namespace,
        after: Option<&WorkflowName>,
        limit: usize,
    ) -> Result<Vec<WorkflowVersion>> {
        let state = self.lock();
        let latest = state
            .workflows
            .iter()
            .filter(|((of, name), _)| of == namespace && after.is_none_or(|after| name > after))
            .filter_map(|(_, versions)| Some(versions.last_key_value()?.1.clone()));
        Ok(latest.take(limit).collect())
    }

    async fn list_versions(
        &self,
        namespace: &Namespace,
        name: &WorkflowName,
        before: Option<u32>,
        limit: usize,
    ) -> Result<Vec<WorkflowVersion>> {
        let state = self.lock();
        let versions = state.workflows.get(&(namespace.clone(), name.clone()));
        let newest_first = versions.into_iter().flat_map(|versions| versions.values().rev());
        let below =
            newest_first.filter(|version| before.is_none_or(|before| version.version < before));
        Ok(below.take(limit).cloned().collect())
    }

    async fn retire(
        &self,
        namespace: &Namespace,
        name: &WorkflowName,
        version: Option<u32>,
        request: Option<&RegistryRequest>,
    ) -> Result<Timestamp> {
        let answer = self.once(RegistryOperation::RetireWorkflow, request, |state, now| {
            let versions = state.workflows.get_mut(&(namespace.clone(), name.clone()));
            let versions = versions.into_iter().flat_map(|versions| versions.values_mut());
            let named = versions.filter(|row| version.is_none_or(|number| row.version == number));
            let retired_at = named.map(|row| *row.retired_at.get_or_insert(now)).last();
            let retired_at = retired_at.ok_or(Error::NotFound)?;
            Ok(RegistryAnswer::WorkflowRetired { retired_at })
        });
        answer?.into_retired_at()
    }
}

impl State {
    /// Returns the number of the version that has this definition, and whether it is new.
    fn register(&mut self, new: &NewVersion, now: Timestamp) -> Result<(u32, bool)> {
        if !self.namespaces.contains_key(&new.namespace) {
            return Err(Error::NotFound);
        }
        let place = (new.namespace.clone(), new.name.clone());
        let versions = self.workflows.entry(place).or_default();
        let latest = versions.values().rev().find(|version| version.retired_at.is_none());
        if let Some(latest) = latest.filter(|latest| latest.digest == new.digest) {
            return Ok((latest.version, false));
        }
        let number = versions.last_key_value().map_or(1, |(last, _)| last + 1);
        let version = WorkflowVersion {
            namespace: new.namespace.clone(),
            name: new.name.clone(),
            version: number,
            digest: new.digest,
            format: new.format,
            definition: new.definition.clone(),
            created_at: now,
            retired_at: None,
        };
        versions.insert(number, version);
        Ok((number, true))
    }
}
