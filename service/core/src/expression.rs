//! CEL in definitions: conditions, and JSON templates whose strings may contain `${ … }`.
//!
//! A condition is a bare CEL expression. In a template, a string that consists of one `${ … }` is replaced
//! by the value of the expression. In any other string each `${ … }` is replaced by text: strings are
//! inserted as they are, other values as JSON. `$${` stands for a literal `${`. Field names cannot contain
//! expressions.
//!
//! # Variables
//!
//! | name | value |
//! | --- | --- |
//! | `input` | the execution's input |
//! | `steps.<id>.output` | the step's output, or that of the handler that caught its error; null if it was skipped, failed or has not ended |
//! | `branches.<id>.output` | in a branch of a `parallel`: the output of a branch that it comes `after`, directly or not |
//! | `item`, `index`, `key` | in a `for_each`: the item of the innermost loop, its index from 0, and its key |
//! | `loops.<id>.item`, `.index`, `.key` | the same of the loop with this id |
//! | `steps.<id>.error` | the error with which the step failed, caught or ignored or neither; else null |
//! | `execution` | `id`, `key` (or null), `namespace`, `workflow`, `version`, `started_at` (RFC 3339), `failed_step` (or null), `compensation_state` |
//! | `run` | number of the run, from 1 |
//! | `error` | in a handler: the error that it took; in `on_failure`, `finally` and compensations: the error that stopped the run, or null |
//!
//! An error has `type`, `message`, `details` (null unless they are JSON), `stack_trace`, `category` (or
//! null), `non_retryable`, `source`, `cause` (an error or null) and `suppressed` (a list of `step`, `type` and
//! `message`). The variable `error` also has `step`, the
//! path of the step in which the error arose (or null), and `attempts`, the number of attempts of that step.
//!
//! # Supported CEL
//!
//! - Literals: null, booleans, `int`, `uint`, `double`, strings (raw and triple-quoted too), bytes,
//!   lists and maps, with optional entries.
//! - Operators: `+ - * / %`, `== != < <= > >=`, `in`, `&& || !`, `? :`, `a.b`, `a[b]`, `a.?b`, `a[?b]`.
//! - Macros: `has`, `all`, `exists`, `exists_one`, `map`, `filter`. They go through a map by its keys
//!   in order.
//! - Functions: `size`, `contains`, `startsWith`, `endsWith`, `string`, `int`, `uint`, `double`,
//!   `bool`, `bytes`, `dyn`, `type`, `optional.of`, `optional.none`, `optional.ofNonZeroValue`,
//!   `hasValue`, `value`, `or`, `orValue`.
//!
//! There are no regular expressions, timestamps, durations, messages or clocks. Whole numbers have 64 bits,
//! and arithmetic that overflows is an error. A result that has no JSON form (bytes, types, a number that
//! is not finite) is an error. An optional is written as its value, or as null if it has none.
//!
//! # Limits
//!
//! The size and shape of an expression are checked when it is compiled, and its work is limited while it is
//! evaluated. Whatever the input, an evaluation ends within a fraction of a second, with a value or with a
//! `recoup.expression` error. Only the variables that an expression names are parsed, and at most
//! [`EXPRESSION_READ_BYTES_MAX`](crate::limits::EXPRESSION_READ_BYTES_MAX) bytes of them. The same state
//! gives the same bytes in every evaluation and in every binary.

mod budget;
mod check;
mod problem;
mod split;
mod value;
mod variables;

use bytes::Bytes;
use cel::common::types::CelBool;
use cel::{Context, IdedExpr, Value};

pub use self::check::{Scope, Trust};
pub use self::problem::{CompileError, Problem};
pub use self::variables::{Reading, Variables};

use crate::error::{TaskError, builtin};
use crate::event::PayloadSource;
use crate::execution::Execution;
use crate::id::StepPath;
use crate::limits::PAYLOAD_BYTES_MAX;
use crate::payload::Payload;
use problem::shorten;
use split::Piece;
use variables::Read;

/// A bare CEL expression whose value is a boolean.
#[derive(Debug)]
pub struct Condition {
    expression: Expression,
    reads: Vec<Read>,
}

/// JSON text whose strings may contain expressions.
#[derive(Debug)]
pub struct Template {
    body: Body,
}

#[derive(Debug)]
enum Body {
    Constant(Payload),
    /// Exactly `${input}`: the payload is passed on unchanged, even if it is not JSON.
    Input,
    /// Exactly `${steps.<id>.output}`: passed on unchanged as well.
    Output(StepPath),
    Segments {
        segments: Vec<Segment>,
        reads: Vec<Read>,
    },
}

/// A piece of the template's JSON text, which is cut where values are inserted.
#[derive(Debug)]
enum Segment {
    /// JSON text.
    Literal(String),
    /// An expression whose value is inserted as JSON.
    Value(Expression),
    /// An expression whose value is inserted as text within a JSON string.
    Text(Expression),
}

#[derive(Debug)]
struct Expression {
    source: String,
    root: IdedExpr,
}

