//! The one thread that writes, and its transactions.
//!
//! | a piece of work | then |
//! | --- | --- |
//! | succeeds, or finds its answer before it writes | the next one goes into the same transaction |
//! | is refused by a constraint | everything is rolled back and run again with savepoints: only the culprit is refused |
//! | meets a full disk or another failure of the machine | everything is rolled back and answered with that error |
//! | has succeeded, but the commit fails with an I/O error | everything is answered with [`Error::OutcomeUnknown`]: the commit may have taken effect |
//!
//! The first run sets no savepoints. The second run sets one for each piece of work and for each transition in it.

use std::thread::JoinHandle;

use recoup_core::time::Timestamp;
use rusqlite::{CachedStatement, Connection};
use tokio::sync::{mpsc, oneshot};

use super::clock::Clock;
use super::error::Failure;
use crate::contract::{Error, NodeId, Result};

/// The maximum number of queued pieces of work. A caller that comes when the queue is full waits.
const QUEUE_MAX: usize = 1024;
/// The maximum number of pieces of work in one transaction.
const GROUP_MAX: usize = 256;

pub(super) struct Writer {
    queue: Option<mpsc::Sender<Box<dyn Job>>>,
    thread: Option<JoinHandle<()>>,
}

/// The state of the running transaction, as its work sees it.
pub(super) struct Write<'a> {
    connection: &'a Connection,
    /// The time of the whole transaction.
    pub now: Timestamp,
    last_number: &'a mut i64,
    careful: bool,
}

impl Writer {
    pub fn start(connection: Connection, last_number: i64, clock: Clock) -> Result<Self> {
        let (queue, jobs) = mpsc::channel(QUEUE_MAX);
        let run = move || Thread { connection, last_number, clock }.run(jobs);
        let thread = std::thread::Builder::new().name("recoup-writer".into()).spawn(run);
        let thread = thread.map_err(|error| Error::Unavailable(error.to_string()))?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    pub async fn write<T: Send + 'static>(
        &self,
        work: impl FnMut(&mut Write<'_>) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T> {
        let stopped = || Error::Unavailable("the writer has stopped".into());
        let (reply, answer) = oneshot::channel();
        let job = Box::new(Work { work, outcome: None, reply });
        let queue = self.queue.as_ref().ok_or_else(stopped)?;
        queue.send(job).await.map_err(|_| stopped())?;
        // The thread may have stopped while it was running this work.
        answer.await.unwrap_or_else(|_| Err(Error::OutcomeUnknown("the writer stopped".into())))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // An error means that the thread panicked. The callers that were waiting have received an error
            // already.
            let _ = thread.join();
        }
    }
}

/// A piece of work, without its type.
trait Job: Send {
    /// Runs the work and keeps its answer. Returns only an error that the work cannot answer by itself.
    fn run(&mut self, write: &mut Write<'_>) -> Result<(), Failure>;

    fn refuse(&mut self, error: Error);

    /// Sends the answer after the commit, or the reason why there was none.
    fn answer(self: Box<Self>, committed: Result<()>);
}

struct Work<T, F> {
    work: F,
    outcome: Option<Result<T>>,
    reply: oneshot::Sender<Result<T>>,
}

impl<T: Send, F: FnMut(&mut Write<'_>) -> Result<T, Failure> + Send> Job for Work<T, F> {
    fn run(&mut self, write: &mut Write<'_>) -> Result<(), Failure> {
        self.outcome = Some(match (self.work)(write) {
            Ok(value) => Ok(value),
            Err(Failure::Answer(error)) => Err(error),
            Err(failure) => return Err(failure),
        });
        Ok(())
    }

    fn refuse(&mut self, error: Error) {
        self.outcome = Some(Err(error));
    }

    fn answer(self: Box<Self>, committed: Result<()>) {
        let outcome = self.outcome.expect("whatever is committed was run");
        // The caller may have gone.
        let _ = self.reply.send(committed.and(outcome));
    }
}

struct Thread {
    connection: Connection,
    last_number: i64,
    clock: Clock,
}

impl Thread {
    fn run(mut self, mut jobs: mpsc::Receiver<Box<dyn Job>>) {
        let mut group = Vec::new();
        while jobs.blocking_recv_many(&mut group, GROUP_MAX) > 0 {
            let committed = self.transaction(&mut group);
            for mut job in group.drain(..) {
                let committed = match &committed {
                    Ok(()) => Ok(()),
                    Err(error) => {
                        job.refuse(copy(error));
                        Err(copy(error))
                    }
                };
                job.answer(committed);
            }
        }
        let checkpointed = self.connection.pragma_update(None, "wal_checkpoint", "truncate");
        if let Err(error) = checkpointed {
            tracing::warn!(%error, "the log was not copied into the database; the next start does so");
        }
    }

