//! The issues that a definition may have.

use crate::expression::{CompileError, Trust};

/// One thing that is wrong with a definition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field_path}: {message}")]
pub struct Issue {
    /// The field, by its name in the API: `steps[2].retry.max_attempts`.
    pub field_path: String,
    pub code: IssueCode,
    pub message: String,
}

/// The kinds of issues. Their names are part of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IssueCode {
    Required,
    /// A value of an enum that this binary does not know.
    ValueUnknown,
    TooLong,
    TooMany,
    /// Blocks are nested too deep.
    TooDeep,
    NameInvalid,
    StepIdInvalid,
    StepIdReserved,
    StepIdTaken,
    /// `after` names a branch that the step does not have.
    BranchUnknown,
    /// `after` names the same branch twice.
    BranchRepeated,
    /// Branches that wait for each other.
    BranchCycle,
    /// An `item_key` that is no field of an item.
    ItemKeyInvalid,
    DurationInvalid,
    TimeoutsContradict,
    PriorityOutOfRange,
    AllowWarningWithoutIgnore,
    CompensateInCleanup,
    /// A step or a field that has no meaning where it stands.
    Misplaced,
    /// Every error is taken by a handler before this one.
    HandlerUnreachable,
    /// An error type under `recoup`, which only Recoup itself may raise.
    ErrorTypeReserved,
    /// A text that no error can have as its type, or a pattern that no error can match.
    ErrorTypeInvalid,
    RetryPolicyInvalid,
    ExpressionInvalid,
}

impl IssueCode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Required => "REQUIRED",
            Self::ValueUnknown => "VALUE_UNKNOWN",
            Self::TooLong => "TOO_LONG",
            Self::TooMany => "TOO_MANY",
            Self::TooDeep => "TOO_DEEP",
            Self::NameInvalid => "NAME_INVALID",
            Self::StepIdInvalid => "STEP_ID_INVALID",
            Self::StepIdReserved => "STEP_ID_RESERVED",
            Self::StepIdTaken => "STEP_ID_TAKEN",
            Self::BranchUnknown => "BRANCH_UNKNOWN",
            Self::BranchRepeated => "BRANCH_REPEATED",
            Self::BranchCycle => "BRANCH_CYCLE",
            Self::ItemKeyInvalid => "ITEM_KEY_INVALID",
            Self::DurationInvalid => "DURATION_INVALID",
            Self::TimeoutsContradict => "TIMEOUTS_CONTRADICT",
            Self::PriorityOutOfRange => "PRIORITY_OUT_OF_RANGE",
            Self::AllowWarningWithoutIgnore => "ALLOW_WARNING_WITHOUT_IGNORE",
            Self::CompensateInCleanup => "COMPENSATE_IN_CLEANUP",
            Self::Misplaced => "MISPLACED",
            Self::HandlerUnreachable => "HANDLER_UNREACHABLE",
            Self::ErrorTypeReserved => "ERROR_TYPE_RESERVED",
            Self::ErrorTypeInvalid => "ERROR_TYPE_INVALID",
            Self::RetryPolicyInvalid => "RETRY_POLICY_INVALID",
            Self::ExpressionInvalid => "EXPRESSION_INVALID",
        }
    }
}

/// The issues found so far, in the order in which they were found.
pub(super) struct Issues {
    pub found: Vec<Issue>,
    pub trust: Trust,
}

impl Issues {
    /// Reports a broken rule. The rules are applied only at registration: for an accepted definition this
    /// does nothing.
    pub fn add(&mut self, field_path: String, code: IssueCode, message: String) {
        if self.trust == Trust::Unchecked {
            self.found.push(Issue { field_path, code, message });
        }
    }

    pub fn expressions<T>(
        &mut self,
        path: &str,
        compiled: Result<T, Vec<CompileError>>,
    ) -> Option<T> {
        let add = |error: CompileError| {
            let (field_path, code) = (path.to_owned(), IssueCode::ExpressionInvalid);
            self.found.push(Issue { field_path, code, message: error.to_string() });
        };
        compiled.map_err(|errors| errors.into_iter().for_each(add)).ok()
    }
}
