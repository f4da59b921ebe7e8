//! Brings the schema `recoup` up to the newest version that this binary knows. It does so under a lock, so that
//! several servers can start at once. A migration file that was applied is never edited, because its checksum
//! is stored.
//!
//! Sqlx's migrator applies the files, each in a transaction of its own, so that its locks last no longer than
//! that file. A migration that waits for a lock on a table blocks every commit that arrives after it. Therefore
//! it waits for one second only, lets the commits pass, and tries again. The migrator does not know which older
//! binaries can run on a newer schema; a table beside its own records that.

use std::fmt::Write as _;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migration as File, MigrationType, Migrator};
use sqlx::{AssertSqlSafe, SqlSafeStr};

use super::connection::Connection;
use super::error::Failure;
use crate::contract::Error;
use crate::format::Formats;
use crate::schema::{self, Applied, Migration, migration};

/// Version, name and file of each migration.
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

/// A number that nothing else on the server locks: the letters "recoup", followed by a one.
const LOCK: i64 = 0x0072_6563_6f75_7001;

/// The table of the migrator itself.
const TABLE: &str = "migration";
const OLDEST_TABLE: &str = "
    create table if not exists migration_oldest (
        version bigint not null,
        -- The oldest schema version whose binaries still run on this one.
        oldest integer not null,
        constraint migration_oldest_pk primary key (version)
    )";
const APPLIED: &str = "
    select migration.version, description, encode(checksum, 'hex'), coalesce(oldest, 0)
    from migration left join migration_oldest using (version)
    order by migration.version";

/// How many times a migration tries to get its locks, and the pause between the tries. After that the caller
/// may wait longer, as it does for a database that does not answer.
const LOCK_TRIES: u32 = 30;
const LOCK_PAUSE: Duration = Duration::from_millis(500);

/// Applies the missing migrations. If one fails, the schema is that of the last migration that succeeded.
pub(super) async fn migrate(connection: &mut Connection) -> Result<(), Failure> {
    migrate_to(connection, &MIGRATIONS).await
}

async fn migrate_to(connection: &mut Connection, known: &[Migration]) -> Result<(), Failure> {
    // Waits without a limit, because the migration of another node may take a long time.
    let lock = format!("set lock_timeout = 0; select pg_advisory_lock({LOCK})");
    connection.run(AssertSqlSafe(lock)).await?;
    connection.run("set lock_timeout = '1s'").await?;
    let migrated = migrate_locked(connection, known).await;
    connection.run(AssertSqlSafe(format!("select pg_advisory_unlock({LOCK})"))).await?;
    migrated
}

async fn migrate_locked(connection: &mut Connection, known: &[Migration]) -> Result<(), Failure> {
    // If the role may not create schemas, an administrator has created this one for it.
    const THERE: &str = "select true from pg_namespace where nspname = 'recoup'";
    if connection.rows(sqlx::query(THERE)).await?.is_empty() {
        connection.run("create schema recoup").await?;
    }
    connection.run(OLDEST_TABLE).await?;
    let migrator = migrator(known);
    let checksums: Vec<String> = migrator.iter().map(|file| hex(&file.checksum)).collect();
    let (mut tries, mut reached) = (1, 0);
    loop {
        let applied = applied(connection).await?;
        schema::check(&checksums, &applied)?;
        if applied.len() > reached {
            (tries, reached) = (1, applied.len());
        }
        // This is the function that `run` calls. The future of `run` itself cannot be sent to other threads.
        let failure = match migrator.run_direct(None, &mut **connection, false).await {
            Ok(()) => return begin_with_newest(connection).await,
            Err(MigrateError::ExecuteMigration(error, _) | MigrateError::Execute(error)) => {
                Failure::from(error)
            }
            Err(error) => return Err(Error::Incompatible(error.to_string()).into()),
        };
        if !failure.is_locked() {
            return Err(failure);
        }
        if tries >= LOCK_TRIES {
            let reason = "a transaction keeps a lock on a table that a migration has to change";
            return Err(Error::Unavailable(reason.into()).into());
        }
        tries += 1;
        tokio::time::sleep(LOCK_PAUSE).await;
    }
}

