//! The connections for everything except commits. They are few and pooled, and each has one caller at a time.
//!
//! A connection goes back to its pool when it is dropped. It is closed instead if its state is unknown: if a
//! statement is running whose caller has gone or has given up waiting, if a transaction is open, or if the
//! connection is broken.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnection, PgPoolOptions, PgRow};
use sqlx::query::{Map, Query, QueryScalar};
use sqlx::{ConnectOptions, FromRow, IntoArguments, PgPool, Postgres, SqlSafeStr};
use tokio::time::error::Elapsed;

use super::error::Failure;
use super::reached::{self, Reached};
use super::session::SETTINGS;
use crate::contract::{Error, NodeId, Result};

/// The limits of one pool.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The maximum number of open connections.
    pub size: usize,
    /// How long a caller waits for a connection, including the time to open a new one.
    pub acquire: Duration,
    /// After how long a statement without an answer is given up.
    pub patience: Duration,
    /// After how long a statement that waits for a lock is given up.
    pub lock: Duration,
}

/// A pool of connections, all of which lead to the server that the lane has reached.
pub(super) struct Connections {
    pool: PgPool,
    reached: Arc<Reached>,
    patience: Duration,
}

pub(super) struct Connection {
    /// None once the connection has been dropped.
    live: Option<Live>,
    reached: Arc<Reached>,
    patience: Duration,
    /// A statement is running, or its caller has gone without waiting for the answer.
    is_busy: bool,
    is_open: bool,
    /// The connection must not be used again after this use.
    is_last: bool,
}

enum Live {
    Pooled(PoolConnection<Postgres>),
    Own(PgConnection),
}

/// A query that was checked against the schema at compile time.
pub(super) trait Asked: Send + Sized {
    type Row: Send;

    fn all(
        self,
        connection: &mut PgConnection,
    ) -> impl Future<Output = sqlx::Result<Vec<Self::Row>>> + Send;

    fn first(
        self,
        connection: &mut PgConnection,
    ) -> impl Future<Output = sqlx::Result<Option<Self::Row>>> + Send;
}

impl<F, O, A> Asked for Map<'_, Postgres, F, A>
where
    F: FnMut(PgRow) -> sqlx::Result<O> + Send,
    O: Send + Unpin,
    A: IntoArguments<Postgres> + Send,
{
    type Row = O;

    async fn all(self, connection: &mut PgConnection) -> sqlx::Result<Vec<O>> {
        self.fetch_all(connection).await
    }

    async fn first(self, connection: &mut PgConnection) -> sqlx::Result<Option<O>> {
        self.fetch_optional(connection).await
    }
}

impl<O, A> Asked for QueryScalar<'_, Postgres, O, A>
where
    O: Send + Unpin,
    (O,): for<'r> FromRow<'r, PgRow> + Send + Unpin,
    A: IntoArguments<Postgres> + Send,
{
    type Row = O;

    async fn all(self, connection: &mut PgConnection) -> sqlx::Result<Vec<O>> {
        self.fetch_all(connection).await
    }

    async fn first(self, connection: &mut PgConnection) -> sqlx::Result<Option<O>> {
        self.fetch_optional(connection).await
    }
}

impl Connections {
    /// Opens no connection yet.
    pub fn new(reached: &Arc<Reached>, limits: Limits) -> Self {
        let Limits { size, acquire, patience, lock } = limits;
        let (checked, current) = (Arc::clone(reached), Arc::clone(reached));
        let pool = PgPoolOptions::new()
            .max_connections(u32::try_from(size.max(1)).unwrap_or(u32::MAX))
            .acquire_timeout(acquire)
            // The test would cost one more round trip for each use. Instead, a connection that turns out to be
            // broken makes the pool replace its other idle connections too.
            .test_before_acquire(false)
            .idle_timeout(None)
            .max_lifetime(None)
            .after_connect(move |connection, _| {
                let reached = Arc::clone(&checked);
                async move {
                    let ready = async {
                        set(connection, lock, patience).await?;
                        let identity = reached::identity(connection).await?;
                        reached.check(identity).await
                    };
                    ready.await.map_err(|failure| {
                        let error = Error::from(failure);
                        let told = error.to_string();
                        reached.refused(error);
                        sqlx::Error::Protocol(told)
                    })
                }
                .boxed()
            })
            .before_acquire(move |_, about| {
                let is_current = current.is_current(about.age);
                async move { Ok(is_current) }.boxed()
            })
            .connect_lazy_with(reached.target().options.clone().disable_statement_logging());
        Self { pool, reached: Arc::clone(reached), patience }
    }

