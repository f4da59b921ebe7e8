//! Makes sure that all connections lead to the same server. Two drivers open them, at different times, so a
//! proxy, a host name with several addresses or a promotion in between may lead them to different servers.
//! Every new connection therefore reports the server that it has reached. The lane's driver decides, and a
//! connection that leads elsewhere is refused.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use sqlx::Row;
use sqlx::postgres::PgConnection;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::error::Failure;
use super::target::Target;
use crate::contract::{Error, Result};

/// Server, timeline, database and incarnation. Null on a standby, and if the store has lost its row. The result
/// is a text, so that the query works without preparation: preparing would fail through a pooler that is not in
/// session mode, before the problem could be reported.
const IDENTITY: &str = "
    select case when not pg_is_in_recovery() then
        (select system_identifier from pg_control_system())
        || '/' || left(pg_walfile_name(pg_current_wal_lsn()), 8)
        || '/' || (select oid from pg_database where datname = current_database())
        || '/' || (select incarnation from recoup.store)
    end";
const STANDBY: &str = "the server is a standby, or the row that identifies the store is missing";

/// The server that the lane's driver has reached.
pub(super) struct Reached {
    target: Target,
    /// How long opening a connection may take.
    within: Duration,
    state: Mutex<State>,
}

struct State {
    identity: Option<String>,
    /// Incremented with each server that is reached.
    number: u64,
    /// Pooled connections that were opened before this are not used any more.
    since: Instant,
    /// Why the last connection was refused.
    refused: Option<Error>,
}

impl Reached {
    pub fn new(target: Target, within: Duration) -> Self {
        let since = Instant::now();
        let state = Mutex::new(State { identity: None, number: 0, since, refused: None });
        Self { target, within, state }
    }

    pub fn target(&self) -> &Target {
        &self.target
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it is held")
    }

    /// A number that changes when another server is reached.
    pub fn number(&self) -> u64 {
        self.state().number
    }

    /// Whether a connection of that age leads to the current server, as far as is known.
    pub fn is_current(&self, age: Duration) -> bool {
        age < self.state().since.elapsed()
    }

    /// Called when a connection broke: the connections that were idle at that time are probably broken too.
    pub fn suspect_idle(&self) {
        self.state().since = Instant::now();
    }

    pub fn refused(&self, error: Error) {
        self.state().refused = Some(error);
    }

    /// Why a connection was refused recently, if one was.
    pub fn last_refused(&self) -> Option<Error> {
        self.state().refused.take()
    }

    /// Called when the lane's driver has a new connection: what it has reached is authoritative. Returns the
    /// number of that server.
    pub fn set(&self, identity: String) -> u64 {
        let mut state = self.state();
        if state.identity.as_ref() != Some(&identity) {
            if let Some(before) = state.identity.replace(identity) {
                tracing::warn!(before, now = state.identity, "the database is now another server");
            }
            state.number += 1;
            state.since = Instant::now();
        }
        state.refused = None;
        state.number
    }

    /// Checks a new connection of the other driver. If it has reached another server, a connection of the
    /// lane's driver must get there as well.
    pub async fn check(&self, identity: Option<String>) -> Result<(), Failure> {
        let identity = identity.ok_or_else(|| Error::Unavailable(STANDBY.into()))?;
        if self.state().identity.as_ref() == Some(&identity) {
            return Ok(());
        }
        let found = Probe::open(self).await?.identity().await?;
        let is_same = found == identity;
        self.set(found);
        if is_same {
            return Ok(());
        }
        let reason = "the two drivers reach two servers: the connection string must lead to one";
        Err(Error::Unavailable(reason.into()).into())
    }
}

/// Checks, before anything is written, that the server accepts writes.
pub(super) async fn check_primary(connection: &mut PgConnection) -> Result<(), Failure> {
    let row = sqlx::raw_sql("select pg_is_in_recovery()").fetch_one(connection).await?;
    if row.try_get(0)? {
        return Err(Error::Unavailable("the server is a standby".into()).into());
    }
    Ok(())
}

/// The identity of the server that a pooled connection has reached.
pub(super) async fn identity(connection: &mut PgConnection) -> Result<Option<String>, Failure> {
    let row = sqlx::raw_sql(IDENTITY).fetch_one(connection).await?;
    Ok(row.try_get(0)?)
}

/// The identity of the server that a connection of the lane's driver has reached.
pub(super) async fn identity_of(client: &Client) -> Result<String, Failure> {
    let identity = ask(client, IDENTITY).await?;
    Ok(identity.ok_or_else(|| Error::Unavailable(STANDBY.into()))?)
}

/// Returns the first column of the only row, without preparing a statement.
async fn ask(client: &Client, sql: &str) -> Result<Option<String>, Failure> {
    let messages = client.simple_query(sql).await?;
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    Ok(row.and_then(|row| row.get(0)).map(str::to_owned))
}

/// A connection of the lane's driver that is opened only to ask where it leads.
pub(super) struct Probe {
    client: Client,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Probe {
    pub async fn open(reached: &Reached) -> Result<Self, Failure> {
        let Target { config, connector, .. } = &reached.target;
        let opened = tokio::time::timeout(reached.within, config.connect(connector.clone())).await;
        let (client, connection) =
            opened.map_err(|_| Failure::Lost("could not connect to Postgres in time".into()))??;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to Postgres ended");
            }
        });
        Ok(Self { client, driver })
    }

    pub async fn identity(&self) -> Result<String, Failure> {
        identity_of(&self.client).await
    }

    #[cfg(test)]
    pub async fn is_encrypted(&self) -> bool {
        const ENCRYPTED: &str = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
        let encrypted = ask(&self.client, ENCRYPTED).await.expect("asks");
        encrypted.as_deref() == Some("t")
    }

    /// Checks that a session really is one: a setting must stay with the connection that made it, even if
    /// another connection is used in between. A pooler that assigns server connections per transaction breaks
    /// this: either the other connection sees the setting, or the first one no longer does.
    pub async fn check_sessions(&self, connection: &mut PgConnection) -> Result<(), Failure> {
        const MARK: &str = "
            set recoup.connection = 'first'; select pg_backend_pid()::text";
        const OTHER: &str = "
            select coalesce(nullif(current_setting('recoup.connection', true), ''), 'none')
                || ' ' || pg_backend_pid()";
        const LOOK: &str = "
            select current_setting('recoup.connection', true) || ' ' || pg_backend_pid()";
        let first = sqlx::raw_sql(MARK).fetch_one(&mut *connection).await?;
        let first: String = first.try_get(0)?;
        let other = ask(&self.client, OTHER).await?.unwrap_or_default();
        let own = sqlx::raw_sql(LOOK).fetch_one(connection).await?;
        let own: Option<String> = own.try_get(0)?;
        let is_session = own.as_deref() == Some(&format!("first {first}"))
            && other.starts_with("none ")
            && other != format!("none {first}");
        if is_session {
            return Ok(());
        }
        let reason = "connections share server processes: a pooler such as PgBouncer must be in session mode";
        Err(Error::Incompatible(reason.into()).into())
    }
}
