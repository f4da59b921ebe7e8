//! ExecutionService.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use recoup_core::command::{Command, Rejection, RequestId, StartExecution};
use recoup_core::error::type_matches;
use recoup_core::execution::TraceContext;
use recoup_core::id::{ExecutionId, StepPath, namespace_matches};
use recoup_core::limits::KEY_BYTES_MAX;
use recoup_core::outcome::Outcome;
use recoup_core::plan::Plan;
use recoup_engine::{Refusal, StartSpec};
use recoup_proto::v1::execution_service_server::ExecutionService;
use recoup_proto::v1::{self, ErrorReason};
use recoup_store::{ListFilter, Listed, Release, StoredTransition, format};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::context::Context;
use crate::convert::enumeration::{all_known, known};
use crate::convert::{event, execution, payload, text, time};
use crate::mutation::{self, Given, Mutation, Reason};
use crate::page::{Page, SCAN_MAX, SIZE_MAX};
use crate::status::{Error, Result};
use crate::{digest, metadata};

pub struct Service {
    context: Arc<Context>,
}

impl Service {
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    /// Converts a start request, and chooses the id that the execution gets if one is started.
    async fn spec(
        &self,
        spec: Option<v1::ExecutionSpec>,
        request_id: String,
        trace: TraceContext,
    ) -> Result<StartSpec> {
        let spec = spec.ok_or_else(|| Error::required("execution"))?;
        // The digest is taken before defaults are filled in and texts are cleaned, so equal messages have
        // equal digests.
        let request = mutation::request(request_id, || digest::of_message(&spec))?;
        let namespace = text::namespace(&spec.namespace, "execution.namespace")?;
        let workflow = text::workflow(&spec.workflow, "execution.workflow")?;
        let on_running = policy(spec.on_running, "execution.on_running", execution::on_running)?;
        let on_ended = policy(spec.on_ended, "execution.on_ended", execution::on_ended)?;
        let key = text::optional(spec.execution_key, "execution.execution_key", KEY_BYTES_MAX)?;
        let timeout = time::duration_from(spec.timeout, "execution.timeout")?;
        if timeout.is_some_and(|timeout| timeout.is_zero()) {
            return Err(Error::invalid("execution.timeout", "it must be longer than zero"));
        }
        let input = payload::optional_from_proto(spec.input, "execution.input")?;
        let plan = self.context.plan(&namespace, &workflow, spec.workflow_version).await?;
        Ok(StartSpec {
            start: StartExecution {
                id: self.context.new_execution_id(),
                namespace,
                key: (!key.is_empty()).then_some(key),
                input,
                timeout,
                trace,
            },
            plan,
            on_running,
            on_ended,
            request,
            until: None,
        })
    }

    async fn entries(
        &self,
        request: &v1::ListExecutionHistoryRequest,
    ) -> Result<v1::ListExecutionHistoryResponse> {
        let id = text::execution_id(&request.execution_id, "execution_id")?;
        let filter = digest::of(id.0.as_bytes());
        let page = Page::read(request.page_size, &request.page_token, filter)?;
        let after = page.after_exactly::<16>()?.map(u128::from_be_bytes);
        let sequence_of = |place: u128| u64::try_from(place >> 64).unwrap_or(u64::MAX);
        let begin = after.map_or(0, |after| sequence_of(after).saturating_sub(1));
        let mut entries: Vec<v1::HistoryEntry> = Vec::new();
        let (mut bytes, mut is_there) = (0, false);
        let plan = self.plan_of(id).await?;
        let next_page_token = |last: &v1::HistoryEntry| {
            let place = (u128::from(last.sequence) << 64) | u128::from(last.index);
            page.token(&place.to_be_bytes())
        };
        let next = self.context.find_in_history(id, begin, |row| {
            is_there = true;
            let data = match row.decode(id) {
                Ok(data) => data,
                Err(error) => {
                    // The entries before the unreadable row are still returned.
                    let last = entries.last().ok_or_else(|| unreadable(id, row, &error))?;
                    return Ok(Some(next_page_token(last)));
                }
            };
            let told =
                event::to_proto(row.sequence, data.decided_at, &data.events, plan.as_deref());
            for entry in told {
                let place = (u128::from(row.sequence) << 64) | u128::from(entry.index);
                if after.is_some_and(|after| place <= after) {
                    continue;
                }
                bytes += entry.encoded_len() + 8;
                if let (true, Some(last)) = (page.is_full(entries.len(), bytes), entries.last()) {
                    return Ok(Some(next_page_token(last)));
                }
                entries.push(entry);
            }
            Ok(None)
        });
        let next = next.await?;
        if !is_there {
            return Err(no_execution(id));
        }
        let next_page_token = next.unwrap_or_default();
        Ok(v1::ListExecutionHistoryResponse { entries, next_page_token })
    }

