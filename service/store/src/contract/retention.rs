//! Letting go of what nobody needs any more.

use std::time::Duration;

use async_trait::async_trait;
use recoup_core::time::Timestamp;

use super::Result;

/// How long a request id is remembered, with what it settled: a day.
pub const REQUEST_KEPT: Duration = Duration::from_secs(24 * 3600);
/// How long ended executions and failure events are kept where nothing else is said: in the namespace `default` as it is
/// made, and where rows outlived their namespace.
pub const RETENTION_DEFAULT: Duration = Duration::from_secs(30 * 24 * 3600);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Histories with their index rows.
    pub executions: u64,
    pub events: u64,
    pub start_requests: u64,
    pub registry_requests: u64,
    /// More is due than the call was allowed to do.
    pub more: bool,
    /// Retention is paused: nothing was deleted.
    pub paused: bool,
}

#[async_trait]
pub trait Retention {
    /// Deletes at most `limit` of each kind: executions that ended longer ago than their namespace's
    /// retention, have no parked compensation and are not in quarantine (with the keys that still name
    /// them, and their overflow rows), failure events older than it, request ids older than a day. Where
    /// histories are partitioned, makes partitions ahead and replaces old ones by what must stay.
    ///
    /// Ages are as of `now`, or of the database's clock if that is behind.
    async fn expire(&self, now: Timestamp, limit: usize) -> Result<Expired>;

    /// From now on nothing is deleted, by whatever node, until retention is resumed. A restart changes
    /// nothing about that.
    async fn pause_retention(&self) -> Result<()>;

    /// Returns since when it was paused, on the database's clock of that moment; `None` if it was not.
    async fn resume_retention(&self) -> Result<Option<Timestamp>>;
}
