use std::ops::Bound;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use recoup_core::id::{Namespace, WorkflowName};
use recoup_core::time::Timestamp;

use super::MemoryStore;
use crate::contract::{
    Error, NamespaceRow, NewVersion, Registry, Result, SubscriptionRow, WorkflowVersion,
};

#[async_trait]
impl Registry for MemoryStore {
    async fn now(&self) -> Result<Timestamp> {
        Ok(self.time())
    }

    async fn create_namespace(
        &self,
        name: &Namespace,
        description: &str,
        retention: Duration,
    ) -> Result<NamespaceRow> {
        let created_at = self.time();
        let mut state = self.lock();
        if state.namespaces.contains_key(name) {
            return Err(Error::AlreadyExists);
        }
        let description = description.to_owned();
        let row = NamespaceRow { name: name.clone(), description, retention, created_at };
        state.namespaces.insert(name.clone(), row.clone());
        Ok(row)
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

    async fn register(&self, new: &NewVersion) -> Result<(WorkflowVersion, bool)> {
        let created_at = self.time();
        let mut state = self.lock();
        if !state.namespaces.contains_key(&new.namespace) {
            return Err(Error::NotFound);
        }
        let place = (new.namespace.clone(), new.name.clone());
        let versions = state.workflows.entry(place).or_default();
        let latest = versions.values().rev().find(|version| version.retired_at.is_none());
        if let Some(latest) = latest.filter(|latest| latest.digest == new.digest) {
            return Ok((latest.clone(), false));
        }
        let number = versions.last_key_value().map_or(1, |(last, _)| last + 1);
        let version = WorkflowVersion {
            namespace: new.namespace.clone(),
            name: new.name.clone(),
            version: number,
            digest: new.digest,
            format: new.format,
            definition: new.definition.clone(),
            created_at,
            retired_at: None,
        };
        versions.insert(number, version.clone());
        Ok((version, true))
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
    ) -> Result<()> {
        let now = self.time();
        let mut state = self.lock();
        let versions = state.workflows.get_mut(&(namespace.clone(), name.clone()));
        let versions = versions.into_iter().flat_map(|versions| versions.values_mut());
        let mut found = false;
        for row in versions.filter(|row| version.is_none_or(|version| row.version == version)) {
            row.retired_at.get_or_insert(now);
            found = true;
        }
        if found { Ok(()) } else { Err(Error::NotFound) }
    }

    async fn create_subscription(
        &self,
        namespace: &Namespace,
        name: &str,
        format: u16,
        state: &Bytes,
    ) -> Result<SubscriptionRow> {
        let created_at = self.time();
        let mut tables = self.lock();
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
            created_at,
        };
        tables.subscriptions.insert(place, row.clone());
        Ok(row)
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

    async fn delete_subscription(&self, namespace: &Namespace, name: &str) -> Result<()> {
        let place = (namespace.clone(), name.to_owned());
        self.lock().subscriptions.remove(&place).map(drop).ok_or(Error::NotFound)
    }
}
