use async_trait::async_trait;
use recoup_core::id::{Namespace, WorkflowName};
use recoup_core::time::Timestamp;
use rusqlite::{OptionalExtension, Row, params};

use super::error::Failure;
use super::registry::{many, one};
use super::writer::Write;
use super::{SqliteStore, value};
use crate::contract::{
    Error, NewVersion, RegistryAnswer, RegistryOperation, RegistryRequest, Result, WorkflowVersion,
    Workflows,
};

const VERSION: &str = "
    select namespace, name, version, digest, format, definition, created_at, retired_at
    from workflow_version";

#[async_trait]
impl Workflows for SqliteStore {
    async fn register(
        &self,
        new: &NewVersion,
        request: Option<&RegistryRequest>,
    ) -> Result<(WorkflowVersion, bool)> {
        let wanted = new.clone();
        let registered = self.once(RegistryOperation::RegisterWorkflow, request, move |write| {
            let (version, is_new) = register(write, &wanted)?;
            Ok(RegistryAnswer::WorkflowRegistered { name: wanted.name.clone(), version, is_new })
        });
        registered.await?.into_version(self, &new.namespace).await
    }

    async fn workflow(
        &self,
        namespace: &Namespace,
        name: &WorkflowName,
        number: Option<u32>,
    ) -> Result<Option<WorkflowVersion>> {
        let (namespace, name) = (namespace.clone(), name.clone());
        self.read(move |connection| {
            let which = match number {
                Some(_) => "version = ?3",
                None => "retired_at is null and ?3 is null order by version desc limit 1",
            };
            let sql = format!("{VERSION} where namespace = ?1 and name = ?2 and {which}");
            one(connection, &sql, params![namespace.as_str(), name.as_str(), number], version)
        })
        .await
    }

    async fn list_workflows(
        &self,
        namespace: &Namespace,
        after: Option<&WorkflowName>,
        limit: usize,
    ) -> Result<Vec<WorkflowVersion>> {
        let namespace = namespace.clone();
        let after = after.map_or_else(String::new, ToString::to_string);
        self.read(move |connection| {
            let sql = format!(
                "{VERSION} as this where namespace = ?1 and name > ?2 and version =
                    (select max(version) from workflow_version as other
                        where other.namespace = this.namespace and other.name = this.name)
                order by name limit ?3"
            );
            let wanted = params![namespace.as_str(), after, value::limit(limit)];
            many(connection, &sql, wanted, version)
        })
        .await
    }

    async fn list_versions(
        &self,
        namespace: &Namespace,
        name: &WorkflowName,
        before: Option<u32>,
        limit: usize,
    ) -> Result<Vec<WorkflowVersion>> {
        let (namespace, name) = (namespace.clone(), name.clone());
        let before = before.map_or(i64::MAX, i64::from);
        self.read(move |connection| {
            let sql = format!(
                "{VERSION} where namespace = ?1 and name = ?2 and version < ?3
                order by version desc limit ?4"
            );
            let wanted = params![namespace.as_str(), name.as_str(), before, value::limit(limit)];
            many(connection, &sql, wanted, version)
        })
        .await
    }

    async fn retire(
        &self,
        namespace: &Namespace,
        name: &WorkflowName,
        number: Option<u32>,
        request: Option<&RegistryRequest>,
    ) -> Result<Timestamp> {
        const RETIRE: &str = "
            update workflow_version set retired_at = coalesce(retired_at, ?4)
            where namespace = ?1 and name = ?2 and (?3 is null or version = ?3)";
        const RETIRED: &str = "
            select retired_at from workflow_version
            where namespace = ?1 and name = ?2 and (?3 is null or version = ?3)
            order by version desc limit 1";
        let (namespace, name) = (namespace.clone(), name.clone());
        let retired = self.once(RegistryOperation::RetireWorkflow, request, move |write| {
            let (namespace, name, now) = (namespace.as_str(), name.as_str(), write.now.as_micros());
            if write.execute(RETIRE, params![namespace, name, number, now])? == 0 {
                return Err(Error::NotFound.into());
            }
            let retired_at = write
                .prepare(RETIRED)?
                .query_row(params![namespace, name, number], |row| row.get(0))?;
            let retired_at = Timestamp::from_micros(retired_at);
            Ok(RegistryAnswer::WorkflowRetired { retired_at })
        });
        retired.await?.into_retired_at()
    }
}

/// Returns the number of the version that has this definition, and whether it is new.
fn register(write: &Write<'_>, new: &NewVersion) -> Result<(u32, bool), Failure> {
    const LATEST: &str = "
        select version, digest from workflow_version
        where namespace = ?1 and name = ?2 and retired_at is null
        order by version desc limit 1";
    const LAST: &str =
        "select coalesce(max(version), 0) from workflow_version where namespace = ?1 and name = ?2";
    const ADD: &str = "
        insert into workflow_version (namespace, name, version, digest, format, definition,
            created_at)
        values (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    let (namespace, name) = (new.namespace.as_str(), new.name.as_str());
    if !write.prepare("select 1 from namespace where name = ?1")?.exists([namespace])? {
        return Err(Error::NotFound.into());
    }
    let latest: Option<(u32, [u8; 32])> = write
        .prepare(LATEST)?
        .query_row([namespace, name], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    if let Some((version, _)) = latest.filter(|(_, digest)| *digest == new.digest) {
        return Ok((version, false));
    }
    let last: u32 = write.prepare(LAST)?.query_row([namespace, name], |row| row.get(0))?;
    let version = last.saturating_add(1);
    let (definition, created_at) = (&new.definition[..], write.now.as_micros());
    let row = params![namespace, name, version, new.digest, new.format, definition, created_at];
    write.execute(ADD, row)?;
    Ok((version, true))
}

fn version(row: &Row<'_>) -> Result<WorkflowVersion, Failure> {
    Ok(WorkflowVersion {
        namespace: value::text(row, 0)?.into(),
        name: value::text(row, 1)?.into(),
        version: value::count(row, 2)?,
        digest: row.get(3)?,
        format: value::format(row, 4)?,
        definition: value::bytes(row, 5)?,
        created_at: value::at(row, 6)?,
        retired_at: value::optional_at(row, 7)?,
    })
}
