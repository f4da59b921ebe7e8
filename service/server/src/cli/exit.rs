//! How a command ends: exit codes that scripts can go by.

use std::fmt;
use std::io::Write;
use std::process::ExitCode;

use recoup_sdk::proto::{ErrorReason, ExecutionState};
use recoup_sdk::{Error, FieldViolation};
use serde_json::json;
use tonic::Code;

use super::text::{one_line, state_name};

/// Part of `--help`.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done; of `run`: the execution succeeded
  1  refused, or something else went wrong
  2  the command line, or a file that it names, is wrong
  3  not found
  4  the execution ended otherwise than by success
  5  the execution still runs and the wait is over
  6  the server cannot be reached";

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
    /// Of an execution that ended.
    pub fn of(state: ExecutionState) -> Self {
        match state {
            ExecutionState::Succeeded | ExecutionState::Warning => Self::Done,
            _ => Self::EndedAsFailure,
        }
    }
}

/// What went wrong, with the code to exit with.
#[derive(Debug)]
pub struct Failed {
    pub exit: Exit,
    message: String,
    reason: ErrorReason,
    violations: Vec<FieldViolation>,
}

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
            message: message.into(),
            reason: ErrorReason::Unspecified,
            violations: Vec::new(),
        }
    }

    /// On standard error, so that standard output holds answers only.
    pub fn tell(&self, as_json: bool) {
        let reason = self.reason.as_str_name().trim_start_matches("ERROR_REASON_");
        let named = self.reason != ErrorReason::Unspecified;
        if as_json {
            let violations = self.violations.iter().map(
                |violation| json!({"field": violation.field, "description": violation.description}),
            );
            let error = json!({
                "message": self.message,
                "reason": if named { reason } else { "" },
                "fieldViolations": violations.collect::<Vec<_>>(),
            });
            eprintln!("{}", json!({ "error": error }));
            return;
        }
        let reason = if named { format!(" ({reason})") } else { String::new() };
        eprintln!("error: {}{reason}", one_line(&self.message));
        // One problem is often all that the message says.
        let more =
            |one: &&FieldViolation| self.message != format!("{}: {}", one.field, one.description);
        for violation in self.violations.iter().filter(more) {
            let description = one_line(&violation.description);
            eprintln!("  {}: {description}", one_line(&violation.field));
        }
    }
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
        let reason = error.reason();
        let violations = match error {
            Error::Service { field_violations, .. } => field_violations,
            _ => Vec::new(),
        };
        Self { exit, message, reason, violations }
    }
}

/// Prints lines. A reader that went away (`| head`) ends the command quietly.
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
    fn exit_codes_are_those_of_the_help() {
        let still = Error::StillRunning {
            execution_id: "e1".to_owned(),
            state: ExecutionState::Compensating,
        };
        assert_eq!(Failed::from(refusal(Code::NotFound)).exit as u8, 3);
        assert_eq!(Failed::from(refusal(Code::InvalidArgument)).exit as u8, 1);
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
}
