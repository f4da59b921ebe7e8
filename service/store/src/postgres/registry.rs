use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use recoup_core::id::{Namespace, WorkflowName};
use recoup_core::time::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::PostgresStore;
use super::error::Failure;
use super::mutation::{self, Begun, Mutation};
use super::value::{self, At};
use crate::contract::{
    Error, NamespaceRow, NewVersion, Registry, RegistryAnswer, RegistryOperation, RegistryRequest,
    Result, SubscriptionRow, WorkflowVersion,
};

/// Columns in the order in which [`namespace_row`] reads them; so also below.
const NAMESPACE: &str = "name, description, retention_us, created_at";
const VERSION: &str =
    "namespace, name, version, digest, format, definition, created_at, retired_at";
const SUBSCRIPTION: &str = "namespace, name, version, format, state, created_at";

/// One change of workflows at a time in a namespace: versions have no gaps.
const LOCK: &str = "select from namespace where name = $1 for update";

#[async_trait]
impl Registry for PostgresStore {
    async fn now(&self) -> Result<Timestamp> {
        let mut session = self.inner.pool.take().await?;
        let rows = session.query("select clock_timestamp()", &[]).await?;
        Ok(rows[0].try_get::<_, At>(0)?.0)
    }

    async fn answered(
        &self,
        operation: RegistryOperation,
        request: &RegistryRequest,
    ) -> Result<Option<RegistryAnswer>> {
        let mut session = self.inner.pool.take().await?;
        mutation::answered(&mut session, operation, request).await
    }

    async fn create_namespace(
        &self,
        name: &Namespace,
        description: &str,
        retention: Duration,
        request: Option<&RegistryRequest>,
    ) -> Result<NamespaceRow> {
        let sql = format!(
            "insert into namespace (name, description, retention_us) values ($1, $2, $3)
            on conflict do nothing returning {NAMESPACE}"
        );
        let retention_us = value::micros(retention);
        let mut mutation = match self.mutate(RegistryOperation::CreateNamespace, request).await? {
            Begun::Answered(answer) => return answer.into_namespace(),
            Begun::Open(mutation) => mutation,
        };
        let rows = mutation.query(sql, &[&name.as_str(), &description, &retention_us]).await?;
        let Some(row) = rows.first() else {
            return mutation.refused(Error::AlreadyExists).await;
        };
        let answer = RegistryAnswer::NamespaceCreated(namespace_row(row)?);
        mutation.done(answer).await?.into_namespace()
    }

    async fn namespace(&self, name: &Namespace) -> Result<Option<NamespaceRow>> {
        let sql = format!("select {NAMESPACE} from namespace where name = $1");
        let mut session = self.inner.pool.take().await?;
        let rows = session.query(sql, &[&name.as_str()]).await?;
        rows.first().map(|row| Ok(namespace_row(row)?)).transpose()
    }

