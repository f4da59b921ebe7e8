//! How values of the contract are represented in columns. Times are microseconds since 1970; states and kinds
//! are stored by name.

use std::time::Duration;

use bytes::Bytes;
use recoup_core::id::ExecutionId;
use recoup_core::time::Timestamp;
use rusqlite::Row;
use uuid::Uuid;

use super::error::Failure;
use crate::contract::{Error, Name, Named};
use crate::format::Formats;

/// The named value in a column.
pub(super) fn named<T: Name>(row: &Row<'_>, column: usize) -> Result<Named<T>, Failure> {
    Ok(Named::of(text(row, column)?))
}

fn damaged(what: String) -> Failure {
    Error::Incompatible(format!("damaged row: {what}")).into()
}

/// The duration in whole microseconds, at most about 292,000 years.
pub(super) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

pub(super) fn duration(micros: i64) -> Duration {
    Duration::from_micros(micros.max(0).unsigned_abs())
}

pub(super) fn limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// Sequences never reach the end of the range.
pub(super) fn signed(sequence: u64) -> i64 {
    i64::try_from(sequence).unwrap_or(i64::MAX)
}

/// A constraint keeps the column in this range.
pub(super) fn count(row: &Row<'_>, column: usize) -> Result<u32, Failure> {
    Ok(row.get(column)?)
}

pub(super) fn format(row: &Row<'_>, column: usize) -> Result<u16, Failure> {
    Ok(row.get(column)?)
}

/// Reads the first columns of a row, in the order of [`COLUMNS`](crate::format::COLUMNS).
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
