//! WorkflowService.

use std::sync::Arc;

use prost::Message;
use recoup_core::definition::Workflow;
use recoup_core::id::WorkflowName;
use recoup_proto::v1;
use recoup_proto::v1::workflow_service_server::WorkflowService;
use recoup_store::{NewVersion, RegistryAnswer, RegistryOperation, WorkflowVersion, format};
use sha2::{Digest, Sha256};
use tonic::{Request, Response, Status};

use crate::context::{Context, no_namespace, no_workflow};
use crate::convert::{definition, text, time};
use crate::definition_check::{Given, check};
use crate::digest;
use crate::mutation::registry_request;
use crate::page::{Page, SCAN_MAX, SIZE_MAX};
use crate::status::{Error, Result};

pub struct Service {
    context: Arc<Context>,
}

impl Service {
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    async fn register(
        &self,
        request: v1::RegisterWorkflowRequest,
    ) -> Result<v1::RegisterWorkflowResponse> {
        use v1::register_workflow_request::Workflow as Proto;
        let namespace = text::namespace(&request.namespace, "namespace")?;
        let body = v1::RegisterWorkflowRequest { request_id: String::new(), ..request.clone() };
        let digest = || digest::of_message(&body);
        let keyed = registry_request(namespace.clone(), request.request_id, digest)?;
        let before =
            self.context.answered(RegistryOperation::RegisterWorkflow, keyed.as_ref()).await?;
        if let Some(RegistryAnswer::WorkflowRegistered { name, version, is_new }) = before {
            return Ok(registered(&name, version, is_new));
        }
        self.context.check_namespace(&namespace).await?;
        let given = match request.workflow {
            Some(Proto::Definition(definition)) => Given::Message(Box::new(definition)),
            Some(Proto::Source(source)) => Given::source(source)?,
            None => return Err(Error::required("workflow")),
        };
        let checked = check(given).await?;
        let Some((_, workflow)) = checked.read.filter(|_| checked.issues.is_empty()) else {
            return Err(Error::definition(&checked.issues));
        };
        let digest = Sha256::digest(definition::to_proto(&workflow).encode_to_vec());
        let new = NewVersion::new(namespace.clone(), digest.into(), &workflow);
        self.context.permit(format::Row::Definition, new.format).await?;
        let stored = self.context.store().register(&new, keyed.as_ref()).await;
        let (row, is_new) = stored.map_err(|error| match error {
            recoup_store::Error::NotFound => no_namespace(&namespace),
            other => other.into(),
        })?;
        self.context.forget(&namespace, &workflow.name);
        Ok(registered(&row.name, row.version, is_new))
    }

    async fn validate(
        &self,
        request: v1::ValidateWorkflowRequest,
    ) -> Result<v1::ValidateWorkflowResponse> {
        use v1::validate_workflow_request::Workflow as Proto;
        let namespace = text::namespace(&request.namespace, "namespace")?;
        self.context.check_namespace(&namespace).await?;
        let given = match request.workflow {
            Some(Proto::Definition(definition)) => Given::Message(Box::new(definition)),
            Some(Proto::Source(source)) => Given::source(source)?,
            None => return Err(Error::required("workflow")),
        };
        Ok(check(given).await?.into_response())
    }

    async fn version(&self, request: &v1::GetWorkflowRequest) -> Result<v1::WorkflowVersion> {
        let namespace = text::namespace(&request.namespace, "namespace")?;
        let name = text::workflow(&request.name, "name")?;
        let store = self.context.store();
        let row = match request.version {
            Some(version) => match store.workflow(&namespace, &name, Some(version)).await? {
                Some(row) => row,
                None => {
                    return Err(self.context.why_no_version(&namespace, &name, version).await?);
                }
            },
            // The latest version, whether or not it is retired.
            None => match store.list_versions(&namespace, &name, None, 1).await?.pop() {
                Some(row) => row,
                None => {
                    self.context.check_namespace(&namespace).await?;
                    return Err(no_workflow(&namespace, &name));
                }
            },
        };
        let definition = definition::to_proto(&stored(&row)?);
        Ok(v1::WorkflowVersion { definition: Some(definition), ..version(&row) })
    }

    async fn list(&self, request: v1::ListWorkflowsRequest) -> Result<v1::ListWorkflowsResponse> {
        let namespace = text::namespace(&request.namespace, "namespace")?;
        self.context.check_namespace(&namespace).await?;
        let filter = digest::of_message(&v1::ListWorkflowsRequest {
            namespace: namespace.as_str().to_owned(),
            page_size: 0,
            page_token: String::new(),
            ..request.clone()
        });
        let page = Page::read(request.page_size, &request.page_token, filter)?;
        let mut after = page.after_text()?.map(WorkflowName::from);
        let prefix = request.name_prefix.as_str();
        let mut workflows: Vec<v1::WorkflowSummary> = Vec::new();
        let mut bytes = 0;
        for _ in 0..SCAN_MAX / SIZE_MAX {
            let store = self.context.store();
            let rows = store.list_workflows(&namespace, after.as_ref(), SIZE_MAX).await?;
            let is_last = rows.len() < SIZE_MAX;
            for row in rows {
                let listed = row.name.as_str().starts_with(prefix)
                    && (request.include_retired || row.retired_at.is_none());
                if listed {
                    let listed = summary(&row)?;
                    bytes += listed.encoded_len() + 8;
                    if page.is_full(workflows.len(), bytes) {
                        let last = workflows.last().map_or("", |last| &last.name);
                        let next_page_token = page.token(last.as_bytes());
                        return Ok(v1::ListWorkflowsResponse { workflows, next_page_token });
                    }
                    workflows.push(listed);
                }
                after = Some(row.name);
            }
            if is_last {
                return Ok(v1::ListWorkflowsResponse { workflows, ..Default::default() });
            }
        }
        let next_page_token = after.map_or(String::new(), |at| page.token(at.as_str().as_bytes()));
        Ok(v1::ListWorkflowsResponse { workflows, next_page_token })
    }

