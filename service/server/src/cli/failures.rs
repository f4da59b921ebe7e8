//! `recoup failures …`

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use recoup_sdk::proto::{
    ExecutionState, FailureDelivery, FailureEvent, FailureFilter, FailureKind, FeedPosition,
    RetryReason, StepOutcome, Subscription, subscription,
};
use recoup_sdk::{AckOutcome, Delivery, Failures};
use serde_json::json;

use super::context::{CommandContext, Connection, parse_count};
use super::execution::parse_pattern;
use super::exit::{self, EXIT_CODES, Exit, Failed};
use super::output::Output;
use super::text::{
    Paint, Part, Style, error_line, one_line, payload_text, timestamp, whole_error_line,
};
use super::timeline::{STOPPED_AROUND, decision_text};

#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub struct FailuresArguments {
    #[command(flatten)]
    pub(super) connection: Connection,
    #[command(subcommand)]
    command: FailuresCommand,
}

#[derive(Subcommand)]
enum FailuresCommand {
    /// Print failure events as they happen
    Tail(TailArguments),
    /// List failure events, latest first
    List {
        #[command(flatten)]
        filter: FilterArguments,
        /// Only events of this execution.
        #[arg(long, value_name = "EXECUTION_ID")]
        execution: Option<String>,
        /// Maximum number of entries to list. A line on standard error says if there are more.
        #[arg(long, default_value = "100", value_parser = parse_count)]
        limit: usize,
    },
    /// Show a failure event with all its details
    Show {
        /// Id of the event, as `recoup failures list` and `tail` print it.
        id: String,
    },
    /// Create a durable subscription, for `tail --subscription`
    Subscribe {
        /// Name of the new subscription, unique in the namespace: `[a-z][a-z0-9_.-]*`.
        name: String,
        #[command(flatten)]
        filter: FilterArguments,
        /// Start at the oldest event that retention has not deleted. Default: only new events.
        #[arg(long)]
        from_beginning: bool,
    },
    /// List durable subscriptions by name
    Subscriptions {
        /// Maximum number of entries to list. A line on standard error says if there are more.
        #[arg(long, default_value = "100", value_parser = parse_count)]
        limit: usize,
    },
    /// Delete a durable subscription; its reader is disconnected
    Unsubscribe {
        /// Name of the subscription, as `recoup failures subscriptions` prints it.
        name: String,
    },
    /// Acknowledge deliveries of a durable subscription
    Ack {
        /// Name of the subscription, as `recoup failures subscriptions` prints it.
        subscription: String,
        /// Tokens of the deliveries, as `recoup failures tail` prints them without `--ack`.
        #[arg(required = true)]
        tokens: Vec<String>,
    },
}

#[derive(Args)]
struct TailArguments {
    #[command(flatten)]
    filter: FilterArguments,
    /// Start at the oldest event that retention has not deleted. Default: only new events.
    #[arg(long, conflicts_with_all = ["after", "subscription"])]
    from_beginning: bool,
    /// Start after this cursor, as `tail --output json` prints it.
    #[arg(long, value_name = "CURSOR", conflicts_with = "subscription")]
    after: Option<String>,
    /// Read as the consumer of this durable subscription, which has its own position and filter.
    #[arg(long, value_name = "NAME")]
    subscription: Option<String>,
    /// Acknowledge each event of the subscription once it is printed.
    #[arg(long, requires = "subscription")]
    ack: bool,
    /// Exit after this many events. Default: print events until the command is interrupted.
    #[arg(long, value_parser = parse_count)]
    limit: Option<usize>,
}

#[derive(Args)]
struct FilterArguments {
    /// Only events of these workflows.
    #[arg(long, value_delimiter = ',')]
    workflow: Vec<String>,
    /// Only events of these kinds.
    #[arg(long, value_delimiter = ',', ignore_case = true, value_parser = kinds())]
    kind: Vec<FailureKind>,
    /// Only events with an error of one of these types, or of a type below it, such as `payment`.
    #[arg(long, value_delimiter = ',', value_name = "PATTERN", value_parser = parse_pattern)]
    error_type: Vec<String>,
}

impl FilterArguments {
    fn filter(self) -> FailureFilter {
        FailureFilter {
            namespace: String::new(),
            workflows: self.workflow,
            kinds: self.kind.into_iter().map(Into::into).collect(),
            error_types: self.error_type,
        }
    }
}

