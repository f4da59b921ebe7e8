use std::time::Duration;

use async_trait::async_trait;
use recoup_core::id::Namespace;
use rusqlite::{Row, params};

use super::error::Failure;
use super::registry::{many, one};
use super::{SqliteStore, value};
use crate::contract::{
    Error, NamespaceRow, Namespaces, RegistryAnswer, RegistryOperation, RegistryRequest, Result,
};

const NAMESPACE: &str = "select name, description, retention_us, created_at from namespace";

#[async_trait]
impl Namespaces for SqliteStore {
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
        // No name is empty, so every name sorts after this one.
        let after = after.map_or_else(String::new, ToString::to_string);
        self.read(move |connection| {
            let sql = format!("{NAMESPACE} where name > ?1 order by name limit ?2");
            many(connection, &sql, params![after, value::limit(limit)], namespace)
        })
        .await
    }
}

fn namespace(row: &Row<'_>) -> Result<NamespaceRow, Failure> {
    Ok(NamespaceRow {
        name: value::text(row, 0)?.into(),
        description: value::text(row, 1)?.into(),
        retention: value::duration(row.get(2)?),
        created_at: value::at(row, 3)?,
    })
}
