//! Finding the one of a group that the database refuses.

use super::error::{ErrorClass, Failure, text};
use super::session::LaneSession;
use crate::contract::Error;

pub(super) enum Attempted<T> {
    Done(T),
    /// The one that the group consists of.
    Refused(usize, String),
    /// Its halves were put on the stack.
    Split,
}

/// Keeps what a group wrote; or takes it back, and halves the group until the culprit is alone.
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
