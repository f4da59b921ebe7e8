use std::ops::Bound;
use std::time::Duration;

use async_trait::async_trait;
use recoup_core::id::Namespace;

use super::MemoryStore;
use crate::contract::{
    Error, NamespaceRow, Namespaces, RegistryAnswer, RegistryOperation, RegistryRequest, Result,
};

#[async_trait]
impl Namespaces for MemoryStore {
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
}
