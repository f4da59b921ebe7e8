//! How a command ends: its errors, and the exit codes on which scripts can rely.

use std::fmt;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue};
use recoup_sdk::proto::{ErrorReason, ExecutionState};
use recoup_sdk::{Error, FieldViolation};
use serde_json::{Value, json};
use tonic::Code;

use super::output::Output;
use super::text::{one_line, state_name};

/// The last part of `--help`.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done; of `run`: the execution ended as SUCCEEDED or WARNING
  1  refused or failed for a reason that no other code covers
  2  the command line, a variable or a file is wrong, as the command or the server detects
     (INVALID_ARGUMENT, OUT_OF_RANGE)
  3  not found
  4  the execution ended in a state other than SUCCEEDED and WARNING
  5  the execution was still running when the wait ended
  6  the server cannot be reached, or cannot answer for the moment (UNAVAILABLE, OVERLOADED, or
     LIMIT_REACHED with RetryInfo)";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done = 0,
    Refused = 1,
    Usage = 2,
    NotFound = 3,
    EndedAsFailure = 4,
    StillRunning = 5,
    Unavailable = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl Exit {
    /// The exit code for an execution that has ended.
    pub fn of(state: ExecutionState) -> Self {
        match state {
            ExecutionState::Succeeded | ExecutionState::Warning => Self::Done,
            _ => Self::EndedAsFailure,
        }
    }
}

/// An error of a command, with the exit code for it.
#[derive(Debug)]
pub struct Failed {
    pub exit: Exit,
    /// The file that has the problem. Empty if no file does.
    file: String,
    message: String,
    reason: ErrorReason,
    violations: Vec<FieldViolation>,
    /// The error of the transport, if the server could not be reached.
    unreachable: Option<String>,
    /// Advice on how to solve the problem, shown only to people.
    hint: &'static str,
}

/// The hint if the server cannot be reached.
const START_ONE: &str =
    "start one with `recoup dev`, or say where it is with --address or RECOUP_ADDRESS";

impl Failed {
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(Exit::Refused, message)
    }

    pub fn json(error: serde_json::Error) -> Self {
        Self::new(Exit::Refused, format!("the answer cannot be written as JSON: {error}"))
    }

    fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            file: String::new(),
            message: message.into(),
            reason: ErrorReason::Unspecified,
            violations: Vec::new(),
            unreachable: None,
            hint: "",
        }
    }

    /// Names the address at which no server answered.
    pub fn at(mut self, address: &str) -> Self {
        if let Some(why) = self.unreachable.take() {
            self.message = format!("no server answers at {address}: {why}");
            self.hint = START_ONE;
        }
        self
    }

    /// Sets the reason that the service would give for the same refusal.
    pub fn with_reason(self, reason: ErrorReason) -> Self {
        Self { reason, ..self }
    }

    /// Attributes the problems to a file, so that they are printed with their place in it.
    pub fn in_file(mut self, file: &Path) -> Self {
        if !self.violations.is_empty() {
            self.file = file.display().to_string();
        }
        self
    }

    /// Prints the error on standard error, so that standard output holds only answers.
    pub(super) fn tell(&self, output: Output) {
        let lines = match output {
            Output::Json => vec![self.document().to_string()],
            Output::Text => self.lines(),
        };
        for line in lines {
            eprintln!("{line}");
        }
    }

    /// The name of the reason as the protocol documents it. Empty if there is none.
    fn reason(&self) -> &'static str {
        match self.reason {
            ErrorReason::Unspecified => "",
            reason => reason.as_str_name().trim_start_matches("ERROR_REASON_"),
        }
    }

    fn document(&self) -> Value {
        let violations = self.violations.iter().map(
            |violation| json!({"field": violation.field, "description": violation.description}),
        );
        let mut error = json!({
            "message": self.message,
            "reason": self.reason(),
            "fieldViolations": violations.collect::<Vec<_>>(),
        });
        if !self.file.is_empty() {
            error["file"] = json!(self.file);
        }
        json!({ "error": error })
    }

    /// The error in one line. If there are several problems, each has a line of its own below.
    fn lines(&self) -> Vec<String> {
        let reason = match self.reason() {
            "" => String::new(),
            reason => format!(" ({reason})"),
        };
        let mut problems: Vec<String> =
            self.violations.iter().map(|violation| self.problem(violation)).collect();
        if self.file.is_empty() {
            // Often the message is the only problem, and need not be repeated.
            problems.retain(|problem| *problem != one_line(&self.message));
            if !self.hint.is_empty() {
                problems.push(self.hint.to_owned());
            }
            let message = one_line(&self.message);
            return head(format!("error: {message}{reason}"), problems);
        }
        match <[String; 1]>::try_from(problems) {
            Ok([problem]) => vec![format!("error: {problem}{reason}")],
            Err(problems) => {
                let count = problems.len();
                head(format!("error: {} has {count} problems{reason}", self.file), problems)
            }
        }
    }

    /// `order.yaml:12:7: steps[1].retry: …`, or without the place if it is not known.
    fn problem(&self, violation: &FieldViolation) -> String {
        let (place, description) = match self.file.as_str() {
            "" => (String::new(), violation.description.as_str()),
            file => match line_and_column(&violation.description) {
                Some((place, rest)) => (format!("{file}:{place}"), rest),
                None => (file.to_owned(), violation.description.as_str()),
            },
        };
        let parts = [place, one_line(&violation.field), one_line(description)];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(": ")
    }
}

