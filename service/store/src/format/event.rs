//! Transitions: the rows that make up histories.

use recoup_core::error::TaskError;
use recoup_core::event::{
    AttemptFailed, AttemptOutcome, DueCompensation, Event, ExecutionStarted, FirstAttempt,
    PayloadSource, StopCause, TERSE,
};
use recoup_core::execution::{CompensationOutcome, CompensationState, Part, State};
use recoup_core::id::{ItemKey, Namespace, StepPath, WorkflowName};
use recoup_core::payload::Payload;
use recoup_core::time::Timestamp;

use super::number::FIRST;
use super::value::{
    Stored, list, malformed, optional, required, stored_enum, to_list, trace_from_wire,
    trace_to_wire,
};
use super::wire::event::Kind;
use super::{Error, wire};

/// The content of one row of a history.
#[derive(Clone, Debug, PartialEq)]
pub struct TransitionData {
    pub decided_at: Timestamp,
    pub events: Vec<Event>,
}

stored_enum!(AttemptOutcome, wire::AttemptOutcome: Known Unknown NotStarted);
stored_enum!(StopCause, wire::StopCause: Failed TimedOut Cancelled Terminated);

pub fn transition_to_wire(decided_at: Timestamp, events: &[Event]) -> wire::Transition {
    let events = events
        .iter()
        .map(|event| wire::Event { kind: Some(event_to_wire(decided_at, event)) })
        .collect();
    wire::Transition { decided_at: decided_at.to_wire(), events }
}

pub fn transition_from_wire(format: u16, wire: wire::Transition) -> Result<TransitionData, Error> {
    let decided_at = Timestamp::from_wire(wire.decided_at)?;
    let events = wire.events.into_iter().map(|event| match event.kind {
        Some(kind) => event_from_wire(format, decided_at, kind),
        None => malformed("an event of an unknown kind"),
    });
    Ok(TransitionData { decided_at, events: events.collect::<Result<_, _>>()? })
}

// Times are stored relative to the decision. Wrapping in both directions restores every time exactly, however
// far apart the two are.
fn after(decided_at: Timestamp, at: Timestamp) -> i64 {
    at.as_micros().wrapping_sub(decided_at.as_micros())
}

fn at(decided_at: Timestamp, after: i64) -> Timestamp {
    Timestamp::from_micros(decided_at.as_micros().wrapping_add(after))
}