    async fn list_namespaces(
        &self,
        after: Option<&Namespace>,
        limit: usize,
    ) -> Result<Vec<NamespaceRow>> {
        let sql = format!(
            "select {NAMESPACE} from namespace where $1::text is null or name > $1
            order by name limit $2"
        );
        let mut session = self.inner.pool.take().await?;
        let after = after.map(Namespace::as_str);
        let rows = session.query(sql, &[&after, &value::limit(limit)]).await?;
        rows.iter().map(|row| Ok(namespace_row(row)?)).collect()
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
        if mutation.query(LOCK, &[&new.namespace.as_str()]).await?.is_empty() {
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
        let sql = format!(
            "select {VERSION} from workflow_version
            where namespace = $1 and name = $2
                and case when $3::int8 is null then retired_at is null else version = $3 end
            order by version desc limit 1"
        );
        let version = version.map(i64::from);
        let mut session = self.inner.pool.take().await?;
        let rows = session.query(sql, &[&namespace.as_str(), &name.as_str(), &version]).await?;
        rows.first().map(|row| Ok(version_row(row)?)).transpose()
    }

    async fn list_workflows(
        &self,
        namespace: &Namespace,
        after: Option<&WorkflowName>,
        limit: usize,
    ) -> Result<Vec<WorkflowVersion>> {
        let sql = format!(
            "select distinct on (name) {VERSION} from workflow_version
            where namespace = $1 and ($2::text is null or name > $2)
            order by name, version desc limit $3"
        );
        let after = after.map(WorkflowName::as_str);
        let mut session = self.inner.pool.take().await?;
        let rows = session.query(sql, &[&namespace.as_str(), &after, &value::limit(limit)]).await?;
        rows.iter().map(|row| Ok(version_row(row)?)).collect()
    }

    async fn list_versions(
        &self,
        namespace: &Namespace,
        name: &WorkflowName,
        before: Option<u32>,
        limit: usize,
    ) -> Result<Vec<WorkflowVersion>> {
        let sql = format!(
            "select {VERSION} from workflow_version
            where namespace = $1 and name = $2 and ($3::int8 is null or version < $3)
            order by version desc limit $4"
        );
        let (before, limit) = (before.map(i64::from), value::limit(limit));
        let mut session = self.inner.pool.take().await?;
        let rows =
            session.query(sql, &[&namespace.as_str(), &name.as_str(), &before, &limit]).await?;
        rows.iter().map(|row| Ok(version_row(row)?)).collect()
    }

    async fn retire(
        &self,
        namespace: &Namespace,
        name: &WorkflowName,
        version: Option<u32>,
        request: Option<&RegistryRequest>,
    ) -> Result<Timestamp> {
        const RETIRE: &str = "
            with retired as (
                update workflow_version set retired_at = coalesce(retired_at, statement_timestamp())
                where namespace = $1 and name = $2 and ($3::int8 is null or version = $3)
                returning version, retired_at)
            select retired_at from retired order by version desc limit 1";
        let version = version.map(i64::from);
        let mut mutation = match self.mutate(RegistryOperation::RetireWorkflow, request).await? {
            Begun::Answered(answer) => return answer.into_retired_at(),
            Begun::Open(mutation) => mutation,
        };
        if mutation.query(LOCK, &[&namespace.as_str()]).await?.is_empty() {
            return mutation.refused(Error::NotFound).await;
        }
        let parameters: [&(dyn ToSql + Sync); 3] = [&namespace.as_str(), &name.as_str(), &version];
        let rows = mutation.query(RETIRE, &parameters).await?;
        let Some(row) = rows.first() else {
            return mutation.refused(Error::NotFound).await;
        };
        let retired_at = row.try_get::<_, At>(0)?.0;
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
        let sql = format!(
            "insert into subscription (namespace, name, format, state) values ($1, $2, $3, $4)
            on conflict do nothing returning {SUBSCRIPTION}"
        );
        let format = i32::from(format);
        let operation = RegistryOperation::CreateSubscription;
        let mut mutation = match self.mutate(operation, request).await? {
            Begun::Answered(answer) => return answer.into_subscription(),
            Begun::Open(mutation) => mutation,
        };
        let rows = mutation.query(sql, &[&namespace.as_str(), &name, &format, &&state[..]]).await?;
        let Some(row) = rows.first() else {
            return mutation.refused(Error::AlreadyExists).await;
        };
        let answer = RegistryAnswer::SubscriptionCreated(subscription_row(row)?);
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
        let sql =
            format!("select {SUBSCRIPTION} from subscription where namespace = $1 and name = $2");
        let mut session = self.inner.pool.take().await?;
        let rows = session.query(sql, &[&namespace.as_str(), &name]).await?;
        rows.first().map(|row| Ok(subscription_row(row)?)).transpose()
    }

    async fn list_subscriptions(
        &self,
        namespace: &Namespace,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<SubscriptionRow>> {
        let sql = format!(
            "select {SUBSCRIPTION} from subscription
            where namespace = $1 and ($2::text is null or name > $2)
            order by name limit $3"
        );
        let mut session = self.inner.pool.take().await?;
        let rows = session.query(sql, &[&namespace.as_str(), &after, &value::limit(limit)]).await?;
        rows.iter().map(|row| Ok(subscription_row(row)?)).collect()
    }

    async fn update_subscription(&self, row: &SubscriptionRow) -> Result<u64> {
        const UPDATE: &str = "
            update subscription set version = version + 1, format = $4, state = $5
            where namespace = $1 and name = $2 and version = $3
            returning version";
        const EXISTS: &str = "select from subscription where namespace = $1 and name = $2";
        let (namespace, name) = (row.namespace.as_str(), row.name.as_str());
        let (version, format) = (row.version.cast_signed(), i32::from(row.format));
        let mut session = self.inner.pool.take().await?;
        let updated =
            session.query(UPDATE, &[&namespace, &name, &version, &format, &&row.state[..]]).await?;
        match updated.first() {
            Some(updated) => Ok(value::unsigned(updated.try_get(0)?)),
            None if session.query(EXISTS, &[&namespace, &name]).await?.is_empty() => {
                Err(Error::NotFound)
            }
            None => Err(Error::Conflict),
        }
    }

    async fn delete_subscription(
        &self,
        namespace: &Namespace,
        name: &str,
        request: Option<&RegistryRequest>,
    ) -> Result<()> {
        const DELETE: &str = "delete from subscription where namespace = $1 and name = $2";
        let operation = RegistryOperation::DeleteSubscription;
        let mut mutation = match self.mutate(operation, request).await? {
            Begun::Answered(_) => return Ok(()),
            Begun::Open(mutation) => mutation,
        };
        if mutation.execute(DELETE, &[&namespace.as_str(), &name]).await? == 0 {
            return mutation.refused(Error::NotFound).await;
        }
        mutation.done(RegistryAnswer::SubscriptionDeleted).await.map(drop)
    }
}

/// The version that has this definition, and whether it is new.
async fn register(
    mutation: &mut Mutation<'_>,
    new: &NewVersion,
) -> Result<(WorkflowVersion, bool), Failure> {
    let (namespace, name) = (new.namespace.as_str(), new.name.as_str());
    let latest = format!(
        "select {VERSION} from workflow_version
        where namespace = $1 and name = $2 and retired_at is null
        order by version desc limit 1"
    );
    let rows = mutation.query(latest, &[&namespace, &name]).await?;
    if let Some(row) = rows.first() {
        let latest = version_row(row)?;
        if latest.digest == new.digest {
            return Ok((latest, false));
        }
    }
    let insert = format!(
        "insert into workflow_version (namespace, name, version, digest, format, definition)
        select $1, $2, coalesce(max(version), 0) + 1, $3, $4, $5
        from workflow_version where namespace = $1 and name = $2
        returning {VERSION}"
    );
    let format = i32::from(new.format);
    let rows = mutation
        .query(insert, &[&namespace, &name, &&new.digest[..], &format, &&new.definition[..]])
        .await?;
    Ok((version_row(&rows[0])?, true))
}

fn namespace_row(row: &Row) -> Result<NamespaceRow, Failure> {
    Ok(NamespaceRow {
        name: row.try_get::<_, &str>(0)?.into(),
        description: row.try_get(1)?,
        retention: Duration::from_micros(value::unsigned(row.try_get(2)?)),
        created_at: row.try_get::<_, At>(3)?.0,
    })
}

fn version_row(row: &Row) -> Result<WorkflowVersion, Failure> {
    let digest: &[u8] = row.try_get(3)?;
    let digest = digest.try_into().map_err(|_| Error::Incompatible("digest".into()))?;
    Ok(WorkflowVersion {
        namespace: row.try_get::<_, &str>(0)?.into(),
        name: row.try_get::<_, &str>(1)?.into(),
        version: value::count(row.try_get(2)?)?,
        digest,
        format: value::format(row.try_get(4)?)?,
        definition: Bytes::copy_from_slice(row.try_get(5)?),
        created_at: row.try_get::<_, At>(6)?.0,
        retired_at: row.try_get::<_, Option<At>>(7)?.map(|at| at.0),
    })
}

fn subscription_row(row: &Row) -> Result<SubscriptionRow, Failure> {
    Ok(SubscriptionRow {
        namespace: row.try_get::<_, &str>(0)?.into(),
        name: row.try_get(1)?,
        version: value::unsigned(row.try_get(2)?),
        format: value::format(row.try_get(3)?)?,
        state: Bytes::copy_from_slice(row.try_get(4)?),
        created_at: row.try_get::<_, At>(5)?.0,
    })
}
