//! Connections for everything but commits: few, and each with one caller at a time.

use std::ops::{Deref, DerefMut};
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_postgres::{Config, NoTls};

use super::Options;
use super::session::{Purpose, Session};
use crate::contract::{Error, Result};

pub(super) struct Pool {
    config: Config,
    lock_timeout: Duration,
    timeout: Duration,
    patience: Duration,
    permits: Semaphore,
    idle: Mutex<Vec<Session>>,
}

/// A connection that goes back when it is dropped, unless it was broken, or left in a transaction or
/// with a statement under way.
pub(super) struct Pooled<'a> {
    pool: &'a Pool,
    session: Option<Session>,
    reusable: bool,
    _permit: SemaphorePermit<'a>,
}

impl Pool {
    pub fn new(config: Config, size: usize, options: &Options) -> Self {
        Self {
            config,
            lock_timeout: options.lock_timeout,
            timeout: options.connect_timeout,
            patience: options.answer_timeout,
            permits: Semaphore::new(size.max(1)),
            idle: Mutex::default(),
        }
    }

    /// Waits for a free connection, at most as long as for a new one.
    pub async fn take(&self) -> Result<Pooled<'_>> {
        let permit = match tokio::time::timeout(self.timeout, self.permits.acquire()).await {
            Ok(permit) => permit.expect("the semaphore is never closed"),
            Err(_) => {
                return Err(Error::Unavailable("all connections to Postgres are in use".into()));
            }
        };
        let mut session = loop {
            let idle = self.idle.lock().expect("nothing panics while it is held").pop();
            match idle {
                Some(session) if session.is_closed() => {}
                Some(session) => break session,
                None => break self.open().await?,
            }
        };
        session.set_patience(self.patience);
        Ok(Pooled { pool: self, session: Some(session), reusable: true, _permit: permit })
    }

    pub async fn open(&self) -> Result<Session> {
        Session::open(&self.config, Purpose::Other, self.lock_timeout, self.timeout).await
    }

    pub fn config(&self) -> &Config {
        &self.config
    }
}

impl Pooled<'_> {
    /// From here on dropping it closes the connection, and so rolls back; see
    /// [`Pooled::committed`].
    pub async fn begin(&mut self) -> Result<()> {
        self.reusable = false;
        Ok(self.run("begin").await?)
    }

    pub async fn committed(mut self) -> Result<()> {
        self.run("commit").await?;
        self.reusable = true;
        Ok(())
    }

    /// If that fails, the connection is closed, with the same outcome.
    pub async fn rolled_back(mut self) {
        self.reusable = self.run("rollback").await.is_ok();
    }

    /// The caller has ended the transaction himself.
    pub fn ended(&mut self) {
        self.reusable = true;
    }
}

impl Deref for Pooled<'_> {
    type Target = Session;

    fn deref(&self) -> &Session {
        self.session.as_ref().expect("is taken by drop alone")
    }
}

impl DerefMut for Pooled<'_> {
    fn deref_mut(&mut self) -> &mut Session {
        self.session.as_mut().expect("is taken by drop alone")
    }
}

impl Drop for Pooled<'_> {
    fn drop(&mut self) {
        let Some(session) = self.session.take().filter(|session| !session.is_closed()) else {
            return;
        };
        if session.is_busy() {
            // The next caller would wait for an answer that nobody wants any more.
            cancel(&session, self.pool.timeout);
        } else if self.reusable {
            self.pool.idle.lock().expect("nothing panics while it is held").push(session);
        }
    }
}

/// Closing the connection alone would leave the server at its work.
fn cancel(session: &Session, within: Duration) {
    let token = session.cancel_token();
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(async move {
            if let Ok(Err(error)) = tokio::time::timeout(within, token.cancel_query(NoTls)).await {
                tracing::debug!(%error, "a statement that nobody waits for goes on");
            }
        });
    }
}