fn event_to_wire(decided_at: Timestamp, event: &Event) -> Kind {
    match event {
        Event::ExecutionStarted(started) => Kind::ExecutionStarted(started.to_wire()),
        Event::RequestRecorded { request_id, digest } => {
            Kind::RequestRecorded(wire::RequestRecorded {
                request_id: request_id.clone(),
                digest: *digest,
            })
        }
        Event::StepStarted { path, generation, input, first } => {
            let (input, output_of) = source_to_wire(input);
            Kind::StepStarted(wire::StepStarted {
                path: path.to_wire(),
                generation: *generation,
                input,
                first: first.map(|first| wire::FirstAttempt {
                    above_1: first.number.wrapping_sub(1),
                    after: after(decided_at, first.at),
                }),
                output_of,
            })
        }
        Event::StepSkipped { path } => {
            Kind::StepSkipped(wire::StepSkipped { path: path.to_wire() })
        }
        Event::AttemptScheduled { path, attempt, at } => {
            Kind::AttemptScheduled(wire::AttemptScheduled {
                path: path.to_wire(),
                attempt: *attempt,
                after: after(decided_at, *at),
            })
        }
        Event::AttemptStarted { path, attempt, worker, session, at } => {
            Kind::AttemptStarted(wire::AttemptStarted {
                path: path.to_wire(),
                attempt: *attempt,
                worker: worker.clone(),
                session: session.clone(),
                after: after(decided_at, *at),
            })
        }
        Event::AttemptFailed(failed) => Kind::AttemptFailed(failed.to_wire()),
        Event::AttemptWithdrawn { path, attempt } => {
            Kind::AttemptWithdrawn(wire::AttemptWithdrawn {
                path: path.to_wire(),
                attempt: *attempt,
            })
        }
        Event::StepCompleted { path, attempt, output, worker } => {
            Kind::StepCompleted(wire::StepCompleted {
                path: path.to_wire(),
                attempt: *attempt,
                output: Some(output.to_wire()),
                worker: worker.clone(),
            })
        }
        Event::StepFailed { path, error } => Kind::StepFailed(wire::StepFailed {
            path: path.to_wire(),
            error: Some(error.to_wire()),
        }),
        Event::StepIgnored { path, error, warning } => Kind::StepIgnored(wire::StepIgnored {
            path: path.to_wire(),
            error: Some(error.to_wire()),
            warning: *warning,
        }),
        Event::BlockStarted { path, generation, part, deadline } => {
            Kind::BlockStarted(wire::BlockStarted {
                path: path.to_wire(),
                generation: *generation,
                part: part.map(|part| part.to_wire()),
                deadline_after: deadline.map(|at| after(decided_at, at)),
            })
        }
        Event::ParallelStarted { path, generation, ready, concurrency, deadline } => {
            Kind::ParallelStarted(wire::ParallelStarted {
                path: path.to_wire(),
                generation: *generation,
                ready: to_list(ready),
                concurrency: *concurrency,
                deadline_after: deadline.map(|at| after(decided_at, at)),
            })
        }
        Event::BranchCompleted { path, branch, output, ready } => {
            let (output, output_of) = source_to_wire(output);
            Kind::BranchCompleted(wire::BranchCompleted {
                path: path.to_wire(),
                branch: branch.to_wire(),
                output,
                output_of,
                ready: to_list(ready),
            })
        }
        Event::BranchFailed { path, branch, error, origin } => {
            Kind::BranchFailed(wire::BranchFailed {
                path: path.to_wire(),
                branch: branch.to_wire(),
                error: Some(error.to_wire()),
                origin: origin.to_wire(),
            })
        }
        Event::ParallelCompleted { path } => {
            Kind::ParallelCompleted(wire::ParallelCompleted { path: path.to_wire() })
        }
        Event::LoopStarted { path, generation, items, keys, concurrency, deadline } => {
            let (items, items_of) = source_to_wire(items);
            Kind::LoopStarted(wire::LoopStarted {
                path: path.to_wire(),
                generation: *generation,
                items,
                items_of,
                keys: keys.as_ref().map(|keys| wire::Keys { keys: to_list(keys) }),
                concurrency: *concurrency,
                deadline_after: deadline.map(|at| after(decided_at, at)),
            })
        }
        Event::ItemCompleted { path, item, output } => {
            let (output, output_of) = source_to_wire(output);
            let (path, item) = (path.to_wire(), item.to_wire());
            Kind::ItemCompleted(wire::ItemCompleted { path, item, output, output_of })
        }
        Event::ItemFailed { path, item, error, origin } => Kind::ItemFailed(wire::ItemFailed {
            path: path.to_wire(),
            item: item.to_wire(),
            error: Some(error.to_wire()),
            origin: origin.to_wire(),
        }),
        Event::LoopCompleted { path } => {
            Kind::LoopCompleted(wire::LoopCompleted { path: path.to_wire() })
        }
        Event::BlockStopped { path, error, grace_until } => {
            Kind::BlockStopped(wire::BlockStopped {
                path: path.to_wire(),
                error: error.as_ref().map(TaskError::to_wire),
                grace_after: after(decided_at, *grace_until),
            })
        }
        Event::BlockCompleted { path, output } => {
            let (output, output_of) = source_to_wire(output);
            let path = path.to_wire();
            Kind::BlockCompleted(wire::BlockCompleted { path, output, output_of })
        }
        Event::ScopeReturned { path, output } => {
            let (output, output_of) = source_to_wire(output);
            let path = path.to_wire();
            Kind::ScopeReturned(wire::ScopeReturned { path, output, output_of })
        }
        Event::HandlerStarted { path, handler, error, origin } => {
            Kind::HandlerStarted(wire::HandlerStarted {
                path: path.to_wire(),
                handler: *handler,
                error: Some(error.to_wire()),
                origin: origin.to_wire(),
            })
        }
        Event::StepCaught { path, output } => {
            let (output, output_of) = source_to_wire(output);
            let path = path.to_wire();
            Kind::StepCaught(wire::StepCaught { path, output, output_of })
        }
        Event::RunSucceeded { output } => {
            let (output, output_of) = source_to_wire(output);
            Kind::RunSucceeded(wire::RunSucceeded { output, output_of })
        }
        Event::RunStopped { cause, error, step, grace_until, compensation_due } => {
            Kind::RunStopped(wire::RunStopped {
                cause: cause.to_wire(),
                error: Some(error.to_wire()),
                step: step.as_ref().map(StepPath::to_wire),
                grace_until: grace_until.to_wire(),
                compensation_due: *compensation_due,
            })
        }
        Event::CancelRequested { reason } => {
            Kind::CancelRequested(wire::CancelRequested { reason: reason.clone() })
        }
        Event::CompensationStarted { due, cleanup_deadline } => {
            Kind::CompensationStarted(wire::CompensationStarted {
                due: to_list(due),
                cleanup_deadline: cleanup_deadline.as_ref().map(Timestamp::to_wire),
            })
        }
        Event::CompensationParked { path, error } => {
            Kind::CompensationParked(wire::CompensationParked {
                path: path.to_wire(),
                error: Some(error.to_wire()),
            })
        }
        Event::CompensationRetried { path, reason } => {
            let (path, reason) = (path.to_wire(), reason.clone());
            Kind::CompensationRetried(wire::CompensationRetried { path, reason })
        }
        Event::CompensationSkipped { path, reason } => {
            Kind::CompensationSkipped(wire::CompensationSkipped {
                path: path.to_wire(),
                reason: reason.clone(),
            })
        }
        Event::CompensationEnded { state } => {
            Kind::CompensationEnded(wire::CompensationEnded { state: state.to_wire() })
        }
        Event::OnFailureStarted { cleanup_deadline } => {
            Kind::OnFailureStarted(wire::OnFailureStarted {
                cleanup_deadline: cleanup_deadline.as_ref().map(Timestamp::to_wire),
            })
        }
        Event::FinallyStarted { cleanup_deadline } => Kind::FinallyStarted(wire::FinallyStarted {
            cleanup_deadline: cleanup_deadline.as_ref().map(Timestamp::to_wire),
        }),
        Event::HandlerFailed { path, error } => Kind::HandlerFailed(wire::HandlerFailed {
            path: path.to_wire(),
            error: Some(error.to_wire()),
        }),
        Event::ExecutionEnded { state, error } => Kind::ExecutionEnded(wire::ExecutionEnded {
            state: state.to_wire(),
            error: error.as_ref().map(TaskError::to_wire),
        }),
    }
}

