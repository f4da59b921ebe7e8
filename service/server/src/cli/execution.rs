//! `recoup start`, `run`, `list`, `cancel`, `terminate`, `release` and `compensation …`

use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use recoup_core::plan::check_error_type_pattern;
use recoup_proto::Timestamp;
use recoup_sdk::proto::await_execution_response::Result as Awaited;
use recoup_sdk::proto::{
    AwaitExecutionResponse, CancelExecutionResponse, CompensationState, ErrorReason,
    ExecutionFilter, ExecutionState, OnEnded, OnRunning, ReleaseExecutionResponse,
    RetryCompensationResponse, SkipCompensationResponse, StartExecutionResponse, StillRunning,
};
use recoup_sdk::{Error, TraceContext};
use serde_json::Value;

use super::context::{CommandContext, Connection, parse_count};
use super::exit::{EXIT_CODES, Exit, Failed};
use super::output::Output;
use super::text::{
    Paint, duration, error_line, nanos_between, one_line, payload_text, state_name, timestamp,
    whole_error_line,
};
use super::timeline::{parked_lines, state_symbol};
use super::workflow::read;

#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub struct StartArguments {
    #[command(flatten)]
    pub(super) connection: Connection,
    #[command(flatten)]
    execution: ExecutionArguments,
}

#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub struct RunArguments {
    #[command(flatten)]
    pub(super) connection: Connection,
    #[command(flatten)]
    execution: ExecutionArguments,
    /// How long to wait for the end, like 30s or 5m. After that, the command exits with 5, and the
    /// execution continues. Default: no limit.
    #[arg(long, value_parser = parse_duration)]
    wait: Option<Duration>,
}

/// The execution to start.
#[derive(Args)]
struct ExecutionArguments {
    /// Name of the workflow.
    workflow: String,
    /// Input as JSON; `@file` reads a file, `-` reads standard input.
    #[arg(long, short, value_name = "JSON")]
    input: Option<String>,
    /// Key of your own for the execution, unique among the open executions of the namespace. An
    /// execution whose compensation is parked or running counts as open.
    #[arg(long, default_value = "", hide_default_value = true)]
    key: String,
    /// What to do if an open execution holds the key.
    #[arg(long, value_enum, default_value = "reject")]
    on_running: Running,
    /// What to do if the last execution with the key has ended, and retention has not deleted it.
    #[arg(long, value_enum, default_value = "allow")]
    on_ended: Ended,
    /// Version of the workflow. Default: the latest one that is not retired.
    #[arg(long)]
    version: Option<u32>,
    /// Time that the execution may take, like 30s or 5m. If the workflow has a timeout too, the
    /// shorter one applies. Default: the workflow's timeout.
    #[arg(long, value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// Id of this start. For 24 hours, a repeated command with the same id answers with the
    /// execution that the first one started. Default: a new id each time.
    #[arg(long)]
    request_id: Option<String>,
    /// W3C trace context (`traceparent`) to which the execution belongs.
    #[arg(long, env = "TRACEPARENT", default_value = "", hide_default_value = true)]
    traceparent: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum Running {
    Reject,
    UseExisting,
}

#[derive(Clone, Copy, ValueEnum)]
enum Ended {
    Allow,
    AllowAfterFailure,
    Reject,
    UseExisting,
}

#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub struct ListArguments {
    #[command(flatten)]
    pub(super) connection: Connection,
    /// Only executions in one of these states.
    #[arg(long, value_enum, value_delimiter = ',')]
    state: Vec<State>,
    /// Only executions of this workflow.
    #[arg(long, default_value = "", hide_default_value = true)]
    workflow: String,
    /// Only executions whose error is of this type or of a type below it, such as `payment`.
    #[arg(long, value_name = "PATTERN", value_parser = parse_pattern)]
    error_type: Option<String>,
    /// Only executions whose key begins with this.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "PREFIX")]
    key_prefix: String,
    /// Only executions with a parked compensation.
    #[arg(long)]
    parked: bool,
    /// Only executions in quarantine.
    #[arg(long)]
    quarantined: bool,
    /// Only executions started at or after this time, like 2026-11-21T04:30:00Z.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    started_after: Option<Timestamp>,
    /// Only executions started before this time, like 2026-11-21T04:30:00Z.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    started_before: Option<Timestamp>,
    /// Maximum number of entries to list. A line on standard error says if there are more.
    #[arg(long, default_value = "100", value_parser = parse_count)]
    limit: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum State {
    Running,
    Compensating,
    Cancelling,
    Succeeded,
    Warning,
    Failed,
    TimedOut,
    Cancelled,
    Terminated,
}

#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub struct CancelArguments {
    #[command(flatten)]
    pub(super) connection: Connection,
    /// Id of the execution, as `recoup list` prints it.
    execution_id: String,
    /// Reason; recorded in the history.
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
}

