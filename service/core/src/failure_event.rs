//! The failure feed's records: complete in themselves, derived from transitions by one pure
//! function.

use crate::error::Error;
use crate::execution::{CompensationOutcome, CompensationState, State, TraceContext};
use crate::id::{ExecutionId, Namespace, StepPath, WorkflowName};
use crate::payload::Payload;
use crate::retry::Decision;
use crate::time::Timestamp;

#[derive(Clone, Debug, PartialEq)]
pub struct FailureEvent {
    /// Stable: the same event has the same id however often it is delivered.
    pub id: String,
    pub kind: FailureKind,
    pub at: Timestamp,
    pub namespace: Namespace,
    /// What failed; a lost session is an event of its own, without an execution.
    pub subject: Option<Subject>,
    pub worker: String,
    pub session: String,
    pub error: Option<Error>,
    /// Type, step and workflow, hashed: equal for failures of one kind.
    pub fingerprint: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Subject {
    pub execution: ExecutionId,
    pub key: Option<String>,
    pub workflow: WorkflowName,
    pub version: u32,
    pub run: u32,
    pub step: Option<StepPath>,
    pub attempt: u32,
    /// Unset is unlimited.
    pub max_attempts: Option<u32>,
    /// No further attempt follows.
    pub is_final: bool,
    pub decision: Option<Decision>,
    pub state: State,
    pub compensation: CompensationState,
    /// Of an execution that ended: enough to compensate from outside.
    pub completed: Vec<CompletedStep>,
    /// History sequence of the transition.
    pub sequence: u64,
    pub trace: TraceContext,
}

#[derive(Clone, Debug, PartialEq)]
pub struct CompletedStep {
    pub step: StepPath,
    pub outcome: CompensationOutcome,
    /// None where the outcome is unknown.
    pub output: Option<Payload>,
    /// Its compensation is done.
    pub compensated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailureKind {
    AttemptFailed,
    StepFailed,
    StepIgnored,
    ExecutionFailed,
    ExecutionTimedOut,
    ExecutionWarning,
    ExecutionCancelled,
    ExecutionTerminated,
    CompensationStarted,
    CompensationDone,
    CompensationParked,
    HandlerFailed,
    WorkerLost,
    QueueUnserved,
    DeliveryFailed,
    Recovered,
    FeedGap,
}
