//! NamespaceService.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use recoup_core::id::{Namespace, namespace_matches};
use recoup_core::limits::DESCRIPTION_BYTES_MAX;
use recoup_proto::v1::namespace_service_server::NamespaceService;
use recoup_proto::v1::{self, ErrorReason};
use recoup_store::NamespaceRow;
use tonic::{Request, Response, Status};

use crate::context::{Context, no_namespace};
use crate::convert::{text, time};
use crate::digest;
use crate::mutation::registry_request;
use crate::page::{Page, SCAN_MAX, SIZE_MAX};
use crate::status::{Error, Result};

const RETENTION_MIN: Duration = Duration::from_secs(60);

pub struct Service {
    context: Arc<Context>,
}

impl Service {
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    async fn create(&self, request: v1::CreateNamespaceRequest) -> Result<v1::Namespace> {
        let given = request.namespace.ok_or_else(|| Error::required("namespace"))?;
        if given.name.is_empty() {
            return Err(Error::required("namespace.name"));
        }
        let name = text::namespace(&given.name, "namespace.name")?;
        let body = v1::Namespace { created_at: None, ..given };
        // The id is scoped to no namespace: the same id with another name has another body, and is refused.
        let scope = Namespace::from("");
        let digest = || digest::of_message(&body);
        let keyed = registry_request(scope, request.request_id, digest)?;
        let field = "namespace.retention";
        let retention = time::duration_between(
            body.retention,
            field,
            self.context.retention,
            RETENTION_MIN..=Duration::from_secs(100 * 365 * 24 * 3600),
        )?;
        let field = "namespace.description";
        let description = text::optional(body.description, field, DESCRIPTION_BYTES_MAX)?;
        let store = self.context.store();
        match store.create_namespace(&name, &description, retention, keyed.as_ref()).await {
            Ok(row) => Ok(namespace(&row)),
            Err(recoup_store::Error::AlreadyExists) => {
                let message = format!("the namespace `{name}` exists");
                Err(Error::new(ErrorReason::NamespaceExists, message))
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn list(&self, request: v1::ListNamespacesRequest) -> Result<v1::ListNamespacesResponse> {
        let pattern = match request.pattern.as_str() {
            "" => "*".to_owned(),
            pattern => text::namespace_pattern(pattern, "pattern")?,
        };
        let filter = digest::of(pattern.as_bytes());
        let page = Page::read(request.page_size, &request.page_token, filter)?;
        let mut after = page.after_text()?.map(Namespace::from);
        let mut namespaces: Vec<v1::Namespace> = Vec::new();
        let mut bytes = 0;
        for _ in 0..SCAN_MAX / SIZE_MAX {
            let rows = self.context.store().list_namespaces(after.as_ref(), SIZE_MAX).await?;
            let is_last = rows.len() < SIZE_MAX;
            for row in rows {
                if namespace_matches(&pattern, row.name.as_str()) {
                    let listed = namespace(&row);
                    bytes += listed.encoded_len() + 8;
                    if page.is_full(namespaces.len(), bytes) {
                        let last = namespaces.last().map_or("", |last| &last.name);
                        let next_page_token = page.token(last.as_bytes());
                        return Ok(v1::ListNamespacesResponse { namespaces, next_page_token });
                    }
                    namespaces.push(listed);
                }
                after = Some(row.name);
            }
            if is_last {
                return Ok(v1::ListNamespacesResponse { namespaces, ..Default::default() });
            }
        }
        let next_page_token = after.map_or(String::new(), |at| page.token(at.as_str().as_bytes()));
        Ok(v1::ListNamespacesResponse { namespaces, next_page_token })
    }
}

fn namespace(row: &NamespaceRow) -> v1::Namespace {
    v1::Namespace {
        name: row.name.as_str().to_owned(),
        description: row.description.clone(),
        retention: Some(time::duration(row.retention)),
        created_at: Some(time::timestamp(row.created_at)),
    }
}

#[tonic::async_trait]
impl NamespaceService for Service {
    async fn create_namespace(
        &self,
        request: Request<v1::CreateNamespaceRequest>,
    ) -> Result<Response<v1::CreateNamespaceResponse>, Status> {
        let namespace = self.create(request.into_inner()).await?;
        Ok(Response::new(v1::CreateNamespaceResponse { namespace: Some(namespace) }))
    }

    async fn get_namespace(
        &self,
        request: Request<v1::GetNamespaceRequest>,
    ) -> Result<Response<v1::GetNamespaceResponse>, Status> {
        let name = text::namespace(&request.get_ref().name, "name")?;
        let row = self.context.store().namespace(&name).await.map_err(Error::from)?;
        let row = row.ok_or_else(|| no_namespace(&name))?;
        Ok(Response::new(v1::GetNamespaceResponse { namespace: Some(namespace(&row)) }))
    }

    async fn list_namespaces(
        &self,
        request: Request<v1::ListNamespacesRequest>,
    ) -> Result<Response<v1::ListNamespacesResponse>, Status> {
        Ok(Response::new(self.list(request.into_inner()).await?))
    }

    async fn resume_retention(
        &self,
        _: Request<v1::ResumeRetentionRequest>,
    ) -> Result<Response<v1::ResumeRetentionResponse>, Status> {
        let paused_at = self.context.store().resume_retention().await.map_err(Error::from)?;
        let paused_at = paused_at.map(time::timestamp);
        Ok(Response::new(v1::ResumeRetentionResponse { paused_at }))
    }
}