#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub struct TerminateArguments {
    #[command(flatten)]
    pub(super) connection: Connection,
    /// Id of the execution, as `recoup list` prints it.
    execution_id: String,
    /// Reason; recorded in the history.
    #[arg(long)]
    reason: String,
}

#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub struct ReleaseArguments {
    #[command(flatten)]
    pub(super) connection: Connection,
    /// Id of the execution, as `recoup list` prints it.
    execution_id: String,
    /// Reason, such as how the cause was fixed; kept with the quarantine record.
    #[arg(long)]
    reason: String,
}

#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub struct CompensationArguments {
    #[command(flatten)]
    pub(super) connection: Connection,
    #[command(subcommand)]
    command: CompensationCommand,
}

#[derive(Subcommand)]
enum CompensationCommand {
    /// Retry parked compensations with fresh attempts
    Retry {
        /// Id of the execution, as `recoup list` prints it.
        execution_id: String,
        /// Path of the step whose compensation is retried. Default: all steps with a parked
        /// compensation.
        #[arg(long)]
        step: Option<String>,
        /// Reason; recorded in the history.
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
    },
    /// Record that a person dealt with a parked compensation outside Recoup
    Skip {
        /// Id of the execution, as `recoup list` prints it.
        execution_id: String,
        /// Path of the step whose compensation is parked, as `recoup show` prints it.
        step: String,
        /// Reason that says who did what instead; recorded in the history.
        #[arg(long)]
        reason: String,
    },
}

pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let parsed: recoup_proto::Duration =
        text.parse().map_err(|error: recoup_proto::DurationError| error.to_string())?;
    Duration::try_from(parsed).map_err(|error| error.to_string())
}

fn parse_time(text: &str) -> Result<Timestamp, String> {
    serde_json::from_value(Value::from(text))
        .map_err(|_| format!("`{text}` is not a time such as 2026-11-21T04:30:00Z"))
}