    /// Waits for a free connection, or opens one.
    pub async fn take(&self) -> Result<Connection> {
        let pooled = match self.pool.acquire().await {
            Ok(pooled) => pooled,
            Err(sqlx::Error::PoolTimedOut) => {
                let refused = self.reached.last_refused();
                return Err(refused.unwrap_or_else(|| {
                    Error::Unavailable("all connections to Postgres are in use".into())
                }));
            }
            Err(error) => return Err(Failure::from(error).into()),
        };
        Ok(Connection::new(Live::Pooled(pooled), &self.reached, self.patience))
    }
}

/// Applies the settings of a new connection.
async fn set(
    connection: &mut PgConnection,
    lock: Duration,
    patience: Duration,
) -> Result<(), Failure> {
    let (lock_ms, patience_ms) = (lock.as_millis(), milliseconds(patience));
    // Older server versions do not know the last setting.
    let settings = format!(
        "{SETTINGS};
        set lock_timeout = {lock_ms};
        set statement_timeout = {patience_ms};
        select set_config(name, '1s', false) from pg_settings
        where name = 'client_connection_check_interval'"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(settings)).execute(connection).await?;
    Ok(())
}

/// Converts a duration for a setting in which zero means no limit. A duration that does not fit becomes zero.
fn milliseconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(0)
}

impl Connection {
    fn new(live: Live, reached: &Arc<Reached>, patience: Duration) -> Self {
        Self {
            live: Some(live),
            reached: Arc::clone(reached),
            patience,
            is_busy: false,
            is_open: false,
            is_last: false,
        }
    }

    /// Opens a connection outside the pools, whose statements may take as long as they need. It is not compared
    /// with the lane's connection, which may not exist yet.
    pub async fn open(reached: &Arc<Reached>, lock: Duration, within: Duration) -> Result<Self> {
        let options = reached.target().options.clone().disable_statement_logging();
        let opened = tokio::time::timeout(within, async {
            let mut connection = options.connect().await?;
            set(&mut connection, lock, Duration::MAX).await?;
            Ok(connection)
        });
        match opened.await {
            Ok(Ok(own)) => Ok(Self::new(Live::Own(own), reached, Duration::MAX)),
            Ok(Err(failure)) => Err(Failure::into(failure)),
            Err(_) => Err(Error::Unavailable("could not connect to Postgres in time".into())),
        }
    }

    /// From now on, an answer that takes longer than `patience` is [`Failure::Lost`].
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Closes the connection when it is dropped, so that everything its session holds ends with it.
    pub fn close_when_dropped(&mut self) {
        self.is_last = true;
    }

    /// Fails if the node's lease was closed. A node that closes the lease waits for the transactions that have
    /// passed this check. After that their rows are visible, and no later transaction passes.
    pub async fn check_lease(&mut self, node: NodeId) -> Result<()> {
        let live = sqlx::query_scalar!(
            r#"select true as "live!" from node where id = $1 and closed_at is null for key share"#,
            node.0,
        );
        match self.first(live).await? {
            Some(_) => Ok(()),
            None => Err(Error::LeaseLost),
        }
    }

    /// Returns all rows of a query.
    pub async fn all<Q: Asked>(&mut self, query: Q) -> Result<Vec<Q::Row>, Failure> {
        self.is_busy = true;
        let answer = tokio::time::timeout(self.patience, query.all(&mut *self)).await;
        self.answered(answer)
    }

