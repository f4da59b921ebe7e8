use std::time::{Duration, Instant};

use recoup_proto::v1::await_execution_response::Result as Awaited;
use recoup_proto::v1::{self, ExecutionState, execution_service_client::ExecutionServiceClient};

use super::{CallOptions, Client, Pages, WAIT_MAX, new_request_id, rpc};
use crate::Error;

impl Client {
    /// What an execution is doing, or how it ended.
    ///
    /// # Errors
    /// `EXECUTION_NOT_FOUND`, and those of every call.
    pub async fn execution(
        &self,
        execution_id: impl Into<String>,
    ) -> Result<v1::ExecutionInfo, Error> {
        let request = v1::GetExecutionRequest { execution_id: execution_id.into() };
        let response = rpc!(self, ExecutionServiceClient.get_execution(request)).await?;
        response.execution.ok_or(Error::Incomplete("execution"))
    }

    /// Waits for the end of an execution, asking again and again. `limit`: how long at most; `None` waits
    /// as long as it takes.
    ///
    /// # Errors
    /// [`Error::StillRunning`] when the limit is over, `EXECUTION_NOT_FOUND`, and those of every call.
    pub async fn await_execution(
        &self,
        execution_id: impl Into<String>,
        limit: Option<Duration>,
    ) -> Result<v1::Outcome, Error> {
        let execution_id = execution_id.into();
        // A limit beyond what a clock can hold is none.
        let until = limit.and_then(|limit| Instant::now().checked_add(limit));
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let wait = left.unwrap_or(WAIT_MAX).min(WAIT_MAX);
            let request = v1::AwaitExecutionRequest {
                execution_id: execution_id.clone(),
                wait: Some(wait.into()),
            };
            let options = CallOptions { wait, trace: None };
            let response =
                rpc!(self, ExecutionServiceClient.await_execution(request), options).await?;
            let state = match response.result {
                Some(Awaited::Ended(outcome)) => return Ok(outcome),
                Some(Awaited::StillRunning(still)) => still.state(),
                None => return Err(Error::Incomplete("result")),
            };
            if left.is_some_and(|left| left <= wait) {
                return Err(Error::StillRunning { execution_id, state });
            }
        }
    }

    /// Executions that pass the filter, latest start first, without payloads.
    pub fn executions(&self, filter: v1::ExecutionFilter) -> Pages<v1::ExecutionInfo> {
        let client = self.clone();
        Pages::new(move |page_token| {
            let request = v1::ListExecutionsRequest {
                namespace: client.namespace().to_owned(),
                filter: Some(filter.clone()),
                page_size: 0,
                page_token,
            };
            let client = client.clone();
            async move {
                let response =
                    rpc!(client, ExecutionServiceClient.list_executions(request)).await?;
                Ok((response.executions, response.next_page_token))
            }
        })
    }

    /// The history of an execution, in order.
    pub fn history(&self, execution_id: impl Into<String>) -> Pages<v1::HistoryEntry> {
        let (client, execution_id) = (self.clone(), execution_id.into());
        Pages::new(move |page_token| {
            let request = v1::ListExecutionHistoryRequest {
                execution_id: execution_id.clone(),
                page_size: 1_000,
                page_token,
            };
            let client = client.clone();
            async move {
                let response =
                    rpc!(client, ExecutionServiceClient.list_execution_history(request)).await?;
                Ok((response.entries, response.next_page_token))
            }
        })
    }

    /// Asks for a cancel: no further step begins, then compensation and `finally` run. Answers with the
    /// state after the call, which need not be an end.
    ///
    /// # Errors
    /// `EXECUTION_NOT_FOUND`, `EXECUTION_ENDED`, and those of every call.
    pub async fn cancel_execution(
        &self,
        execution_id: impl Into<String>,
        reason: impl Into<String>,
    ) -> Result<ExecutionState, Error> {
        let request = v1::CancelExecutionRequest {
            execution_id: execution_id.into(),
            reason: reason.into(),
            request_id: new_request_id(),
        };
        Ok(rpc!(self, ExecutionServiceClient.cancel_execution(request)).await?.state())
    }

    /// Ends an execution at once: nothing is undone, `finally` does not run, what was due is parked. A
    /// reason is required.
    ///
    /// # Errors
    /// `EXECUTION_NOT_FOUND`, `EXECUTION_ENDED`, and those of every call.
    pub async fn terminate_execution(
        &self,
        execution_id: impl Into<String>,
        reason: impl Into<String>,
    ) -> Result<v1::TerminateExecutionResponse, Error> {
        let request = v1::TerminateExecutionRequest {
            execution_id: execution_id.into(),
            reason: reason.into(),
            request_id: new_request_id(),
        };
        rpc!(self, ExecutionServiceClient.terminate_execution(request)).await
    }

    /// Tries parked compensations again, with fresh attempts: that of one step, or all. Answers with the
    /// state of the compensation after the call.
    ///
    /// # Errors
    /// `EXECUTION_NOT_FOUND`, `STEP_NOT_FOUND`, `COMPENSATION_NOT_PARKED`, and those of every call.
    pub async fn retry_compensation(
        &self,
        execution_id: impl Into<String>,
        step_path: Option<String>,
        reason: impl Into<String>,
    ) -> Result<v1::CompensationState, Error> {
        let request = v1::RetryCompensationRequest {
            execution_id: execution_id.into(),
            step_path: step_path.unwrap_or_default(),
            reason: reason.into(),
            request_id: new_request_id(),
        };
        let response = rpc!(self, ExecutionServiceClient.retry_compensation(request)).await?;
        Ok(response.compensation_state())
    }

    /// Records that a person took a parked compensation on themselves. A reason is required: who did what
    /// instead.
    ///
    /// # Errors
    /// As [`Self::retry_compensation`].
    pub async fn skip_compensation(
        &self,
        execution_id: impl Into<String>,
        step_path: impl Into<String>,
        reason: impl Into<String>,
    ) -> Result<v1::CompensationState, Error> {
        let request = v1::SkipCompensationRequest {
            execution_id: execution_id.into(),
            step_path: step_path.into(),
            reason: reason.into(),
            request_id: new_request_id(),
        };
        let response = rpc!(self, ExecutionServiceClient.skip_compensation(request)).await?;
        Ok(response.compensation_state())
    }

    /// Ends the quarantine of an execution, after what put it there was mended: it goes on. A reason is
    /// required. Answers with the state that it has.
    ///
    /// # Errors
    /// `EXECUTION_NOT_FOUND`, `EXECUTION_NOT_QUARANTINED`, `EXECUTION_QUARANTINED` if it was not mended, and
    /// those of every call.
    pub async fn release_execution(
        &self,
        execution_id: impl Into<String>,
        reason: impl Into<String>,
    ) -> Result<v1::ExecutionState, Error> {
        let request = v1::ReleaseExecutionRequest {
            execution_id: execution_id.into(),
            reason: reason.into(),
            request_id: new_request_id(),
        };
        let response = rpc!(self, ExecutionServiceClient.release_execution(request)).await?;
        Ok(response.state())
    }
}
