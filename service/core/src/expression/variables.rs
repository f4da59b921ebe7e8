//! The values of variables. Only variables that an expression reads are built, each of them once per
//! evaluation.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};

use cel::Context;
use cel::common::types::{CelBool, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString};
use cel::common::value::Val;

use super::budget::{BUDGET, Budget, ENVIRONMENT};
use super::value;
use crate::error::{Category, TaskError, builtin};
use crate::execution::{Execution, Loop, Output, Scope};
use crate::id::{ItemKey, StepId, StepPath};
use crate::limits::EXPRESSION_READ_BYTES_MAX;
use crate::payload::Payload;
use crate::time::Timestamp;

pub(super) const EXECUTION_FIELDS: &[&str] = &[
    "id",
    "key",
    "namespace",
    "workflow",
    "version",
    "started_at",
    "failed_step",
    "compensation_state",
];
pub(super) const ERROR_FIELDS: &[&str] = &[
    "type",
    "message",
    "details",
    "stack_trace",
    "category",
    "non_retryable",
    "source",
    "cause",
    "suppressed",
];
/// What the variable `error` says about the step in which the error arose.
pub(super) const ORIGIN_FIELDS: &[&str] = &["step", "attempts"];

/// The source of all variables: the state of the execution.
#[derive(Clone, Copy)]
pub struct Variables<'a> {
    pub execution: &'a Execution,
    /// The scope in which the expression stands.
    pub scope: &'a Scope,
    /// The value of `error`: the error that the handler around the expression took or, outside handlers,
    /// the error that stopped the run; none if the run has not stopped.
    pub error: Option<&'a TaskError>,
    /// The step in which that error arose; none if it arose in no step.
    pub origin: Option<&'a StepPath>,
    /// Counts the bytes of JSON that are parsed, across all evaluations that share the counter.
    pub parsed: &'a Cell<usize>,
}

/// A variable that an expression reads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Read {
    Input,
    Output(StepRead),
    /// The output of an earlier branch of a `parallel` around the expression.
    Branch(BranchRead),
    StepError(StepRead),
    Item(ItemRead),
    Execution,
    Run,
    Error,
}

/// A step whose result is read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct StepRead {
    pub id: StepId,
    pub path: StepPath,
}

impl StepRead {
    /// The path of the step for an expression in this scope.
    fn path(&self, variables: Variables<'_>) -> StepPath {
        located(&self.path, variables)
    }
}

/// Fills in the keys of the items around the expression.
pub(super) fn located(path: &StepPath, variables: Variables<'_>) -> StepPath {
    if !path.as_str().contains("[]") {
        return path.clone();
    }
    let items = variables.execution.items_around(variables.scope);
    path.with_keys(items.into_iter().map(|(_, key)| key)).into_owned()
}

/// What is read of an item around the expression.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ItemRead {
    /// The loop, unless it is the innermost one.
    pub of: Option<StepId>,
    /// How many loops are around that loop.
    pub depth: usize,
    pub field: ItemField,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ItemField {
    Item,
    Index,
    Key,
}

impl ItemField {
    pub const ALL: [Self; 3] = [Self::Item, Self::Index, Self::Key];

    pub fn name(self) -> &'static str {
        match self {
            Self::Item => "item",
            Self::Index => "index",
            Self::Key => "key",
        }
    }
}

/// A branch whose output is read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct BranchRead {
    pub id: ItemKey,
    /// The step whose branch it is.
    pub path: StepPath,
}

impl Read {
    /// The name under which CEL finds the variable. CEL looks up the longest name first.
    fn name(&self) -> String {
        match self {
            Self::Input => "input".into(),
            Self::Output(step) => format!("steps.{}.output", step.id),
            Self::Branch(branch) => format!("branches.{}.output", branch.id),
            Self::StepError(step) => format!("steps.{}.error", step.id),
            Self::Item(read) => match &read.of {
                Some(of) => format!("loops.{of}.{}", read.field.name()),
                None => read.field.name().into(),
            },
            Self::Execution => "execution".into(),
            Self::Run => "run".into(),
            Self::Error => "error".into(),
        }
    }

    /// The bytes of JSON that must be parsed for the variable.
    fn bytes(&self, variables: Variables<'_>) -> usize {
        let of_error = |error: Option<&TaskError>| {
            let details = error.into_iter().flat_map(TaskError::chain);
            details.filter_map(|error| error.details.as_ref()).map(|own| own.data.len()).sum()
        };
        let execution = variables.execution;
        match self {
            Self::Input => execution.input.data.len(),
            Self::Output(step) => execution.output(&step.path(variables)).map_or(0, Output::size),
            Self::Item(read) => match item(variables, read) {
                Some((of, key)) if read.field == ItemField::Item => {
                    of.item(key).map_or(0, |item| item.data.len())
                }
                _ => 0,
            },
            Self::Branch(branch) => {
                branch_output(variables, branch).map_or(0, |output| output.data.len())
            }
            Self::StepError(step) => of_error(step_error(execution, &step.path(variables))),
            Self::Error => of_error(variables.error),
            Self::Execution | Self::Run => 0,
        }
    }