/// Splits a description that begins with a place in the source into the place, such as `12:7`, and the
/// rest.
fn line_and_column(description: &str) -> Option<(&str, &str)> {
    let (place, rest) = description.split_once(": ")?;
    let (line, column) = place.split_once(':')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (is_number(line) && is_number(column)).then_some((place, rest))
}

fn head(first: String, below: Vec<String>) -> Vec<String> {
    let below = below.into_iter().map(|line| format!("  {line}"));
    std::iter::once(first).chain(below).collect()
}

/// Reports a command line that `command` could not parse, and returns the exit code.
pub fn refuse_command_line(mut error: clap::Error, command: clap::Command) -> ExitCode {
    // Help and version texts are answers, not errors.
    if error.use_stderr() && wants_json(std::env::args()) {
        // The first line says what is wrong; the others explain the correct usage.
        let text = error.to_string();
        let message = text.lines().next().unwrap_or_default();
        Failed::usage(message.trim_start_matches("error: ")).tell(Output::Json);
        return Exit::Usage.into();
    }
    if error.get(ContextKind::Usage).is_some() {
        let usage = ContextValue::StyledStr(usage(command, std::env::args().skip(1)));
        error.insert(ContextKind::Usage, usage);
    }
    error.exit()
}

/// The usage line of the command that the arguments name, as its help shows it. The usage line that clap
/// puts into an error lists every setting that has a value as if it were required, even if the value comes
/// from a variable.
fn usage(mut command: clap::Command, arguments: impl Iterator<Item = String>) -> StyledStr {
    command.build();
    let mut named = &mut command;
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let is_option = |option: &clap::Arg| {
            argument.strip_prefix("--").is_some_and(|name| option.get_long() == Some(name))
        };
        if named.get_arguments().any(|it| is_option(it) && it.get_action().takes_values()) {
            // Skip the value of an option: it may look like the name of a command.
            arguments.next();
        } else if named.find_subcommand(&argument).is_some() {
            named = named.find_subcommand_mut(&argument).expect("it was found above");
        }
    }
    named.render_usage()
}

/// Whether the command line asks for JSON, as far as that can be told although it is not valid.
fn wants_json(arguments: impl Iterator<Item = String>) -> bool {
    let arguments: Vec<String> = arguments.collect();
    let joined = ["-ojson", "-o=json", "--output=json"];
    arguments.iter().any(|argument| joined.contains(&argument.as_str()))
        || arguments
            .windows(2)
            .any(|pair| matches!(pair[0].as_str(), "-o" | "--output") && pair[1] == "json")
}

impl fmt::Display for Failed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Failed {}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        let exit = match &error {
            Error::Unavailable { .. } => Exit::Unavailable,
            Error::Service { code: Code::NotFound, .. } => Exit::NotFound,
            Error::Service { .. } if error.is_transient() => Exit::Unavailable,
            // The request comes from the command line, or from a file that it names.
            Error::Service { code: Code::InvalidArgument | Code::OutOfRange, .. }
            | Error::PayloadTooLarge { .. }
            | Error::MessageTooLarge { .. } => Exit::Usage,
            Error::StillRunning { .. } => Exit::StillRunning,
            Error::Ended { .. } => Exit::EndedAsFailure,
            Error::Address { .. } | Error::Setup(_) => Exit::Usage,
            _ => Exit::Refused,
        };
        let message = match &error {
            Error::StillRunning { execution_id, state } => {
                format!("execution {execution_id} is still {}", state_name(*state))
            }
            _ => error.to_string(),
        };
        let failed = Self { reason: error.reason(), ..Self::new(exit, message) };
        match error {
            Error::Service { field_violations, .. } => {
                Self { violations: field_violations, ..failed }
            }
            Error::Unavailable { message, .. } => Self { unreachable: Some(message), ..failed },
            _ => failed,
        }
    }
}

