//! The embedded store: one SQLite database in a folder of its own, which one process has open.
//!
//! One thread writes. Whatever queued while the last transaction ran goes into the next one, which is
//! synced once: that is the group commit. Two more threads read from snapshots of their own, so that
//! no read waits behind a commit and no commit behind a read.
//!
//! What is answered is on disk: `synchronous = full`, and no answer before `commit` returned.

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

/// Of a database that is made anew. A commit writes each page that it changes whole, and a lone execution
/// changes a few bytes in each of some twenty pages: half of SQLite's usual size writes a third less. Smaller ones
/// would write less still, and take more work in a full batch, which then changes more of them.
const PAGE_BYTES: i64 = 2048;
/// Pages that the writer keeps, 16 MiB of them: what is not there is mapped, or in the cache of the system. No
/// more, because SQLite looks through all that it keeps at a commit that has split a page.
const CACHE_PAGES: i64 = (16 << 20) / PAGE_BYTES;
/// Pages in the write-ahead log, 16 MiB of them, before they are copied into the database.
const CHECKPOINT_PAGES: i64 = (16 << 20) / PAGE_BYTES;

/// A handle; clones share the same store. The last one that goes waits until what was queued is
/// written.
#[derive(Clone)]
pub struct SqliteStore {
    inner: Arc<Inner>,
    /// The newest that are read.
    formats: Formats,
}

/// Fields go in this order: the writer comes last to the database, so that it finds nobody else when
/// it copies the log into it, and the folder is released when nothing uses it any more.
struct Inner {
    readers: Readers,
    writer: Writer,
    /// May go back. What is written has times that do not: see [`Write::now`].
    clock: Clock,
    incarnation: Uuid,
    /// What the nodes of this process have published of their workers.
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
    /// Opens the store in a folder, which is made, for its owner alone, if there is none.
    ///
    /// [`crate::Error::InUse`] if another process, or another handle that is no clone, has it open;
    /// [`crate::Error::Incompatible`] if a newer binary wrote it, or it is damaged. All leases of earlier
    /// processes are closed: nobody else can be alive.
    pub fn open(folder: &Path) -> Result<Self> {
        Self::open_with_clock(folder, Arc::new(system_now))
    }

    /// The same on another clock, for tests. Times that are written never go back, though it may.
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

    /// The same store, as a binary has it that reads formats up to these.
    #[must_use]
    pub fn reading(&self, formats: Formats) -> Self {
        Self { formats, ..self.clone() }
    }

    /// Makes every lane go on behind this number, as if the clock had been ahead: one writer numbers
    /// them all.
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

    /// In the next transaction. `work` may be run more than once, each time from the beginning: what
    /// it wrote before was rolled back.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnMut(&mut Write<'_>) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T> {
        self.inner.writer.write(work).await
    }

    /// In one snapshot of what is committed.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T> {
        self.inner.readers.read(work).await
    }
}

struct Opened {
    incarnation: Uuid,
    /// The greatest feed number that was ever given out.
    last_number: i64,
}

fn connect(database: &Path, flags: OpenFlags) -> Result<Connection, Failure> {
    // Every connection belongs to one thread.
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(database, flags)?;
    connection.set_prepared_statement_cache_capacity(128);
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.execute_batch("pragma temp_store = memory; pragma mmap_size = 268435456;")?;
    Ok(connection)
}

fn prepare(connection: &mut Connection, folder: &Folder, now: Timestamp) -> Result<Opened> {
    let mut prepared = || -> Result<Opened, Failure> {
        // Before the database is written for the first time; after that it changes nothing.
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