    fn transaction(&mut self, group: &mut [Box<dyn Job>]) -> Result<()> {
        let done = match self.attempt(group, false) {
            Err(Stopped::Before(failure)) if failure.refused().is_some() => {
                self.attempt(group, true)
            }
            done => done,
        };
        done.map_err(|stopped| {
            let (Stopped::Before(failure) | Stopped::AtCommit(failure)) = &stopped;
            if failure.is_full() {
                tracing::error!(error = %failure, "the disk of the database is full: nothing is written");
            } else {
                tracing::warn!(error = %failure, "a transaction failed");
            }
            match stopped {
                // Whether the commit took effect is decided when the log is read the next time, by how much of
                // it has reached the disk.
                Stopped::AtCommit(failure) => Error::OutcomeUnknown(failure.to_string()),
                Stopped::Before(failure) => failure.into(),
            }
        })
    }

    fn attempt(&mut self, group: &mut [Box<dyn Job>], careful: bool) -> Result<(), Stopped> {
        let mut write = Write {
            connection: &self.connection,
            now: (self.clock)(),
            last_number: &mut self.last_number,
            careful,
        };
        let done = write.all(group);
        let done = done.map_err(Stopped::Before).and_then(|()| {
            write.execute("commit", ()).map(drop).map_err(|failure| {
                if is_io(&failure) { Stopped::AtCommit(failure) } else { Stopped::Before(failure) }
            })
        });
        // After some errors SQLite has rolled back already.
        if done.is_err()
            && !self.connection.is_autocommit()
            && let Err(error) = self.connection.execute_batch("rollback")
        {
            tracing::error!(%error, "a transaction could not be rolled back");
        }
        done
    }
}

enum Stopped {
    Before(Failure),
    AtCommit(Failure),
}

fn is_io(failure: &Failure) -> bool {
    let Failure::Sqlite(error) = failure else { return false };
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::SystemIoFailure)
}

/// All callers in the transaction get the same error.
fn copy(error: &Error) -> Error {
    match error {
        Error::OutcomeUnknown(reason) => Error::OutcomeUnknown(reason.clone()),
        Error::Incompatible(reason) => Error::Incompatible(reason.clone()),
        Error::Unavailable(reason) => Error::Unavailable(reason.clone()),
        other => Error::Unavailable(other.to_string()),
    }
}

impl<'a> Write<'a> {
    fn all(&mut self, group: &mut [Box<dyn Job>]) -> Result<(), Failure> {
        self.execute("begin immediate", ())?;
        for job in group {
            let done = self.guarded(|write| job.run(write))?;
            if let Err(reason) = done {
                job.refuse(Error::Data(reason));
            }
        }
        Ok(())
    }

    /// Runs a part that a constraint may refuse. If it is refused, everything it wrote is undone, and the
    /// reason is returned. The first attempt uses no savepoints, so there a refusal ends the whole transaction.
    pub fn guarded<T>(
        &mut self,
        part: impl FnOnce(&mut Self) -> Result<T, Failure>,
    ) -> Result<Result<T, String>, Failure> {
        if !self.careful {
            return part(self).map(Ok);
        }
        self.execute("savepoint part", ())?;
        let done = match part(self) {
            Ok(value) => Ok(value),
            Err(failure) => match failure.refused() {
                Some(reason) => {
                    self.execute("rollback to part", ())?;
                    Err(reason)
                }
                None => return Err(failure),
            },
        };
        self.execute("release part", ())?;
        Ok(done)
    }

    /// Assigns a number to the next event of the feed. It is greater than all earlier numbers of all lanes, and
    /// near the clock.
    pub fn feed_number(&mut self) -> i64 {
        *self.last_number = self.last_number.saturating_add(1).max(self.now.as_micros());
        *self.last_number
    }

    /// Makes all numbers that are assigned from now on greater than `number`.
    #[cfg(feature = "conformance")]
    pub fn pass(&mut self, number: i64) {
        *self.last_number = number.max(*self.last_number);
    }

    /// The connection, which sees the state of this transaction.
    pub fn connection(&self) -> &'a Connection {
        self.connection
    }

    pub fn prepare(&self, sql: &str) -> Result<CachedStatement<'a>, Failure> {
        Ok(self.connection.prepare_cached(sql)?)
    }

    pub fn execute(&self, sql: &str, parameters: impl rusqlite::Params) -> Result<usize, Failure> {
        Ok(self.prepare(sql)?.execute(parameters)?)
    }

    /// [`Error::LeaseLost`] unless the node exists and its lease is open. An expired lease is accepted, because
    /// no other node can have adopted anything without closing it.
    pub fn live(&self, node: NodeId) -> Result<(), Failure> {
        const LIVE: &str = "select 1 from node where id = ?1 and closed_at is null";
        if self.prepare(LIVE)?.exists([node.0])? { Ok(()) } else { Err(Error::LeaseLost.into()) }
    }
}
