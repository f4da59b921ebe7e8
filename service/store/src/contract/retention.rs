//! Deleting data that is no longer needed.

use std::time::Duration;

use async_trait::async_trait;
use recoup_core::time::Timestamp;

use super::Result;

/// How long a request id and the outcome it settled are remembered: one day.
pub const REQUEST_KEPT: Duration = Duration::from_secs(24 * 3600);
/// How long ended executions and failure events are kept by default. It applies to the namespace `default` as
/// it is created, and to rows whose namespace no longer exists.
pub const RETENTION_DEFAULT: Duration = Duration::from_secs(30 * 24 * 3600);

/// What one call of [`Retention::expire`] has deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Deleted executions, each with its history and its index row.
    pub executions: u64,
    pub events: u64,
    pub start_requests: u64,
    pub registry_requests: u64,
    /// More is due for deletion than this call was allowed to delete.
    pub more: bool,
    /// Retention is paused, so nothing was deleted.
    pub paused: bool,
}

/// Deletes expired data, and pauses its deletion.
#[async_trait]
pub trait Retention {
    /// Deletes at most `limit` rows of each of these kinds:
    ///
    /// - executions that ended longer ago than the retention of their namespace, have no parked compensation
    ///   and are not in quarantine, together with the keys that still name them and their overflow rows
    /// - failure events older than that retention
    /// - request ids older than a day
    ///
    /// Where histories are partitioned, it also creates partitions ahead of time, and replaces an old partition
    /// by the rows of it that must stay.
    ///
    /// Ages are measured from `now`, or from the database's clock if that is earlier.
    async fn expire(&self, now: Timestamp, limit: usize) -> Result<Expired>;

    /// Pauses retention: no node deletes anything until it is resumed. The pause survives restarts.
    async fn pause_retention(&self) -> Result<()>;

    /// Resumes retention and returns the time at which it was paused, on the database's clock of that moment.
    /// `None` if it was not paused.
    async fn resume_retention(&self) -> Result<Option<Timestamp>>;
}