fn source_to_wire(source: &PayloadSource) -> (Option<wire::Payload>, Option<String>) {
    match source {
        PayloadSource::Inline(payload) => (Some(payload.to_wire()), None),
        PayloadSource::Input => (None, None),
        PayloadSource::Output(step) => (None, Some(step.to_wire())),
    }
}

/// Only a history in a terse format may leave the payload out.
fn source_from_wire(
    format: u16,
    payload: Option<wire::Payload>,
    output_of: Option<String>,
    what: &'static str,
) -> Result<PayloadSource, Error> {
    Ok(match (payload, output_of) {
        (None, None) if format >= TERSE => PayloadSource::Input,
        (None, Some(step)) if format >= TERSE => PayloadSource::Output(StepPath::from_wire(step)?),
        (payload, _) => PayloadSource::Inline(required(payload, what)?),
    })
}

fn event_from_wire(format: u16, decided_at: Timestamp, kind: Kind) -> Result<Event, Error> {
    Ok(match kind {
        Kind::ExecutionStarted(wire) => {
            Event::ExecutionStarted(Box::new(ExecutionStarted::from_wire(wire)?))
        }
        Kind::RequestRecorded(wire) => {
            Event::RequestRecorded { request_id: wire.request_id, digest: wire.digest }
        }
        Kind::StepStarted(wire) => Event::StepStarted {
            path: StepPath::from_wire(wire.path)?,
            generation: wire.generation,
            input: source_from_wire(format, wire.input, wire.output_of, "the input of a step")?,
            first: wire.first.map(|first| FirstAttempt {
                number: first.above_1.wrapping_add(1),
                at: at(decided_at, first.after),
            }),
        },
        Kind::StepSkipped(wire) => Event::StepSkipped { path: StepPath::from_wire(wire.path)? },
        Kind::AttemptScheduled(wire) => Event::AttemptScheduled {
            path: StepPath::from_wire(wire.path)?,
            attempt: wire.attempt,
            at: at(decided_at, wire.after),
        },
        Kind::AttemptStarted(wire) => Event::AttemptStarted {
            path: StepPath::from_wire(wire.path)?,
            attempt: wire.attempt,
            worker: wire.worker,
            session: wire.session,
            at: at(decided_at, wire.after),
        },
        Kind::AttemptFailed(wire) => {
            Event::AttemptFailed(Box::new(AttemptFailed::from_wire(wire)?))
        }
        Kind::AttemptWithdrawn(wire) => {
            Event::AttemptWithdrawn { path: StepPath::from_wire(wire.path)?, attempt: wire.attempt }
        }
        Kind::StepCompleted(wire) => Event::StepCompleted {
            path: StepPath::from_wire(wire.path)?,
            attempt: wire.attempt,
            output: required(wire.output, "the output of a step")?,
            worker: wire.worker,
        },
        Kind::StepFailed(wire) => Event::StepFailed {
            path: StepPath::from_wire(wire.path)?,
            error: required(wire.error, "the error of a step")?,
        },
        Kind::StepIgnored(wire) => Event::StepIgnored {
            path: StepPath::from_wire(wire.path)?,
            error: required(wire.error, "the error of a step")?,
            warning: wire.warning,
        },
        Kind::BlockStarted(wire) => Event::BlockStarted {
            path: StepPath::from_wire(wire.path)?,
            generation: wire.generation,
            part: optional(wire.part)?,
            deadline: wire.deadline_after.map(|after| at(decided_at, after)),
        },
        Kind::ParallelStarted(wire) => Event::ParallelStarted {
            path: StepPath::from_wire(wire.path)?,
            generation: wire.generation,
            ready: list(wire.ready)?,
            concurrency: wire.concurrency,
            deadline: wire.deadline_after.map(|after| at(decided_at, after)),
        },
        Kind::BranchCompleted(wire) => Event::BranchCompleted {
            path: StepPath::from_wire(wire.path)?,
            branch: ItemKey::from_wire(wire.branch)?,
            output: source_from_wire(
                format,
                wire.output,
                wire.output_of,
                "the output of a branch",
            )?,
            ready: list(wire.ready)?,
        },
        Kind::BranchFailed(wire) => Event::BranchFailed {
            path: StepPath::from_wire(wire.path)?,
            branch: ItemKey::from_wire(wire.branch)?,
            error: required(wire.error, "the error of a branch")?,
            origin: StepPath::from_wire(wire.origin)?,
        },
        Kind::ParallelCompleted(wire) => {
            Event::ParallelCompleted { path: StepPath::from_wire(wire.path)? }
        }
        Kind::LoopStarted(wire) => Event::LoopStarted {
            path: StepPath::from_wire(wire.path)?,
            generation: wire.generation,
            items: source_from_wire(format, wire.items, wire.items_of, "the items of a step")?,
            keys: wire.keys.map(|keys| list(keys.keys)).transpose()?,
            concurrency: wire.concurrency,
            deadline: wire.deadline_after.map(|after| at(decided_at, after)),
        },
        Kind::ItemCompleted(wire) => Event::ItemCompleted {
            path: StepPath::from_wire(wire.path)?,
            item: ItemKey::from_wire(wire.item)?,
            output: source_from_wire(format, wire.output, wire.output_of, "the output of an item")?,
        },
        Kind::ItemFailed(wire) => Event::ItemFailed {
            path: StepPath::from_wire(wire.path)?,
            item: ItemKey::from_wire(wire.item)?,
            error: required(wire.error, "the error of an item")?,
            origin: StepPath::from_wire(wire.origin)?,
        },
        Kind::LoopCompleted(wire) => Event::LoopCompleted { path: StepPath::from_wire(wire.path)? },
        Kind::BlockStopped(wire) => Event::BlockStopped {
            path: StepPath::from_wire(wire.path)?,
            error: optional(wire.error)?,
            grace_until: at(decided_at, wire.grace_after),
        },
        Kind::BlockCompleted(wire) => Event::BlockCompleted {
            path: StepPath::from_wire(wire.path)?,
            output: source_from_wire(format, wire.output, wire.output_of, "the output of a step")?,
        },
        Kind::ScopeReturned(wire) => Event::ScopeReturned {
            path: StepPath::from_wire(wire.path)?,
            output: source_from_wire(format, wire.output, wire.output_of, "the output of a step")?,
        },
        Kind::HandlerStarted(wire) => Event::HandlerStarted {
            path: StepPath::from_wire(wire.path)?,
            handler: wire.handler,
            error: required(wire.error, "the error of a step")?,
            origin: StepPath::from_wire(wire.origin)?,
        },
        Kind::StepCaught(wire) => Event::StepCaught {
            path: StepPath::from_wire(wire.path)?,
            output: source_from_wire(format, wire.output, wire.output_of, "the output of a step")?,
        },
        Kind::RunSucceeded(wire) => {
            let what = "the output of a run";
            let output = source_from_wire(format, wire.output, wire.output_of, what)?;
            Event::RunSucceeded { output }
        }
        Kind::RunStopped(wire) => Event::RunStopped {
            cause: StopCause::from_wire(wire.cause)?,
            error: required(wire.error, "the error of a run")?,
            step: optional(wire.step)?,
            grace_until: Timestamp::from_wire(wire.grace_until)?,
            compensation_due: wire.compensation_due,
        },
        Kind::CancelRequested(wire) => Event::CancelRequested { reason: wire.reason },
        Kind::CompensationStarted(wire) => Event::CompensationStarted {
            due: list(wire.due)?,
            cleanup_deadline: optional(wire.cleanup_deadline)?,
        },
        Kind::CompensationParked(wire) => Event::CompensationParked {
            path: StepPath::from_wire(wire.path)?,
            error: required(wire.error, "the error of a compensation")?,
        },
        Kind::CompensationRetried(wire) => {
            let path = StepPath::from_wire(wire.path)?;
            Event::CompensationRetried { path, reason: wire.reason }
        }
        Kind::CompensationSkipped(wire) => Event::CompensationSkipped {
            path: StepPath::from_wire(wire.path)?,
            reason: wire.reason,
        },
        Kind::CompensationEnded(wire) => {
            Event::CompensationEnded { state: CompensationState::from_wire(wire.state)? }
        }
        Kind::OnFailureStarted(wire) => {
            Event::OnFailureStarted { cleanup_deadline: optional(wire.cleanup_deadline)? }
        }
        Kind::FinallyStarted(wire) => {
            Event::FinallyStarted { cleanup_deadline: optional(wire.cleanup_deadline)? }
        }
        Kind::HandlerFailed(wire) => Event::HandlerFailed {
            path: StepPath::from_wire(wire.path)?,
            error: required(wire.error, "the error of a handler")?,
        },
        Kind::ExecutionEnded(wire) => Event::ExecutionEnded {
            state: State::from_wire(wire.state)?,
            error: optional(wire.error)?,
        },
    })
}

