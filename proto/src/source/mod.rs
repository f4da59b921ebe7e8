//! Reads definition files: YAML or JSON text into a [`WorkflowDefinition`], with line, column and
//! field path for everything that is wrong. [`write()`] is the way back.
//!
//! ```
//! use recoup_proto::{source, v1::DefinitionFormat};
//!
//! let text = "name: greet\nsteps:\n- id: hello\n  task: {type: greet.hello, start_to_close: 5s}\n";
//! let (definition, positions) = source::parse(text, DefinitionFormat::Yaml)?;
//! assert_eq!(definition.steps[0].id, "hello");
//! let place = positions.find("steps[0].task.start_to_close");
//! assert_eq!((place.line, place.column), (4, 29));
//! # Ok::<(), source::SourceError>(())
//! ```

#[cfg(test)]
mod block_tests;
#[cfg(test)]
mod parallel_tests;
mod positions;
mod segment;
#[cfg(test)]
mod tests;
mod write;

use std::io;

use prost::Message;
use serde_saphyr::{
    DefaultMessageFormatter, DuplicateKeyPolicy, MessageFormatter, NonFiniteFloatPolicy,
};

pub use positions::{Place, Positions};
pub use write::write;

use crate::v1::{DefinitionFormat, DefinitionSource, ErrorReason, WorkflowDefinition};

/// Largest source and largest definition, in bytes: 1 MiB.
pub const SOURCE_BYTES_MAX: usize = 1 << 20;
/// How deep mappings and sequences may nest. Blocks of steps may nest 20 deep, and a case of a
/// `switch` or a branch takes five levels: 100 in all. The workflow, the innermost step and its fields take up to
/// eight more; the rest is room for a template. `serde_json`, which reads templates and the JSON form
/// of definitions, allows 127 levels.
pub const DEPTH_MAX: usize = 120;
/// Stack for reading a text of the greatest depth. It takes up to 2.5 MiB without optimization, and
/// 0.5 MiB with it.
const STACK_BYTES: usize = 8 << 20;
/// How much the text may grow by its aliases: characters and nodes of the whole, aliases replaced.
const EXPANDED_WEIGHT_MAX: usize = 4 << 20;
const NODES_MAX: usize = 250_000;

/// What is wrong with a definition file, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}:{}: {}{message}", .place.line, .place.column, PathPrefix(.field_path))]
pub struct SourceError {
    pub place: Place,
    /// Path in the definition, such as `steps[2].retry.max_attempts`; empty for the whole.
    pub field_path: String,
    /// For people; without place and path.
    pub message: String,
    /// `DefinitionInvalid` or `DefinitionTooLarge`; `Overloaded` if the system could not start a thread
    /// for the reader, in which case the caller can try again later.
    pub reason: ErrorReason,
}

struct PathPrefix<'a>(&'a str);

impl std::fmt::Display for PathPrefix<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            "" => Ok(()),
            path => write!(formatter, "{path}: "),
        }
    }
}

impl SourceError {
    fn new(place: Place, field_path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            place,
            field_path: field_path.into(),
            message: message.into(),
            reason: ErrorReason::DefinitionInvalid,
        }
    }

    fn too_large(message: &str) -> Self {
        Self { reason: ErrorReason::DefinitionTooLarge, ..Self::new(Place::START, "", message) }
    }

    fn overloaded(message: &str) -> Self {
        Self { reason: ErrorReason::Overloaded, ..Self::new(Place::START, "", message) }
    }
}

impl DefinitionSource {
    /// Reads the definition.
    ///
    /// # Errors
    /// As [`parse`].
    pub fn parse(&self) -> Result<(WorkflowDefinition, Positions), SourceError> {
        parse(&self.text, self.format())
    }
}

/// Reads a definition. An unspecified format is YAML.
///
/// # Errors
/// The first thing that is wrong with the text as a text, as YAML or JSON, or as the JSON form of a
/// definition. Whether the definition can work is for the service to say.
///
/// If the system cannot start a thread for the reader, the reason is `Overloaded`: nothing is known to
/// be wrong with the text, and a later call may read it.
///
/// # Panics
/// The reader of YAML panics.
pub fn parse(
    text: &str,
    format: DefinitionFormat,
) -> Result<(WorkflowDefinition, Positions), SourceError> {
    parse_on(STACK_BYTES, text, format)
}