    /// The plan of an execution. `None` if the workflow version cannot be read or the execution does not
    /// exist. Its history is then reported without the details that only the plan knows.
    async fn plan_of(&self, id: ExecutionId) -> Result<Option<Arc<Plan>>> {
        let Some(Listed { index, .. }) = self.context.store().indexed(id).await? else {
            return Ok(None);
        };
        let engine = &self.context.engine;
        let plan = engine.plan(&index.namespace, &index.workflow, Some(index.version)).await;
        Ok(plan.unwrap_or_else(|error| {
            tracing::debug!(%error, "a history is returned without the plan of its execution");
            None
        }))
    }

    async fn list(&self, request: v1::ListExecutionsRequest) -> Result<v1::ListExecutionsResponse> {
        let pattern = text::namespace_pattern(&request.namespace, "namespace")?;
        let given = request.filter.clone().unwrap_or_default();
        let filter = filter(&pattern, &given)?;
        if let Some(namespace) = &filter.namespace {
            self.context.check_namespace(namespace).await?;
        }
        let compensations = compensations(&given)?;
        let takes = |listed: &Listed| {
            let index = &listed.index;
            let error_type = index.error_type.as_deref().unwrap_or_default();
            namespace_matches(&pattern, index.namespace.as_str())
                && (compensations.is_empty()
                    || index.compensation.known().is_some_and(|own| compensations.contains(&own)))
                && (given.error_type.is_empty()
                    || (!error_type.is_empty() && type_matches(&given.error_type, error_type)))
        };
        let identity = digest::of_message(&v1::ListExecutionsRequest {
            page_size: 0,
            page_token: String::new(),
            namespace: pattern.clone(),
            ..request.clone()
        });
        let page = Page::read(request.page_size, &request.page_token, identity)?;
        let mut before = page.after_exactly()?.map(|bytes| ExecutionId(Uuid::from_bytes(bytes)));
        let mut executions = Vec::new();
        let (mut scanned, mut bytes) = (0, 0);
        while scanned < SCAN_MAX {
            let limit = if scanned == 0 { page.size + 1 } else { SIZE_MAX };
            let rows = self.context.store().list(&filter, before, limit).await?;
            let is_last = rows.len() < limit;
            scanned += rows.len().max(1);
            for row in rows {
                if takes(&row) {
                    let listed = execution::listed(&row);
                    bytes += listed.encoded_len() + 8;
                    if page.is_full(executions.len(), bytes) {
                        let before = before.map_or(row.execution, |before| before);
                        let next_page_token = page.token(before.0.as_bytes());
                        return Ok(v1::ListExecutionsResponse { executions, next_page_token });
                    }
                    executions.push(listed);
                }
                before = Some(row.execution);
            }
            if is_last {
                return Ok(v1::ListExecutionsResponse { executions, ..Default::default() });
            }
        }
        let next_page_token = before.map_or(String::new(), |at| page.token(at.0.as_bytes()));
        Ok(v1::ListExecutionsResponse { executions, next_page_token })
    }

