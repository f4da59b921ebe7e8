use async_trait::async_trait;
use bytes::Bytes;
use recoup_core::id::Namespace;

use super::MemoryStore;
use crate::contract::{
    Error, RegistryAnswer, RegistryOperation, RegistryRequest, Result, SubscriptionRow,
    Subscriptions,
};

#[async_trait]
impl Subscriptions for MemoryStore {
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
