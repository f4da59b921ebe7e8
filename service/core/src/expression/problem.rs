//! The reasons why an expression or a template does not compile, as messages.

use crate::limits::{CEL_COMPREHENSIONS_MAX, CEL_DEPTH_MAX, CEL_SOURCE_BYTES_MAX};

/// A problem, together with the expression or template that has it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}`: {problem}")]
pub struct CompileError {
    pub problem: Problem,
    /// The expression, or the text that is not valid JSON; shortened.
    pub text: String,
}

/// What is wrong with an expression or a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("invalid JSON: {0}")]
    NotJson(String),
    #[error("`${{` has no matching `}}`: add it, or write `$${{` for the text `${{`")]
    Unterminated,
    #[error("an expression can be part of a value, not of the name of a field")]
    ExpressionInName,
    #[error("an expression has {0} bytes, at most {CEL_SOURCE_BYTES_MAX} are allowed")]
    TooLong(usize),
    #[error("{message} (line {line}, column {column})")]
    Syntax { line: usize, column: usize, message: String },
    #[error("the expression is nested deeper than {CEL_DEPTH_MAX} levels")]
    TooDeep,
    #[error("comprehensions are nested deeper than {CEL_COMPREHENSIONS_MAX} levels")]
    TooManyComprehensions,
    #[error(
        "unknown variable `{0}`, expected one of input, steps, branches, execution, run, error"
    )]
    UnknownVariable(String),
    #[error(
        "`error` is available only in the handlers of `catch`, in `on_failure` and `finally`, and in compensations"
    )]
    ErrorOutsideHandler,
    #[error("`{of}` has no field `{field}`")]
    UnknownField { of: &'static str, field: String },
    #[error("unknown step `{0}`")]
    UnknownStep(String),
    #[error("step `{0}` does not run before this point, so it cannot be read here")]
    ForwardReference(String),
    #[error(
        "step `{0}` is inside another step: only the output of the outer step can be read here"
    )]
    HiddenStep(String),
    #[error("a step can be read only as `steps.<id>.output` or `steps.<id>.error`")]
    StepsAsValue,
    #[error("a branch can be read only as `branches.<id>.output`")]
    BranchesAsValue,
    #[error("the branch around this expression does not come after a branch `{0}`")]
    NoSuchBranch(String),
    #[error("`{0}` is available only inside a `for_each`")]
    ItemOutsideLoop(String),
    #[error("no `for_each` with the id `{0}` is around this expression")]
    NoSuchLoop(String),
    #[error("of a loop, only `loops.<id>.item`, `.index` and `.key` can be read")]
    LoopsAsValue,
    #[error("`steps.<id>.output` and `.error` always exist: compare them with null instead")]
    HasOfStep,
    #[error("a comprehension's variable must not hide `{0}`: give it another name, such as `x`")]
    HidesVariable(String),
    #[error("unknown function `{0}`")]
    UnknownFunction(String),
    #[error("CEL messages such as `Name{{field: 1}}` are not supported")]
    Message,
}

impl CompileError {
    pub(super) fn new(problem: Problem, text: &str) -> Self {
        Self { problem, text: shorten(text, 200) }
    }
}

/// The first `max` characters of a text, for messages.
pub(super) fn shorten(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into(),
    }
}