/// The names of the kinds of failure events. Case does not matter.
const KINDS: [&str; 19] = [
    "attempt_failed",
    "step_failed",
    "step_ignored",
    "execution_failed",
    "execution_timed_out",
    "execution_warning",
    "execution_cancelled",
    "execution_terminated",
    "compensation_started",
    "compensation_done",
    "compensation_parked",
    "handler_failed",
    "worker_lost",
    "queue_unserved",
    "delivery_failed",
    "recovered",
    "feed_gap",
    "execution_quarantined",
    "step_caught",
];

fn kinds() -> impl TypedValueParser<Value = FailureKind> {
    PossibleValuesParser::new(KINDS).try_map(|text| parse_kind(&text))
}

fn parse_kind(text: &str) -> Result<FailureKind, String> {
    let name = format!("FAILURE_KIND_{}", text.to_ascii_uppercase());
    FailureKind::from_str_name(&name)
        .filter(|kind| *kind != FailureKind::Unspecified)
        .ok_or_else(|| format!("`{text}` is not a kind of failure event"))
}

fn kind_name(kind: FailureKind) -> String {
    kind.as_str_name().trim_start_matches("FAILURE_KIND_").to_ascii_lowercase()
}

pub async fn run(arguments: FailuresArguments) -> Result<Exit, Failed> {
    let context = arguments.connection.open().await?;
    match arguments.command {
        FailuresCommand::Tail(tail) => follow(&context, tail).await?,
        FailuresCommand::List { filter, execution, limit } => {
            let pages = context.client.failure_events(filter.filter(), execution);
            let events = context.up_to(pages, limit).await?;
            if context.output == Output::Json {
                context.say_all(&events, &[], |_| Vec::new())?;
            } else {
                let lines = events.iter().flat_map(|event| listed(event, None, context.style));
                exit::print(&lines.collect::<Vec<_>>())?;
            }
        }
        FailuresCommand::Show { id } => {
            let event = context.client.failure_event(id).await?;
            context.say(&event, |style| event_lines(&event, style))?;
        }
        FailuresCommand::Subscribe { name, filter, from_beginning } => {
            let position = if from_beginning { FeedPosition::Beginning } else { FeedPosition::Now };
            let filter = filter.filter();
            let wanted = Subscription {
                name,
                filter: (filter != FailureFilter::default()).then_some(filter),
                start: Some(subscription::Start::Position(position.into())),
                ..Subscription::default()
            };
            let created = context.client.create_subscription(wanted).await?;
            context.say(&created, |_| vec![created.name.clone()])?;
        }
        FailuresCommand::Subscriptions { limit } => subscriptions(&context, limit).await?,
        FailuresCommand::Unsubscribe { name } => {
            context.client.delete_subscription(&name).await?;
            context.say(&json!({}), |_| vec![format!("{} deleted", one_line(&name))])?;
        }
        FailuresCommand::Ack { subscription, tokens } => {
            return ack(&context, &subscription, tokens).await;
        }
    }
    Ok(Exit::Done)
}

async fn subscriptions(context: &CommandContext, limit: usize) -> Result<(), Failed> {
    let subscriptions = context.up_to(context.client.subscriptions(), limit).await?;
    let head = ["NAME", "CREATED", "OUTSTANDING", "CONSUMER", "FILTER"];
    context.say_all(&subscriptions, &head, |subscription| {
        vec![
            subscription.name.clone(),
            subscription.created_at.as_ref().map(timestamp).unwrap_or_default(),
            subscription.outstanding.to_string(),
            one_line(&subscription.consumer),
            subscription.filter.as_ref().map(filter_text).unwrap_or_default(),
        ]
    })
}

/// A filter, written as the flags with which it was created.
fn filter_text(filter: &FailureFilter) -> String {
    let kinds = filter.kinds().map(kind_name).collect::<Vec<_>>();
    let flags = [
        ("--workflow", &filter.workflows),
        ("--kind", &kinds),
        ("--error-type", &filter.error_types),
    ];
    let given = flags.iter().filter(|(_, values)| !values.is_empty());
    let given = given.map(|(flag, values)| format!("{flag} {}", one_line(&values.join(","))));
    given.collect::<Vec<_>>().join(" ")
}

