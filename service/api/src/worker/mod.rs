//! WorkerService. [`poll`] and [`stream`] are the two ways to get tasks. They do not depend on each other;
//! the code that they share is in [`sessions`] and [`results`].

mod delivery;
mod poll;
mod results;
mod sessions;
mod stream;

use std::sync::Arc;

use recoup_engine::Refusal;
use recoup_proto::v1;
use recoup_proto::v1::worker_service_server::WorkerService;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::context::Context;
use crate::convert::text;
use crate::metadata;
use crate::status::{Error, Result};
pub use delivery::Delivery;
use delivery::DeliveryGuard;

/// How many responses may be queued for one stream. If the worker accepts none, its stream stops here.
const RESPONSES_MAX: usize = 2;

pub struct Service {
    context: Arc<Context>,
}

impl Service {
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }
}

#[tonic::async_trait]
impl WorkerService for Service {
    type StreamTasksStream = ReceiverStream<Result<v1::StreamTasksResponse, Status>>;

    async fn stream_tasks(
        &self,
        request: Request<Streaming<v1::StreamTasksRequest>>,
    ) -> Result<Response<Self::StreamTasksStream>, Status> {
        if self.context.is_stopping() {
            return Err(Error::from(Refusal::Stopping).into());
        }
        let (responses, stream) = mpsc::channel(RESPONSES_MAX);
        tokio::spawn(stream::serve(self.context.clone(), request.into_inner(), responses));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn poll_tasks(
        &self,
        request: Request<v1::PollTasksRequest>,
    ) -> Result<Response<v1::PollTasksResponse>, Status> {
        let wait = metadata::wait(request.get_ref().wait, request.metadata())?;
        let (response, undelivered) = poll::poll(&self.context, request.into_inner(), wait).await?;
        let mut response = Response::new(response);
        if !undelivered.is_empty() {
            response.extensions_mut().insert(DeliveryGuard::new(undelivered));
        }
        Ok(response)
    }

    async fn complete_task(
        &self,
        request: Request<v1::CompleteTaskRequest>,
    ) -> Result<Response<v1::CompleteTaskResponse>, Status> {
        results::complete(&self.context, request.into_inner()).await?;
        Ok(Response::new(v1::CompleteTaskResponse {}))
    }

    async fn fail_task(
        &self,
        request: Request<v1::FailTaskRequest>,
    ) -> Result<Response<v1::FailTaskResponse>, Status> {
        Ok(Response::new(results::fail(&self.context, request.into_inner()).await?))
    }

    async fn release_task(
        &self,
        request: Request<v1::ReleaseTaskRequest>,
    ) -> Result<Response<v1::ReleaseTaskResponse>, Status> {
        let request = request.into_inner();
        let task = results::decode(&request.task_token)?;
        let session = text::optional(request.session_id, "session_id", text::SESSION_BYTES_MAX)?;
        self.context.engine.release(task, session).await.map_err(results::refusal_for_worker)?;
        Ok(Response::new(v1::ReleaseTaskResponse {}))
    }

    async fn heartbeat_task(
        &self,
        request: Request<v1::HeartbeatTaskRequest>,
    ) -> Result<Response<v1::HeartbeatTaskResponse>, Status> {
        let request = request.into_inner();
        let task = results::decode(&request.task_token)?;
        let details = results::heartbeat_details(request.details, "details")?;
        let recorded = self.context.engine.heartbeat(task, details).await;
        let cancel_requested = recorded.map_err(results::refusal_for_worker)?;
        Ok(Response::new(v1::HeartbeatTaskResponse { cancel_requested }))
    }
}
