//! Brings the schema `recoup` up to what this binary knows, under a lock, so that several may start at
//! once. A file that was applied is never edited: its checksum is kept.
//!
//! Each migration is a transaction of its own, so that its locks last no longer than it does. One that
//! waits for a lock on a table holds up every commit that comes after it: so it waits for a second only,
//! gives way to them, and tries again.

use std::time::Duration;

use tokio_postgres::error::SqlState;

use super::error::Failure;
use super::session::Session;
use crate::contract::Error;
use crate::format::Formats;
use crate::schema::{self, Applied, Migration, migration};

/// Version, name and file.
const MIGRATIONS: [Migration; 14] = [
    migration!("postgres" 1 "store" "0001_store.sql"),
    migration!("postgres" 2 "node" "0002_node.sql"),
    migration!("postgres" 3 "namespace" "0003_namespace.sql"),
    migration!("postgres" 4 "workflow_version" "0004_workflow_version.sql"),
    migration!("postgres" 5 "subscription" "0005_subscription.sql"),
    migration!("postgres" 6 "history" "0006_history.sql"),
    migration!("postgres" 7 "execution" "0007_execution.sql"),
    migration!("postgres" 8 "start_request" "0008_start_request.sql"),
    migration!("postgres" 9 "execution_key" "0009_execution_key.sql"),
    migration!("postgres" 10 "feed" "0010_feed.sql"),
    migration!("postgres" 11 "overflow_task" "0011_overflow_task.sql"),
    migration!("postgres" 12 "history_range" "0012_history_range.sql"),
    migration!("postgres" 13 "registry_request" "0013_registry_request.sql"),
    migration!("postgres" 14 "quarantine" "0014_quarantine.sql"),
];

/// Any number that nothing else on the server locks: "recoup" and a one.
const LOCK: i64 = 0x0072_6563_6f75_7001;

const TABLE: &str = "
    create table if not exists migration (
        version integer not null,
        name text not null,
        checksum text not null,
        -- The oldest schema version whose binaries still run on this one.
        oldest integer not null,
        applied_at timestamptz not null default clock_timestamp(),
        constraint migration_pk primary key (version)
    )";

/// How often a migration asks for its locks, and the pause in between. After that the caller may wait
/// longer, as for a database that does not answer.
const LOCK_TRIES: u32 = 30;
const LOCK_PAUSE: Duration = Duration::from_millis(500);

/// Applies what is missing. If it fails, the schema is that of the last migration that went through.
pub(super) async fn migrate(session: &mut Session) -> Result<(), Failure> {
    migrate_to(session, &MIGRATIONS).await
}