/// As [`parse`], with another stack for the reader.
fn parse_on(
    stack_bytes: usize,
    text: &str,
    format: DefinitionFormat,
) -> Result<(WorkflowDefinition, Positions), SourceError> {
    if text.len() > SOURCE_BYTES_MAX {
        return Err(SourceError::too_large("the source is over 1 MiB"));
    }
    if format == DefinitionFormat::Json {
        check_json(text)?;
    }
    // JSON is YAML: from here on there is one way, so that both report the same.
    let positions = Positions::of(text)?;
    let read = with_stack(stack_bytes, || {
        serde_saphyr::from_str_with_options::<WorkflowDefinition>(text, options())
            .map_err(|error| located(&error, &positions))
    });
    let definition = read.map_err(|_| {
        let message = "the definition could not be read now, because the system could not start \
                       another thread: try again later";
        SourceError::overloaded(message)
    })??;
    // Aliases may make a large definition of a small text.
    if definition.encoded_len() > SOURCE_BYTES_MAX {
        return Err(SourceError::too_large("the definition is over 1 MiB"));
    }
    Ok((definition, positions))
}

/// Runs a recursive reader on a thread of its own, because the calling thread may have less stack.
///
/// # Errors
/// The system cannot start a thread with such a stack. Nothing has been read.
///
/// # Panics
/// The reader panics.
fn with_stack<T: Send>(stack_bytes: usize, read: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(stack_bytes);
        let reader = thread.spawn_scoped(scope, read)?;
        Ok(reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn check_json(text: &str) -> Result<(), SourceError> {
    serde_json::from_str::<serde::de::IgnoredAny>(text).map(drop).map_err(|error| {
        let place = Place { line: error.line().max(1), column: error.column().max(1) };
        let message = error.to_string();
        let end = message.rfind(" at line ").unwrap_or(message.len());
        SourceError::new(place, "", format!("not JSON: {}", &message[..end]))
    })
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: DEPTH_MAX,
            max_documents: 1,
            max_nodes: NODES_MAX,
            max_anchors: 1_000,
            max_aliases: 10_000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: NODES_MAX,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        non_finite_float_policy: NonFiniteFloatPolicy::Reject,
        // `on` and `no` are words, not truth values.
        strict_booleans: true,
        reject_unsupported_tags: true,
        with_snippet: false,
    }
}

/// Which field an error is about follows from its place: sometimes that of the value, sometimes that
/// of the key. The report always has the field's.
fn located(error: &serde_saphyr::Error, positions: &Positions) -> SourceError {
    let location = error.location().map(|location| Place {
        line: usize::try_from(location.line()).unwrap_or(usize::MAX),
        column: usize::try_from(location.column()).unwrap_or(usize::MAX),
    });
    let place = location.unwrap_or(Place::START);
    let message = message(error);
    // True duplicates have been refused by the walk. These are two fields of one `oneof`, and the
    // place is that of the mapping.
    let (path, message) = match message.strip_prefix("duplicate field `").and_then(before_backtick)
    {
        Some(field) => {
            let message = format!(
                "`{field}` cannot be combined with another field that is set here: keep one of them"
            );
            (positions.field_at(place, field), message)
        }
        None => (positions.path_at(place), in_our_words(message)),
    };
    SourceError::new(positions.find(&path), path, message)
}

fn before_backtick(text: &str) -> Option<&str> {
    text.split_once('`').map(|(before, _)| before)
}

fn message(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::Error;
    match error {
        Error::AliasError { error, .. } | Error::WithSnippet { error, .. } => message(error),
        Error::SerdeUnknownField { field, expected, .. } => {
            // Every field is known under its proto name, most under a second one.
            let names: Vec<_> = expected
                .iter()
                .filter(|name| !name.contains(char::is_uppercase))
                .copied()
                .collect();
            format!("unknown field `{field}`, expected one of {}", names.join(", "))
        }
        Error::MultipleDocuments { .. } => "there is more than one YAML document".to_owned(),
        other => DefaultMessageFormatter.format_message(other).into_owned(),
    }
}

/// Some errors of generated code speak of how it is made.
fn in_our_words(message: String) -> String {
    let number = ["untagged enum Content", "invalid digit", "invalid float", "too large to fit"];
    if number.iter().any(|part| message.contains(part)) {
        return "expected a number within the range of the field".to_owned();
    }
    message
}