    fn value<'v>(&self, variables: Variables<'v>) -> Result<Box<dyn Val + 'v>, TaskError> {
        let execution = variables.execution;
        Ok(match self {
            Self::Input => payload(&execution.input, self)?,
            Self::Output(step) => match execution.output(&step.path(variables)) {
                Some(Output::Whole(output)) => payload(output, self)?,
                Some(Output::Branches(parallel)) => {
                    let mut fields = HashMap::new();
                    for (id, output) in parallel.outputs() {
                        fields.insert(CelMapKey::from(id.as_str()), payload(output, self)?);
                    }
                    Box::new(CelMap::from(fields))
                }
                Some(Output::Items(items)) => {
                    let mut list: Vec<Box<dyn Val + 'v>> = Vec::new();
                    for output in items.outputs() {
                        list.push(match output {
                            Some(output) => payload(output, self)?,
                            None => Box::new(CelNull),
                        });
                    }
                    Box::new(CelList::from(list))
                }
                None => Box::new(CelNull),
            },
            Self::Branch(branch) => match branch_output(variables, branch) {
                Some(output) => payload(output, self)?,
                None => Box::new(CelNull),
            },
            Self::StepError(step) => optional_error(step_error(execution, &step.path(variables))),
            Self::Item(read) => match (item(variables, read), read.field) {
                (None, _) => Box::new(CelNull),
                (Some((of, key)), ItemField::Item) => match of.item(key) {
                    Some(item) => payload(item, self)?,
                    None => Box::new(CelNull),
                },
                (Some((of, key)), ItemField::Index) => {
                    Box::new(CelInt::from(of.index(key).map_or(-1, i64::from)))
                }
                (Some((_, key)), ItemField::Key) => text(key.as_str()),
            },
            Self::Execution => execution_value(execution),
            Self::Run => Box::new(CelInt::from(i64::from(execution.run))),
            Self::Error => match variables.error {
                Some(error) => map(error_fields(error).into_iter().chain(origin(variables))),
                None => Box::new(CelNull),
            },
        })
    }
}

/// The variables that have been read for an evaluation, or for several conditions that are evaluated one
/// after the other. Each variable is parsed once, and all evaluations share the limits of one.
pub struct Reading<'v> {
    variables: Variables<'v>,
    context: Context<'v, 'v>,
    read: HashSet<&'v Read>,
    bytes: usize,
}

impl<'v> Reading<'v> {
    pub fn new(variables: Variables<'v>) -> Self {
        let mut context = Context::with_env(ENVIRONMENT.clone());
        context.add_variable_as_val(BUDGET, Box::new(Budget::new()));
        Self { variables, context, read: HashSet::new(), bytes: 0 }
    }

    /// A context that contains at least the variables that are read.
    pub(super) fn context(&mut self, reads: &'v [Read]) -> Result<&Context<'v, 'v>, TaskError> {
        for read in reads {
            if !self.read.contains(read) {
                self.add(read)?;
            }
        }
        Ok(&self.context)
    }

    fn add(&mut self, read: &'v Read) -> Result<(), TaskError> {
        let own = read.bytes(self.variables);
        self.bytes += own;
        if self.bytes > EXPRESSION_READ_BYTES_MAX {
            let (name, max) = (read.name(), EXPRESSION_READ_BYTES_MAX);
            let what = format!(
                "`{name}` cannot be read: the expressions would read more than {max} bytes of JSON"
            );
            return Err(TaskError::builtin(builtin::EXPRESSION, what));
        }
        let parsed = self.variables.parsed;
        parsed.set(parsed.get().saturating_add(own));
        self.context.add_variable_as_val(read.name(), read.value(self.variables)?);
        self.read.insert(read);
        Ok(())
    }
}

fn branch_output<'v>(variables: Variables<'v>, branch: &BranchRead) -> Option<&'v Payload> {
    let path = located(&branch.path, variables);
    variables.execution.parallel(&path)?.output(branch.id.as_str())
}

fn item<'v>(variables: Variables<'v>, read: &ItemRead) -> Option<(&'v Loop, &'v ItemKey)> {
    variables.execution.items_around(variables.scope).get(read.depth).copied()
}

fn step_error<'v>(execution: &'v Execution, step: &StepPath) -> Option<&'v TaskError> {
    execution.node(step)?.error()
}