/// Parses a pattern of error types, with the check that the server uses.
pub(super) fn parse_pattern(text: &str) -> Result<String, String> {
    check_error_type_pattern(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

/// The input as JSON. Numbers keep their text, so they are sent exactly as they were written.
fn input(argument: &str) -> Result<String, Failed> {
    let text = match argument.strip_prefix('@') {
        Some(file) => read(Path::new(file))?,
        None if argument == "-" => read(Path::new("-"))?,
        None => argument.to_owned(),
    };
    serde_json::from_str::<Value>(&text)
        .map_err(|error| Failed::usage(format!("the input is not JSON: {error}")))
        .map_err(|failed| failed.with_reason(ErrorReason::PayloadInvalid))?;
    Ok(text)
}

/// `recoup_sdk::Start` and `Run` have the same setters but no trait in common.
macro_rules! set {
    ($start:expr, $arguments:expr) => {{
        let arguments = $arguments;
        let mut start = $start
            .key(arguments.key)
            .on_running(match arguments.on_running {
                Running::Reject => OnRunning::Reject,
                Running::UseExisting => OnRunning::UseExisting,
            })
            .on_ended(match arguments.on_ended {
                Ended::Allow => OnEnded::Allow,
                Ended::AllowAfterFailure => OnEnded::AllowAfterFailure,
                Ended::Reject => OnEnded::Reject,
                Ended::UseExisting => OnEnded::UseExisting,
            })
            .trace(TraceContext::new(arguments.traceparent, ""));
        if let Some(argument) = &arguments.input {
            let json = recoup_sdk::proto::payload::Content::Json(input(argument)?);
            start = start
                .payload(recoup_sdk::proto::Payload { content: Some(json), ..Default::default() });
        }
        if let Some(version) = arguments.version {
            start = start.version(version);
        }
        if let Some(timeout) = arguments.timeout {
            start = start.timeout(timeout);
        }
        if let Some(request_id) = arguments.request_id {
            start = start.request_id(request_id);
        }
        start
    }};
}

pub async fn start(arguments: StartArguments) -> Result<Exit, Failed> {
    let context = arguments.connection.open().await?;
    let workflow = arguments.execution.workflow.clone();
    let start = set!(context.client.start(workflow), arguments.execution);
    let started = start.send().await?;
    let answer = StartExecutionResponse {
        execution_id: started.execution_id,
        workflow_version: started.workflow_version,
        started: started.started,
    };
    // Print only the id, for use in `$(recoup start …)`.
    context.say(&answer, |_| vec![answer.execution_id.clone()])?;
    Ok(Exit::Done)
}

pub async fn run(arguments: RunArguments) -> Result<Exit, Failed> {
    let context = arguments.connection.open().await?;
    let workflow = arguments.execution.workflow.clone();
    let mut run = set!(context.client.run(workflow.as_str()), arguments.execution);
    if let Some(wait) = arguments.wait {
        run = run.wait_at_most(wait);
    }
    let ended = match run.send().await {
        // For scripts this is an answer. It has the id with which to ask again later.
        Err(Error::StillRunning { execution_id, state }) if context.output == Output::Json => {
            let still = StillRunning { state: state.into() };
            let result = Some(Awaited::StillRunning(still));
            context.say(&AwaitExecutionResponse { execution_id, result }, |_| Vec::new())?;
            return Ok(Exit::StillRunning);
        }
        ended => ended?,
    };
    let state = ended.outcome.state();
    let parked = match ended.outcome.compensation_state() {
        CompensationState::Parked if context.output == Output::Text => {
            parked(&context, &ended.execution_id).await
        }
        _ => Vec::new(),
    };
    let answer = AwaitExecutionResponse {
        execution_id: ended.execution_id,
        result: Some(Awaited::Ended(ended.outcome)),
    };
    context.say(&answer, |style| {
        let Some(Awaited::Ended(outcome)) = &answer.result else { return Vec::new() };
        let (symbol, paint) = state_symbol(state);
        let title = format!("{symbol} {workflow}  {}  {}", answer.execution_id, state_name(state));
        let mut lines = vec![style.paint(paint, &title)];
        if let Some(error) = &outcome.error {
            let step = if outcome.failed_step.is_empty() {
                String::new()
            } else {
                format!("{}: ", outcome.failed_step)
            };
            lines.push(format!("  {step}{}", whole_error_line(Some(error))));
        }
        if outcome.output.is_some() {
            lines.push(format!("  output {}", payload_text(outcome.output.as_ref())));
        }
        for warning in &outcome.warnings {
            let error = error_line(warning.error.as_ref());
            lines.push(format!("  warning {}: {error}", warning.step_path));
        }
        if state != ExecutionState::Succeeded {
            let hint = format!("  recoup show {}", answer.execution_id);
            lines.push(style.paint(Paint::Dim, &hint));
        }
        lines.extend(parked);
        lines
    })?;
    Ok(Exit::of(state))
}

/// What a person must do after an execution ended with parked compensations. If that cannot be read any
/// more, the end is reported all the same.
async fn parked(context: &CommandContext, id: &str) -> Vec<String> {
    match context.client.execution(id).await {
        Ok(execution) => parked_lines(&execution, context.style),
        Err(_) => vec![context.style.paint(Paint::Bad, "  parked, a person must act")],
    }
}

pub async fn list(arguments: ListArguments) -> Result<Exit, Failed> {
    let context = arguments.connection.open().await?;
    let state = |state: &State| match state {
        State::Running => ExecutionState::Running,
        State::Compensating => ExecutionState::Compensating,
        State::Cancelling => ExecutionState::Cancelling,
        State::Succeeded => ExecutionState::Succeeded,
        State::Warning => ExecutionState::Warning,
        State::Failed => ExecutionState::Failed,
        State::TimedOut => ExecutionState::TimedOut,
        State::Cancelled => ExecutionState::Cancelled,
        State::Terminated => ExecutionState::Terminated,
    };
    let filter = ExecutionFilter {
        states: arguments.state.iter().map(|one| state(one).into()).collect(),
        workflow: arguments.workflow,
        error_type: arguments.error_type.unwrap_or_default(),
        execution_key_prefix: arguments.key_prefix,
        compensation_states: if arguments.parked {
            vec![CompensationState::Parked.into()]
        } else {
            Vec::new()
        },
        quarantined: arguments.quarantined,
        started_after: arguments.started_after,
        started_before: arguments.started_before,
    };
    let executions = context.up_to(context.client.executions(filter), arguments.limit).await?;
    let head = ["EXECUTION", "WORKFLOW", "STATE", "STARTED", "TOOK", "KEY", "ERROR"];
    context.say_all(&executions, &head, |execution| {
        let took = match (&execution.started_at, &execution.ended_at) {
            (Some(started), Some(ended)) => duration(nanos_between(started, ended)),
            _ => String::new(),
        };
        let mut state = state_name(execution.state());
        if execution.compensation_state() == CompensationState::Parked {
            state.push_str(" (parked)");
        }
        if execution.quarantined {
            state.push_str(" (quarantined)");
        }
        vec![
            execution.execution_id.clone(),
            format!("{} v{}", execution.workflow, execution.workflow_version),
            state,
            execution.started_at.as_ref().map(timestamp).unwrap_or_default(),
            took,
            one_line(&execution.execution_key),
            error_line(execution.error.as_ref()),
        ]
    })?;
    Ok(Exit::Done)
}

pub async fn cancel(arguments: CancelArguments) -> Result<Exit, Failed> {
    let context = arguments.connection.open().await?;
    let state = context.client.cancel_execution(arguments.execution_id, arguments.reason).await?;
    let answer = CancelExecutionResponse { state: state.into() };
    context.say(&answer, |_| vec![state_name(state)])?;
    Ok(Exit::Done)
}

pub async fn terminate(arguments: TerminateArguments) -> Result<Exit, Failed> {
    let context = arguments.connection.open().await?;
    let answer =
        context.client.terminate_execution(arguments.execution_id, arguments.reason).await?;
    context.say(&answer, |_| {
        let mut line = state_name(answer.state());
        if answer.compensation_state() == CompensationState::Parked {
            line.push_str(", the compensations that were due are parked");
        }
        vec![line]
    })?;
    Ok(Exit::Done)
}

pub async fn release(arguments: ReleaseArguments) -> Result<Exit, Failed> {
    let context = arguments.connection.open().await?;
    let state = context.client.release_execution(arguments.execution_id, arguments.reason).await?;
    let answer = ReleaseExecutionResponse { state: state.into() };
    context.say(&answer, |_| vec![format!("released, {}", state_name(state))])?;
    Ok(Exit::Done)
}

pub async fn compensation(arguments: CompensationArguments) -> Result<Exit, Failed> {
    let context = arguments.connection.open().await?;
    let line = |state: CompensationState| {
        let name = state.as_str_name().trim_start_matches("COMPENSATION_STATE_");
        vec![format!("compensation {name}")]
    };
    match arguments.command {
        CompensationCommand::Retry { execution_id, step, reason } => {
            let state = context.client.retry_compensation(execution_id, step, reason).await?;
            let answer = RetryCompensationResponse { compensation_state: state.into() };
            context.say(&answer, |_| line(state))?;
        }
        CompensationCommand::Skip { execution_id, step, reason } => {
            let state = context.client.skip_compensation(execution_id, step, reason).await?;
            let answer = SkipCompensationResponse { compensation_state: state.into() };
            context.say(&answer, |_| line(state))?;
        }
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_must_be_json_and_keeps_its_text() {
        assert_eq!(input("{\"n\": 1.10}").expect("JSON"), "{\"n\": 1.10}");
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "[18446744073709551615]").expect("it can be written");
        let argument = format!("@{}", file.path().display());
        assert_eq!(input(&argument).expect("JSON"), "[18446744073709551615]");
        let refused = input("{").expect_err("not JSON");
        assert_eq!(refused.exit, Exit::Usage);
        assert!(format!("{refused:?}").contains("reason: PayloadInvalid"), "{refused:?}");
        assert_eq!(input("@/nonexistent").expect_err("no file").exit, Exit::Usage);
    }

    #[test]
    fn duration_argument_needs_units_and_may_not_be_negative() {
        assert_eq!(parse_duration("1m30s"), Ok(Duration::from_secs(90)));
        parse_duration("90").expect_err("no unit");
        parse_duration("-1s").expect_err("negative");
    }

    #[test]
    fn time_argument_must_be_rfc_3339() {
        let time = parse_time("2026-09-21T16:13:20+02:00").expect("a time");
        assert_eq!((time.seconds, time.nanos), (1_790_000_000, 0));
        parse_time("2026-09-21").expect_err("a date without a time");
        parse_time("yesterday").expect_err("not a time");
    }
}
