//! The store on Postgres, over tokio-postgres alone.
//!
//! Commits go through one connection per node (`lane`); everything else through a small pool. A
//! commit is one transaction in one round trip, and settles row by row only if something stood in its
//! way. What every statement relies on is READ COMMITTED, which each connection pins.

mod commit;
mod error;
mod executions;
mod feed;
mod filtered;
mod keyed;
mod lane;
mod migrate;
mod mutation;
mod nodes;
mod overflow;
mod partition;
mod pool;
mod quarantine;
mod registry;
mod retention;
mod rows;
mod session;
mod value;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use uuid::Uuid;

use crate::contract::{Error, NodeId, Result};
use crate::format::Formats;
use error::Failure;
use lane::Lane;
use pool::Pool;
use session::Session;

#[derive(Clone, Debug)]
pub struct Options {
    /// Connections beside those that commit or keep the lease; 8 by default.
    pub pool_size: usize,
    /// 5 s by default.
    pub connect_timeout: Duration,
    /// When a commit without an answer is given up, its outcome unknown; 10 s by default.
    pub commit_timeout: Duration,
    /// When any other statement without an answer is given up; 30 s by default. What retention and
    /// migrations do may take longer.
    pub answer_timeout: Duration,
    /// When a statement that waits for a lock is given up; 5 s by default.
    pub lock_timeout: Duration,
    /// Start times that one partition of histories covers; a day by default.
    pub partition_width: Duration,
    /// How many partitions are made ahead of the one in use; 3 by default.
    pub partitions_ahead: u32,
    /// Starts even on a server that may lose what it has acknowledged.
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
    /// The newest that are read.
    formats: Formats,
}

struct Inner {
    options: Options,
    pool: Pool,
    /// For the lease alone: whatever else is asked, and however long it takes, must not cost it.
    leases: Pool,
    lanes: Mutex<HashMap<NodeId, Arc<Lane>>>,
    counts: Counters,
}

/// How often a commit ended in each way, since the store was connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Batches that nothing stood in the way of.
    pub at_once: u64,
    /// Batches that were settled row by row.
    pub settled: u64,
    /// Transitions of those that an earlier copy had committed: known by their id.
    pub found_committed: u64,
    /// Batches written whole after a commit without an answer.
    pub written_again: u64,
    /// After a commit without an answer, its server process lived and was ended…
    pub backends_terminated: u64,
    /// …or was gone already.
    pub backends_gone: u64,
    /// Ranges of histories that were replaced by what must stay.
    pub ranges_replaced: u64,
    /// The longest time that the tables of histories were locked to replace one, in microseconds.
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

/// Whether a connection string can be used, without connecting.
///
/// # Errors
/// [`Error::Incompatible`] if it cannot be read, or asks for encryption.
pub fn check_url(url: &str) -> Result<()> {
    session::config(url, Options::default().connect_timeout).map(drop)
}

impl PostgresStore {
    /// Connects, brings the schema up to date and makes partitions ahead. `url` is a connection string
    /// of libpq, without encryption.
    ///
    /// [`Error::Incompatible`] if the schema is of a newer binary or was changed, and if the server
    /// does not keep what it acknowledges (`fsync`, `full_page_writes` or `synchronous_commit` is
    /// off), unless [`Options::allow_unsafe_durability`] is set.
    pub async fn connect(url: &str, options: Options) -> Result<Self> {
        let config = session::config(url, options.connect_timeout)?;
        let pool = Pool::new(config.clone(), options.pool_size, &options);
        let leases = Pool::new(config, 1, &options);
        let mut session = pool.take().await?;
        session.set_patience(Duration::MAX);
        if !options.allow_unsafe_durability {
            check_durability(&mut session).await?;
        }
        migrate::migrate(&mut session).await?;
        drop(session);
        let lanes = Mutex::default();
        let inner = Arc::new(Inner { options, pool, leases, lanes, counts: Counters::default() });
        inner.incarnation().await?;
        inner.make_partitions().await?;
        Ok(Self { inner, formats: Formats::NEWEST })
    }

    /// The same store, as a binary has it that reads formats up to these.
    #[must_use]
    pub fn reading(&self, formats: Formats) -> Self {
        Self { formats, ..self.clone() }
    }

    /// Makes the lane of a node go on behind this number, as if its clock had been ahead.
    #[cfg(feature = "conformance")]
    pub fn set_lane(&self, node: NodeId, last: i64) {
        self.inner.lane(node).pass(last);
    }

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

/// The name of this life of this database, if it has one.
const NAME: &str = "
    select store.incarnation
    from store, pg_database as here
    where here.datname = current_database()
        and store.database_oid = here.oid::int8
        and store.table_oid = 'recoup.store'::regclass::oid::int8
        and store.system_identifier = (select system_identifier from pg_control_system())";
const RENAME: &str = "
    update store set incarnation = gen_random_uuid(), database_oid = here.oid::int8,
        table_oid = 'recoup.store'::regclass::oid::int8,
        system_identifier = control.system_identifier
    from pg_database as here, pg_control_system() as control
    where here.datname = current_database()
        and (store.database_oid, store.table_oid, store.system_identifier)
            is distinct from (here.oid::int8, 'recoup.store'::regclass::oid::int8,
                control.system_identifier)";

impl Inner {
    fn lane(&self, node: NodeId) -> Arc<Lane> {
        let mut lanes = self.lanes.lock().expect("nothing panics while it is held");
        Arc::clone(lanes.entry(node).or_insert_with(|| Arc::new(Lane::new(node))))
    }

    /// Of this life of this database. A dump that was restored has the row of the old one, in another
    /// place: the first to look gives it a new name.
    async fn incarnation(&self) -> Result<Uuid> {
        let mut session = self.pool.take().await?;
        self.incarnation_by(&mut session).await
    }

    async fn incarnation_by(&self, session: &mut Session) -> Result<Uuid> {
        let mut rows = session.query(NAME, &[]).await?;
        if rows.is_empty() {
            session.execute(RENAME, &[]).await?;
            rows = session.query(NAME, &[]).await?;
        }
        let row = rows.first().ok_or_else(|| {
            Error::Incompatible("the store has lost the row that names it".into())
        })?;
        Ok(row.try_get(0)?)
    }
}

async fn check_durability(session: &mut Session) -> Result<(), Failure> {
    // The session's own synchronous_commit is on; what the server does by default is what its
    // operator wants.
    const OFF: &str = "
        select name from pg_settings
        where name in ('fsync', 'full_page_writes') and setting = 'off'
            or name = 'synchronous_commit' and reset_val = 'off'
        order by name";
    let off = session.query(OFF, &[]).await?;
    let off: Vec<String> = off.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    if off.is_empty() {
        return Ok(());
    }
    let reason = format!("the server may lose what it acknowledged: {} is off", off.join(", "));
    Err(Error::Incompatible(reason).into())
}