impl Stored for Part {
    type Wire = wire::Part;

    fn to_wire(&self) -> wire::Part {
        use wire::part::{Empty, Kind};
        let kind = match self {
            Self::Body => Kind::Body(Empty {}),
            Self::Case(index) => Kind::Case(*index),
            Self::Default => Kind::Default(Empty {}),
            Self::Branch => Kind::Branch(Empty {}),
            Self::Item => Kind::Item(Empty {}),
            Self::Handler(index) => Kind::Handler(*index),
        };
        wire::Part { kind: Some(kind) }
    }

    fn from_wire(wire: wire::Part) -> Result<Self, Error> {
        use wire::part::{Empty, Kind};
        Ok(match wire.kind {
            Some(Kind::Body(Empty {})) => Self::Body,
            Some(Kind::Case(index)) => Self::Case(index),
            Some(Kind::Default(Empty {})) => Self::Default,
            Some(Kind::Branch(Empty {})) => Self::Branch,
            Some(Kind::Item(Empty {})) => Self::Item,
            Some(Kind::Handler(index)) => Self::Handler(index),
            None => return malformed("a part of a step of an unknown kind"),
        })
    }
}

impl Stored for ExecutionStarted {
    type Wire = wire::ExecutionStarted;

    fn to_wire(&self) -> wire::ExecutionStarted {
        wire::ExecutionStarted {
            namespace: self.namespace.to_wire(),
            workflow: self.workflow.to_wire(),
            version: self.version,
            key: self.key.clone(),
            input: Some(self.input.to_wire()),
            deadline: self.deadline.as_ref().map(Timestamp::to_wire),
            trace: trace_to_wire(&self.trace),
            format: (self.format != FIRST).then_some(self.format.into()),
        }
    }

