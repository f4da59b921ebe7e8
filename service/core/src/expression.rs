//! CEL in definitions: conditions, and templates of JSON whose strings hold `${ … }`.

use crate::error::Error;
use crate::execution::Execution;
use crate::payload::Payload;

/// Bare CEL that gives a boolean.
#[derive(Debug)]
pub struct Condition {}

/// JSON whose strings may hold expressions.
#[derive(Debug)]
pub struct Template {}

/// What expressions read: everything comes from the state.
#[derive(Clone, Copy)]
pub struct Variables<'a> {
    pub execution: &'a Execution,
    /// `error`, in handlers only.
    pub error: Option<&'a Error>,
}

impl Condition {
    pub fn evaluate(&self, _variables: Variables<'_>) -> Result<bool, Error> {
        unimplemented!()
    }
}

impl Template {
    pub fn render(&self, _variables: Variables<'_>) -> Result<Payload, Error> {
        unimplemented!()
    }
}