impl Condition {
    /// # Errors
    /// All problems of the expression.
    pub fn compile(source: &str, scope: &Scope<'_>) -> Result<Self, Vec<CompileError>> {
        let mut reads = Vec::new();
        let expression = Expression::compile(source, scope, &mut reads)?;
        Ok(Self { expression, reads })
    }

    /// # Errors
    /// Those of [`Self::evaluate_in`].
    pub fn evaluate(&self, variables: Variables<'_>) -> Result<bool, TaskError> {
        self.evaluate_in(&mut Reading::new(variables))
    }

    /// Evaluates one of several conditions, which share what they read.
    ///
    /// # Errors
    /// `recoup.expression` if the evaluation fails or its value is not a boolean.
    pub fn evaluate_in<'v>(&'v self, reading: &mut Reading<'v>) -> Result<bool, TaskError> {
        let value = self.expression.evaluate(reading.context(&self.reads)?)?;
        match value.downcast_ref::<CelBool>() {
            Some(truth) => Ok(*truth.inner()),
            None => Err(self.expression.error(&format!(
                "a condition must be a boolean, but this is of type {}",
                value.get_type().name()
            ))),
        }
    }
}

impl Template {
    /// # Errors
    /// All problems of the template.
    pub fn compile(json_text: &str, scope: &Scope<'_>) -> Result<Self, Vec<CompileError>> {
        let json: serde_json::Value = serde_json::from_str(json_text).map_err(|error| {
            vec![CompileError::new(Problem::NotJson(error.to_string()), json_text)]
        })?;
        // A template without expressions is kept as it is written, so that numbers of any size survive.
        if !json_text.contains("${") && !json_text.contains("\\u00") {
            let payload = Payload::json(Bytes::copy_from_slice(json_text.trim().as_bytes()));
            return Ok(Self { body: Body::Constant(payload) });
        }
        let mut compiler =
            Compiler { scope, reads: Vec::new(), segments: Vec::new(), errors: Vec::new() };
        compiler.value(&json);
        let Compiler { reads, segments, errors, .. } = compiler;
        if !errors.is_empty() {
            return Err(errors);
        }
        let body = match &segments[..] {
            [Segment::Literal(text)] => Body::Constant(Payload::json(text.clone())),
            [Segment::Value(expression)] => match check::whole_variable(&expression.root, scope) {
                Some(Read::Input) => Body::Input,
                Some(Read::Output(step)) => Body::Output(step.path),
                _ => Body::Segments { segments, reads },
            },
            _ => Body::Segments { segments, reads },
        };
        Ok(Self { body })
    }

    /// Evaluates the template.
    ///
    /// # Errors
    /// Those of [`Self::source`].
    pub fn render(&self, variables: Variables<'_>) -> Result<Payload, TaskError> {
        Ok(match self.source(variables)? {
            PayloadSource::Inline(payload) => payload,
            passed_on => variables.execution.payload(&passed_on),
        })
    }

    /// Evaluates a template whose value is a text. A value of another type is written as JSON.
    ///
    /// # Errors
    /// Those of [`Self::source`].
    pub fn render_text(&self, variables: Variables<'_>) -> Result<String, TaskError> {
        let payload = self.render(variables)?;
        Ok(match serde_json::from_slice(&payload.data) {
            Ok(serde_json::Value::String(text)) => text,
            _ => String::from_utf8_lossy(&payload.data).into_owned(),
        })
    }

    /// Evaluates the template. If the template only passes on a payload, the result refers to that payload.
    ///
    /// # Errors
    /// `recoup.expression` if an evaluation fails, and `recoup.payload_too_large` if the result is too
    /// large.
    pub fn source(&self, variables: Variables<'_>) -> Result<PayloadSource, TaskError> {
        Ok(match &self.body {
            Body::Constant(payload) => PayloadSource::Inline(payload.clone()),
            Body::Input => PayloadSource::Input,
            Body::Output(step) => {
                let source = PayloadSource::Output(variables::located(step, variables));
                check_passed_on(&source, variables.execution)?;
                source
            }
            Body::Segments { segments, reads } => {
                let mut reading = Reading::new(variables);
                let context = reading.context(reads)?;
                let mut json = Vec::new();
                for segment in segments {
                    segment.write(context, &mut json)?;
                    if json.len() > PAYLOAD_BYTES_MAX {
                        return Err(too_large());
                    }
                }
                PayloadSource::Inline(Payload::json(json))
            }
        })
    }
}

impl Segment {
    fn write(&self, context: &Context<'_, '_>, json: &mut Vec<u8>) -> Result<(), TaskError> {
        let (expression, written) = match self {
            Self::Literal(text) => {
                json.extend_from_slice(text.as_bytes());
                return Ok(());
            }
            Self::Value(expression) => {
                (expression, value::write(&*expression.evaluate(context)?, json))
            }
            Self::Text(expression) => {
                (expression, value::write_text(&*expression.evaluate(context)?, json))
            }
        };
        written.map_err(|error| match error {
            value::Error::TooLarge => too_large(),
            value::Error::NoJson(what) => expression.error(&format!("{what} has no JSON form")),
        })
    }
}

