use async_trait::async_trait;
use recoup_core::time::Timestamp;

use super::value::At;
use super::{PostgresStore, mutation};
use crate::contract::{Registry, RegistryAnswer, RegistryOperation, RegistryRequest, Result};

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
}
