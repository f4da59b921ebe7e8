//! The embedded store: one SQLite database in a folder of its own, opened by one process.
//!
//! One thread writes. All work that queued up while the last transaction ran goes into the next one, which is
//! synced once; this is the group commit. Two more threads read from snapshots of their own, so that reads and
//! commits never wait for each other.
//!
//! Everything that was answered is on disk: the database uses `synchronous = full`, and no answer is given
//! before `commit` has returned.

mod clock;
mod commit;
mod error;
mod executions;
mod feed;
mod folder;
mod migrate;
mod namespaces;
mod nodes;
mod overflow;
mod quarantine;
mod reader;
mod registry;
mod retention;
mod subscriptions;
#[cfg(test)]
mod tests;
mod value;
mod workflows;
mod writer;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use recoup_core::time::Timestamp;
use rusqlite::{Connection, OpenFlags};
use uuid::Uuid;

use crate::contract::{IdleCredit, NodeId, Result};
use crate::format::Formats;
pub use clock::Clock;
use clock::{never_back, system_now};
use error::Failure;
use folder::Folder;
use reader::Readers;
use writer::{Write, Writer};

/// The page size of a new database. A commit writes every page that it changes as a whole, and a lone execution
/// changes a few bytes in each of about twenty pages, so half of SQLite's usual page size writes a third less.
/// Smaller pages would write still less, but take more work in a full batch, which then changes more pages.
const PAGE_BYTES: i64 = 2048;
/// The pages that the writer caches, 16 MiB in total. Other pages are memory-mapped or in the cache of the
/// operating system. A larger cache would cost time, because SQLite searches the whole cache in each commit
/// that has split a page.
const CACHE_PAGES: i64 = (16 << 20) / PAGE_BYTES;
/// The pages in the write-ahead log, 16 MiB in total, after which they are copied into the database.
const CHECKPOINT_PAGES: i64 = (16 << 20) / PAGE_BYTES;

/// A handle; clones share the same store. Dropping the last clone waits until everything that was queued is
/// written.
#[derive(Clone)]
pub struct SqliteStore {
    inner: Arc<Inner>,
    /// The newest formats that this handle reads.
    formats: Formats,
}

/// The fields are dropped in this order. The writer's connection must be the last one to the database, so that
/// it is alone when it copies the log into the database. The folder is released once nothing uses it any more.
struct Inner {
    readers: Readers,
    writer: Writer,
    /// This clock may go back. Times that are written do not: see [`Write::now`].
    clock: Clock,
    incarnation: Uuid,
    /// The idle workers that the nodes of this process have published.
    idle: Mutex<BTreeMap<NodeId, Vec<IdleCredit>>>,
    _folder: Folder,
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore")
            .field("incarnation", &self.inner.incarnation)
            .finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Opens the store in a folder, which is created for its owner alone if it does not exist.
    ///
    /// [`crate::Error::InUse`] if another process, or another handle that is not a clone, has it open.
    /// [`crate::Error::Incompatible`] if a newer binary wrote it, or if it is damaged. The leases of all
    /// earlier processes are closed, because no such process can still be alive.
    pub fn open(folder: &Path) -> Result<Self> {
        Self::open_with_clock(folder, Arc::new(system_now))
    }

    /// The same with another clock, for tests. Times that are written never go back, even if this clock does.
    pub fn open_with_clock(folder: &Path, clock: Clock) -> Result<Self> {
        let steady = never_back(clock.clone());
        let folder = Folder::open(folder)?;
        let mut connection = connect(&folder.database(), OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let opened = prepare(&mut connection, &folder, steady())?;
        let read_only = || connect(&folder.database(), OpenFlags::SQLITE_OPEN_READ_ONLY);
        let readers = Readers::start(read_only)?;
        let writer = Writer::start(connection, opened.last_number, steady)?;
        let incarnation = opened.incarnation;
        Ok(Self {
            formats: Formats::NEWEST,
            inner: Arc::new(Inner {
                readers,
                writer,
                clock,
                incarnation,
                idle: Mutex::default(),
                _folder: folder,
            }),
        })
    }

    /// The same store as seen by a binary that reads only these formats and older ones.
    #[must_use]
    pub fn reading(&self, formats: Formats) -> Self {
        Self { formats, ..self.clone() }
    }

    /// Advances all lanes past this number, as if the clock had been ahead. One writer numbers all lanes.
    #[cfg(feature = "conformance")]
    pub async fn set_lanes(&self, last: i64) -> Result<()> {
        let pass = move |write: &mut Write<'_>| {
            write.pass(last);
            Ok(())
        };
        self.write(pass).await
    }

    fn time(&self) -> Timestamp {
        (self.inner.clock)()
    }

    /// Runs `work` in the next transaction. `work` may run more than once, each time from the beginning, after
    /// its earlier writes were rolled back.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnMut(&mut Write<'_>) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T> {
        self.inner.writer.write(work).await
    }

    /// Runs `work` in one snapshot of the committed data.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T> {
        self.inner.readers.read(work).await
    }
}

struct Opened {
    incarnation: Uuid,
    /// The greatest feed number that was ever assigned.
    last_number: i64,
}

fn connect(database: &Path, flags: OpenFlags) -> Result<Connection, Failure> {
    // Each connection is used by one thread only.
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(database, flags)?;
    connection.set_prepared_statement_cache_capacity(128);
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.execute_batch("pragma temp_store = memory; pragma mmap_size = 268435456;")?;
    Ok(connection)
}

fn prepare(connection: &mut Connection, folder: &Folder, now: Timestamp) -> Result<Opened> {
    let mut prepared = || -> Result<Opened, Failure> {
        // Takes effect only before the database is written for the first time.
        connection.pragma_update(None, "page_size", PAGE_BYTES)?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "full")?;
        connection.pragma_update(None, "cache_size", CACHE_PAGES)?;
        connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        migrate::migrate(connection, now)?;
        let session = folder.session();
        let transaction = connection.transaction()?;
        let before: i64 =
            transaction.query_row("select session from store", [], |row| row.get(0))?;
        let is_the_same = before == 0
            || session
                .is_some_and(|session| session == before || session.saturating_add(1) == before);
        if !is_the_same {
            transaction.execute("update store set incarnation = randomblob(16)", [])?;
        }
        transaction.execute("update store set session = session + 1", [])?;
        const CLOSE: &str = "update node set closed_at = ?1 where closed_at is null";
        transaction.execute(CLOSE, [now.as_micros()])?;
        let incarnation: [u8; 16] =
            transaction.query_row("select incarnation from store", [], |row| row.get(0))?;
        const LAST: &str = "
            select max(coalesce((select max(number) from feed), 0),
                coalesce((select max(last_number) from feed_removed), 0))";
        let last_number = transaction.query_row(LAST, [], |row| row.get(0))?;
        transaction.commit()?;
        folder.note_session(before + 1)?;
        Ok(Opened { incarnation: Uuid::from_bytes(incarnation), last_number })
    };
    Ok(prepared()?)
}
