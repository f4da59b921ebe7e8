//! The reasons why an expression or a template does not compile, as messages.

use crate::limits::{CEL_COMPREHENSIONS_MAX, CEL_DEPTH_MAX, CEL_SOURCE_BYTES_MAX};

/// A problem, together with the expression or template that has it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem} in `{text}`")]
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
    #[error("an expression has no end: `${{` without its `}}`")]
    Unterminated,
    #[error("names of fields hold no expressions")]
    ExpressionInName,
    #[error("an expression has {0} bytes, at most {CEL_SOURCE_BYTES_MAX} are allowed")]
    TooLong(usize),
    #[error("{message} (line {line}, column {column})")]
    Syntax { line: usize, column: usize, message: String },
    #[error("it nests deeper than {CEL_DEPTH_MAX}")]
    TooDeep,
    #[error("comprehensions nest deeper than {CEL_COMPREHENSIONS_MAX}")]
    TooManyComprehensions,
    #[error("unknown variable `{0}`")]
    UnknownVariable(String),
    #[error("`error` exists in finally and compensations only")]
    ErrorOutsideHandler,
    #[error("`{of}` has no field `{field}`")]
    UnknownField { of: &'static str, field: String },
    #[error("unknown step `{0}`")]
    UnknownStep(String),
    #[error("step `{0}` does not come before this place")]
    ForwardReference(String),
    #[error("step `{0}` stands inside of another step: only that one's output can be read here")]
    HiddenStep(String),
    #[error("a step is read as `steps.<id>.output` or `steps.<id>.error`")]
    StepsAsValue,
    #[error("`steps.<id>.output` and `.error` always exist: compare them with null")]
    HasOfStep,
    #[error("a comprehension's variable hides `{0}`")]
    HidesVariable(String),
    #[error("unknown function `{0}`")]
    UnknownFunction(String),
    #[error("messages are not supported")]
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