impl Expression {
    fn compile(
        source: &str,
        scope: &Scope<'_>,
        reads: &mut Vec<Read>,
    ) -> Result<Self, Vec<CompileError>> {
        match check::compile(source, scope, reads) {
            Ok(root) => Ok(Self { source: source.into(), root }),
            Err(problems) => Err(problems
                .into_iter()
                .map(|problem| CompileError::new(problem, source))
                .collect()),
        }
    }

    fn evaluate<'e, 'v>(
        &'e self,
        context: &'e Context<'_, 'v>,
    ) -> Result<cel::common::value::CowVal<'e, 'v>, TaskError> {
        Value::resolve_val(&self.root, context)
            .map_err(|error| self.error(&value::describe(&error)))
    }

    fn error(&self, what: &str) -> TaskError {
        TaskError::builtin(builtin::EXPRESSION, format!("`{}`: {what}", shorten(&self.source, 200)))
    }
}

/// Checks that a payload can be passed on.
///
/// # Errors
/// `recoup.payload_too_large` if the output of a `parallel` or `for_each` is too large for one payload, and
/// `recoup.expression` if one of its branches or items has an output that is not JSON.
pub fn check_passed_on(source: &PayloadSource, execution: &Execution) -> Result<(), TaskError> {
    let PayloadSource::Output(step) = source else {
        return Ok(());
    };
    let Some(output) = execution.output(step) else {
        return Ok(());
    };
    if let Some(branch) = output.first_not_json() {
        let what = format!(
            "the output of `{step}` cannot be passed on, because that of `{branch}` in it is not JSON"
        );
        return Err(TaskError::builtin(builtin::EXPRESSION, what));
    }
    match output.size() > PAYLOAD_BYTES_MAX {
        true => Err(too_large()),
        false => Ok(()),
    }
}

fn too_large() -> TaskError {
    TaskError::builtin(
        builtin::PAYLOAD_TOO_LARGE,
        format!("the rendered payload is larger than {PAYLOAD_BYTES_MAX} bytes"),
    )
}

struct Compiler<'a> {
    scope: &'a Scope<'a>,
    reads: Vec<Read>,
    segments: Vec<Segment>,
    errors: Vec<CompileError>,
}

impl Compiler<'_> {
    fn value(&mut self, json: &serde_json::Value) {
        match json {
            serde_json::Value::String(text) => self.string(text),
            serde_json::Value::Array(items) => {
                self.literal("[");
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        self.literal(",");
                    }
                    self.value(item);
                }
                self.literal("]");
            }
            serde_json::Value::Object(fields) => {
                let mut fields: Vec<_> = fields.iter().collect();
                // Sort the fields, so that their order does not depend on the features with which
                // serde_json is built.
                fields.sort_by_key(|(name, _)| *name);
                self.literal("{");
                for (index, (name, field)) in fields.into_iter().enumerate() {
                    if index > 0 {
                        self.literal(",");
                    }
                    self.name(name);
                    self.literal(":");
                    self.value(field);
                }
                self.literal("}");
            }
            other => self.literal(&other.to_string()),
        }
    }

    fn name(&mut self, name: &str) {
        match split::split(name) {
            Ok(pieces) if pieces.iter().all(|piece| matches!(piece, Piece::Text(_))) => {
                let text: String = pieces.iter().map(|piece| piece.text()).collect();
                self.literal(&quoted(&text));
            }
            Ok(_) => self.errors.push(CompileError::new(Problem::ExpressionInName, name)),
            Err(problem) => self.errors.push(CompileError::new(problem, name)),
        }
    }

    fn string(&mut self, text: &str) {
        let pieces = match split::split(text) {
            Ok(pieces) => pieces,
            Err(problem) => return self.errors.push(CompileError::new(problem, text)),
        };
        if let [Piece::Expression(source)] = pieces[..] {
            return self.expression(source, Segment::Value);
        }
        self.literal("\"");
        for piece in pieces {
            match piece {
                Piece::Text(text) => {
                    let quoted = quoted(text);
                    self.literal(&quoted[1..quoted.len() - 1]);
                }
                Piece::Expression(source) => self.expression(source, Segment::Text),
            }
        }
        self.literal("\"");
    }

    fn expression(&mut self, source: &str, segment: fn(Expression) -> Segment) {
        match Expression::compile(source.trim(), self.scope, &mut self.reads) {
            Ok(expression) => self.segments.push(segment(expression)),
            Err(errors) => self.errors.extend(errors),
        }
    }

    fn literal(&mut self, text: &str) {
        match self.segments.last_mut() {
            Some(Segment::Literal(literal)) => literal.push_str(text),
            _ => self.segments.push(Segment::Literal(text.into())),
        }
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
#[path = "expression/tests.rs"]
mod tests;