async fn follow(context: &CommandContext, tail: TailArguments) -> Result<(), Failed> {
    let mut failures = subscribe(context, &tail)?;
    let mut left = tail.limit.unwrap_or(usize::MAX);
    while left > 0 {
        let delivery = failures.next().await?;
        context.say(&document(&delivery), |style| {
            let token = Some(delivery.ack_token()).filter(|token| !tail.ack && !token.is_empty());
            listed(&delivery.event, token, style)
        })?;
        if tail.ack {
            delivery.ack().await?;
        }
        left -= 1;
    }
    Ok(())
}

fn subscribe(context: &CommandContext, tail: &TailArguments) -> Result<Failures, Failed> {
    let mut builder = context.client.failures().consumer("recoup failures tail");
    for workflow in &tail.filter.workflow {
        builder = builder.workflow(workflow);
    }
    for kind in &tail.filter.kind {
        builder = builder.kind(*kind);
    }
    for error_type in &tail.filter.error_type {
        builder = builder.error_type(error_type);
    }
    if tail.from_beginning {
        builder = builder.from_beginning();
    }
    if let Some(cursor) = &tail.after {
        builder = builder.after(cursor);
    }
    if let Some(name) = &tail.subscription {
        builder = builder.durable(name);
    }
    Ok(builder.subscribe()?)
}

fn document(delivery: &Delivery) -> FailureDelivery {
    FailureDelivery {
        event: Some(delivery.event.clone()),
        cursor: delivery.cursor.clone(),
        ack_token: delivery.ack_token().to_owned(),
        delivery: delivery.delivery,
        ack_deadline: None,
    }
}

async fn ack(
    context: &CommandContext,
    subscription: &str,
    tokens: Vec<String>,
) -> Result<Exit, Failed> {
    let mut exit = Exit::Done;
    for batch in tokens.chunks(1_000) {
        let outcomes = context.client.ack_failures(subscription, batch.to_vec()).await?;
        for (token, outcome) in batch.iter().zip(outcomes) {
            let outcome = match outcome {
                AckOutcome::Accepted => "accepted",
                AckOutcome::Expired => "expired",
                AckOutcome::Invalid => "invalid",
            };
            exit = match outcome {
                "invalid" => Exit::Usage,
                "expired" if exit == Exit::Done => Exit::Refused,
                _ => exit,
            };
            let document = json!({ "ackToken": token, "outcome": outcome });
            context.say(&document, |_| vec![format!("{token} {outcome}")])?;
        }
    }
    Ok(exit)
}

fn summary_parts(event: &FailureEvent) -> Vec<Part> {
    let paint = match event.kind() {
        FailureKind::AttemptFailed
        | FailureKind::StepIgnored
        | FailureKind::ExecutionWarning
        | FailureKind::ExecutionCancelled
        | FailureKind::CompensationStarted => Paint::Warn,
        FailureKind::CompensationDone | FailureKind::Recovered => Paint::Good,
        _ => Paint::Bad,
    };
    let time = event.time.as_ref().map(timestamp).unwrap_or_default();
    let mut step = event.step_path.clone();
    let is_of_all =
        matches!(event.kind(), FailureKind::CompensationStarted | FailureKind::CompensationDone);
    if is_of_all && !step.is_empty() {
        // The step is the one whose failure started the compensation, not one that is undone.
        step = format!("after {step} failed");
    } else if event.compensation && !step.is_empty() {
        step.push_str(" (compensation)");
    }
    if event.attempt > 0 {
        step.push_str(&format!(" attempt {}", of_max(event.attempt, event.max_attempts)));
    }
    let mut parts = vec![
        Part::new(Paint::Dim, time),
        Part::new(paint, format!("{:<22}", kind_name(event.kind()))),
        Part::new(Paint::Plain, subject(event)),
        Part::new(Paint::Plain, step.trim_start()),
        Part::new(Paint::Plain, error_line(event.error.as_ref())),
    ];
    if let Some(decision) = &event.decision {
        let next = of_max(event.attempt + 1, event.max_attempts);
        let text = match (decision.reason(), event.state()) {
            // The run goes on, so it was not the run that ended the attempt.
            (RetryReason::Cancelled, ExecutionState::Running) => STOPPED_AROUND.to_owned(),
            // A step around the attempt may have failed first, and then the run.
            (RetryReason::Cancelled, ExecutionState::Compensating | ExecutionState::Failed) => {
                "stopped: the run or a step around it has failed".to_owned()
            }
            _ => decision_text(decision, &next, event.error.as_ref()),
        };
        parts.push(Part::adjacent(Paint::Dim, format!("→ {text}")));
    }
    if let Some(gap) = &event.gap {
        let text = format!("events are missing: {}", one_line(&gap.reason));
        parts.push(Part::new(Paint::Plain, text));
    }
    parts
}

