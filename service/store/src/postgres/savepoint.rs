//! Finds the one member of a group that the database refuses.

use super::error::{ErrorClass, Failure, text};
use super::session::LaneSession;
use crate::contract::Error;

pub(super) enum Attempted<T> {
    Done(T),
    /// The group has this single member, and the database refused it.
    Refused(usize, String),
    /// The two halves of the group were pushed on the stack.
    Split,
}

/// Keeps what a group wrote if it succeeded. Otherwise undoes it, and halves the group until the culprit is
/// alone.
pub(super) async fn bisect<T>(
    session: &mut LaneSession,
    attempted: Result<T, Failure>,
    group: &[usize],
    groups: &mut Vec<Vec<usize>>,
) -> Result<Attempted<T>, Failure> {
    let reason = match attempted {
        Ok(outcome) => {
            session.run("release attempted").await?;
            return Ok(Attempted::Done(outcome));
        }
        Err(Failure::Refused(error)) => {
            let failure = Failure::Refused(error);
            match (failure.class(), failure) {
                (Some(ErrorClass::Data | ErrorClass::Taken), Failure::Refused(error)) => {
                    text(&error)
                }
                (_, failure) => return Err(failure),
            }
        }
        Err(Failure::Store(Error::Data(reason))) => reason,
        Err(failure) => return Err(failure),
    };
    session.run("rollback to attempted; release attempted").await?;
    if let [at] = group {
        return Ok(Attempted::Refused(*at, reason));
    }
    let (first, second) = group.split_at(group.len() / 2);
    groups.push(second.to_vec());
    groups.push(first.to_vec());
    Ok(Attempted::Split)
}