    async fn command(
        &self,
        execution: ExecutionId,
        command: Command,
        request: Option<RequestId>,
    ) -> Result<Box<Outcome>> {
        Ok(self.context.engine.command(execution, command, request).await?)
    }

    /// Like [`Service::command`], but distinguishes a step that does not exist from one whose compensation
    /// is not parked.
    async fn command_on(
        &self,
        id: ExecutionId,
        step: Option<&StepPath>,
        command: Command,
        request: Option<RequestId>,
    ) -> Result<Box<Outcome>> {
        let refusal = match self.context.engine.command(id, command, request).await {
            Ok(state) => return Ok(state),
            Err(refusal) => refusal,
        };
        if let (Refusal::Rejected(Rejection::NotParked), Some(step)) = (&refusal, step) {
            let snapshot = self.context.engine.snapshot(id).await?;
            if snapshot.plan.step(step).is_none() {
                let message = format!("the execution has no step `{step}`");
                return Err(Error::field(ErrorReason::StepNotFound, "step_path", message));
            }
        }
        Err(refusal.into())
    }
}

fn no_execution(id: ExecutionId) -> Error {
    Error::new(ErrorReason::ExecutionNotFound, format!("there is no execution {id}"))
}

/// The error for a history row that this server cannot read: it is damaged, or a newer server wrote it.
fn unreadable(id: ExecutionId, row: &StoredTransition, why: &format::Error) -> Error {
    let reason = match why {
        format::Error::Newer(_) => ErrorReason::ExecutionTooNew,
        _ => ErrorReason::ExecutionQuarantined,
    };
    let sequence = row.sequence;
    Error::new(reason, format!("transition {sequence} of {id} cannot be read: {why}"))
}

/// Converts a policy. If it is unset, the default applies; an unknown value is refused.
fn policy<P: TryFrom<i32> + PartialEq + Default, C: Default>(
    number: i32,
    field: &str,
    from: impl Fn(P) -> Option<C>,
) -> Result<C> {
    let known: P = known(number, field)?;
    Ok(if known == P::default() { C::default() } else { from(known).unwrap_or_default() })
}

/// The part of the filter that the store applies.
fn filter(pattern: &str, given: &v1::ExecutionFilter) -> Result<ListFilter> {
    let states = all_known(&given.states, "filter.states", execution::state_from)?;
    let error_type = given.error_type.as_str();
    if !error_type.is_empty() {
        text::error_type_pattern(error_type, "filter.error_type")?;
    }
    let error_type = Some(error_type.strip_suffix(".*").unwrap_or(error_type).to_owned());
    let field = "filter.execution_key_prefix";
    let prefix = text::optional(given.execution_key_prefix.clone(), field, KEY_BYTES_MAX)?;
    let workflow = given.workflow.as_str();
    let workflow = match workflow {
        "" => None,
        name => Some(text::workflow(name, "filter.workflow")?),
    };
    Ok(ListFilter {
        namespace: (!pattern.contains('*')).then(|| pattern.into()),
        states,
        workflow,
        error_type: error_type.filter(|text| !text.is_empty() && text != "*"),
        key_prefix: (!prefix.is_empty()).then_some(prefix),
        started_after: given.started_after.as_ref().map(time::timestamp_from),
        started_before: given.started_before.as_ref().map(time::timestamp_from),
        quarantined: given.quarantined,
    })
}

fn compensations(
    given: &v1::ExecutionFilter,
) -> Result<Vec<recoup_core::execution::CompensationState>> {
    let field = "filter.compensation_states";
    all_known(&given.compensation_states, field, execution::compensation_state_from)
}

fn still_running(outcome: &Outcome) -> v1::StillRunning {
    v1::StillRunning { state: execution::state(outcome.state).into() }
}

