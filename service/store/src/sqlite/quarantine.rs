//! Executions in quarantine.

use recoup_core::id::ExecutionId;
use recoup_core::quarantine::{Quarantine, QuarantineReason};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::error::Failure;
use super::value;
use super::writer::Write;
use crate::contract::{Error, NewQuarantine, NodeId, QuarantineRow, Release, Released};

/// The latest quarantine of an execution.
pub(super) fn of(
    connection: &Connection,
    execution: ExecutionId,
) -> Result<Option<QuarantineRow>, Failure> {
    const OF: &str = "
        select reason, detail, at, released_at, release_reason from quarantine
        where execution_id = ?1";
    let mut statement = connection.prepare_cached(OF)?;
    let mut rows = statement.query([execution.0.as_bytes()])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let Some(quarantine) = found(row, 0)? else { return Ok(None) };
    let released = value::optional_at(row, 3)?;
    let reason = value::optional_text(row, 4)?.unwrap_or_default();
    Ok(Some(QuarantineRow { quarantine, released: released.map(|at| Released { at, reason }) }))
}

/// Reads reason, detail and time, starting at the column `first`. None if they are null.
pub(super) fn found(row: &Row<'_>, first: usize) -> Result<Option<Quarantine>, Failure> {
    let Some(reason) = value::optional_text(row, first)? else { return Ok(None) };
    let reason = QuarantineReason::from_name(&reason).unwrap_or(QuarantineReason::Unknown);
    let detail = value::text(row, first + 1)?.to_owned();
    Ok(Some(Quarantine { reason, detail, at: value::at(row, first + 2)? }))
}

/// Whether any quarantine is in force. Usually none is, and then no single execution has to be checked.
pub(super) fn is_any(write: &Write<'_>) -> Result<bool, Failure> {
    const ANY: &str = "select 1 from quarantine where released_at is null limit 1";
    Ok(write.prepare(ANY)?.exists([])?)
}

pub(super) fn is_in_force(write: &Write<'_>, execution: ExecutionId) -> Result<bool, Failure> {
    const IN_FORCE: &str =
        "select 1 from quarantine where execution_id = ?1 and released_at is null";
    Ok(write.prepare(IN_FORCE)?.exists([execution.0.as_bytes()])?)
}

/// Writes a quarantine. Returns false if the execution has one in force or a later one, or does not exist.
pub(super) fn write(write: &Write<'_>, new: &NewQuarantine) -> Result<bool, Failure> {
    const WRITE: &str = "
        insert into quarantine (execution_id, reason, detail, at)
        select id, ?2, ?3, ?4 from execution where id = ?1
        on conflict (execution_id) do update
            set reason = excluded.reason, detail = excluded.detail, at = excluded.at,
                released_at = null
            where released_at is not null and quarantine.at < excluded.at";
    let Quarantine { reason, detail, at } = &new.quarantine;
    let row = params![new.execution.0.as_bytes(), reason.name(), detail, at.as_micros()];
    Ok(write.execute(WRITE, row)? == 1)
}

pub(super) fn release(
    write: &Write<'_>,
    node: NodeId,
    execution: ExecutionId,
    release: &Release,
) -> Result<(), Failure> {
    const LAST: &str = "
        select released_at is null, release_request, release_digest from quarantine
        where execution_id = ?1";
    const RELEASE: &str = "
        update quarantine
        set released_at = ?2, release_reason = ?3, release_request = ?4, release_digest = ?5
        where execution_id = ?1";
    const OWN: &str = "update execution set owner = ?2 where id = ?1";
    type Last = (bool, Option<String>, Option<i64>);
    let id = execution.0.as_bytes();
    let read =
        |row: &Row<'_>| -> rusqlite::Result<Last> { Ok((row.get(0)?, row.get(1)?, row.get(2)?)) };
    let last = write.prepare(LAST)?.query_row([id], read).optional()?;
    let Some((in_force, last_request, last_digest)) = last else {
        return Err(Error::NotFound.into());
    };
    let request = release.request.as_ref();
    let request = request.map(|(id, digest)| (id.as_str(), digest.cast_signed()));
    if let Some((id, digest)) = request
        && last_request.as_deref() == Some(id)
    {
        let same = last_digest == Some(digest);
        return if same { Ok(()) } else { Err(Error::RequestIdReused.into()) };
    }
    if !in_force {
        return Err(Error::NotFound.into());
    }
    let (request, digest) = request.unzip();
    let now = write.now.as_micros();
    write.execute(RELEASE, params![id, now, release.reason, request, digest])?;
    write.execute(OWN, params![id, node.0])?;
    Ok(())
}
