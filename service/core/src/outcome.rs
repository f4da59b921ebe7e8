//! What the callers of a command, of a run and of a wait are told: how far an execution is, or how it
//! ended.

use crate::error::TaskError;
use crate::execution::{CompensationState, Execution, Node, State, WarningKind};
use crate::id::{ExecutionId, StepPath};
use crate::payload::Payload;
use crate::time::Timestamp;

/// Warnings that are told, at most.
pub const WARNINGS_MAX: usize = 1_000;

/// As of one committed transition.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub execution: ExecutionId,
    pub sequence: u64,
    pub version: u32,
    pub run: u32,
    pub state: State,
    pub compensation: CompensationState,
    pub output: Option<Payload>,
    pub error: Option<TaskError>,
    pub failed_step: Option<StepPath>,
    /// The first [`WARNINGS_MAX`].
    pub warnings: Vec<ToldWarning>,
    pub ended_at: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ToldWarning {
    pub path: StepPath,
    pub kind: WarningKind,
    /// Of the step, if its error was tolerated.
    pub error: Option<TaskError>,
}

impl Outcome {
    pub fn of(execution: &Execution) -> Self {
        let warnings = execution.warnings.iter().take(WARNINGS_MAX).map(|warning| {
            let error = execution.node(&warning.path).and_then(Node::error).cloned();
            ToldWarning { path: warning.path.clone(), kind: warning.kind, error }
        });
        Self {
            execution: execution.id,
            sequence: execution.sequence,
            version: execution.version,
            run: execution.run,
            state: execution.state,
            compensation: execution.compensation,
            output: execution.output.clone(),
            error: execution.error.clone(),
            failed_step: execution.stop.as_ref().and_then(|stop| stop.step.clone()),
            warnings: warnings.collect(),
            ended_at: execution.ended_at,
        }
    }
}
