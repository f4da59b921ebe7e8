//! AdminService.

use std::sync::Arc;

use recoup_proto::v1;
use recoup_proto::v1::admin_service_server::AdminService;
use recoup_store::StoreFormats;
use recoup_store::format;
use tonic::{Request, Response, Status};

use crate::context::Context;
use crate::status::Error;

pub struct Service {
    context: Arc<Context>,
}

impl Service {
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }
}

fn formats(of: format::Formats) -> v1::Formats {
    let format::Formats { history, definition, failure_event, subscription, registry_answer } = of;
    v1::Formats {
        history: history.into(),
        definition: definition.into(),
        failure_event: failure_event.into(),
        subscription: subscription.into(),
        registry_answer: registry_answer.into(),
    }
}

fn nodes(of: &StoreFormats) -> Vec<v1::NodeFormats> {
    let nodes = of.nodes.iter().map(|node| v1::NodeFormats {
        node_id: node.node.0,
        address: node.address.clone(),
        readable: Some(formats(node.readable)),
    });
    nodes.collect()
}

#[tonic::async_trait]
impl AdminService for Service {
    async fn get_formats(
        &self,
        _: Request<v1::GetFormatsRequest>,
    ) -> Result<Response<v1::GetFormatsResponse>, Status> {
        let found = self.context.store().formats().await.map_err(Error::from)?;
        Ok(Response::new(v1::GetFormatsResponse {
            writable: Some(formats(found.writable)),
            readable: found.readable().map(formats),
            nodes: nodes(&found),
        }))
    }

    async fn finalize_formats(
        &self,
        _: Request<v1::FinalizeFormatsRequest>,
    ) -> Result<Response<v1::FinalizeFormatsResponse>, Status> {
        let found = self.context.store().finalize().await.map_err(Error::from)?;
        tracing::info!(writable = ?found.writable, "an operator has finalized the formats");
        Ok(Response::new(v1::FinalizeFormatsResponse {
            writable: Some(formats(found.writable)),
            readable: found.readable().map(formats),
            nodes: nodes(&found),
        }))
    }
}
