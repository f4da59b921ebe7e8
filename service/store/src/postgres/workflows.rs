use async_trait::async_trait;
use recoup_core::id::{Namespace, WorkflowName};
use recoup_core::time::Timestamp;

use super::error::Failure;
use super::mutation::{Begun, Mutation};
use super::value::At;
use super::{PostgresStore, value};
use crate::contract::{
    Error, NewVersion, RegistryAnswer, RegistryOperation, RegistryRequest, Result, WorkflowVersion,
    Workflows,
};

#[async_trait]
impl Workflows for PostgresStore {
    async fn register(
        &self,
        new: &NewVersion,
        request: Option<&RegistryRequest>,
    ) -> Result<(WorkflowVersion, bool)> {
        let mut mutation = match self.mutate(RegistryOperation::RegisterWorkflow, request).await? {
            Begun::Answered(answer) => return answer.into_version(self, &new.namespace).await,
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
}

/// Locks the namespace, so that its workflows are changed by one transaction at a time and their versions have
/// no gaps. Returns false if the namespace does not exist.
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

/// Returns the version that has this definition, and whether it is new.
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
