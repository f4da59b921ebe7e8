//! The threads that read. Each has its own connection, which cannot write.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use super::error::Failure;
use crate::contract::{Error, Result};

const THREADS: usize = 2;
/// The maximum number of queued reads. A caller that comes when the queue is full waits.
const QUEUE_MAX: usize = 256;

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

pub(super) struct Readers {
    queue: Option<mpsc::Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Readers {
    /// Starts the threads. Each reads through its own connection, which `open` returns.
    pub fn start(open: impl Fn() -> Result<Connection, Failure>) -> Result<Self> {
        let (queue, jobs) = mpsc::channel(QUEUE_MAX);
        let jobs = Arc::new(Mutex::new(jobs));
        let mut readers = Self { queue: Some(queue), threads: Vec::new() };
        for _ in 0..THREADS {
            let connection = open()?;
            let jobs = Arc::clone(&jobs);
            let run = move || run(connection, &jobs);
            let thread = std::thread::Builder::new().name("recoup-reader".into()).spawn(run);
            readers.threads.push(thread.map_err(|error| Error::Unavailable(error.to_string()))?);
        }
        Ok(readers)
    }

    pub async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T> {
        let stopped = || Error::Unavailable("the readers have stopped".into());
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            let in_snapshot = |connection: &mut Connection| -> Result<T, Failure> {
                // The transaction is rolled back when it is dropped. It wrote nothing.
                let transaction = connection.transaction()?;
                work(&transaction)
            };
            // The caller may have gone.
            let _ = reply.send(in_snapshot(connection).map_err(Error::from));
        });
        self.queue.as_ref().ok_or_else(stopped)?.send(job).await.map_err(|_| stopped())?;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }
}

fn run(mut connection: Connection, jobs: &Mutex<mpsc::Receiver<Job>>) {
    loop {
        // One thread waits for the next read while it holds the lock. The others wait for the lock.
        let job = jobs.lock().expect("nothing panics while it is held").blocking_recv();
        match job {
            Some(job) => job(&mut connection),
            None => return,
        }
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.queue = None;
        for thread in self.threads.drain(..) {
            // An error means that the thread panicked. The callers that were waiting have received an error
            // already.
            let _ = thread.join();
        }
    }
}
