//! How values of the contract look in columns. Times are microseconds since 1970; states and kinds
//! have the numbers of `recoup.store.v1`.

use std::time::Duration;

use bytes::Bytes;
use recoup_core::execution::{CompensationState, Phase, State};
use recoup_core::failure_event::FailureKind;
use recoup_core::id::ExecutionId;
use recoup_core::time::Timestamp;
use rusqlite::Row;
use uuid::Uuid;

use super::error::Failure;
use crate::contract::Error;
use crate::format::Formats;
use crate::format::value::Stored;

pub(super) fn state(number: i64) -> Result<State, Failure> {
    numbered(number)
}

pub(super) fn compensation(number: i64) -> Result<CompensationState, Failure> {
    numbered(number)
}

pub(super) fn kind(number: i64) -> Result<FailureKind, Failure> {
    numbered(number)
}

fn numbered<T: Stored<Wire = i32>>(number: i64) -> Result<T, Failure> {
    let known = i32::try_from(number).ok().and_then(|number| T::from_wire(number).ok());
    known.ok_or_else(|| damaged(format!("number {number} of an enum")))
}

pub(super) fn state_number(state: State) -> i32 {
    state.to_wire()
}

pub(super) fn compensation_number(compensation: CompensationState) -> i32 {
    compensation.to_wire()
}

pub(super) fn kind_number(kind: FailureKind) -> i32 {
    kind.to_wire()
}

pub(super) fn phase_number(phase: Phase) -> i32 {
    match phase {
        Phase::Steps => 1,
        Phase::Compensation => 2,
        Phase::OnFailure => 3,
        Phase::Finally => 4,
    }
}

pub(super) fn phase(number: i64) -> Result<Phase, Failure> {
    match number {
        1 => Ok(Phase::Steps),
        2 => Ok(Phase::Compensation),
        3 => Ok(Phase::OnFailure),
        4 => Ok(Phase::Finally),
        other => Err(damaged(format!("phase {other}"))),
    }
}

fn damaged(what: String) -> Failure {
    Error::Incompatible(format!("damaged row: {what}")).into()
}

/// Whole microseconds; those beyond 292,000 years are taken as that.
pub(super) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

pub(super) fn duration(micros: i64) -> Duration {
    Duration::from_micros(micros.max(0).unsigned_abs())
}

pub(super) fn limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// Sequences do not reach the end of the range.
pub(super) fn signed(sequence: u64) -> i64 {
    i64::try_from(sequence).unwrap_or(i64::MAX)
}

/// Held to their ranges by constraints.
pub(super) fn count(row: &Row<'_>, column: usize) -> Result<u32, Failure> {
    Ok(row.get(column)?)
}

pub(super) fn format(row: &Row<'_>, column: usize) -> Result<u16, Failure> {
    Ok(row.get(column)?)
}

/// The first columns of a row, in the order of [`COLUMNS`](crate::format::COLUMNS).
pub(super) fn formats(row: &Row<'_>) -> Result<Formats, Failure> {
    let mut numbers = Formats::FIRST.numbers();
    for (column, number) in numbers.iter_mut().enumerate() {
        *number = row.get(column)?;
    }
    Ok(Formats::from_numbers(numbers))
}

pub(super) fn sequence(row: &Row<'_>, column: usize) -> Result<u64, Failure> {
    let number: i64 = row.get(column)?;
    u64::try_from(number).map_err(|_| damaged(format!("sequence {number}")))
}

pub(super) fn text<'a>(row: &'a Row<'_>, column: usize) -> Result<&'a str, Failure> {
    Ok(row.get_ref(column)?.as_str()?)
}

pub(super) fn optional_text(row: &Row<'_>, column: usize) -> Result<Option<String>, Failure> {
    Ok(row.get(column)?)
}

pub(super) fn bytes(row: &Row<'_>, column: usize) -> Result<Bytes, Failure> {
    Ok(Bytes::copy_from_slice(row.get_ref(column)?.as_blob()?))
}

pub(super) fn uuid(row: &Row<'_>, column: usize) -> Result<Uuid, Failure> {
    Ok(Uuid::from_bytes(row.get(column)?))
}

pub(super) fn execution(row: &Row<'_>, column: usize) -> Result<ExecutionId, Failure> {
    uuid(row, column).map(ExecutionId)
}

pub(super) fn at(row: &Row<'_>, column: usize) -> Result<Timestamp, Failure> {
    Ok(Timestamp::from_micros(row.get(column)?))
}

pub(super) fn optional_at(row: &Row<'_>, column: usize) -> Result<Option<Timestamp>, Failure> {
    Ok(row.get::<_, Option<i64>>(column)?.map(Timestamp::from_micros))
}
