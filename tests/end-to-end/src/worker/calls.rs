//! The worker over unary calls: it makes one long poll at a time, and one call for each result.

use std::time::Duration;

use recoup_proto::v1::task_result::Result as Outcome;
use recoup_proto::v1::worker_service_client::WorkerServiceClient;
use recoup_proto::v1::{
    CompleteTaskRequest, ErrorReason, FailTaskRequest, HeldTasks, PollTasksRequest,
    PollTasksResponse, ResultAck, TaskResult,
};
use tokio::sync::mpsc;
use tonic::Status;
use tonic::transport::Channel;

use super::{ACK_WITHIN, SESSION_TTL, SLOTS, Worker, duration, too_late};
use crate::connect;

/// How long a poll waits for a task. The poll also keeps the session alive while it waits.
const POLL_WAIT: Duration = SESSION_TTL.saturating_sub(Duration::from_secs(1));

type Client = WorkerServiceClient<Channel>;

impl Worker {
    /// Polls for tasks and reports results until a poll fails.
    pub(super) async fn serve_by_calls(&mut self, url: &str) -> Result<(), Status> {
        let client = connect::workers(connect::channel(url));
        let mut polling = None;
        loop {
            let free = SLOTS.saturating_sub(self.held.len() as u32);
            if polling.is_none() && free > 0 {
                polling = Some(Box::pin(poll(client.clone(), self.poll_request(free))));
            }
            tokio::select! {
                answer = async { polling.as_mut().expect("it is checked below").await },
                    if polling.is_some() =>
                {
                    polling = None;
                    for task in answer?.tasks {
                        self.begin(task);
                    }
                }
                Some((token, result)) = self.done.recv() => {
                    if let Some(result) = self.finish(&token, result) {
                        tokio::spawn(report(client.clone(), result, self.answered.clone()));
                    }
                }
                Some(ack) = self.answers.recv() => {
                    self.acknowledged(&ack);
                }
            }
        }
    }

    fn poll_request(&self, free: u32) -> PollTasksRequest {
        PollTasksRequest {
            task_types: self.options.task_types.clone(),
            max_tasks: free,
            wait: Some(duration(POLL_WAIT)),
            session_id: self.options.session.clone(),
            worker: self.options.name.clone(),
            held: Some(HeldTasks { task_tokens: self.held.keys().cloned().collect() }),
            session_ttl: Some(duration(SESSION_TTL)),
            ..PollTasksRequest::default()
        }
    }
}

async fn poll(mut client: Client, request: PollTasksRequest) -> Result<PollTasksResponse, Status> {
    let answer = tokio::time::timeout(ACK_WITHIN, client.poll_tasks(request)).await;
    Ok(answer.map_err(|_| too_late())??.into_inner())
}

/// Reports a result, and passes the answer on in the form in which a stream would deliver it.
async fn report(
    mut client: Client,
    TaskResult { task_token, result }: TaskResult,
    answered: mpsc::UnboundedSender<ResultAck>,
) {
    let token = task_token.clone();
    let call = async {
        match result {
            Some(Outcome::Completed(output)) => {
                let request = CompleteTaskRequest { task_token, output: Some(output) };
                client.complete_task(request).await.map(drop)
            }
            Some(Outcome::Failed(error)) => {
                let request = FailTaskRequest { task_token, error: Some(error) };
                client.fail_task(request).await.map(drop)
            }
            other => panic!("the worker makes no such result: {other:?}"),
        }
    };
    let reason = match tokio::time::timeout(ACK_WITHIN, call).await {
        Ok(Ok(())) => ErrorReason::Unspecified,
        Ok(Err(status)) if !connect::passes_by_itself(&status) => {
            let name = format!("ERROR_REASON_{}", connect::reason(&status));
            ErrorReason::from_str_name(&name).unwrap_or(ErrorReason::Internal)
        }
        // The server may or may not have recorded the result, so the worker sends it again.
        Ok(Err(_)) | Err(_) => ErrorReason::OutcomeUnknown,
    };
    let ack = ResultAck { task_token: token, reason: reason.into(), ..ResultAck::default() };
    // Sending cannot fail: the receiver lives as long as the process.
    let _ = answered.send(ack);
}
