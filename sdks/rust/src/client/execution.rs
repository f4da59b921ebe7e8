use std::time::{Duration, Instant};

use recoup_proto::v1::await_execution_response::Result as Awaited;
use recoup_proto::v1::{self, ExecutionState, execution_service_client::ExecutionServiceClient};

use super::{CallOptions, Client, Pages, WAIT_MAX, new_request_id, rpc};
use crate::Error;

impl Client {
    /// Reads an execution: what it is doing, or how it ended.
    ///
    /// # Errors
    /// `EXECUTION_NOT_FOUND`, and the errors of every call.
    pub async fn execution(
        &self,
        execution_id: impl Into<String>,
    ) -> Result<v1::ExecutionInfo, Error> {
        let request = v1::GetExecutionRequest { execution_id: execution_id.into() };
        let response = rpc!(self, ExecutionServiceClient.get_execution(request)).await?;
        response.execution.ok_or(Error::Incomplete("execution"))
    }

    /// Waits until an execution ends, with as many calls as that takes. `limit` is the longest wait; `None`
    /// waits without a limit.
    ///
    /// # Errors
    /// [`Error::StillRunning`] if the limit expires, `EXECUTION_NOT_FOUND`, and the errors of every call.
    pub async fn await_execution(
        &self,
        execution_id: impl Into<String>,
        limit: Option<Duration>,
    ) -> Result<v1::Outcome, Error> {
        let execution_id = execution_id.into();
        // A limit that is too long for the clock to represent counts as no limit.
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

    /// Lists the executions that match the filter, latest start first, without their payloads.
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

    /// Lists the history of an execution, oldest entry first.
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

    /// Requests the cancellation of an execution: no further step starts, then compensations and `finally`
    /// run. Returns the state after the call, which is usually not an end state yet.
    ///
    /// # Errors
    /// `EXECUTION_NOT_FOUND`, `EXECUTION_ENDED`, and the errors of every call.
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

    /// Ends an execution at once. No step is undone and `finally` does not run; compensations that were due
    /// are parked. A reason is required.
    ///
    /// # Errors
    /// `EXECUTION_NOT_FOUND`, `EXECUTION_ENDED`, and the errors of every call.
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

    /// Retries parked compensations with fresh attempts, of one step or of all steps. Returns the state of
    /// the compensation after the call.
    ///
    /// # Errors
    /// `EXECUTION_NOT_FOUND`, `STEP_NOT_FOUND`, `COMPENSATION_NOT_PARKED`, and the errors of every call.
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

    /// Records that an operator has dealt with a parked compensation by other means. A reason is required;
    /// it should say who did what instead.
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

    /// Releases an execution from quarantine once its cause is fixed, so that it proceeds. A reason is
    /// required. Returns the state of the execution.
    ///
    /// # Errors
    /// `EXECUTION_NOT_FOUND`, `EXECUTION_NOT_QUARANTINED`, `EXECUTION_QUARANTINED` if the cause is not
    /// fixed, and the errors of every call.
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