    async fn versions(
        &self,
        request: &v1::ListWorkflowVersionsRequest,
    ) -> Result<v1::ListWorkflowVersionsResponse> {
        let namespace = text::namespace(&request.namespace, "namespace")?;
        let name = text::workflow(&request.name, "name")?;
        let filter = digest::of(format!("{namespace} {name}").as_bytes());
        let page = Page::read(request.page_size, &request.page_token, filter)?;
        let before = page.after_exactly()?.map(u32::from_be_bytes);
        let store = self.context.store();
        let mut rows = store.list_versions(&namespace, &name, before, page.size + 1).await?;
        if rows.is_empty() && before.is_none() {
            self.context.check_namespace(&namespace).await?;
            return Err(no_workflow(&namespace, &name));
        }
        let has_more = rows.len() > page.size;
        rows.truncate(page.size);
        let last = rows.last().filter(|_| has_more);
        let next_page_token = last.map(|row| page.token(&row.version.to_be_bytes()));
        Ok(v1::ListWorkflowVersionsResponse {
            versions: rows.iter().map(version).collect(),
            next_page_token: next_page_token.unwrap_or_default(),
        })
    }

    async fn retire(
        &self,
        request: v1::RetireWorkflowRequest,
    ) -> Result<v1::RetireWorkflowResponse> {
        let namespace = text::namespace(&request.namespace, "namespace")?;
        let name = text::workflow(&request.name, "name")?;
        let body = v1::RetireWorkflowRequest { request_id: String::new(), ..request.clone() };
        let digest = || digest::of_message(&body);
        let keyed = registry_request(namespace.clone(), request.request_id, digest)?;
        let store = self.context.store();
        let retired = store.retire(&namespace, &name, request.version, keyed.as_ref()).await;
        let retired_at = match (retired, request.version) {
            (Ok(retired_at), _) => retired_at,
            (Err(recoup_store::Error::NotFound), Some(version)) => {
                return Err(self.context.why_no_version(&namespace, &name, version).await?);
            }
            (Err(recoup_store::Error::NotFound), None) => {
                self.context.check_namespace(&namespace).await?;
                return Err(no_workflow(&namespace, &name));
            }
            (Err(error), _) => return Err(error.into()),
        };
        self.context.forget(&namespace, &name);
        Ok(v1::RetireWorkflowResponse { retired_at: Some(time::timestamp(retired_at)) })
    }
}

fn registered(name: &WorkflowName, version: u32, created: bool) -> v1::RegisterWorkflowResponse {
    let (name, warnings) = (name.as_str().to_owned(), Vec::new());
    v1::RegisterWorkflowResponse { name, version, created, warnings }
}

fn stored(row: &WorkflowVersion) -> Result<Workflow> {
    format::decode_workflow(row.format, &row.definition)
        .map_err(|error| Error::unreadable("a stored definition", &error))
}

fn version(row: &WorkflowVersion) -> v1::WorkflowVersion {
    v1::WorkflowVersion {
        namespace: row.namespace.as_str().to_owned(),
        name: row.name.as_str().to_owned(),
        version: row.version,
        definition: None,
        digest: row.digest.to_vec().into(),
        registered_at: Some(time::timestamp(row.created_at)),
        retired_at: row.retired_at.map(time::timestamp),
    }
}

fn summary(row: &WorkflowVersion) -> Result<v1::WorkflowSummary> {
    Ok(v1::WorkflowSummary {
        namespace: row.namespace.as_str().to_owned(),
        name: row.name.as_str().to_owned(),
        latest_version: row.version,
        description: stored(row)?.description,
        registered_at: Some(time::timestamp(row.created_at)),
        retired_at: row.retired_at.map(time::timestamp),
    })
}

#[tonic::async_trait]
impl WorkflowService for Service {
    async fn register_workflow(
        &self,
        request: Request<v1::RegisterWorkflowRequest>,
    ) -> Result<Response<v1::RegisterWorkflowResponse>, Status> {
        Ok(Response::new(self.register(request.into_inner()).await?))
    }

    async fn validate_workflow(
        &self,
        request: Request<v1::ValidateWorkflowRequest>,
    ) -> Result<Response<v1::ValidateWorkflowResponse>, Status> {
        Ok(Response::new(self.validate(request.into_inner()).await?))
    }

    async fn get_workflow(
        &self,
        request: Request<v1::GetWorkflowRequest>,
    ) -> Result<Response<v1::GetWorkflowResponse>, Status> {
        let workflow = self.version(request.get_ref()).await?;
        Ok(Response::new(v1::GetWorkflowResponse { workflow: Some(workflow) }))
    }

    async fn list_workflows(
        &self,
        request: Request<v1::ListWorkflowsRequest>,
    ) -> Result<Response<v1::ListWorkflowsResponse>, Status> {
        Ok(Response::new(self.list(request.into_inner()).await?))
    }

    async fn list_workflow_versions(
        &self,
        request: Request<v1::ListWorkflowVersionsRequest>,
    ) -> Result<Response<v1::ListWorkflowVersionsResponse>, Status> {
        Ok(Response::new(self.versions(request.get_ref()).await?))
    }

    async fn retire_workflow(
        &self,
        request: Request<v1::RetireWorkflowRequest>,
    ) -> Result<Response<v1::RetireWorkflowResponse>, Status> {
        Ok(Response::new(self.retire(request.into_inner()).await?))
    }
}
