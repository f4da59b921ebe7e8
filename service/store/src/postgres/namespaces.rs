use std::time::Duration;

use async_trait::async_trait;
use recoup_core::id::Namespace;

use super::mutation::Begun;
use super::value::At;
use super::{PostgresStore, value};
use crate::contract::{
    Error, NamespaceRow, Namespaces, RegistryAnswer, RegistryOperation, RegistryRequest, Result,
};

#[async_trait]
impl Namespaces for PostgresStore {
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