#[tonic::async_trait]
impl ExecutionService for Service {
    async fn start_execution(
        &self,
        request: Request<v1::StartExecutionRequest>,
    ) -> Result<Response<v1::StartExecutionResponse>, Status> {
        let trace = metadata::trace(request.metadata());
        let request = request.into_inner();
        let spec = self.spec(request.execution, request.request_id, trace).await?;
        let started = self.context.engine.start(spec).await.map_err(Error::from)?;
        Ok(Response::new(v1::StartExecutionResponse {
            execution_id: started.outcome.execution.to_string(),
            workflow_version: started.outcome.version,
            started: started.is_own,
        }))
    }

    async fn run_execution(
        &self,
        request: Request<v1::RunExecutionRequest>,
    ) -> Result<Response<v1::RunExecutionResponse>, Status> {
        use v1::run_execution_response::Result as Told;
        let trace = metadata::trace(request.metadata());
        let wait = metadata::wait(request.get_ref().wait, request.metadata())?;
        let request = request.into_inner();
        let spec = self.spec(request.execution, request.request_id, trace).await?;
        let run = self.context.engine.run(spec, wait);
        let started = self.context.until_stop(run).await.map_err(Error::from)?;
        let state = &started.outcome;
        let result = match state.state.is_ended() {
            true => Told::Ended(execution::outcome(state)),
            false => Told::StillRunning(still_running(state)),
        };
        Ok(Response::new(v1::RunExecutionResponse {
            execution_id: state.execution.to_string(),
            result: Some(result),
            workflow_version: state.version,
            started: started.is_own,
        }))
    }

    async fn get_execution(
        &self,
        request: Request<v1::GetExecutionRequest>,
    ) -> Result<Response<v1::GetExecutionResponse>, Status> {
        let id = text::execution_id(&request.get_ref().execution_id, "execution_id")?;
        let engine = &self.context.engine;
        let info = match engine.snapshot(id).await {
            Ok(snapshot) => execution::info(&snapshot, engine.now()),
            Err(Refusal::Quarantined(_)) => {
                let partial = engine.read_partial(id).await.map_err(Error::from)?;
                execution::partial(&partial.ok_or_else(|| no_execution(id))?)
            }
            Err(refusal) => return Err(Error::from(refusal).into()),
        };
        Ok(Response::new(v1::GetExecutionResponse { execution: Some(info) }))
    }

    async fn await_execution(
        &self,
        request: Request<v1::AwaitExecutionRequest>,
    ) -> Result<Response<v1::AwaitExecutionResponse>, Status> {
        use v1::await_execution_response::Result as Told;
        let wait: Duration = metadata::wait(request.get_ref().wait, request.metadata())?;
        let id = text::execution_id(&request.get_ref().execution_id, "execution_id")?;
        let end = self.context.engine.await_end(id, wait);
        let state = self.context.until_stop(end).await.map_err(Error::from)?;
        let result = match state.state.is_ended() {
            true => Told::Ended(execution::outcome(&state)),
            false => Told::StillRunning(still_running(&state)),
        };
        Ok(Response::new(v1::AwaitExecutionResponse {
            execution_id: id.to_string(),
            result: Some(result),
        }))
    }

    async fn list_executions(
        &self,
        request: Request<v1::ListExecutionsRequest>,
    ) -> Result<Response<v1::ListExecutionsResponse>, Status> {
        Ok(Response::new(self.list(request.into_inner()).await?))
    }

    async fn list_execution_history(
        &self,
        request: Request<v1::ListExecutionHistoryRequest>,
    ) -> Result<Response<v1::ListExecutionHistoryResponse>, Status> {
        Ok(Response::new(self.entries(request.get_ref()).await?))
    }

    async fn cancel_execution(
        &self,
        request: Request<v1::CancelExecutionRequest>,
    ) -> Result<Response<v1::CancelExecutionResponse>, Status> {
        let body = request.into_inner();
        let Mutation { execution: id, reason, request } = Mutation::read(Given {
            call: "cancel",
            execution_id: &body.execution_id,
            step_path: None,
            reason: Reason::Optional(body.reason),
            request_id: body.request_id,
        })?;
        let command = Command::CancelExecution { reason };
        let state = self.command(id, command, request).await?;
        let state = execution::state(state.state).into();
        Ok(Response::new(v1::CancelExecutionResponse { state }))
    }

