//! Executions in quarantine.

use recoup_core::id::ExecutionId;
use recoup_core::quarantine::Quarantine;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::commit::{Attempted, Numbers, bisect};
use super::error::Failure;
use super::rows::Quarantines;
use super::session::Session;
use super::value::{self, At};
use super::{Inner, PostgresStore};
use crate::contract::{Batch, Error, NodeId, QuarantineRow, Release, Released, Result, Transition};

const IN_FORCE: &str = "
    select execution_id from quarantine where execution_id = any($1) and released_at is null";
const LIVE: &str = "select from node where id = $1 and closed_at is null for key share";
const LAST: &str = "
    select released_at is null, release_request, release_digest from quarantine
    where execution_id = $1
    for update";
const RELEASE: &str = "
    update quarantine
    set released_at = clock_timestamp(), release_reason = $2, release_request = $3,
        release_digest = $4
    where execution_id = $1";
const OWN: &str = "update execution set owner = $2 where id = $1";

/// Those of the chosen transitions whose executions are in quarantine.
pub(super) async fn in_force(
    session: &mut Session,
    transitions: &[Transition],
    chosen: &[usize],
) -> Result<Vec<Uuid>, Failure> {
    // Nobody puts an execution there before it exists.
    let goes_on = chosen.iter().map(|at| &transitions[*at]).filter(|next| next.sequence > 1);
    let executions: Vec<Uuid> = goes_on.map(|transition| transition.execution.0).collect();
    if executions.is_empty() {
        return Ok(Vec::new());
    }
    let rows = session.query(IN_FORCE, &[&executions]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// One that the store refuses is dropped: there is nobody to tell.
pub(super) async fn offer(
    session: &mut Session,
    node: NodeId,
    batch: &Batch,
    numbers: &Numbers,
) -> Result<(), Failure> {
    let all: Vec<usize> = (0..batch.quarantined.len()).collect();
    let mut groups = if all.is_empty() { vec![] } else { vec![all] };
    while let Some(group) = groups.pop() {
        let chosen =
            group.iter().map(|&at| (&batch.quarantined[at], numbers.quarantine(batch, at)));
        let written = Quarantines::new(node, chosen);
        session.run("savepoint attempted").await?;
        let (sql, parameters) = written.offer();
        let attempted = session.query(sql, &parameters).await;
        if let Attempted::Refused(at, reason) =
            bisect(session, attempted, &group, &mut groups).await?
        {
            let execution = batch.quarantined[at].execution;
            tracing::error!(%execution, reason, "a quarantine was refused");
        }
    }
    Ok(())
}

/// Reason, detail and time, from this column on; none if they are null.
pub(super) fn found(row: &Row, first: usize) -> Result<Option<Quarantine>, Failure> {
    let Some(reason) = row.try_get::<_, Option<&str>>(first)? else { return Ok(None) };
    let reason = value::quarantine_reason(reason)?;
    let (detail, at) = (row.try_get(first + 1)?, row.try_get::<_, At>(first + 2)?.0);
    Ok(Some(Quarantine { reason, detail, at }))
}

/// The same, and how it was released.
pub(super) fn row(row: &Row, first: usize) -> Result<Option<QuarantineRow>, Failure> {
    let Some(quarantine) = found(row, first)? else { return Ok(None) };
    let released: Option<At> = row.try_get(first + 3)?;
    let reason: Option<String> = row.try_get(first + 4)?;
    let released = released.map(|at| Released { at: at.0, reason: reason.unwrap_or_default() });
    Ok(Some(QuarantineRow { quarantine, released }))
}

impl PostgresStore {
    pub(super) async fn release(
        &self,
        node: NodeId,
        execution: ExecutionId,
        release: &Release,
    ) -> Result<()> {
        let inner: &Inner = &self.inner;
        let mut session = inner.pool.take().await?;
        session.begin().await?;
        if session.query(LIVE, &[&node.0]).await?.is_empty() {
            return Err(Error::LeaseLost);
        }
        let last = session.query(LAST, &[&execution.0]).await?;
        let last = last.first().ok_or(Error::NotFound)?;
        let in_force: bool = last.try_get(0)?;
        let (request, digest) = match &release.request {
            Some((id, digest)) => (Some(id.as_str()), Some(digest.cast_signed())),
            None => (None, None),
        };
        if request.is_some() && last.try_get::<_, Option<&str>>(1)? == request {
            let same = last.try_get::<_, Option<i64>>(2)? == digest;
            return if same { Ok(()) } else { Err(Error::RequestIdReused) };
        }
        if !in_force {
            return Err(Error::NotFound);
        }
        let parameters: [&(dyn ToSql + Sync); 4] =
            [&execution.0, &release.reason, &request, &digest];
        session.execute(RELEASE, &parameters).await?;
        session.execute(OWN, &[&execution.0, &node.0]).await?;
        session.committed().await
    }
}
