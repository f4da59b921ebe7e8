use std::ops::Bound;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use recoup_core::id::{Namespace, WorkflowName};
use recoup_core::time::Timestamp;

use super::MemoryStore;
use super::state::{Answered, State};
use crate::contract::{
    Error, NamespaceRow, NewVersion, REQUEST_KEPT, Registry, RegistryAnswer, RegistryOperation,
    RegistryRequest, Result, SubscriptionRow, WorkflowVersion,
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

    async fn create_namespace(
        &self,
        name: &Namespace,
        description: &str,
        retention: Duration,
        request: Option<&RegistryRequest>,
    ) -> Result<NamespaceRow> {
        let answer = self.once(RegistryOperation::CreateNamespace, request, |state, now| {
            if state.namespaces.contains_key(name) {
                return Err(Error::AlreadyExists);
            }
            let description = description.to_owned();
            let row = NamespaceRow { name: name.clone(), description, retention, created_at: now };
            state.namespaces.insert(name.clone(), row.clone());
            Ok(RegistryAnswer::NamespaceCreated(row))
        });
        answer?.into_namespace()
    }

    async fn namespace(&self, name: &Namespace) -> Result<Option<NamespaceRow>> {
        Ok(self.lock().namespaces.get(name).cloned())
    }

    async fn list_namespaces(
        &self,
        after: Option<&Namespace>,
        limit: usize,
    ) -> Result<Vec<NamespaceRow>> {
        let state = self.lock();
        let from = after.map_or(Bound::Unbounded, |after| Bound::Excluded(after.clone()));
        let rows = state.namespaces.range((from, Bound::Unbounded));
        Ok(rows.map(|(_, row)| row.clone()).take(limit).collect())
    }

    async fn register(
        &self,
        new: &NewVersion,
        request: Option<&RegistryRequest>,
    ) -> Result<(WorkflowVersion, bool)> {
        let answer = self.once(RegistryOperation::RegisterWorkflow, request, |state, now| {
            let (version, is_new) = state.register(new, now)?;
            Ok(RegistryAnswer::WorkflowRegistered { name: new.name.clone(), version, is_new })
        });
        let (name, number, is_new) = answer?.into_version()?;
        let version = self.workflow(&new.namespace, &name, Some(number)).await?;
        let version = version.ok_or(Error::NotFound)?;
        // It was not when this was answered.
        Ok((WorkflowVersion { retired_at: None, ..version }, is_new))
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

    async fn create_subscription(
        &self,
        namespace: &Namespace,
        name: &str,
        format: u16,
        state: &Bytes,
        request: Option<&RegistryRequest>,
    ) -> Result<SubscriptionRow> {
        let answer = self.once(RegistryOperation::CreateSubscription, request, |tables, now| {
            let place = (namespace.clone(), name.to_owned());
            if tables.subscriptions.contains_key(&place) {
                return Err(Error::AlreadyExists);
            }
            let row = SubscriptionRow {
                namespace: namespace.clone(),
                name: name.to_owned(),
                version: 1,
                format,
                state: state.clone(),
                created_at: now,
            };
            tables.subscriptions.insert(place, row.clone());
            Ok(RegistryAnswer::SubscriptionCreated(row))
        });
        answer?.into_subscription()
    }

    async fn accept_subscription(
        &self,
        row: &SubscriptionRow,
        request: &RegistryRequest,
    ) -> Result<SubscriptionRow> {
        let answer = self.once(RegistryOperation::CreateSubscription, Some(request), |_, _| {
            Ok(RegistryAnswer::SubscriptionCreated(row.clone()))
        });
        answer?.into_subscription()
    }

    async fn subscription(
        &self,
        namespace: &Namespace,
        name: &str,
    ) -> Result<Option<SubscriptionRow>> {
        Ok(self.lock().subscriptions.get(&(namespace.clone(), name.to_owned())).cloned())
    }

    async fn list_subscriptions(
        &self,
        namespace: &Namespace,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<SubscriptionRow>> {
        let state = self.lock();
        let rows = state.subscriptions.values();
        let rows = rows.filter(|row| {
            row.namespace == *namespace && after.is_none_or(|after| row.name.as_str() > after)
        });
        Ok(rows.take(limit).cloned().collect())
    }

    async fn update_subscription(&self, row: &SubscriptionRow) -> Result<u64> {
        let mut state = self.lock();
        let place = (row.namespace.clone(), row.name.clone());
        let there = state.subscriptions.get_mut(&place).ok_or(Error::NotFound)?;
        if there.version != row.version {
            return Err(Error::Conflict);
        }
        there.version += 1;
        there.format = row.format;
        there.state = row.state.clone();
        Ok(there.version)
    }

    async fn delete_subscription(
        &self,
        namespace: &Namespace,
        name: &str,
        request: Option<&RegistryRequest>,
    ) -> Result<()> {
        let answer = self.once(RegistryOperation::DeleteSubscription, request, |state, _| {
            let place = (namespace.clone(), name.to_owned());
            state.subscriptions.remove(&place).ok_or(Error::NotFound)?;
            Ok(RegistryAnswer::SubscriptionDeleted)
        });
        answer.map(drop)
    }
}

impl MemoryStore {
    /// Does what the first with this request did, or finds what it answered.
    fn once(
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

    /// The number of the version that has this definition, and whether it is new.
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
