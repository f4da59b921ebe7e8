//! The workflow that runs under load, and the fates that an order may have.

use recoup_proto::v1::{Error, ExecutionState};

/// The most attempts of a step, and of a compensation.
pub const ATTEMPTS_MAX: u32 = 8;
pub const COMPENSATION_ATTEMPTS_MAX: u32 = 50;
pub const WORKFLOW: &str = "order";
/// The steps that have a compensation, in the order in which they run.
pub const COMPENSATED_STEPS: [&str; 2] = ["reserve", "charge"];
pub const STEPS: [&str; 3] = ["reserve", "charge", "ship"];
/// The workflow's task types, divided between two kinds of workers.
pub const TASK_TYPES: [&[&str]; 2] =
    [&["stock.reserve", "stock.release"], &["payment.charge", "payment.refund", "shipping.ship"]];

/// Three steps, two of which can be undone. Retries are quick, so that faults hit every stage.
pub const DEFINITION: &str = "
name: order
defaults:
  start_to_close: 20s
  retry:
    constant: { interval: 50ms }
    max_attempts: 8
    non_retryable_error_types: [payment.declined, shipping.refused]
steps:
  - id: reserve
    task: { type: stock.reserve }
    compensate:
      task: { type: stock.release, input: { order: '${input.order}', fate: '${input.fate}' } }
      retry: { constant: { interval: 50ms }, max_attempts: 50 }
  - id: charge
    task: { type: payment.charge }
    compensate:
      task: { type: payment.refund, input: { order: '${input.order}', fate: '${input.fate}' } }
      retry: { constant: { interval: 50ms }, max_attempts: 50 }
  - id: ship
    task: { type: shipping.ship }
";

/// How an order turns out. Its input says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// Every step succeeds at once.
    Plain,
    /// The first two attempts of the payment cannot reach the provider.
    Flaky,
    /// The payment is declined, and the reservation is released.
    Declined,
    /// Shipping is refused. The payment is refunded and the reservation is released, each after an error.
    Refused,
    /// The payment provider can never be reached: all attempts are used up.
    Exhausted,
}

impl Fate {
    /// The fate of an order by its number. Half of all orders have no errors.
    pub fn of(order: u64) -> Self {
        match order % 10 {
            1 | 6 => Self::Flaky,
            3 => Self::Declined,
            5 => Self::Refused,
            8 => Self::Exhausted,
            _ => Self::Plain,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Flaky => "flaky",
            Self::Declined => "declined",
            Self::Refused => "refused",
            Self::Exhausted => "exhausted",
        }
    }

    pub fn of_name(name: &str) -> Option<Self> {
        let all = [Self::Plain, Self::Flaky, Self::Declined, Self::Refused, Self::Exhausted];
        all.into_iter().find(|fate| fate.name() == name)
    }

    /// The state in which the execution ends.
    pub fn end(self) -> ExecutionState {
        match self {
            Self::Plain | Self::Flaky => ExecutionState::Succeeded,
            Self::Declined | Self::Refused | Self::Exhausted => ExecutionState::Failed,
        }
    }

    /// The step that fails permanently.
    pub fn failed_step(self) -> &'static str {
        match self {
            Self::Plain | Self::Flaky => "",
            Self::Declined | Self::Exhausted => "charge",
            Self::Refused => "ship",
        }
    }

    /// The error that the worker reports for an attempt. None if the attempt succeeds.
    pub fn error(self, task_type: &str, attempt: u32) -> Option<Error> {
        let kind = match (self, task_type) {
            (Self::Flaky, "payment.charge") if attempt <= 2 => "payment.unreachable",
            (Self::Exhausted, "payment.charge") => "payment.unreachable",
            (Self::Declined, "payment.charge") => "payment.declined",
            (Self::Refused, "shipping.ship") => "shipping.refused",
            (Self::Refused, "payment.refund") if attempt == 1 => "payment.unreachable",
            _ => return None,
        };
        let message = format!("as its fate {} wants it", self.name());
        Some(Error { r#type: kind.to_owned(), message, ..Error::default() })
    }
}