    fn from_wire(wire: wire::ExecutionStarted) -> Result<Self, Error> {
        Ok(Self {
            namespace: Namespace::from_wire(wire.namespace)?,
            workflow: WorkflowName::from_wire(wire.workflow)?,
            version: wire.version,
            key: wire.key,
            input: required::<Payload>(wire.input, "the input of an execution")?,
            deadline: optional(wire.deadline)?,
            trace: trace_from_wire(wire.trace),
            format: match wire.format {
                None => FIRST,
                Some(format) => u16::try_from(format)
                    .map_err(|_| Error::Malformed(format!("format {format}")))?,
            },
        })
    }
}

impl Stored for AttemptFailed {
    type Wire = wire::AttemptFailed;

    fn to_wire(&self) -> wire::AttemptFailed {
        wire::AttemptFailed {
            path: self.path.to_wire(),
            attempt: self.attempt,
            error: Some(self.error.to_wire()),
            outcome: self.outcome.to_wire(),
            decision: Some(self.decision.to_wire()),
            worker: self.worker.clone(),
            warning: self.warning,
        }
    }

    fn from_wire(wire: wire::AttemptFailed) -> Result<Self, Error> {
        Ok(Self {
            path: StepPath::from_wire(wire.path)?,
            attempt: wire.attempt,
            error: required(wire.error, "the error of an attempt")?,
            outcome: AttemptOutcome::from_wire(wire.outcome)?,
            decision: required(wire.decision, "the decision about an attempt")?,
            worker: wire.worker,
            warning: wire.warning,
        })
    }
}

impl Stored for DueCompensation {
    type Wire = wire::DueCompensation;

    fn to_wire(&self) -> wire::DueCompensation {
        wire::DueCompensation {
            step: self.step.to_wire(),
            generation: self.generation,
            outcome: self.outcome.to_wire(),
        }
    }

    fn from_wire(wire: wire::DueCompensation) -> Result<Self, Error> {
        Ok(Self {
            step: StepPath::from_wire(wire.step)?,
            generation: wire.generation,
            outcome: CompensationOutcome::from_wire(wire.outcome)?,
        })
    }
}
