use std::time::Duration;

use recoup_proto::v1::{self, namespace_service_client::NamespaceServiceClient};

use super::{Client, Pages, new_request_id, rpc};
use crate::Error;

impl Client {
    /// Creates a namespace. `retention` is how long ended executions are kept, at least one minute; `None`
    /// means 30 days.
    ///
    /// # Errors
    /// `NAMESPACE_EXISTS`, and the errors of every call.
    pub async fn create_namespace(
        &self,
        name: impl Into<String>,
        description: impl Into<String>,
        retention: Option<Duration>,
    ) -> Result<v1::Namespace, Error> {
        let namespace = v1::Namespace {
            name: name.into(),
            description: description.into(),
            retention: retention.map(Into::into),
            created_at: None,
        };
        let request =
            v1::CreateNamespaceRequest { namespace: Some(namespace), request_id: new_request_id() };
        let response = rpc!(self, NamespaceServiceClient.create_namespace(request)).await?;
        response.namespace.ok_or(Error::Incomplete("namespace"))
    }

    /// Reads a namespace.
    ///
    /// # Errors
    /// `NAMESPACE_NOT_FOUND`, and the errors of every call.
    pub async fn read_namespace(&self, name: impl Into<String>) -> Result<v1::Namespace, Error> {
        let request = v1::GetNamespaceRequest { name: name.into() };
        let response = rpc!(self, NamespaceServiceClient.get_namespace(request)).await?;
        response.namespace.ok_or(Error::Incomplete("namespace"))
    }

    /// Resumes retention in all namespaces, after it was paused because the clock of the database was set.
    /// The answer says since when retention was paused, if it was.
    ///
    /// # Errors
    /// The errors of every call.
    pub async fn resume_retention(&self) -> Result<v1::ResumeRetentionResponse, Error> {
        let request = v1::ResumeRetentionRequest {};
        rpc!(self, NamespaceServiceClient.resume_retention(request)).await
    }

    /// Lists namespaces by name. `pattern` is `company.*` for the namespaces below `company`, a full name,
    /// or empty for all namespaces.
    pub fn namespaces(&self, pattern: impl Into<String>) -> Pages<v1::Namespace> {
        let (client, pattern) = (self.clone(), pattern.into());
        Pages::new(move |page_token| {
            let (client, pattern) = (client.clone(), pattern.clone());
            async move {
                let request = v1::ListNamespacesRequest { pattern, page_size: 0, page_token };
                let response =
                    rpc!(client, NamespaceServiceClient.list_namespaces(request)).await?;
                Ok((response.namespaces, response.next_page_token))
            }
        })
    }
}
