//! Executions in quarantine.

use recoup_core::id::ExecutionId;
use recoup_core::quarantine::{Quarantine, QuarantineReason};
use uuid::Uuid;

use super::PostgresStore;
use super::error::Failure;
use super::numbers::Numbers;
use super::rows::Quarantines;
use super::savepoint::{Attempted, bisect};
use super::session::LaneSession;
use super::value::At;
use crate::contract::{Batch, Error, NodeId, Release, Result, Transition};

const IN_FORCE: &str = "
    select execution_id from quarantine where execution_id = any($1) and released_at is null";
/// The executions of the chosen transitions that are in quarantine.
pub(super) async fn in_force(
    session: &mut LaneSession,
    transitions: &[Transition],
    chosen: &[usize],
) -> Result<Vec<Uuid>, Failure> {
    // An execution cannot be put into quarantine before it exists.
    let goes_on = chosen.iter().map(|at| &transitions[*at]).filter(|next| next.sequence > 1);
    let executions: Vec<Uuid> = goes_on.map(|transition| transition.execution.0).collect();
    if executions.is_empty() {
        return Ok(Vec::new());
    }
    let rows = session.query(IN_FORCE, &[&executions]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Writes the quarantines of a batch. One that the store refuses is dropped, because no caller waits for a
/// verdict on it.
pub(super) async fn offer(
    session: &mut LaneSession,
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

/// Builds a quarantine from its columns. None if they are null.
pub(super) fn found(
    reason: Option<String>,
    detail: Option<String>,
    at: Option<At>,
) -> Option<Quarantine> {
    let (reason, at) = (reason?, at?);
    let reason = QuarantineReason::from_name(&reason).unwrap_or(QuarantineReason::Unknown);
    Some(Quarantine { reason, detail: detail.unwrap_or_default(), at: at.0 })
}

impl PostgresStore {
    pub(super) async fn release(
        &self,
        node: NodeId,
        execution: ExecutionId,
        release: &Release,
    ) -> Result<()> {
        let mut connection = self.inner.connections.take().await?;
        connection.begin().await?;
        connection.check_lease(node).await?;
        let last = sqlx::query!(
            r#"
            select released_at is null as "in_force!", release_request, release_digest
            from quarantine where execution_id = $1
            for update"#,
            execution.0,
        );
        let last = connection.first(last).await?.ok_or(Error::NotFound)?;
        let (request, digest) = match &release.request {
            Some((id, digest)) => (Some(id.as_str()), Some(digest.cast_signed())),
            None => (None, None),
        };
        if request.is_some() && last.release_request.as_deref() == request {
            let same = last.release_digest == digest;
            return if same { Ok(()) } else { Err(Error::RequestIdReused) };
        }
        if !last.in_force {
            return Err(Error::NotFound);
        }
        let released = sqlx::query!(
            "update quarantine
            set released_at = clock_timestamp(), release_reason = $2, release_request = $3,
                release_digest = $4
            where execution_id = $1",
            execution.0,
            release.reason,
            request,
            digest,
        );
        connection.execute(released).await?;
        let owned =
            sqlx::query!("update execution set owner = $2 where id = $1", execution.0, node.0);
        connection.execute(owned).await?;
        connection.committed().await
    }
}
