//! One connection of a lane, with the statements that it has prepared.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::join_all;
use recoup_core::time::Timestamp;
use tokio::task::JoinHandle;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, Statement};

use super::error::Failure;
use super::reached::{self, Reached};
use super::value::At;
use crate::contract::{Error, Result};

/// The settings of every connection, through either driver. A transaction whose client went silent must not
/// keep its locks, because the batch that is sent again waits for them.
pub(super) const SETTINGS: &str = "
    set search_path = recoup;
    set default_transaction_isolation = 'read committed';
    set default_transaction_read_only = off;
    set synchronous_commit = on;
    set idle_in_transaction_session_timeout = '2s';
    set tcp_keepalives_idle = 5;
    set tcp_keepalives_interval = 2;
    set tcp_keepalives_count = 3;
    set client_min_messages = warning;
    set jit = off";

/// The settings of the connection that commits. Plans are made once and use indexes, whatever the statistics
/// say about tables that start empty.
const COMMIT_SETTINGS: &str = "
    set plan_cache_mode = force_generic_plan;
    set enable_seqscan = off;
    set enable_hashjoin = off;
    set enable_mergejoin = off;
    set enable_bitmapscan = off";

/// The number of prepared statements that are kept. Statements with a fixed text are few, but those that are
/// built from filters are not.
const STATEMENTS_MAX: usize = 256;

/// Identifies the server process of a connection, for as long as that process lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Backend {
    pub pid: i32,
    pub started_at: At,
}

pub(super) struct LaneSession {
    client: Client,
    statements: HashMap<String, Statement>,
    backend: Backend,
    opened_at: Timestamp,
    /// The number of the server, among those that were reached.
    number: u64,
    /// The task that drives the connection. Aborting it closes the connection even if the server has stopped
    /// answering.
    driver: JoinHandle<()>,
}

pub(super) type Parameters<'a> = Vec<&'a (dyn ToSql + Sync)>;
/// A statement and its parameters.
pub(super) type Call<'a> = (&'static str, Parameters<'a>);

impl Drop for LaneSession {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl LaneSession {
    pub async fn open(
        reached: &Reached,
        lock_timeout: Duration,
        timeout: Duration,
    ) -> Result<Self> {
        let opened = tokio::time::timeout(timeout, Self::connect(reached, lock_timeout));
        match opened.await {
            Ok(opened) => Ok(opened?),
            Err(_) => Err(Error::Unavailable("could not connect to Postgres in time".into())),
        }
    }

    async fn connect(reached: &Reached, lock_timeout: Duration) -> Result<Self, Failure> {
        let target = reached.target();
        let (client, connection) = target.config.connect(target.connector.clone()).await?;
        let driver = tokio::spawn(async move {
            // Callers that wait for an answer get this error anyway; the line is for readers of the log.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to Postgres ended");
            }
        });
        let mut session = Self {
            client,
            statements: HashMap::new(),
            backend: Backend { pid: 0, started_at: At(Timestamp::default()) },
            opened_at: Timestamp::default(),
            number: 0,
            driver,
        };
        let lock_timeout_ms = lock_timeout.as_millis();
        session.client.batch_execute(SETTINGS).await?;
        session.client.batch_execute(&format!("set lock_timeout = {lock_timeout_ms}")).await?;
        session.client.batch_execute(COMMIT_SETTINGS).await?;
        session.number = reached.set(reached::identity_of(&session.client).await?);
        const IDENTITY: &str = "
            select pid, backend_start, clock_timestamp() from pg_stat_activity
            where pid = pg_backend_pid()";
        let row = session.client.query_one(IDENTITY, &[]).await?;
        session.backend = Backend { pid: row.try_get(0)?, started_at: row.try_get(1)? };
        session.opened_at = row.try_get::<_, At>(2)?.0;
        Ok(session)
    }

    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// The database's clock when the connection was opened.
    pub fn opened_at(&self) -> Timestamp {
        self.opened_at
    }

    /// Changes when another server is reached; see [`Reached::number`].
    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Runs statements that are used only once. They take no parameters, and several can be sent together.
    pub async fn run(&self, sql: &str) -> Result<(), Failure> {
        Ok(self.client.batch_execute(sql).await?)
    }

    pub async fn query(
        &mut self,
        sql: impl AsRef<str>,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Failure> {
        let statement = self.prepare(sql.as_ref()).await?;
        Ok(self.client.query(&statement, parameters).await?)
    }

    pub async fn execute(
        &mut self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, Failure> {
        let statement = self.prepare(sql).await?;
        Ok(self.client.execute(&statement, parameters).await?)
    }

    /// Sends all calls in order before it awaits the answers. This takes one round trip, and one more to
    /// prepare each statement that is used for the first time.
    pub async fn pipeline(&mut self, calls: &[Call<'_>]) -> Result<Vec<Vec<Row>>, Failure> {
        let mut statements = Vec::with_capacity(calls.len());
        for (sql, _) in calls {
            statements.push(self.prepare(sql).await?);
        }
        // Each call is sent when its future is first polled.
        let answers = calls
            .iter()
            .zip(&statements)
            .map(|((_, parameters), statement)| self.client.query(statement, parameters));
        // All answers are awaited, because after an error the later calls fail only as a consequence of it, and
        // the order in which answers arrive is random.
        let answers = join_all(answers).await;
        Ok(answers.into_iter().collect::<Result<_, _>>()?)
    }

    async fn prepare(&mut self, sql: &str) -> Result<Statement, Failure> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(sql).await?;
        if self.statements.len() >= STATEMENTS_MAX {
            self.statements.clear();
        }
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }
}
