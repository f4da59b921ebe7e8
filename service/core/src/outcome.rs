//! What callers learn about an execution when they submit a command, run a workflow or wait for it: how far
//! it has come, or how it ended.

use crate::error::TaskError;
use crate::execution::{CompensationState, Execution, Node, State, WarningKind};
use crate::id::{ExecutionId, StepPath};
use crate::payload::Payload;
use crate::time::Timestamp;

/// The number of warnings that an [`Outcome`] holds at most.
pub const WARNINGS_MAX: usize = 1_000;

/// An execution as of one committed transition.
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
    /// The first [`WARNINGS_MAX`] warnings.
    pub warnings: Vec<ToldWarning>,
    pub ended_at: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ToldWarning {
    pub path: StepPath,
    pub kind: WarningKind,
    /// The step's error, if the warning is about an error that was ignored or that made the step fail.
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