async fn migrate_to(session: &mut Session, known: &[Migration]) -> Result<(), Failure> {
    let mut tries = 1;
    loop {
        session.run("begin").await?;
        let applied = apply_next(session, known).await;
        session.run(if applied.is_ok() { "commit" } else { "rollback" }).await?;
        match applied {
            Ok(true) => tries = 1,
            Ok(false) => return Ok(()),
            Err(Failure::Refused(error)) if *error.code() == SqlState::LOCK_NOT_AVAILABLE => {
                if tries >= LOCK_TRIES {
                    let reason = "a table that is to be changed stays locked by a transaction";
                    return Err(Error::Unavailable(reason.into()).into());
                }
                tries += 1;
                tokio::time::sleep(LOCK_PAUSE).await;
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// False: nothing is missing.
async fn apply_next(session: &mut Session, known: &[Migration]) -> Result<bool, Failure> {
    // Another node's migration may take its time.
    session.run("set local lock_timeout = 0").await?;
    session.query("select pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    session.run("set local lock_timeout = '1s'").await?;
    // A role that may not create schemas finds one made for it.
    if session.query("select from pg_namespace where nspname = 'recoup'", &[]).await?.is_empty() {
        session.run("create schema recoup").await?;
    }
    session.run(TABLE).await?;

    let texts: Vec<&str> = known.iter().map(|migration| migration.text).collect();
    const CHECKSUMS: &str = "
        select encode(sha256(convert_to(text, 'UTF8')), 'hex')
        from unnest($1::text[]) with ordinality as known (text, version) order by version";
    let checksums = session.query(CHECKSUMS, &[&texts]).await?;
    let checksums: Vec<String> =
        checksums.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    let applied = session
        .query("select version, name, checksum, oldest from migration order by version", &[])
        .await?;
    let applied = applied.iter().map(|row| {
        let (version, oldest): (i32, i32) = (row.try_get(0)?, row.try_get(3)?);
        let (version, oldest) = (version.max(0).unsigned_abs(), oldest.max(0).unsigned_abs());
        Ok(Applied { version, name: row.try_get(1)?, checksum: row.try_get(2)?, oldest })
    });
    let applied: Vec<Applied> = applied.collect::<Result<_, Failure>>()?;
    schema::check(&checksums, &applied)?;

    let at = applied.len();
    let (Some(Migration { name, text, oldest }), Some(checksum)) =
        (known.get(at), checksums.get(at))
    else {
        return Ok(false);
    };
    session.run(text).await?;
    if at == 0 {
        // A new database: no older binary is there to read it.
        const FRESH: &str = "
            update store set history_format = formats[1], definition_format = formats[2],
                failure_event_format = formats[3], subscription_format = formats[4],
                registry_answer_format = formats[5]
            from (values ($1::int4[])) as known (formats)";
        let newest = Formats::NEWEST.numbers().map(i32::from);
        session.execute(FRESH, &[&&newest[..]]).await?;
    }
    const APPLIED: &str = "
        insert into migration (version, name, checksum, oldest)
        values ($1::int8::int4, $2, $3, $4::int8::int4)";
    let version = super::value::limit(at + 1);
    session.execute(APPLIED, &[&version, name, checksum, &i64::from(*oldest)]).await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use recoup_test_postgres::{Database, Server};
    use tokio_postgres::{Client, NoTls};

    use super::super::session::{Purpose, config};
    use super::*;

    const LONG: Duration = Duration::from_secs(300);

    async fn session(database: &Database) -> Session {
        let config = config(&database.url(), LONG).expect("a connection string");
        Session::open(&config, Purpose::Other, LONG, LONG).await.expect("the server answers")
    }

    async fn client(database: &Database) -> Client {
        let (client, connection) =
            tokio_postgres::connect(&database.url(), NoTls).await.expect("connects");
        tokio::spawn(connection);
        client
    }

    /// A migration that cannot have its lock gives way to the commits that queue behind it: the update
    /// below ends although the reader that stands in the way of the migration does not.
    #[tokio::test]
    async fn a_migration_that_waits_for_a_lock_does_not_hold_up_commits() {
        let database = Server::shared().database().await;
        migrate(&mut session(&database).await).await.expect("a new database");
        let reader = client(&database).await;
        reader.batch_execute("begin; select from recoup.namespace").await.expect("reads");

        let later = Migration {
            name: "later",
            text: "alter table namespace add column later integer",
            oldest: 1,
        };
        let known: Vec<Migration> = MIGRATIONS.into_iter().chain([later]).collect();
        let mut migrating = session(&database).await;
        let migrating = tokio::spawn(async move { migrate_to(&mut migrating, &known).await });

        let watcher = client(&database).await;
        let waits = "select from pg_locks
            where not granted and relation = 'recoup.namespace'::regclass";
        while watcher.query(waits, &[]).await.expect("is valid").is_empty() {
            tokio::task::yield_now().await;
        }
        let writer = client(&database).await;
        let update = writer.batch_execute("update recoup.namespace set description = 'written'");
        // Without end if the migration kept its place in the queue.
        tokio::time::timeout(LONG, update).await.expect("it is held up").expect("it is written");
        assert!(!migrating.is_finished(), "the reader still stands in its way");

        reader.batch_execute("commit").await.expect("ends");
        migrating.await.expect("no panic").expect("it has its lock at last");
        let rows = watcher.query("select later from recoup.namespace", &[]).await.expect("added");
        assert_eq!(rows.len(), 1);
        migrate(&mut session(&database).await).await.expect("an older binary runs on it");
    }
}
