use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use recoup_core::id::{Namespace, WorkflowName};
use recoup_core::time::Timestamp;

use super::PostgresStore;
use super::error::Failure;
use super::mutation::{self, Begun, Mutation};
use super::value::{self, At};
use crate::contract::{
    Error, NamespaceRow, NewVersion, Registry, RegistryAnswer, RegistryOperation, RegistryRequest,
    Result, SubscriptionRow, WorkflowVersion,
};

#[async_trait]
impl Registry for PostgresStore {
    async fn now(&self) -> Result<Timestamp> {
        let mut connection = self.inner.connections.take().await?;
        let now = sqlx::query_scalar!(r#"select clock_timestamp() as "now!: At""#);
        Ok(connection.one(now).await?.0)
    }

    async fn answered(
        &self,
        operation: RegistryOperation,
        request: &RegistryRequest,
    ) -> Result<Option<RegistryAnswer>> {
        let mut connection = self.inner.connections.take().await?;
        mutation::answered(&mut connection, operation, request).await
    }

    async fn create_namespace(
        &self,
        name: &Namespace,
        description: &str,
        retention: Duration,
        request: Option<&RegistryRequest>,
    ) -> Result<NamespaceRow> {
        let mut mutation = match self.mutate(RegistryOperation::CreateNamespace, request).await? {
            Begun::Answered(answer) => return answer.into_namespace(),
            Begun::Open(mutation) => mutation,
        };
        let insert = sqlx::query_as!(
            NamespaceColumns,
            r#"
            insert into namespace (name, description, retention_us) values ($1, $2, $3)
            on conflict do nothing
            returning name, description, retention_us, created_at as "created_at: At""#,
            name.as_str(),
            description,
            value::micros(retention),
        );
        let Some(row) = mutation.first(insert).await? else {
            return mutation.refused(Error::AlreadyExists).await;
        };
        let answer = RegistryAnswer::NamespaceCreated(row.into());
        mutation.done(answer).await?.into_namespace()
    }

    async fn namespace(&self, name: &Namespace) -> Result<Option<NamespaceRow>> {
        let mut connection = self.inner.connections.take().await?;
        let namespace = sqlx::query_as!(
            NamespaceColumns,
            r#"select name, description, retention_us, created_at as "created_at: At"
            from namespace where name = $1"#,
            name.as_str(),
        );
        Ok(connection.first(namespace).await?.map(NamespaceRow::from))
    }

    async fn list_namespaces(
        &self,
        after: Option<&Namespace>,
        limit: usize,
    ) -> Result<Vec<NamespaceRow>> {
        let mut connection = self.inner.connections.take().await?;
        let namespaces = sqlx::query_as!(
            NamespaceColumns,
            r#"select name, description, retention_us, created_at as "created_at: At"
            from namespace where $1::text is null or name > $1
            order by name limit $2"#,
            after.map(Namespace::as_str),
            value::limit(limit),
        );
        Ok(connection.all(namespaces).await?.into_iter().map(NamespaceRow::from).collect())
    }

    async fn register(
        &self,
        new: &NewVersion,
        request: Option<&RegistryRequest>,
    ) -> Result<(WorkflowVersion, bool)> {
        let mut mutation = match self.mutate(RegistryOperation::RegisterWorkflow, request).await? {
            Begun::Answered(answer) => {
                let (name, number, is_new) = answer.into_version()?;
                let version = self.workflow(&new.namespace, &name, Some(number)).await?;
                let version = version.ok_or(Error::NotFound)?;
                // It was not when this was answered.
                return Ok((WorkflowVersion { retired_at: None, ..version }, is_new));
            }
            Begun::Open(mutation) => mutation,
        };
        if !lock_namespace(&mut mutation, &new.namespace).await? {
            return mutation.refused(Error::NotFound).await;
        }
        let (row, is_new) = register(&mut mutation, new).await?;
        let (name, version) = (row.name.clone(), row.version);
        mutation.done(RegistryAnswer::WorkflowRegistered { name, version, is_new }).await?;
        Ok((row, is_new))
    }

    async fn workflow(
        &self,
        namespace: &Namespace,
        name: &WorkflowName,
        version: Option<u32>,
    ) -> Result<Option<WorkflowVersion>> {
        let mut connection = self.inner.connections.take().await?;
        let version = sqlx::query_as!(
            VersionColumns,
            r#"select namespace, name, version, digest, format, definition, created_at as "created_at: At",
                retired_at as "retired_at: At"
            from workflow_version
            where namespace = $1 and name = $2
                and case when $3::int8 is null then retired_at is null else version = $3 end
            order by version desc limit 1"#,
            namespace.as_str(),
            name.as_str(),
            version.map(i64::from),
        );
        connection.first(version).await?.map(WorkflowVersion::try_from).transpose()
    }

    async fn list_workflows(
        &self,
        namespace: &Namespace,
        after: Option<&WorkflowName>,
        limit: usize,
    ) -> Result<Vec<WorkflowVersion>> {
        let mut connection = self.inner.connections.take().await?;
        let newest = sqlx::query_as!(
            VersionColumns,
            r#"select distinct on (name) namespace, name, version, digest, format, definition, created_at as "created_at: At",
                retired_at as "retired_at: At"
            from workflow_version
            where namespace = $1 and ($2::text is null or name > $2)
            order by name, version desc limit $3"#,
            namespace.as_str(),
            after.map(WorkflowName::as_str),
            value::limit(limit),
        );
        connection.all(newest).await?.into_iter().map(WorkflowVersion::try_from).collect()
    }

    async fn list_versions(
        &self,
        namespace: &Namespace,
        name: &WorkflowName,
        before: Option<u32>,
        limit: usize,
    ) -> Result<Vec<WorkflowVersion>> {
        let mut connection = self.inner.connections.take().await?;
        let versions = sqlx::query_as!(
            VersionColumns,
            r#"select namespace, name, version, digest, format, definition, created_at as "created_at: At",
                retired_at as "retired_at: At"
            from workflow_version
            where namespace = $1 and name = $2 and ($3::int8 is null or version < $3)
            order by version desc limit $4"#,
            namespace.as_str(),
            name.as_str(),
            before.map(i64::from),
            value::limit(limit),
        );
        connection.all(versions).await?.into_iter().map(WorkflowVersion::try_from).collect()
    }

    async fn retire(
        &self,
        namespace: &Namespace,
        name: &WorkflowName,
        version: Option<u32>,
        request: Option<&RegistryRequest>,
    ) -> Result<Timestamp> {
        let mut mutation = match self.mutate(RegistryOperation::RetireWorkflow, request).await? {
            Begun::Answered(answer) => return answer.into_retired_at(),
            Begun::Open(mutation) => mutation,
        };
        if !lock_namespace(&mut mutation, namespace).await? {
            return mutation.refused(Error::NotFound).await;
        }
        let retire = sqlx::query_scalar!(
            r#"
            with retired as (
                update workflow_version set retired_at = coalesce(retired_at, statement_timestamp())
                where namespace = $1 and name = $2 and ($3::int8 is null or version = $3)
                returning version, retired_at)
            select retired_at as "retired_at!: At" from retired order by version desc limit 1"#,
            namespace.as_str(),
            name.as_str(),
            version.map(i64::from),
        );
        let Some(At(retired_at)) = mutation.first(retire).await? else {
            return mutation.refused(Error::NotFound).await;
        };
        mutation.done(RegistryAnswer::WorkflowRetired { retired_at }).await?.into_retired_at()
    }

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

/// One change of workflows at a time in a namespace: versions have no gaps. False: there is none.
async fn lock_namespace(
    mutation: &mut Mutation<'_>,
    namespace: &Namespace,
) -> Result<bool, Failure> {
    let lock = sqlx::query_scalar!(
        r#"select true as "locked!" from namespace where name = $1 for update"#,
        namespace.as_str(),
    );
    Ok(mutation.first(lock).await?.is_some())
}

/// The version that has this definition, and whether it is new.
async fn register(
    mutation: &mut Mutation<'_>,
    new: &NewVersion,
) -> Result<(WorkflowVersion, bool)> {
    let (namespace, name) = (new.namespace.as_str(), new.name.as_str());
    let latest = sqlx::query_as!(
        VersionColumns,
        r#"select namespace, name, version, digest, format, definition,
            created_at as "created_at: At", retired_at as "retired_at: At"
        from workflow_version
        where namespace = $1 and name = $2 and retired_at is null
        order by version desc limit 1"#,
        namespace,
        name,
    );
    if let Some(latest) = mutation.first(latest).await? {
        let latest = WorkflowVersion::try_from(latest)?;
        if latest.digest == new.digest {
            return Ok((latest, false));
        }
    }
    let insert = sqlx::query_as!(
        VersionColumns,
        r#"
        insert into workflow_version (namespace, name, version, digest, format, definition)
        select $1, $2, coalesce(max(version), 0) + 1, $3, $4, $5
        from workflow_version where namespace = $1 and name = $2
        returning namespace, name, version, digest, format, definition,
            created_at as "created_at: At", retired_at as "retired_at: At""#,
        namespace,
        name,
        &new.digest[..],
        i32::from(new.format),
        &new.definition[..],
    );
    Ok((mutation.one(insert).await?.try_into()?, true))
}

struct NamespaceColumns {
    name: String,
    description: String,
    retention_us: i64,
    created_at: At,
}

impl From<NamespaceColumns> for NamespaceRow {
    fn from(row: NamespaceColumns) -> Self {
        Self {
            name: row.name.as_str().into(),
            description: row.description,
            retention: Duration::from_micros(value::unsigned(row.retention_us)),
            created_at: row.created_at.0,
        }
    }
}

struct VersionColumns {
    namespace: String,
    name: String,
    version: i64,
    digest: Vec<u8>,
    format: i32,
    definition: Vec<u8>,
    created_at: At,
    retired_at: Option<At>,
}

impl TryFrom<VersionColumns> for WorkflowVersion {
    type Error = Error;

    fn try_from(row: VersionColumns) -> Result<Self> {
        let digest = row.digest.try_into().map_err(|_| Error::Incompatible("digest".into()))?;
        Ok(Self {
            namespace: row.namespace.as_str().into(),
            name: row.name.as_str().into(),
            version: value::count(row.version)?,
            digest,
            format: value::format(row.format)?,
            definition: row.definition.into(),
            created_at: row.created_at.0,
            retired_at: row.retired_at.map(|at| at.0),
        })
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
