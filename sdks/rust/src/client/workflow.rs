use recoup_proto::v1::register_workflow_request::Workflow as Registered;
use recoup_proto::v1::validate_workflow_request::Workflow as Validated;
use recoup_proto::v1::{self, workflow_service_client::WorkflowServiceClient};

use super::{Client, Pages, new_request_id, rpc};
use crate::Error;

/// The definition of a workflow: as text in YAML or JSON, or as a message.
#[derive(Clone, Debug, PartialEq)]
pub enum WorkflowSource {
    /// The text of a workflow file. Problems are reported with line and column. JSON is parsed as YAML,
    /// which includes it.
    Text(String),
    /// A message that was built in code.
    Definition(Box<v1::WorkflowDefinition>),
}

impl From<&str> for WorkflowSource {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for WorkflowSource {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<v1::WorkflowDefinition> for WorkflowSource {
    fn from(definition: v1::WorkflowDefinition) -> Self {
        Self::Definition(Box::new(definition))
    }
}

fn text(text: String) -> v1::DefinitionSource {
    v1::DefinitionSource { text, format: v1::DefinitionFormat::Yaml.into() }
}

impl Client {
    /// Registers a workflow. A definition that equals the latest version does not create a new version.
    ///
    /// # Errors
    /// `DEFINITION_INVALID` and related reasons, with one field violation per problem, and the errors
    /// of every call.
    ///
    /// ```no_run
    /// # async fn example(client: recoup_sdk::Client) -> Result<(), recoup_sdk::Error> {
    /// let registered = client
    ///     .register_workflow(
    ///         "name: hello\nsteps:\n  - id: greet\n    task: {type: greeting.say}\n",
    ///     )
    ///     .await?;
    /// println!("{} is at version {}", registered.name, registered.version);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn register_workflow(
        &self,
        workflow: impl Into<WorkflowSource>,
    ) -> Result<v1::RegisterWorkflowResponse, Error> {
        let workflow = match workflow.into() {
            WorkflowSource::Text(source) => Registered::Source(text(source)),
            WorkflowSource::Definition(definition) => Registered::Definition(*definition),
        };
        let request = v1::RegisterWorkflowRequest {
            namespace: self.namespace().to_owned(),
            request_id: new_request_id(),
            workflow: Some(workflow),
        };
        rpc!(self, WorkflowServiceClient.register_workflow(request)).await
    }

    /// Checks a workflow as [`Self::register_workflow`] would, and computes its retry schedules. Problems
    /// of the workflow are part of the answer; they are not errors of the call.
    ///
    /// # Errors
    /// `NAMESPACE_NOT_FOUND`, and the errors of every call.
    pub async fn validate_workflow(
        &self,
        workflow: impl Into<WorkflowSource>,
    ) -> Result<v1::ValidateWorkflowResponse, Error> {
        let workflow = match workflow.into() {
            WorkflowSource::Text(source) => Validated::Source(text(source)),
            WorkflowSource::Definition(definition) => Validated::Definition(*definition),
        };
        let request = v1::ValidateWorkflowRequest {
            namespace: self.namespace().to_owned(),
            workflow: Some(workflow),
        };
        rpc!(self, WorkflowServiceClient.validate_workflow(request)).await
    }

    /// Reads a version of a workflow. `None` reads the latest.
    ///
    /// # Errors
    /// `WORKFLOW_NOT_FOUND`, `WORKFLOW_VERSION_NOT_FOUND`, and the errors of every call.
    pub async fn workflow(
        &self,
        name: impl Into<String>,
        version: Option<u32>,
    ) -> Result<v1::WorkflowVersion, Error> {
        let request = v1::GetWorkflowRequest {
            namespace: self.namespace().to_owned(),
            name: name.into(),
            version,
        };
        let response = rpc!(self, WorkflowServiceClient.get_workflow(request)).await?;
        response.workflow.ok_or(Error::Incomplete("workflow"))
    }

    /// Lists the workflows whose names begin with `name_prefix`, by name, without retired ones.
    pub fn workflows(&self, name_prefix: impl Into<String>) -> Pages<v1::WorkflowSummary> {
        let (client, name_prefix) = (self.clone(), name_prefix.into());
        Pages::new(move |page_token| {
            let request = v1::ListWorkflowsRequest {
                namespace: client.namespace().to_owned(),
                name_prefix: name_prefix.clone(),
                page_token,
                ..v1::ListWorkflowsRequest::default()
            };
            let client = client.clone();
            async move {
                let response = rpc!(client, WorkflowServiceClient.list_workflows(request)).await?;
                Ok((response.workflows, response.next_page_token))
            }
        })
    }

    /// Lists the versions of a workflow, latest first, without their definitions.
    pub fn workflow_versions(&self, name: impl Into<String>) -> Pages<v1::WorkflowVersion> {
        let (client, name) = (self.clone(), name.into());
        Pages::new(move |page_token| {
            let request = v1::ListWorkflowVersionsRequest {
                namespace: client.namespace().to_owned(),
                name: name.clone(),
                page_size: 0,
                page_token,
            };
            let client = client.clone();
            async move {
                let service = rpc!(client, WorkflowServiceClient.list_workflow_versions(request));
                let response = service.await?;
                Ok((response.versions, response.next_page_token))
            }
        })
    }

    /// Retires a workflow, or one version of it. No new executions of it can be started; running executions
    /// are not affected.
    ///
    /// # Errors
    /// `WORKFLOW_NOT_FOUND`, `WORKFLOW_VERSION_NOT_FOUND`, and the errors of every call.
    pub async fn retire_workflow(
        &self,
        name: impl Into<String>,
        version: Option<u32>,
    ) -> Result<v1::RetireWorkflowResponse, Error> {
        let request = v1::RetireWorkflowRequest {
            namespace: self.namespace().to_owned(),
            name: name.into(),
            version,
            request_id: new_request_id(),
        };
        rpc!(self, WorkflowServiceClient.retire_workflow(request)).await
    }
}
