//! Starts executions. [`Start`] returns once the execution is stored durably, [`Run`] once it has ended.

use std::time::{Duration, Instant};

use recoup_proto::v1::run_execution_response::Result as Ran;
use recoup_proto::v1::{
    self, ExecutionSpec, ExecutionState, OnEnded, OnRunning, Outcome, Payload,
    execution_service_client::ExecutionServiceClient,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{CallOptions, Client, TraceContext, WAIT_MAX, new_request_id, rpc};
use crate::Error;
use crate::payload::{check_size, from_payload, to_payload};

/// An execution to start. Made by [`Client::start`].
#[must_use = "nothing is started before `send`"]
pub struct Start {
    client: Client,
    spec: ExecutionSpec,
    request_id: Option<String>,
    trace: Option<TraceContext>,
    /// The first error of a setter. `send` returns it, so that the setters can be chained.
    wrong: Option<Error>,
}

/// An execution to start and to wait for. Made by [`Client::run`].
#[must_use = "nothing is started before `send`"]
pub struct Run {
    start: Start,
    limit: Option<Duration>,
}

/// An execution that was started and is stored durably.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// Id of the execution.
    pub execution_id: String,
    /// Version of the workflow that the execution runs.
    pub workflow_version: u32,
    /// False if an existing execution with the key was returned instead of a new one.
    pub started: bool,
}

/// An execution that has ended, successfully or not.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// Id of the execution.
    pub execution_id: String,
    /// Version of the workflow that the execution ran.
    pub workflow_version: u32,
    /// False if an existing execution with the key was returned instead of a new one.
    pub started: bool,
    /// How the execution ended.
    pub outcome: Outcome,
}

impl Ended {
    /// Whether the execution ended as `SUCCEEDED` or `WARNING`.
    pub fn succeeded(&self) -> bool {
        matches!(self.outcome.state(), ExecutionState::Succeeded | ExecutionState::Warning)
    }

    /// The output of an execution that succeeded.
    ///
    /// # Errors
    /// [`Error::Ended`] if the execution did not succeed, [`Error::Payload`] if the output cannot be read
    /// as a `T`.
    pub fn output<T: DeserializeOwned>(&self) -> Result<T, Error> {
        if !self.succeeded() {
            return Err(Error::Ended {
                execution_id: self.execution_id.clone(),
                outcome: Box::new(self.outcome.clone()),
            });
        }
        from_payload(self.outcome.output.as_ref())
    }
}

impl Client {
    /// Prepares an execution of `workflow`. Its `send` starts the execution and does not wait for its end.
    pub fn start(&self, workflow: impl Into<String>) -> Start {
        let spec = ExecutionSpec {
            namespace: self.namespace().to_owned(),
            workflow: workflow.into(),
            ..ExecutionSpec::default()
        };
        Start { client: self.clone(), spec, request_id: None, trace: None, wrong: None }
    }

    /// Prepares an execution of `workflow`. Its `send` starts the execution and waits for its end.
    pub fn run(&self, workflow: impl Into<String>) -> Run {
        Run { start: self.start(workflow), limit: None }
    }
}

/// The setters that [`Start`] and [`Run`] share.
macro_rules! setters {
    ($type:ty, |$this:ident| $start:expr) => {
        impl $type {
            /// The input, written as JSON. If that fails, `send` returns the error. Default: no value.
            pub fn input<T: Serialize + ?Sized>(mut self, input: &T) -> Self {
                let $this = &mut self;
                let start: &mut Start = $start;
                match to_payload(input) {
                    Ok(payload) => start.spec.input = Some(payload),
                    Err(error) => start.wrong = start.wrong.take().or(Some(error)),
                }
                self
            }

            /// The input as a payload, whose content need not be JSON. `send` returns an error if it is
            /// over 2 MiB.
            pub fn payload(mut self, input: Payload) -> Self {
                let $this = &mut self;
                let start: &mut Start = $start;
                if let Err(error) = check_size(&input) {
                    start.wrong = start.wrong.take().or(Some(error));
                }
                start.spec.input = Some(input);
                self
            }

            /// The execution key, chosen by the caller: 255 bytes at most, unique among the open executions
            /// of the namespace. Default: none.
            pub fn key(mut self, key: impl Into<String>) -> Self {
                let $this = &mut self;
                $start.spec.execution_key = key.into();
                self
            }

            /// What to do if an open execution has the key. Default: fail with `EXECUTION_KEY_TAKEN`.
            pub fn on_running(mut self, on_running: OnRunning) -> Self {
                let $this = &mut self;
                $start.spec.set_on_running(on_running);
                self
            }

            /// What to do if the last execution with the key has ended. Default: start a new one.
            pub fn on_ended(mut self, on_ended: OnEnded) -> Self {
                let $this = &mut self;
                $start.spec.set_on_ended(on_ended);
                self
            }

            /// The version of the workflow to run. Default: the latest.
            pub fn version(mut self, version: u32) -> Self {
                let $this = &mut self;
                $start.spec.workflow_version = Some(version);
                self
            }

            /// The longest time that the execution may take. Default: the timeout of the workflow.
            pub fn timeout(mut self, timeout: Duration) -> Self {
                let $this = &mut self;
                $start.spec.timeout = Some(timeout.into());
                self
            }

            /// The request id, 128 bytes at most. For 24 hours, every start with the same id counts as the
            /// same start. Default: a new UUID for each `send`.
            pub fn request_id(mut self, request_id: impl Into<String>) -> Self {
                let $this = &mut self;
                $start.request_id = Some(request_id.into());
                self
            }

            /// The trace that the execution belongs to. Default: none.
            pub fn trace(mut self, trace: TraceContext) -> Self {
                let $this = &mut self;
                $start.trace = Some(trace);
                self
            }
        }
    };
}