/// Prints lines. If the reader has gone away (`| head`), the command ends without an error message.
pub fn print(lines: &[String]) -> Result<(), Failed> {
    let mut output = std::io::stdout().lock();
    for line in lines {
        if let Err(error) = writeln!(output, "{line}") {
            if error.kind() == std::io::ErrorKind::BrokenPipe {
                std::process::exit(0);
            }
            return Err(Failed::refused(format!("standard output cannot be written: {error}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(code: Code) -> Error {
        Error::Service {
            code,
            reason: ErrorReason::Unspecified,
            message: String::new(),
            field_violations: Vec::new(),
            retry_after: None,
            metadata: std::collections::BTreeMap::new(),
        }
    }

    #[test]
    fn exit_codes_match_the_help_text() {
        let still = Error::StillRunning {
            execution_id: "e1".to_owned(),
            state: ExecutionState::Compensating,
        };
        assert_eq!(Failed::from(refusal(Code::NotFound)).exit as u8, 3);
        assert_eq!(Failed::from(refusal(Code::InvalidArgument)).exit as u8, 2);
        assert_eq!(Failed::from(Error::MessageTooLarge { size: 1 }).exit as u8, 2);
        assert_eq!(Failed::from(refusal(Code::AlreadyExists)).exit as u8, 1);
        assert_eq!(Failed::from(refusal(Code::FailedPrecondition)).exit as u8, 1);
        assert_eq!(Failed::from(refusal(Code::Unavailable)).exit as u8, 6);
        let still = Failed::from(still);
        assert_eq!(still.exit as u8, 5);
        assert_eq!(still.message, "execution e1 is still COMPENSATING");
        for state in [ExecutionState::Failed, ExecutionState::TimedOut, ExecutionState::Cancelled] {
            assert_eq!(Exit::of(state) as u8, 4);
        }
        assert_eq!(Exit::of(ExecutionState::Warning) as u8, 0);
        for exit in 0..=6 {
            assert!(EXIT_CODES.contains(&format!("\n  {exit}  ")), "{exit} is not documented");
        }
    }

    #[test]
    fn payload_refused_before_sending_reports_its_reason() {
        let failed = Failed::from(Error::PayloadTooLarge { size: 3 << 20 });
        assert_eq!(failed.exit, Exit::Usage);
        assert_eq!(failed.document()["error"]["reason"], "PAYLOAD_TOO_LARGE");
        let failed =
            Failed::usage("the input is not JSON").with_reason(ErrorReason::PayloadInvalid);
        assert_eq!(failed.document()["error"]["reason"], "PAYLOAD_INVALID");
    }

    fn wrong(message: &str, violations: &[(&str, &str)]) -> Failed {
        let violations = violations.iter().map(|(field, description)| FieldViolation {
            field: (*field).to_owned(),
            description: (*description).to_owned(),
        });
        Failed {
            reason: ErrorReason::DefinitionInvalid,
            violations: violations.collect(),
            ..Failed::usage(message)
        }
    }

    #[test]
    fn single_problem_is_printed_on_one_line() {
        let failed = wrong("id: it is required", &[("id", "it is required")]);
        assert_eq!(failed.lines(), ["error: id: it is required (DEFINITION_INVALID)"]);
        let failed = wrong("1:1: too large", &[("", "1:1: too large")]);
        assert_eq!(failed.lines(), ["error: 1:1: too large (DEFINITION_INVALID)"]);
        assert_eq!(Failed::usage("no\nsuch file").lines(), ["error: no such file"]);
    }

    #[test]
    fn problems_in_a_file_are_printed_with_file_line_and_column() {
        let file = Path::new("order.yaml");
        let one = wrong("a: 4:21: unknown", &[("a", "4:21: unknown")]).in_file(file);
        assert_eq!(one.lines(), ["error: order.yaml:4:21: a: unknown (DEFINITION_INVALID)"]);
        assert_eq!(one.document()["error"]["file"], "order.yaml");
        let two = wrong("a: 4:21: x (and 1 more)", &[("a", "4:21: x"), ("b", "at 5: y")]);
        let expected = [
            "error: order.yaml has 2 problems (DEFINITION_INVALID)",
            "  order.yaml:4:21: a: x",
            "  order.yaml: b: at 5: y",
        ];
        assert_eq!(two.in_file(file).lines(), expected);
        // A problem that does not concern the file does not mention it.
        assert_eq!(Failed::refused("away").in_file(file).lines(), ["error: away"]);
    }

    #[test]
    fn json_output_is_honoured_even_if_the_command_line_is_invalid() {
        let wants = |line: &str| wants_json(line.split(' ').map(str::to_owned));
        assert!(wants("recoup list --nosuch -o json"));
        assert!(wants("recoup list --output=json --nosuch"));
        assert!(!wants("recoup list -o text --nosuch json"));
    }
}
