//! The settings of an engine, with their defaults.

use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Options {
    /// The address at which other nodes will reach this one. Default: empty.
    pub address: String,
    /// How long a lease lasts. It is renewed after a third of that time. Default: 6 s.
    pub lease_ttl: Duration,
    /// How long an attempt that may be with a worker waits for that worker to report it, after its execution
    /// got another owner. Default: 5 s.
    pub reconnect_grace: Duration,
    /// An attempt that has been with a worker for this long is recorded as started. By that write, a node
    /// also learns that a command to another node has made that node the owner, and takes the execution back
    /// on behalf of its worker. So this must be at most a quarter of the shortest `reconnect_grace` of all
    /// nodes, or the new owner may hand the attempt out a second time. Default: 1 s.
    pub record_start_after: Duration,
    /// How long a task whose workers on this node are all busy waits before idle workers of another node may
    /// take it. Default: 500 ms.
    pub overflow_after: Duration,
    /// How often nodes exchange what their workers wait for and look for tasks that other nodes have given
    /// away. A node that is alone does so once a second. Default: 100 ms.
    pub claim_interval: Duration,
    /// How long a claimed task is reserved for the node that claimed it. Default: 10 s.
    pub claim_lease: Duration,
    /// How often the store is asked about executions that other nodes may have changed. Default: 200 ms.
    pub head_interval: Duration,
    /// How often the node looks for executions of nodes that have died. Default: 1 s.
    pub adopt_interval: Duration,
    /// An execution that has nothing to do for longer than this leaves memory. Default: 60 s.
    pub sleep_horizon: Duration,
    /// The most transitions in one commit. Default: 2,000.
    pub batch_transitions_max: usize,
    /// The most bytes in one commit, counting everything that it writes. The last transition that is added
    /// may exceed it. Default: 16 MiB.
    pub batch_bytes_max: usize,
    /// The most events that are decided for one commit, and again for one call that starts executions under
    /// keys. The last transition that is added may exceed it. The rest is decided after that commit; in
    /// between, the node renews its lease and takes in results. So one flush decides for at most about 20 ms:
    /// the most expensive events take 1.2 µs each on a quiet core
    /// (`cargo bench -p recoup-core -- full_transition`) and 4 µs on a busy one, plus encoding. Default: 5,000.
    pub batch_events_max: usize,
    /// The most executions in memory. Further starts are refused for the time being. Default: 200,000.
    pub executions_max: usize,
    /// About how many bytes the states in memory may take. Beyond that, starts are refused for the time
    /// being, and no more executions are adopted or woken. Default: 1 GiB.
    pub resident_bytes_max: usize,
    /// The most commands that may wait for one execution. Default: 1,000.
    pub inbox_max: usize,
    /// The most tasks of one queue in memory. Further tasks go to the overflow. Default: 20,000.
    pub queue_max: usize,
    /// The pause before a commit that failed or whose outcome is unknown is sent again. It doubles with each
    /// failure, up to 16 times this value. Default: 50 ms.
    pub commit_retry: Duration,
    /// How long callers wait for a store that does not respond before they are answered with an error. After
    /// that time the node also counts as unable to write. Default: 5 s.
    pub commit_wait: Duration,
    #[cfg(feature = "mutants")]
    pub mutant: Option<Mutant>,
    /// Decisions about these commands panic, as they would because of a defect in the rules.
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
