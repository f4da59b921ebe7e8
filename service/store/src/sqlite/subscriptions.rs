use async_trait::async_trait;
use bytes::Bytes;
use recoup_core::id::Namespace;
use rusqlite::{Row, params};

use super::error::Failure;
use super::registry::{many, one};
use super::{SqliteStore, value};
use crate::contract::{
    Error, RegistryAnswer, RegistryOperation, RegistryRequest, Result, SubscriptionRow,
    Subscriptions,
};

const SUBSCRIPTION: &str = "
    select namespace, name, version, format, state, created_at from subscription";

#[async_trait]
impl Subscriptions for SqliteStore {
    async fn create_subscription(
        &self,
        namespace: &Namespace,
        name: &str,
        format: u16,
        state: &Bytes,
        request: Option<&RegistryRequest>,
    ) -> Result<SubscriptionRow> {
        const CREATE: &str = "
            insert into subscription (namespace, name, format, state, created_at)
            values (?1, ?2, ?3, ?4, ?5) on conflict do nothing";
        let (namespace, name, state) = (namespace.clone(), name.to_owned(), state.clone());
        let created = self.once(RegistryOperation::CreateSubscription, request, move |write| {
            let created_at = write.now;
            let at = created_at.as_micros();
            let row = params![namespace.as_str(), name, format, &state[..], at];
            if write.execute(CREATE, row)? == 0 {
                return Err(Error::AlreadyExists.into());
            }
            let (namespace, name, state) = (namespace.clone(), name.clone(), state.clone());
            let row = SubscriptionRow { namespace, name, version: 1, format, state, created_at };
            Ok(RegistryAnswer::SubscriptionCreated(row))
        });
        created.await?.into_subscription()
    }

    async fn accept_subscription(
        &self,
        row: &SubscriptionRow,
        request: &RegistryRequest,
    ) -> Result<SubscriptionRow> {
        let row = row.clone();
        let accepted = self.once(RegistryOperation::CreateSubscription, Some(request), move |_| {
            Ok(RegistryAnswer::SubscriptionCreated(row.clone()))
        });
        accepted.await?.into_subscription()
    }

    async fn subscription(
        &self,
        namespace: &Namespace,
        name: &str,
    ) -> Result<Option<SubscriptionRow>> {
        let (namespace, name) = (namespace.clone(), name.to_owned());
        self.read(move |connection| {
            let sql = format!("{SUBSCRIPTION} where namespace = ?1 and name = ?2");
            one(connection, &sql, params![namespace.as_str(), name], subscription)
        })
        .await
    }

    async fn list_subscriptions(
        &self,
        namespace: &Namespace,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<SubscriptionRow>> {
        let (namespace, after) = (namespace.clone(), after.map(str::to_owned));
        self.read(move |connection| {
            let sql = format!(
                "{SUBSCRIPTION} where namespace = ?1 and (?2 is null or name > ?2)
                order by name limit ?3"
            );
            let wanted = params![namespace.as_str(), after, value::limit(limit)];
            many(connection, &sql, wanted, subscription)
        })
        .await
    }

    async fn update_subscription(&self, row: &SubscriptionRow) -> Result<u64> {
        const THERE: &str = "select version from subscription where namespace = ?1 and name = ?2";
        const UPDATE: &str = "
            update subscription set version = version + 1, format = ?3, state = ?4
            where namespace = ?1 and name = ?2";
        let row = row.clone();
        self.write(move |write| {
            let place = params![row.namespace.as_str(), row.name];
            let there = {
                let mut statement = write.prepare(THERE)?;
                let mut rows = statement.query(place)?;
                rows.next()?.map(|row| value::sequence(row, 0)).transpose()?
            };
            match there {
                None => Err(Error::NotFound.into()),
                Some(version) if version != row.version => Err(Error::Conflict.into()),
                Some(version) => {
                    let state = &row.state[..];
                    let new = params![row.namespace.as_str(), row.name, row.format, state];
                    write.execute(UPDATE, new)?;
                    Ok(version + 1)
                }
            }
        })
        .await
    }

    async fn delete_subscription(
        &self,
        namespace: &Namespace,
        name: &str,
        request: Option<&RegistryRequest>,
    ) -> Result<()> {
        const DELETE: &str = "delete from subscription where namespace = ?1 and name = ?2";
        let (namespace, name) = (namespace.clone(), name.to_owned());
        let deleted = self.once(RegistryOperation::DeleteSubscription, request, move |write| {
            let deleted = write.execute(DELETE, params![namespace.as_str(), name])?;
            if deleted == 0 {
                return Err(Error::NotFound.into());
            }
            Ok(RegistryAnswer::SubscriptionDeleted)
        });
        deleted.await.map(drop)
    }
}

fn subscription(row: &Row<'_>) -> Result<SubscriptionRow, Failure> {
    Ok(SubscriptionRow {
        namespace: value::text(row, 0)?.into(),
        name: value::text(row, 1)?.into(),
        version: value::sequence(row, 2)?,
        format: value::format(row, 3)?,
        state: value::bytes(row, 4)?,
        created_at: value::at(row, 5)?,
    })
}