fn payload<'v>(payload: &'v Payload, read: &Read) -> Result<Box<dyn Val + 'v>, TaskError> {
    let error = |what: String| {
        TaskError::builtin(builtin::EXPRESSION, format!("`{}` cannot be read: {what}", read.name()))
    };
    if !payload.is_json() {
        return Err(error(format!("its content type is `{}`", payload.content_type)));
    }
    if payload.data.is_empty() {
        return Ok(Box::new(CelNull));
    }
    value::parse(&payload.data).map_err(|why| error(format!("it is not JSON: {why}")))
}

fn execution_value<'v>(execution: &'v Execution) -> Box<dyn Val + 'v> {
    let step = execution.stop.as_ref().and_then(|stop| stop.step.as_ref());
    let id: Box<dyn Val + 'v> = Box::new(CelString::from(execution.id.to_string()));
    map([
        ("id", id),
        ("key", optional_text(execution.key.as_deref())),
        ("namespace", text(execution.namespace.as_str())),
        ("workflow", text(execution.workflow.as_str())),
        ("version", Box::new(CelInt::from(i64::from(execution.version)))),
        ("started_at", Box::new(CelString::from(rfc3339(execution.started_at)))),
        ("failed_step", optional_text(step.map(StepPath::as_str))),
        ("compensation_state", text(execution.compensation.name())),
    ])
}

fn optional_error<'v>(error: Option<&'v TaskError>) -> Box<dyn Val + 'v> {
    match error {
        Some(error) => map(error_fields(error)),
        None => Box::new(CelNull),
    }
}

type Field<'v> = (&'static str, Box<dyn Val + 'v>);

fn error_fields<'v>(error: &'v TaskError) -> Vec<Field<'v>> {
    let category = match error.category {
        Category::Unspecified => None,
        Category::Transient => Some("TRANSIENT"),
        Category::Intermittent => Some("INTERMITTENT"),
        Category::Permanent => Some("PERMANENT"),
        Category::Benign => Some("BENIGN"),
    };
    let details = error.details.as_ref().filter(|details| details.is_json());
    let details = details.and_then(|details| value::parse(&details.data).ok());
    let suppressed = error.suppressed.iter().map(|other| {
        map([
            ("step", text(&other.step)),
            ("type", text(&other.error_type)),
            ("message", text(&other.message)),
        ])
    });
    vec![
        ("type", text(&error.error_type)),
        ("message", text(&error.message)),
        // Details that cannot be parsed must not hide the rest of the error.
        ("details", details.unwrap_or_else(|| Box::new(CelNull))),
        ("stack_trace", text(&error.stack_trace)),
        ("category", optional_text(category)),
        ("non_retryable", Box::new(CelBool::from(error.is_non_retryable()))),
        ("source", text(&error.source)),
        ("cause", optional_error(error.cause.as_deref())),
        ("suppressed", Box::new(CelList::from(suppressed.collect::<Vec<_>>()))),
    ]
}

/// The fields of [`ORIGIN_FIELDS`].
fn origin(variables: Variables<'_>) -> [Field<'_>; 2] {
    let origin = variables.origin;
    let task = origin.and_then(|origin| variables.execution.task(origin));
    let attempts = task.map_or(0, |task| i64::from(task.attempt));
    [
        ("step", optional_text(origin.map(StepPath::as_str))),
        ("attempts", Box::new(CelInt::from(attempts))),
    ]
}

fn map<'v>(fields: impl IntoIterator<Item = Field<'v>>) -> Box<dyn Val + 'v> {
    let fields = fields.into_iter().map(|(name, value)| (CelMapKey::from(name), value));
    Box::new(CelMap::from(fields.collect::<HashMap<_, _>>()))
}

fn text<'v>(text: &'v str) -> Box<dyn Val + 'v> {
    Box::new(CelString::from(text))
}

fn optional_text<'v>(value: Option<&'v str>) -> Box<dyn Val + 'v> {
    value.map_or_else(|| Box::new(CelNull) as Box<dyn Val + 'v>, text)
}

/// In the form `2026-01-02T03:04:05.678901Z`.
fn rfc3339(at: Timestamp) -> String {
    let micros = at.as_micros();
    let (days, in_day) = (micros.div_euclid(86_400_000_000), micros.rem_euclid(86_400_000_000));
    // Years begin in March in this calculation, so that a leap day is the last day of its year. An era has
    // 400 years.
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (seconds, fraction) = (in_day / 1_000_000, in_day % 1_000_000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:06}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339() {
        for (micros, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400_000_000, "2000-02-29T00:00:00.000000Z"),
            (1_767_323_045_678_901, "2026-01-02T03:04:05.678901Z"),
            (4_107_542_399_999_999, "2100-02-28T23:59:59.999999Z"),
            (4_107_542_400_000_000, "2100-03-01T00:00:00.000000Z"),
            (-1, "1969-12-31T23:59:59.999999Z"),
        ] {
            assert_eq!(rfc3339(Timestamp::from_micros(micros)), text);
        }
    }
}