setters!(Start, |start| start);
setters!(Run, |run| &mut run.start);

impl Start {
    /// Starts the execution. When this returns, the execution is stored durably.
    ///
    /// # Errors
    /// `WORKFLOW_NOT_FOUND`, `WORKFLOW_VERSION_NOT_FOUND`, `WORKFLOW_RETIRED`, `EXECUTION_KEY_TAKEN`,
    /// `REQUEST_ID_REUSED`, [`Error::Payload`], [`Error::PayloadTooLarge`], and the errors of every call.
    pub async fn send(self) -> Result<Started, Error> {
        if let Some(wrong) = self.wrong {
            return Err(wrong);
        }
        let request = v1::StartExecutionRequest {
            execution: Some(self.spec),
            request_id: self.request_id.unwrap_or_else(new_request_id),
        };
        let options = CallOptions { wait: Duration::ZERO, trace: self.trace.as_ref() };
        let response =
            rpc!(self.client, ExecutionServiceClient.start_execution(request), options).await?;
        Ok(Started {
            execution_id: response.execution_id,
            workflow_version: response.workflow_version,
            started: response.started,
        })
    }
}

impl Run {
    /// The longest wait for the end. When it expires, `send` returns [`Error::StillRunning`] and the
    /// execution keeps running. Default: no limit.
    pub fn wait_at_most(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Starts the execution and waits for its end, with as many calls as that takes. Returns `Ok` however
    /// the execution ended: see [`Ended::outcome`], or ask for [`Ended::output`].
    ///
    /// # Errors
    /// Those of [`Start::send`], and [`Error::StillRunning`].
    pub async fn send(self) -> Result<Ended, Error> {
        let Start { client, spec, request_id, trace, wrong } = self.start;
        if let Some(wrong) = wrong {
            return Err(wrong);
        }
        let began = Instant::now();
        let wait = self.limit.unwrap_or(WAIT_MAX).min(WAIT_MAX);
        let request = v1::RunExecutionRequest {
            execution: Some(spec),
            request_id: request_id.unwrap_or_else(new_request_id),
            wait: Some(wait.into()),
        };
        let options = CallOptions { wait, trace: trace.as_ref() };
        let response = rpc!(client, ExecutionServiceClient.run_execution(request), options).await?;
        let outcome = match response.result {
            Some(Ran::Ended(outcome)) => outcome,
            Some(Ran::StillRunning(_)) => {
                let left = self.limit.map(|limit| limit.saturating_sub(began.elapsed()));
                client.await_execution(response.execution_id.as_str(), left).await?
            }
            None => return Err(Error::Incomplete("result")),
        };
        Ok(Ended {
            execution_id: response.execution_id,
            workflow_version: response.workflow_version,
            started: response.started,
            outcome,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PAYLOAD_BYTES_MAX;

    fn client() -> Client {
        Client::builder("http://127.0.0.1:1").connect_lazy().expect("an address")
    }

    #[tokio::test]
    async fn an_input_over_the_limit_is_not_sent() {
        let too_large = "x".repeat(PAYLOAD_BYTES_MAX);
        let error = client().run("order").input(&too_large).key("k").send().await;
        assert!(matches!(error, Err(Error::PayloadTooLarge { .. })), "{error:?}");
    }

    #[tokio::test]
    async fn only_a_successful_execution_has_an_output() {
        let mut ended = Ended {
            execution_id: "e1".to_owned(),
            workflow_version: 1,
            started: true,
            outcome: Outcome {
                output: Some(to_payload(&[1, 2]).expect("JSON")),
                ..Outcome::default()
            },
        };
        ended.outcome.set_state(ExecutionState::Warning);
        assert_eq!(ended.output::<Vec<u8>>().expect("a success"), [1, 2]);
        ended.outcome.set_state(ExecutionState::TimedOut);
        let error = ended.output::<Vec<u8>>().expect_err("no success");
        assert_eq!(error.to_string(), "execution e1 ended as TIMED_OUT");
    }
}
