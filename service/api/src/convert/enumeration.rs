//! Enum values of requests. A client may be newer than its server and send a value that the server does not
//! know. Such a value is refused and never replaced by the default: the call would then do something that
//! its caller did not ask for.

use crate::status::{Error, Result};

/// The message for a value that this server does not know, in requests and in definitions.
pub fn unknown(number: i32) -> String {
    format!("{number} is not a value that this server knows")
}

/// The enum value of a field. An unknown number is refused, with the name of the field.
pub fn known<P: TryFrom<i32>>(number: i32, field: &str) -> Result<P> {
    P::try_from(number).map_err(|_| Error::invalid(field, unknown(number)))
}

/// Converts a list of enum values to those of core. The unspecified value would select nothing; it is
/// refused as missing.
pub fn all_known<P: TryFrom<i32>, C>(
    numbers: &[i32],
    field: &str,
    from: impl Fn(P) -> Option<C>,
) -> Result<Vec<C>> {
    let one = |(index, number): (usize, &i32)| {
        let field = format!("{field}[{index}]");
        match number {
            0 => Err(Error::required(&field)),
            &number => {
                from(known(number, &field)?).ok_or_else(|| Error::invalid(field, unknown(number)))
            }
        }
    };
    numbers.iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use recoup_core::execution::State;
    use recoup_proto::v1::{ExecutionState, OnEnded};

    use super::*;
    use crate::convert::execution;

    #[test]
    fn unknown_and_unspecified_enum_values_have_different_errors() {
        let own = known::<OnEnded>(99, "execution.on_ended").expect_err("99 is unknown");
        assert_eq!(own.violations[0].field, "execution.on_ended");
        assert_eq!(own.violations[0].message, "99 is not a value that this server knows");
        let states = |numbers: &[i32]| {
            all_known::<ExecutionState, _>(numbers, "filter.states", execution::state_from)
        };
        let failed = i32::from(ExecutionState::Failed);
        assert_eq!(states(&[failed, failed]).expect("it is known"), [State::Failed; 2]);
        let unknown = states(&[failed, -1]).expect_err("-1 is unknown");
        assert_eq!(unknown.message, "filter.states[1]: -1 is not a value that this server knows");
        let unspecified = states(&[0]).expect_err("0 is not a state");
        assert_eq!(unspecified.message, Error::required("filter.states[0]").message);
    }
}