/// A store that no node has ever joined begins with the newest formats of the binary that opens it, because no
/// older binary has to read it.
async fn begin_with_newest(connection: &mut Connection) -> Result<(), Failure> {
    let newest = Formats::NEWEST.numbers().map(i32::from);
    let begin = sqlx::query!(
        "update store set history_format = greatest(history_format, $1),
            definition_format = greatest(definition_format, $2),
            failure_event_format = greatest(failure_event_format, $3),
            subscription_format = greatest(subscription_format, $4),
            registry_answer_format = greatest(registry_answer_format, $5)
        where not exists (select from node)",
        newest[0],
        newest[1],
        newest[2],
        newest[3],
        newest[4],
    );
    connection.execute(begin).await?;
    Ok(())
}

/// The migrator ignores migrations that a newer binary has applied. Whether this binary can run beside them has
/// been decided by [`schema::check`] before.
fn migrator(known: &[Migration]) -> Migrator {
    let files = known.iter().zip(1_i64..).map(|(Migration { name, text, oldest }, version)| {
        // Written in the same transaction as the file, so that no schema version lacks its rule.
        let text = format!(
            "{text}\n; insert into migration_oldest (version, oldest) values ({version}, {oldest});"
        );
        let text = AssertSqlSafe(text).into_sql_str();
        File::new(version, (*name).into(), MigrationType::Simple, text, false)
    });
    let mut migrator = Migrator::with_migrations(files.collect());
    // The migrator's own lock would give up as early as any other lock.
    migrator.set_ignore_missing(true).set_locking(false);
    migrator.dangerous_set_table_name(TABLE);
    migrator
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes everything");
        text
    })
}

async fn applied(connection: &mut Connection) -> Result<Vec<Applied>, Failure> {
    // The table does not exist until the migrator has run for the first time.
    const THERE: &str = "select true from pg_class where oid = to_regclass('recoup.migration')";
    if connection.rows(sqlx::query(THERE)).await?.is_empty() {
        return Ok(Vec::new());
    }
    let rows = connection.rows(sqlx::query(APPLIED)).await?;
    let applied = rows.iter().map(|row| {
        let (version, name, checksum, oldest): (i64, _, _, i32) = sqlx::FromRow::from_row(row)?;
        let version = u32::try_from(version).unwrap_or(0);
        Ok(Applied { version, name, checksum, oldest: oldest.max(0).unsigned_abs() })
    });
    applied.collect()
}

#[cfg(test)]
mod tests {
    use recoup_test_postgres::{Database, Server};

    use std::sync::Arc;

    use super::super::reached::Reached;
    use super::super::target::Target;
    use super::*;

    const LONG: Duration = Duration::from_secs(300);

    async fn connection(database: &Database) -> Connection {
        let target = Target::parse(&database.url(), LONG).expect("a connection string");
        let reached = Arc::new(Reached::new(target, LONG));
        Connection::open(&reached, LONG, LONG).await.expect("the server answers")
    }

    /// A migration that cannot get its lock lets the commits pass that queue up after it: the update below
    /// completes although the reader that blocks the migration is still there.
    #[tokio::test]
    async fn a_migration_that_waits_for_a_lock_does_not_hold_up_commits() {
        let database = Server::shared().database().await;
        migrate(&mut connection(&database).await).await.expect("a new database");
        let reader = database.client().await;
        reader.batch_execute("begin; select from recoup.namespace").await.expect("reads");

        let later = Migration {
            name: "later",
            text: "alter table namespace add column later integer",
            oldest: 1,
        };
        let known: Vec<Migration> = MIGRATIONS.into_iter().chain([later]).collect();
        let mut migrating = connection(&database).await;
        let migrating = tokio::spawn(async move { migrate_to(&mut migrating, &known).await });

        let watcher = database.client().await;
        let waits = "select from pg_locks
            where not granted and relation = 'recoup.namespace'::regclass";
        while watcher.query(waits, &[]).await.expect("is valid").is_empty() {
            tokio::task::yield_now().await;
        }
        let writer = database.client().await;
        let update = writer.batch_execute("update recoup.namespace set description = 'written'");
        // This would never complete if the migration kept its place in the queue.
        tokio::time::timeout(LONG, update)
            .await
            .expect("the migration blocks the update")
            .expect("it is written");
        assert!(!migrating.is_finished(), "the reader still blocks the migration");

        reader.batch_execute("commit").await.expect("ends");
        migrating.await.expect("no panic").expect("it has its lock at last");
        let rows = watcher.query("select later from recoup.namespace", &[]).await.expect("added");
        assert_eq!(rows.len(), 1);
        migrate(&mut connection(&database).await).await.expect("an older binary runs on it");
    }
}