    /// Returns the first row of a query, if there is one.
    pub async fn first<Q: Asked>(&mut self, query: Q) -> Result<Option<Q::Row>, Failure> {
        self.is_busy = true;
        let answer = tokio::time::timeout(self.patience, query.first(&mut *self)).await;
        self.answered(answer)
    }

    /// Returns the row of a query that always has one.
    pub async fn one<Q: Asked>(&mut self, query: Q) -> Result<Q::Row, Failure> {
        self.first(query).await?.ok_or_else(|| sqlx::Error::RowNotFound.into())
    }

    /// Returns how many rows a statement changed.
    pub async fn execute<'q, A>(&mut self, query: Query<'q, Postgres, A>) -> Result<u64, Failure>
    where
        A: IntoArguments<Postgres> + Send + 'q,
    {
        self.is_busy = true;
        let answer = tokio::time::timeout(self.patience, query.execute(&mut **self)).await;
        Ok(self.answered(answer)?.rows_affected())
    }

    /// Returns the rows of a query whose text is built at run time.
    pub async fn rows<'q, A>(
        &mut self,
        query: Query<'q, Postgres, A>,
    ) -> Result<Vec<PgRow>, Failure>
    where
        A: IntoArguments<Postgres> + Send + 'q,
    {
        self.is_busy = true;
        let answer = tokio::time::timeout(self.patience, query.fetch_all(&mut **self)).await;
        self.answered(answer)
    }

    /// Runs statements that are used only once. They take no parameters, and several can be sent together.
    pub async fn run(&mut self, sql: impl SqlSafeStr) -> Result<(), Failure> {
        self.is_busy = true;
        let patience = self.patience;
        let run = sqlx::raw_sql(sql).execute(&mut **self);
        let answer = tokio::time::timeout(patience, run).await;
        self.answered(answer).map(drop)
    }

    fn answered<T>(&mut self, answer: Result<sqlx::Result<T>, Elapsed>) -> Result<T, Failure> {
        let Ok(answer) = answer else {
            return Err(Failure::Lost("no answer in time".into()));
        };
        self.is_busy = false;
        answer.map_err(|error| {
            let failure = Failure::from(error);
            if matches!(failure, Failure::Lost(_)) {
                self.is_last = true;
                self.reached.suspect_idle();
            }
            failure
        })
    }

    /// Begins a transaction. Until it is committed, dropping the connection closes it and so rolls back; see
    /// [`Connection::committed`].
    pub async fn begin(&mut self) -> Result<()> {
        self.is_open = true;
        Ok(self.run("begin").await?)
    }

    pub async fn committed(mut self) -> Result<()> {
        Ok(self.commit().await?)
    }

    pub async fn commit(&mut self) -> Result<(), Failure> {
        self.execute(sqlx::query("commit")).await?;
        self.is_open = false;
        Ok(())
    }

    /// Rolls back. If that fails, the connection is closed, which has the same effect.
    pub async fn rolled_back(mut self) {
        self.is_open = self.run("rollback").await.is_err();
    }
}

impl Deref for Connection {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        match self.live.as_ref().expect("is taken by drop alone") {
            Live::Pooled(pooled) => pooled,
            Live::Own(own) => own,
        }
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut PgConnection {
        match self.live.as_mut().expect("is taken by drop alone") {
            Live::Pooled(pooled) => pooled,
            Live::Own(own) => own,
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let Some(Live::Pooled(pooled)) = self.live.take() else { return };
        let is_known = !self.is_busy && !self.is_open && !self.is_last;
        // Returning a connection to its pool takes a task, and so a runtime.
        if !is_known || tokio::runtime::Handle::try_current().is_err() {
            // Closing the socket rolls the transaction back. A server that is busy with a statement checks the
            // socket every second.
            drop(pooled.detach());
        }
    }
}
