use async_trait::async_trait;
use bytes::Bytes;
use recoup_core::id::Namespace;

use super::mutation::Begun;
use super::value::At;
use super::{PostgresStore, value};
use crate::contract::{
    Error, RegistryAnswer, RegistryOperation, RegistryRequest, Result, SubscriptionRow,
    Subscriptions,
};

#[async_trait]
impl Subscriptions for PostgresStore {
    async fn create_subscription(
        &self,
        namespace: &Namespace,
        name: &str,
        format: u16,
        state: &Bytes,
        request: Option<&RegistryRequest>,
    ) -> Result<SubscriptionRow> {
        let operation = RegistryOperation::CreateSubscription;
        let mut mutation = match self.mutate(operation, request).await? {
            Begun::Answered(answer) => return answer.into_subscription(),
            Begun::Open(mutation) => mutation,
        };
        let insert = sqlx::query_as!(
            SubscriptionColumns,
            r#"
            insert into subscription (namespace, name, format, state) values ($1, $2, $3, $4)
            on conflict do nothing
            returning namespace, name, version, format, state, created_at as "created_at: At""#,
            namespace.as_str(),
            name,
            i32::from(format),
            &state[..],
        );
        let Some(row) = mutation.first(insert).await? else {
            return mutation.refused(Error::AlreadyExists).await;
        };
        let answer = RegistryAnswer::SubscriptionCreated(row.try_into()?);
        mutation.done(answer).await?.into_subscription()
    }

    async fn accept_subscription(
        &self,
        row: &SubscriptionRow,
        request: &RegistryRequest,
    ) -> Result<SubscriptionRow> {
        let operation = RegistryOperation::CreateSubscription;
        let answer = match self.mutate(operation, Some(request)).await? {
            Begun::Answered(answer) => answer,
            Begun::Open(mutation) => {
                mutation.done(RegistryAnswer::SubscriptionCreated(row.clone())).await?
            }
        };
        answer.into_subscription()
    }

    async fn subscription(
        &self,
        namespace: &Namespace,
        name: &str,
    ) -> Result<Option<SubscriptionRow>> {
        let mut connection = self.inner.connections.take().await?;
        let subscription = sqlx::query_as!(
            SubscriptionColumns,
            r#"select namespace, name, version, format, state, created_at as "created_at: At"
            from subscription where namespace = $1 and name = $2"#,
            namespace.as_str(),
            name,
        );
        connection.first(subscription).await?.map(SubscriptionRow::try_from).transpose()
    }

    async fn list_subscriptions(
        &self,
        namespace: &Namespace,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<SubscriptionRow>> {
        let mut connection = self.inner.connections.take().await?;
        let subscriptions = sqlx::query_as!(
            SubscriptionColumns,
            r#"select namespace, name, version, format, state, created_at as "created_at: At"
            from subscription
            where namespace = $1 and ($2::text is null or name > $2)
            order by name limit $3"#,
            namespace.as_str(),
            after,
            value::limit(limit),
        );
        connection.all(subscriptions).await?.into_iter().map(SubscriptionRow::try_from).collect()
    }

    async fn update_subscription(&self, row: &SubscriptionRow) -> Result<u64> {
        let (namespace, name) = (row.namespace.as_str(), row.name.as_str());
        let mut connection = self.inner.connections.take().await?;
        let update = sqlx::query_scalar!(
            "update subscription set version = version + 1, format = $4, state = $5
            where namespace = $1 and name = $2 and version = $3
            returning version",
            namespace,
            name,
            row.version.cast_signed(),
            i32::from(row.format),
            &row.state[..],
        );
        if let Some(version) = connection.first(update).await? {
            return Ok(value::unsigned(version));
        }
        let exists = sqlx::query_scalar!(
            r#"select true as "exists!" from subscription where namespace = $1 and name = $2"#,
            namespace,
            name,
        );
        match connection.first(exists).await? {
            None => Err(Error::NotFound),
            Some(_) => Err(Error::Conflict),
        }
    }

    async fn delete_subscription(
        &self,
        namespace: &Namespace,
        name: &str,
        request: Option<&RegistryRequest>,
    ) -> Result<()> {
        let operation = RegistryOperation::DeleteSubscription;
        let mut mutation = match self.mutate(operation, request).await? {
            Begun::Answered(_) => return Ok(()),
            Begun::Open(mutation) => mutation,
        };
        let delete = sqlx::query!(
            "delete from subscription where namespace = $1 and name = $2",
            namespace.as_str(),
            name,
        );
        if mutation.execute(delete).await? == 0 {
            return mutation.refused(Error::NotFound).await;
        }
        mutation.done(RegistryAnswer::SubscriptionDeleted).await.map(drop)
    }
}

struct SubscriptionColumns {
    namespace: String,
    name: String,
    version: i64,
    format: i32,
    state: Vec<u8>,
    created_at: At,
}

impl TryFrom<SubscriptionColumns> for SubscriptionRow {
    type Error = Error;

    fn try_from(row: SubscriptionColumns) -> Result<Self> {
        Ok(Self {
            namespace: row.namespace.as_str().into(),
            name: row.name,
            version: value::unsigned(row.version),
            format: value::format(row.format)?,
            state: row.state.into(),
            created_at: row.created_at.0,
        })
    }
}