/// An event in one line, or in several if it is wider than the terminal. The demo prints these too.
pub fn event_summary(event: &FailureEvent, style: Style) -> Vec<String> {
    style.flow(&summary_parts(event))
}

/// An event as it appears in lists: with the id for `failures show`, and with the token for `failures ack` if it is
/// to be acknowledged.
fn listed(event: &FailureEvent, ack_token: Option<&str>, style: Style) -> Vec<String> {
    let mut parts = summary_parts(event);
    parts.push(Part::new(Paint::Dim, one_line(&event.id)));
    parts.extend(ack_token.map(|token| Part::new(Paint::Dim, format!("ack {token}"))));
    style.flow(&parts)
}

/// What an event concerns: an execution, or the session of a worker.
fn subject(event: &FailureEvent) -> String {
    let name =
        if event.execution_key.is_empty() { &event.execution_id } else { &event.execution_key };
    let mut named = vec![event.workflow.clone(), one_line(name)];
    if event.workflow.is_empty() && event.execution_id.is_empty() {
        if !event.worker.is_empty() {
            named.push(format!("worker {}", one_line(&event.worker)));
        }
        if !event.session_id.is_empty() {
            named.push(format!("session {}", one_line(&event.session_id)));
        }
    }
    named.retain(|part| !part.is_empty());
    named.join(" ")
}

/// After a person's retry the attempts are counted afresh, but their numbers continue and may exceed the
/// limit of the policy. The limit is left out then.
fn of_max(attempt: u32, max: u32) -> String {
    if max == 0 || attempt > max { attempt.to_string() } else { format!("{attempt} of {max}") }
}

fn event_lines(event: &FailureEvent, style: Style) -> Vec<String> {
    let mut lines = event_summary(event, style);
    let mut fact = |name: &str, value: &str| {
        if !value.is_empty() {
            lines.push(format!("  {name:<12} {}", one_line(value)));
        }
    };
    fact("id", &event.id);
    let whole = whole_error_line(event.error.as_ref());
    if whole != error_line(event.error.as_ref()) {
        fact("error", &whole);
    }
    fact("namespace", &event.namespace);
    fact("execution", &event.execution_id);
    fact("fingerprint", &event.fingerprint);
    fact("worker", &event.worker);
    fact("traceparent", &event.traceparent);
    for step in &event.completed_steps {
        let undone = if step.compensated { ", undone" } else { "" };
        if step.outcome() == StepOutcome::Unknown {
            fact("unknown", &format!("{}{undone}: may have taken effect", step.step_path));
            continue;
        }
        let output = payload_text(step.output.as_ref());
        fact("completed", &format!("{}{undone}: {output}", step.step_path));
    }
    let mut error = event.error.as_ref();
    while let Some(current) = error {
        if current.details.is_some() {
            fact("details", &payload_text(current.details.as_ref()));
        }
        for line in current.stack_trace.lines() {
            fact("", line);
        }
        error = current.cause.as_deref();
    }
    lines
}

#[cfg(test)]
mod tests {
    use recoup_sdk::proto::{CompletedStep, Error, RetryDecision, RetryVerdict};

    use super::*;

    #[test]
    fn failure_kinds_have_their_documented_names() {
        assert_eq!(parse_kind("step_failed"), Ok(FailureKind::StepFailed));
        assert_eq!(parse_kind("Compensation_Parked"), Ok(FailureKind::CompensationParked));
        let known = (1..).map_while(|number| FailureKind::try_from(number).ok());
        assert_eq!(known.map(kind_name).collect::<Vec<_>>(), KINDS);
        assert_eq!(kind_name(FailureKind::StepFailed), "step_failed");
        parse_kind("unspecified").expect_err("not a failure kind");
        parse_kind("x").expect_err("not a failure kind");
    }

