//! Namespaces are the units of isolation.

use std::time::Duration;

use async_trait::async_trait;
use recoup_core::id::Namespace;
use recoup_core::time::Timestamp;

use super::{RegistryRequest, Result};

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceRow {
    pub name: Namespace,
    pub description: String,
    /// How long executions and their events are kept, counted from the end of the execution.
    pub retention: Duration,
    pub created_at: Timestamp,
}

/// Creates and reads namespaces.
#[async_trait]
pub trait Namespaces {
    /// Creates a namespace. [`super::Error::AlreadyExists`] if the name is taken. The namespace `default`
    /// always exists.
    async fn create_namespace(
        &self,
        name: &Namespace,
        description: &str,
        retention: Duration,
        request: Option<&RegistryRequest>,
    ) -> Result<NamespaceRow>;

    /// The namespace with this name, if it exists.
    async fn namespace(&self, name: &Namespace) -> Result<Option<NamespaceRow>>;

    /// In the order of names, starting above `after`.
    async fn list_namespaces(
        &self,
        after: Option<&Namespace>,
        limit: usize,
    ) -> Result<Vec<NamespaceRow>>;
}
