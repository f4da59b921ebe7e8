//! The beginning and the end of a transaction on a lane.

use super::error::Failure;
use super::session::{Call, LaneSession};
use crate::contract::{NodeId, Result};

pub(super) const BEGIN: &str = "begin isolation level read committed";
/// Divides by zero, and so fails the transaction, if the node's lease was closed. A node that closes the lease
/// waits for the transactions that have passed this fence. After that their rows are visible, and no later
/// transaction passes. Renewing the lease does not wait for them.
pub(super) const FENCE: &str = "
    select 1 / count(*)
    from (select from node where id = $1 and closed_at is null for key share) as held";
pub(super) const COMMIT: &str = "commit";

/// Begins a transaction and passes the fence.
pub(super) async fn begin(session: &mut LaneSession, node: NodeId) -> Result<(), Failure> {
    let calls: [Call<'_>; 2] = [(BEGIN, vec![]), (FENCE, vec![&node.0])];
    session.pipeline(&calls).await?;
    Ok(())
}

/// Commits or rolls back the transaction, depending on the outcome of its work. A rollback fails only if the
/// connection is lost, and then the transaction is lost with it.
pub(super) async fn end<T>(
    session: &mut LaneSession,
    outcome: Result<T, Failure>,
) -> Result<T, Failure> {
    match outcome {
        Ok(value) => {
            session.query(COMMIT, &[]).await?;
            Ok(value)
        }
        Err(failure @ Failure::Lost(_)) => Err(failure),
        Err(failure) => {
            session.run("rollback").await?;
            Err(failure)
        }
    }
}
