//! Requests that change the registry: namespaces, workflow versions and subscriptions.
//!
//! A mutation may carry a request id. The change and its answer are then written in one transaction. For a day,
//! every call with the same id, operation and body gets the answer of the first call, whatever has happened to
//! the registry since. This also holds for a call that runs at the same time as the first one, or after the
//! outcome of the first was unknown. The same id with another operation or body fails with
//! [`super::Error::RequestIdReused`]. A mutation that is refused does not use up its id.

use recoup_core::id::Namespace;

/// The request id of a mutation, with the digest that identifies its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryRequest {
    /// The namespace in which the id is unique. Empty for the creation of a namespace, which is not inside one.
    pub namespace: Namespace,
    pub request_id: String,
    /// The digest of the request's body.
    pub digest: u64,
}

/// The mutations of the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistryOperation {
    CreateNamespace,
    RegisterWorkflow,
    RetireWorkflow,
    CreateSubscription,
    DeleteSubscription,
}

impl RegistryOperation {
    pub const ALL: [Self; 5] = [
        Self::CreateNamespace,
        Self::RegisterWorkflow,
        Self::RetireWorkflow,
        Self::CreateSubscription,
        Self::DeleteSubscription,
    ];

    /// The name of the operation in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CreateNamespace => "CREATE_NAMESPACE",
            Self::RegisterWorkflow => "REGISTER_WORKFLOW",
            Self::RetireWorkflow => "RETIRE_WORKFLOW",
            Self::CreateSubscription => "CREATE_SUBSCRIPTION",
            Self::DeleteSubscription => "DELETE_SUBSCRIPTION",
        }
    }
}