    #[test]
    fn step_with_unknown_outcome_is_not_printed_as_completed() {
        let step = |path: &str, outcome: StepOutcome| CompletedStep {
            step_path: path.to_owned(),
            outcome: outcome.into(),
            ..CompletedStep::default()
        };
        let message = "x".repeat(4_000);
        let error = Error { r#type: "a".to_owned(), message, ..Error::default() };
        let event = FailureEvent {
            completed_steps: vec![
                step("flight", StepOutcome::Completed),
                step("hotel", StepOutcome::Unknown),
            ],
            error: Some(error.clone()),
            ..FailureEvent::default()
        };
        let lines = event_lines(&event, Style::PLAIN);
        assert!(!lines[0].contains(&error.message), "{}", lines[0]);
        assert_eq!(lines[1], format!("  error        a: {}", error.message));
        assert_eq!(lines[2], "  completed    flight: null");
        assert_eq!(lines[3], "  unknown      hotel: may have taken effect");
    }

    #[test]
    fn listed_event_names_its_subject() {
        let told = |kind: FailureKind, event: FailureEvent| {
            let event = FailureEvent { kind: kind.into(), id: "id-1".to_owned(), ..event };
            let lines = listed(&event, None, Style::PLAIN);
            assert_eq!(lines.len(), 1);
            lines[0].split_whitespace().collect::<Vec<_>>().join(" ")
        };
        let lost = FailureEvent {
            worker: "w1".to_owned(),
            session_id: "s1".to_owned(),
            ..FailureEvent::default()
        };
        let line = told(FailureKind::WorkerLost, lost);
        assert_eq!(line, "worker_lost worker w1 session s1 id-1");
        let begun = FailureEvent {
            workflow: "order".to_owned(),
            execution_key: "order-7".to_owned(),
            step_path: "charge".to_owned(),
            ..FailureEvent::default()
        };
        let line = told(FailureKind::CompensationStarted, begun.clone());
        assert_eq!(line, "compensation_started order order-7 after charge failed id-1");
        let line = told(FailureKind::CompensationDone, begun.clone());
        assert_eq!(line, "compensation_done order order-7 after charge failed id-1");
        let line = told(FailureKind::StepFailed, begun);
        assert_eq!(line, "step_failed order order-7 charge id-1");
        assert_eq!((of_max(2, 2), of_max(3, 2)), ("2 of 2".to_owned(), "3".to_owned()));
    }

    #[test]
    fn decision_about_a_stopped_attempt_says_whether_the_run_goes_on() {
        let told = |state: ExecutionState| {
            let mut decision = RetryDecision::default();
            decision.set_verdict(RetryVerdict::Stop);
            decision.set_reason(RetryReason::Cancelled);
            let mut event = FailureEvent { decision: Some(decision), ..FailureEvent::default() };
            event.set_state(state);
            event_summary(&event, Style::PLAIN).join("")
        };
        assert!(told(ExecutionState::Running).ends_with("→ stopped: a step around it was stopped"));
        let failed = told(ExecutionState::Compensating);
        assert!(failed.ends_with("→ stopped: the run or a step around it has failed"), "{failed}");
        let cancelled = told(ExecutionState::Cancelling);
        assert!(cancelled.ends_with("→ stopped: the execution is being cancelled"), "{cancelled}");
    }

    #[test]
    fn filter_is_printed_as_its_flags() {
        let mut filter = FailureFilter::default();
        assert_eq!(filter_text(&filter), "");
        filter.workflows = vec!["order".to_owned()];
        filter.push_kinds(FailureKind::StepFailed);
        filter.push_kinds(FailureKind::Recovered);
        assert_eq!(filter_text(&filter), "--workflow order --kind step_failed,recovered");
    }

    #[test]
    fn event_takes_one_line_or_continues_indented_on_a_narrow_terminal() {
        let mut event = FailureEvent {
            workflow: "order".to_owned(),
            execution_key: "order-7".to_owned(),
            step_path: "charge".to_owned(),
            attempt: 2,
            max_attempts: 3,
            error: Some(Error { r#type: "payment.declined".to_owned(), ..Error::default() }),
            ..FailureEvent::default()
        };
        event.set_kind(FailureKind::StepFailed);
        let mut decision = RetryDecision::default();
        decision.set_verdict(RetryVerdict::Stop);
        decision.set_reason(RetryReason::NonRetryable);
        event.decision = Some(decision);
        assert_eq!(
            event_summary(&event, Style::PLAIN),
            ["step_failed             order order-7  charge attempt 2 of 3  payment.declined → \
              stopped: non-retryable (the error says so)"]
        );
        assert_eq!(
            event_summary(&event, Style::PLAIN.with_width(80)),
            [
                "step_failed             order order-7  charge attempt 2 of 3  payment.declined",
                "    → stopped: non-retryable (the error says so)",
            ]
        );
    }
}
