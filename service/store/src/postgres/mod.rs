//! The store on Postgres. It uses two drivers.
//!
//! Commits go through one connection per node (`lane`), over tokio-postgres, which sends all statements of a
//! transaction before it awaits the first answer. Everything else goes through small pools of sqlx
//! (`connection`), which checks queries against the schema at compile time. One parser reads the connection
//! string for both drivers (`target`), and each new connection must lead to the server that the lane has
//! reached (`reached`).
//!
//! A commit is one transaction in one round trip. It is settled row by row only if something stood in its way.
//! Every statement relies on READ COMMITTED, which each connection sets explicitly.

mod at_once;
mod commit;
mod connection;
mod error;
mod executions;
mod feed;
mod filtered;
mod hold;
mod incarnation;
mod keyed;
mod lane;
mod migrate;
mod mutation;
mod namespaces;
mod nodes;
mod numbers;
mod overflow;
mod partition;
mod quarantine;
mod reached;
mod registry;
mod retention;
mod rows;
mod savepoint;
mod session;
mod subscriptions;
mod target;
mod tls;
mod transaction;
mod value;
mod workflows;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use uuid::Uuid;

use crate::contract::{Error, NodeId, Result};
use crate::format::Formats;
use connection::{Connection, Connections, Limits};
use error::Failure;
use lane::Lane;
use reached::{Probe, Reached};
use target::Target;

/// One connection for each of the two callers.
const RETENTION_CONNECTIONS: usize = 2;
/// How long an answer may take when retention searches many rows to find a few, or copies histories.
const RETENTION_PATIENCE: Duration = Duration::from_secs(600);

/// Sizes and time limits of the connections, and of the partitions of histories.
#[derive(Clone, Debug)]
pub struct Options {
    /// The number of connections besides those that commit, renew the lease or serve retention. Default: 8.
    pub pool_size: usize,
    /// How long opening a connection may take. Default: 5 s.
    pub connect_timeout: Duration,
    /// After how long a commit without an answer is given up, with an unknown outcome. Default: 10 s.
    pub commit_timeout: Duration,
    /// After how long any other statement without an answer is given up. Default: 30 s. Statements of retention
    /// may take ten minutes, and a migration as long as it needs.
    pub answer_timeout: Duration,
    /// After how long a statement that waits for a lock is given up. Default: 5 s.
    pub lock_timeout: Duration,
    /// The span of start times that one partition of histories covers. Default: one day.
    pub partition_width: Duration,
    /// How many partitions are created ahead of the current one. Default: 3.
    pub partitions_ahead: u32,
    /// Accept a server that may lose writes that it has acknowledged. Default: false.
    pub allow_unsafe_durability: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pool_size: 8,
            connect_timeout: Duration::from_secs(5),
            commit_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(30),
            lock_timeout: Duration::from_secs(5),
            partition_width: Duration::from_secs(24 * 3600),
            partitions_ahead: 3,
            allow_unsafe_durability: false,
        }
    }
}

/// A handle; clones share the same connections.
#[derive(Clone)]
pub struct PostgresStore {
    inner: Arc<Inner>,
    /// The newest formats that this handle reads.
    formats: Formats,
}

struct Inner {
    options: Options,
    reached: Arc<Reached>,
    /// For everything that has no connections of its own.
    connections: Connections,
    /// For the lease alone, so that other calls, however long they take, cannot cost the node its lease.
    leases: Connections,
    /// For retention and partitions, whose statements may take long.
    retention: Connections,
    lanes: Mutex<HashMap<NodeId, Arc<Lane>>>,
    counts: Counters,
}

/// How commits have ended since the store was connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Batches that were committed in the first try, because nothing stood in their way.
    pub at_once: u64,
    /// Batches that were settled row by row.
    pub settled: u64,
    /// Transitions in those batches that an earlier copy had already committed, recognised by their id.
    pub found_committed: u64,
    /// Batches that were written as a whole after a commit without an answer.
    pub written_again: u64,
    /// Unanswered commits whose server process was still alive and was terminated.
    pub backends_terminated: u64,
    /// Unanswered commits whose server process was gone already.
    pub backends_gone: u64,
    /// Ranges of histories that were replaced by the rows that had to stay.
    pub ranges_replaced: u64,
    /// The longest time for which the history tables were locked to replace a range, in microseconds.
    pub replace_us_max: u64,
}

#[derive(Default)]
struct Counters {
    at_once: AtomicU64,
    settled: AtomicU64,
    found_committed: AtomicU64,
    written_again: AtomicU64,
    backends_terminated: AtomicU64,
    backends_gone: AtomicU64,
    ranges_replaced: AtomicU64,
    replace_us_max: AtomicU64,
}

