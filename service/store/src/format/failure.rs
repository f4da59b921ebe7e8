//! Failure events: the rows of the feed.

use recoup_core::error::TaskError;
use recoup_core::execution::{CompensationOutcome, CompensationState, State};
use recoup_core::failure_event::{CompletedStep, FailureEvent, FailureKind, Subject};
use recoup_core::id::{ExecutionId, Namespace, StepPath, WorkflowName};
use recoup_core::payload::Payload;
use recoup_core::retry::Decision;
use recoup_core::time::Timestamp;

use super::value::{
    Stored, list, malformed, optional, stored_enum, to_list, trace_from_wire, trace_to_wire,
};
use super::{Error, wire};

stored_enum!(FailureKind, wire::FailureKind:
    AttemptFailed StepFailed StepIgnored StepCaught
    ExecutionFailed ExecutionTimedOut ExecutionWarning ExecutionCancelled ExecutionTerminated
    CompensationStarted CompensationDone CompensationParked
    HandlerFailed WorkerLost QueueUnserved DeliveryFailed Recovered FeedGap
    ExecutionQuarantined);

impl Stored for FailureEvent {
    type Wire = wire::FailureEvent;

    fn to_wire(&self) -> wire::FailureEvent {
        wire::FailureEvent {
            id: self.id.clone(),
            kind: self.kind.to_wire(),
            at: self.at.to_wire(),
            namespace: self.namespace.to_wire(),
            subject: self.subject.as_ref().map(Subject::to_wire),
            worker: self.worker.clone(),
            session: self.session.clone(),
            error: self.error.as_ref().map(TaskError::to_wire),
            fingerprint: self.fingerprint.clone(),
        }
    }

    fn from_wire(wire: wire::FailureEvent) -> Result<Self, Error> {
        if wire.id.is_empty() {
            return malformed("the id of a failure event is missing");
        }
        Ok(Self {
            id: wire.id,
            kind: FailureKind::from_wire(wire.kind)?,
            at: Timestamp::from_wire(wire.at)?,
            namespace: Namespace::from_wire(wire.namespace)?,
            subject: optional(wire.subject)?,
            worker: wire.worker,
            session: wire.session,
            error: optional(wire.error)?,
            fingerprint: wire.fingerprint,
        })
    }
}

impl Stored for Subject {
    type Wire = wire::Subject;

    fn to_wire(&self) -> wire::Subject {
        wire::Subject {
            execution: self.execution.0.as_bytes().to_vec().into(),
            key: self.key.clone(),
            workflow: self.workflow.to_wire(),
            version: self.version,
            run: self.run,
            step: self.step.as_ref().map(StepPath::to_wire),
            attempt: self.attempt,
            max_attempts: self.max_attempts,
            is_final: self.is_final,
            decision: self.decision.as_ref().map(Decision::to_wire),
            state: self.state.to_wire(),
            compensation: self.compensation.to_wire(),
            completed: to_list(&self.completed),
            sequence: self.sequence,
            trace: trace_to_wire(&self.trace),
        }
    }

    fn from_wire(wire: wire::Subject) -> Result<Self, Error> {
        let Ok(execution) = uuid::Uuid::from_slice(&wire.execution) else {
            return malformed("an execution id that is not 16 bytes long");
        };
        Ok(Self {
            execution: ExecutionId(execution),
            key: wire.key,
            workflow: WorkflowName::from_wire(wire.workflow)?,
            version: wire.version,
            run: wire.run,
            step: optional(wire.step)?,
            attempt: wire.attempt,
            max_attempts: wire.max_attempts,
            is_final: wire.is_final,
            decision: optional(wire.decision)?,
            state: State::from_wire(wire.state)?,
            compensation: CompensationState::from_wire(wire.compensation)?,
            completed: list(wire.completed)?,
            sequence: wire.sequence,
            trace: trace_from_wire(wire.trace),
        })
    }
}

impl Stored for CompletedStep {
    type Wire = wire::CompletedStep;

    fn to_wire(&self) -> wire::CompletedStep {
        wire::CompletedStep {
            step: self.step.to_wire(),
            outcome: self.outcome.to_wire(),
            output: self.output.as_ref().map(Payload::to_wire),
            compensated: self.compensated,
        }
    }

    fn from_wire(wire: wire::CompletedStep) -> Result<Self, Error> {
        Ok(Self {
            step: StepPath::from_wire(wire.step)?,
            outcome: CompensationOutcome::from_wire(wire.outcome)?,
            output: optional(wire.output)?,
            compensated: wire.compensated,
        })
    }
}
