use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use recoup_core::id::{Namespace, WorkflowName};
use recoup_core::time::Timestamp;
use tokio_postgres::Row;

use super::PostgresStore;
use super::error::Failure;
use super::value::{self, At};
use crate::contract::{
    Error, NamespaceRow, NewVersion, Registry, Result, SubscriptionRow, WorkflowVersion,
};

/// Columns in the order in which [`namespace_row`] reads them; so also below.
const NAMESPACE: &str = "name, description, retention_us, created_at";
const VERSION: &str =
    "namespace, name, version, digest, format, definition, created_at, retired_at";
const SUBSCRIPTION: &str = "namespace, name, version, format, state, created_at";

#[async_trait]
impl Registry for PostgresStore {
    async fn now(&self) -> Result<Timestamp> {
        let mut session = self.inner.pool.take().await?;
        let rows = session.query("select clock_timestamp()", &[]).await?;
        Ok(rows[0].try_get::<_, At>(0)?.0)
    }

    async fn create_namespace(
        &self,
        name: &Namespace,
        description: &str,
        retention: Duration,
    ) -> Result<NamespaceRow> {
        let sql = format!(
            "insert into namespace (name, description, retention_us) values ($1, $2, $3)
            on conflict do nothing returning {NAMESPACE}"
        );
        let retention_us = value::micros(retention);
        let mut session = self.inner.pool.take().await?;
        let rows = session.query(sql, &[&name.as_str(), &description, &retention_us]).await?;
        Ok(namespace_row(rows.first().ok_or(Error::AlreadyExists)?)?)
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

    async fn register(&self, new: &NewVersion) -> Result<(WorkflowVersion, bool)> {
        let (namespace, name) = (new.namespace.as_str(), new.name.as_str());
        let mut session = self.inner.pool.take().await?;
        session.begin().await?;
        // One registration at a time in a namespace: versions have no gaps.
        const LOCK: &str = "select from namespace where name = $1 for update";
        if session.query(LOCK, &[&namespace]).await?.is_empty() {
            return Err(Error::NotFound);
        }
        let latest = format!(
            "select {VERSION} from workflow_version
            where namespace = $1 and name = $2 and retired_at is null
            order by version desc limit 1"
        );
        let rows = session.query(latest, &[&namespace, &name]).await?;
        if let Some(row) = rows.first() {
            let latest = version_row(row)?;
            if latest.digest == new.digest {
                session.committed().await?;
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
        let rows = session
            .query(insert, &[&namespace, &name, &&new.digest[..], &format, &&new.definition[..]])
            .await?;
        let version = version_row(&rows[0])?;
        session.committed().await?;
        Ok((version, true))
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
    ) -> Result<()> {
        const RETIRE: &str = "
            update workflow_version set retired_at = coalesce(retired_at, clock_timestamp())
            where namespace = $1 and name = $2 and ($3::int8 is null or version = $3)";
        let version = version.map(i64::from);
        let mut session = self.inner.pool.take().await?;
        let retired =
            session.execute(RETIRE, &[&namespace.as_str(), &name.as_str(), &version]).await?;
        if retired == 0 { Err(Error::NotFound) } else { Ok(()) }
    }

    async fn create_subscription(
        &self,
        namespace: &Namespace,
        name: &str,
        format: u16,
        state: &Bytes,
    ) -> Result<SubscriptionRow> {
        let sql = format!(
            "insert into subscription (namespace, name, format, state) values ($1, $2, $3, $4)
            on conflict do nothing returning {SUBSCRIPTION}"
        );
        let format = i32::from(format);
        let mut session = self.inner.pool.take().await?;
        let rows = session.query(sql, &[&namespace.as_str(), &name, &format, &&state[..]]).await?;
        Ok(subscription_row(rows.first().ok_or(Error::AlreadyExists)?)?)
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

    async fn delete_subscription(&self, namespace: &Namespace, name: &str) -> Result<()> {
        const DELETE: &str = "delete from subscription where namespace = $1 and name = $2";
        let mut session = self.inner.pool.take().await?;
        let deleted = session.execute(DELETE, &[&namespace.as_str(), &name]).await?;
        if deleted == 0 { Err(Error::NotFound) } else { Ok(()) }
    }
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