impl std::fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresStore")
            .field("options", &self.inner.options)
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

/// Checks whether a connection string can be used, without connecting.
///
/// # Errors
/// [`Error::Incompatible`] if it cannot be read, or asks for something that is not supported.
pub fn check_url(url: &str) -> Result<()> {
    Target::parse(url, Options::default().connect_timeout).map(drop)
}

impl PostgresStore {
    /// Connects, brings the schema up to date and creates partitions ahead of time. `url` is a connection
    /// string in either of libpq's two forms.
    ///
    /// [`Error::Incompatible`] if the schema belongs to a newer binary or was changed. Also if the server may
    /// lose what it acknowledges (`fsync`, `full_page_writes` or `synchronous_commit` is off), unless
    /// [`Options::allow_unsafe_durability`] is set.
    pub async fn connect(url: &str, options: Options) -> Result<Self> {
        let target = Target::parse(url, options.connect_timeout)?;
        let (connect, lock) = (options.connect_timeout, options.lock_timeout);
        let reached = Arc::new(Reached::new(target, connect));
        // Connects with both drivers, so that a problem with either one is reported now.
        let mut connection = Connection::open(&reached, lock, connect).await?;
        let probe = Probe::open(&reached).await?;
        probe.check_sessions(&mut connection).await?;
        reached::check_primary(&mut connection).await?;
        if !options.allow_unsafe_durability {
            check_durability(&mut connection).await?;
        }
        migrate::migrate(&mut connection).await?;
        incarnation::incarnation(&mut connection).await?;
        reached.set(probe.identity().await?);
        let identity = reached::identity(&mut connection).await?;
        reached.check(identity).await?;
        drop((connection, probe));

        let pool = |size: usize, patience: Duration| {
            Connections::new(&reached, Limits { size, acquire: connect, patience, lock })
        };
        let connections = pool(options.pool_size, options.answer_timeout);
        let leases = pool(1, options.answer_timeout);
        let retention = pool(RETENTION_CONNECTIONS, RETENTION_PATIENCE);
        let (lanes, counts) = (Mutex::default(), Counters::default());
        let inner = Inner { options, reached, connections, leases, retention, lanes, counts };
        inner.make_partitions().await?;
        Ok(Self { inner: Arc::new(inner), formats: Formats::NEWEST })
    }

    /// The same store as seen by a binary that reads only these formats and older ones.
    #[must_use]
    pub fn reading(&self, formats: Formats) -> Self {
        Self { formats, ..self.clone() }
    }

    /// Advances the lane of a node past this number, as if the node's clock had been ahead.
    #[cfg(feature = "conformance")]
    pub fn set_lane(&self, node: NodeId, last: i64) {
        self.inner.lane(node).pass(last);
    }

    /// Makes the pools open new connections, as if one of their connections had broken.
    #[cfg(feature = "conformance")]
    pub fn suspect_idle(&self) {
        self.inner.reached.suspect_idle();
    }

    /// The current counts; see [`Counts`].
    pub fn counts(&self) -> Counts {
        let counts = &self.inner.counts;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counts {
            at_once: read(&counts.at_once),
            settled: read(&counts.settled),
            found_committed: read(&counts.found_committed),
            written_again: read(&counts.written_again),
            backends_terminated: read(&counts.backends_terminated),
            backends_gone: read(&counts.backends_gone),
            ranges_replaced: read(&counts.ranges_replaced),
            replace_us_max: read(&counts.replace_us_max),
        }
    }
}

impl Inner {
    fn lane(&self, node: NodeId) -> Arc<Lane> {
        let mut lanes = self.lanes.lock().expect("nothing panics while it is held");
        Arc::clone(lanes.entry(node).or_insert_with(|| Arc::new(Lane::new(node))))
    }

    /// The incarnation of this database.
    async fn incarnation(&self) -> Result<Uuid> {
        let mut connection = self.connections.take().await?;
        Ok(incarnation::incarnation(&mut connection).await?)
    }
}

async fn check_durability(connection: &mut Connection) -> Result<(), Failure> {
    // The session itself has synchronous_commit on. The server's default shows what its operator wants.
    let off = sqlx::query_scalar!(
        r#"
        select name as "name!" from pg_settings
        where name in ('fsync', 'full_page_writes') and setting = 'off'
            or name = 'synchronous_commit' and reset_val = 'off'
        order by name"#
    );
    let off = connection.all(off).await?;
    if off.is_empty() {
        return Ok(());
    }
    let reason =
        format!("the server may lose writes that it has acknowledged: {} is off", off.join(", "));
    Err(Error::Incompatible(reason).into())
}
