//! Requests to change the registry, which is what changes rarely: namespaces, workflow versions, subscriptions.
//!
//! A mutation may carry a request id. Then it and its answer are one transaction: for a day, whoever
//! comes with the same id, operation and body gets the answer of the first, whatever has become of the
//! registry since, also beside the first or after its outcome was not known. Another operation or body
//! is [`super::Error::RequestIdReused`]. A mutation that is refused uses up no id.

use recoup_core::id::Namespace;

/// The identity of a mutation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryRequest {
    /// In which the id is unique; empty for the creation of a namespace, which is in none.
    pub namespace: Namespace,
    pub request_id: String,
    /// Of the request's body.
    pub digest: u64,
}

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

    /// As tables have it.
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
