//! Namespaces, workflow versions, subscriptions.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use recoup_core::id::{Namespace, WorkflowName};
use recoup_core::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, Params, Row, params};

use super::error::Failure;
use super::writer::Write;
use super::{SqliteStore, value};
use crate::contract::{
    Error, NamespaceRow, NewVersion, REQUEST_KEPT, Registry, RegistryAnswer, RegistryOperation,
    RegistryRequest, Result, SubscriptionRow, WorkflowVersion,
};
use crate::format;

const NAMESPACE: &str = "select name, description, retention_us, created_at from namespace";
const VERSION: &str = "
    select namespace, name, version, digest, format, definition, created_at, retired_at
    from workflow_version";
const SUBSCRIPTION: &str = "
    select namespace, name, version, format, state, created_at from subscription";

#[async_trait]
impl Registry for SqliteStore {
    async fn now(&self) -> Result<Timestamp> {
        Ok(self.time())
    }

    async fn answered(
        &self,
        operation: RegistryOperation,
        request: &RegistryRequest,
    ) -> Result<Option<RegistryAnswer>> {
        let (request, now) = (request.clone(), self.time());
        self.read(move |connection| answered(connection, now, operation, &request)).await
    }

    async fn create_namespace(
        &self,
        name: &Namespace,
        description: &str,
        retention: Duration,
        request: Option<&RegistryRequest>,
    ) -> Result<NamespaceRow> {
        const CREATE: &str = "
            insert into namespace (name, description, retention_us, created_at)
            values (?1, ?2, ?3, ?4) on conflict do nothing";
        let (name, description) = (name.clone(), description.to_owned());
        let created = self.once(RegistryOperation::CreateNamespace, request, move |write| {
            let (created_at, retention_us) = (write.now, value::micros(retention));
            let row = params![name.as_str(), description, retention_us, created_at.as_micros()];
            if write.execute(CREATE, row)? == 0 {
                return Err(Error::AlreadyExists.into());
            }
            let retention = value::duration(retention_us);
            let (name, description) = (name.clone(), description.clone());
            let row = NamespaceRow { name, description, retention, created_at };
            Ok(RegistryAnswer::NamespaceCreated(row))
        });
        created.await?.into_namespace()
    }

    async fn namespace(&self, name: &Namespace) -> Result<Option<NamespaceRow>> {
        let name = name.clone();
        self.read(move |connection| {
            one(connection, &format!("{NAMESPACE} where name = ?1"), [name.as_str()], namespace)
        })
        .await
    }

    async fn list_namespaces(
        &self,
        after: Option<&Namespace>,
        limit: usize,
    ) -> Result<Vec<NamespaceRow>> {
        // No name is empty: every one is above it.
        let after = after.map_or_else(String::new, ToString::to_string);
        self.read(move |connection| {
            let sql = format!("{NAMESPACE} where name > ?1 order by name limit ?2");
            many(connection, &sql, params![after, value::limit(limit)], namespace)
        })
        .await
    }

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
        let (name, number, is_new) = registered.await?.into_version()?;
        let version = self.workflow(&new.namespace, &name, Some(number)).await?;
        let version = version.ok_or(Error::NotFound)?;
        // It was not when this was answered.
        Ok((WorkflowVersion { retired_at: None, ..version }, is_new))
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

impl SqliteStore {
    /// Does what the first with this request did, or finds what it answered.
    async fn once(
        &self,
        operation: RegistryOperation,
        request: Option<&RegistryRequest>,
        mut mutate: impl FnMut(&mut Write<'_>) -> Result<RegistryAnswer, Failure> + Send + 'static,
    ) -> Result<RegistryAnswer> {
        const KEEP: &str = "
            insert into registry_request (namespace, request_id, operation, digest, format, answer,
                created_at)
            values (?1, ?2, ?3, ?4, ?5, ?6, ?7)
            on conflict do update set operation = excluded.operation, digest = excluded.digest,
                format = excluded.format, answer = excluded.answer,
                created_at = excluded.created_at";
        let request = request.cloned();
        self.write(move |write| {
            let Some(request) = &request else { return mutate(write) };
            if let Some(answer) = answered(write.connection(), write.now, operation, request)? {
                return Ok(answer);
            }
            let answer = mutate(write)?;
            let RegistryRequest { namespace, request_id, digest } = request;
            let encoded = format::encode_registry_answer(&answer);
            let row = params![
                namespace.as_str(),
                request_id,
                operation.as_str(),
                digest.cast_signed(),
                encoded.format,
                &encoded.data[..],
                write.now.as_micros(),
            ];
            write.execute(KEEP, row)?;
            Ok(answer)
        })
        .await
    }
}

fn answered(
    connection: &Connection,
    now: Timestamp,
    operation: RegistryOperation,
    request: &RegistryRequest,
) -> Result<Option<RegistryAnswer>, Failure> {
    const ANSWERED: &str = "
        select operation, digest, format, answer from registry_request
        where namespace = ?1 and request_id = ?2 and created_at > ?3";
    let RegistryRequest { namespace, request_id, digest } = request;
    let since = (now - REQUEST_KEPT).as_micros();
    let mut statement = connection.prepare_cached(ANSWERED)?;
    let mut rows = statement.query(params![namespace.as_str(), request_id, since])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    if value::text(row, 0)? != operation.as_str() || row.get::<_, i64>(1)? != digest.cast_signed() {
        return Err(Error::RequestIdReused.into());
    }
    let answer = format::decode_registry_answer(value::format(row, 2)?, &value::bytes(row, 3)?);
    Ok(Some(answer.map_err(|error| Error::Incompatible(error.to_string()))?))
}

/// The number of the version that has this definition, and whether it is new.
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

fn one<T>(
    connection: &Connection,
    sql: &str,
    parameters: impl Params,
    read: fn(&Row<'_>) -> Result<T, Failure>,
) -> Result<Option<T>, Failure> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(parameters)?;
    rows.next()?.map(read).transpose()
}

fn many<T>(
    connection: &Connection,
    sql: &str,
    parameters: impl Params,
    read: fn(&Row<'_>) -> Result<T, Failure>,
) -> Result<Vec<T>, Failure> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(parameters)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(read(row)?);
    }
    Ok(found)
}

fn namespace(row: &Row<'_>) -> Result<NamespaceRow, Failure> {
    Ok(NamespaceRow {
        name: value::text(row, 0)?.into(),
        description: value::text(row, 1)?.into(),
        retention: value::duration(row.get(2)?),
        created_at: value::at(row, 3)?,
    })
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