    async fn terminate_execution(
        &self,
        request: Request<v1::TerminateExecutionRequest>,
    ) -> Result<Response<v1::TerminateExecutionResponse>, Status> {
        let body = request.into_inner();
        let Mutation { execution: id, reason, request } = Mutation::read(Given {
            call: "terminate",
            execution_id: &body.execution_id,
            step_path: None,
            reason: Reason::Required(body.reason),
            request_id: body.request_id,
        })?;
        let command = Command::TerminateExecution { reason, unstarted: Vec::new() };
        let state = self.command(id, command, request).await?;
        Ok(Response::new(v1::TerminateExecutionResponse {
            state: execution::state(state.state).into(),
            compensation_state: execution::compensation_state(state.compensation).into(),
        }))
    }

    async fn retry_compensation(
        &self,
        request: Request<v1::RetryCompensationRequest>,
    ) -> Result<Response<v1::RetryCompensationResponse>, Status> {
        let body = request.into_inner();
        let Mutation { execution: id, reason, request } = Mutation::read(Given {
            call: "retry",
            execution_id: &body.execution_id,
            step_path: Some(&body.step_path),
            reason: Reason::Optional(body.reason),
            request_id: body.request_id,
        })?;
        let step = match body.step_path.as_str() {
            "" => None,
            _ => Some(text::step_path(body.step_path, "step_path")?),
        };
        let command = Command::RetryCompensation { step: step.clone(), reason };
        let state = self.command_on(id, step.as_ref(), command, request).await?;
        let compensation_state = execution::compensation_state(state.compensation).into();
        Ok(Response::new(v1::RetryCompensationResponse { compensation_state }))
    }

    async fn skip_compensation(
        &self,
        request: Request<v1::SkipCompensationRequest>,
    ) -> Result<Response<v1::SkipCompensationResponse>, Status> {
        let body = request.into_inner();
        let Mutation { execution: id, reason, request } = Mutation::read(Given {
            call: "skip",
            execution_id: &body.execution_id,
            step_path: Some(&body.step_path),
            reason: Reason::Required(body.reason),
            request_id: body.request_id,
        })?;
        let step = text::step_path(body.step_path, "step_path")?;
        let command = Command::SkipCompensation { step: step.clone(), reason };
        let state = self.command_on(id, Some(&step), command, request).await?;
        let compensation_state = execution::compensation_state(state.compensation).into();
        Ok(Response::new(v1::SkipCompensationResponse { compensation_state }))
    }

    async fn release_execution(
        &self,
        request: Request<v1::ReleaseExecutionRequest>,
    ) -> Result<Response<v1::ReleaseExecutionResponse>, Status> {
        let body = request.into_inner();
        let Mutation { execution: id, reason, request } = Mutation::read(Given {
            call: "release",
            execution_id: &body.execution_id,
            step_path: None,
            reason: Reason::Required(body.reason),
            request_id: body.request_id,
        })?;
        let request = request.map(|request| (request.id, request.digest));
        let release = Release { reason, request };
        let state = match self.context.engine.release_quarantine(id, release).await {
            Ok(state) => state,
            Err(Refusal::NotQuarantined) => {
                let indexed = self.context.store().indexed(id).await.map_err(Error::from)?;
                let there = indexed.ok_or_else(|| no_execution(id))?.execution;
                let message = format!("the execution {there} is not quarantined");
                return Err(Error::new(ErrorReason::ExecutionNotQuarantined, message).into());
            }
            Err(refusal) => return Err(Error::from(refusal).into()),
        };
        let state = execution::state(state.state).into();
        Ok(Response::new(v1::ReleaseExecutionResponse { state }))
    }
}
