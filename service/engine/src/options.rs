//! What can be set, with its default.

use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Options {
    /// Where other nodes will reach this one.
    pub address: String,
    /// How long a lease lasts; renewed after a third of it.
    pub lease_ttl: Duration,
    /// How long an attempt that may be with a worker waits for him to say so, after its execution got
    /// another owner.
    pub reconnect_grace: Duration,
    /// An attempt that has been with a worker for this long is recorded as started. That write is also how a
    /// node learns that a command has made another one the owner, and speaks for its worker: keep this at
    /// a quarter of the shortest `reconnect_grace` of all nodes at most, or the new owner may hand the
    /// attempt out a second time.
    pub record_start_after: Duration,
    /// A task whose workers here are all busy may go to idle workers of another node after this time.
    pub overflow_after: Duration,
    /// How often nodes exchange what workers wait for, and look for tasks that others have given away;
    /// once a second where a node is alone.
    pub claim_interval: Duration,
    /// How long a claimed task is this node's alone.
    pub claim_lease: Duration,
    /// How often executions that others may have moved on are looked at.
    pub head_interval: Duration,
    /// How often executions of nodes that died are looked for.
    pub adopt_interval: Duration,
    /// Waits that are longer leave memory.
    pub sleep_horizon: Duration,
    /// Transitions in one commit.
    pub batch_transitions_max: usize,
    /// Bytes in one commit, of all that it writes. It is reached by the last transition that goes in.
    pub batch_bytes_max: usize,
    /// Events that are decided for one commit, and again for one call that starts executions under keys. It
    /// is reached by the last transition that goes in. The rest is decided after that commit; in between the
    /// node renews its lease and takes in results. So a flush decides for at most about 20 ms: the dearest
    /// events take 1.2 µs each on a quiet core (`cargo bench -p recoup-core -- full_transition`), 4 µs on a
    /// busy one, and are encoded besides. Default: 5,000.
    pub batch_events_max: usize,
    /// Executions in memory; starts beyond are refused for the moment.
    pub executions_max: usize,
    /// About how many bytes the states in memory may take: starts beyond are refused for the moment, and no
    /// more executions are taken over or woken. Default: 1 GiB.
    pub resident_bytes_max: usize,
    /// Commands that wait for one execution.
    pub inbox_max: usize,
    /// Tasks of one queue in memory; more go to the overflow.
    pub queue_max: usize,
    /// Pause before a commit is sent again that failed or whose outcome is unknown; it doubles up to 16 times that.
    pub commit_retry: Duration,
    /// How long callers wait for a store that takes nothing, before they are told so; then the node also
    /// counts as unable to write. Default: 5 s.
    pub commit_wait: Duration,
    #[cfg(feature = "mutants")]
    pub mutant: Option<Mutant>,
    /// A decision about such a command panics, as a defect of the rules would make it.
    #[cfg(feature = "mutants")]
    pub panics: Option<fn(&recoup_core::command::Command) -> bool>,
}

/// Defects that the simulation must find.
#[cfg(feature = "mutants")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    ReplyBeforeCommit,
    NoReloadAfterLostLease,
    UnknownOutcomeNotSettled,
    RepeatedHandOutCounts,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            address: String::new(),
            lease_ttl: Duration::from_secs(6),
            reconnect_grace: Duration::from_secs(5),
            record_start_after: Duration::from_secs(1),
            overflow_after: Duration::from_millis(500),
            claim_interval: Duration::from_millis(100),
            claim_lease: Duration::from_secs(10),
            head_interval: Duration::from_millis(200),
            adopt_interval: Duration::from_secs(1),
            sleep_horizon: Duration::from_secs(60),
            batch_transitions_max: 2000,
            batch_bytes_max: 16 << 20,
            batch_events_max: 5_000,
            executions_max: 200_000,
            resident_bytes_max: 1 << 30,
            inbox_max: 1000,
            queue_max: 20_000,
            commit_retry: Duration::from_millis(50),
            commit_wait: Duration::from_secs(5),
            #[cfg(feature = "mutants")]
            mutant: None,
            #[cfg(feature = "mutants")]
            panics: None,
        }
    }
}

#[cfg(feature = "mutants")]
impl Options {
    pub(crate) fn has(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }
}
