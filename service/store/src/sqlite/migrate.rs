//! Brings the schema up to the newest version that this binary knows, in one transaction. A migration file that
//! was applied is never edited, because its checksum is stored.

use recoup_core::time::Timestamp;
use rusqlite::{Connection, TransactionBehavior};

use super::error::Failure;
use crate::contract::Error;
use crate::format::Formats;
use crate::schema::{self, Applied, Migration, migration};

/// Version, name and file of each migration.
const MIGRATIONS: [Migration; 13] = [
    migration!("sqlite" 1 "store" "0001_store.sql"),
    migration!("sqlite" 2 "node" "0002_node.sql"),
    migration!("sqlite" 3 "namespace" "0003_namespace.sql"),
    migration!("sqlite" 4 "workflow_version" "0004_workflow_version.sql"),
    migration!("sqlite" 5 "subscription" "0005_subscription.sql"),
    migration!("sqlite" 6 "history" "0006_history.sql"),
    migration!("sqlite" 7 "execution" "0007_execution.sql"),
    migration!("sqlite" 8 "start_request" "0008_start_request.sql"),
    migration!("sqlite" 9 "execution_key" "0009_execution_key.sql"),
    migration!("sqlite" 10 "feed" "0010_feed.sql"),
    migration!("sqlite" 11 "overflow_task" "0011_overflow_task.sql"),
    migration!("sqlite" 12 "registry_request" "0012_registry_request.sql"),
    migration!("sqlite" 13 "quarantine" "0013_quarantine.sql"),
];

/// "Rcup". It distinguishes our files from databases of other applications.
const APPLICATION_ID: i32 = 0x5263_7570;

const TABLE: &str = "
    create table if not exists migration (
        version integer not null,
        name text not null,
        checksum text not null,
        -- The oldest schema version whose binaries still run on this one.
        oldest integer not null,
        applied_at integer not null,
        constraint migration_pk primary key (version)
    ) strict";

pub(super) fn migrate(connection: &mut Connection, now: Timestamp) -> Result<(), Failure> {
    let application: i32 = connection.pragma_query_value(None, "application_id", |r| r.get(0))?;
    let tables: i64 =
        connection.query_row("select count(*) from sqlite_schema", [], |row| row.get(0))?;
    if application != APPLICATION_ID && tables > 0 {
        return incompatible("the file is the database of another application".into());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(TABLE)?;
    let applied = {
        let mut statement = transaction
            .prepare("select version, name, checksum, oldest from migration order by version")?;
        let rows = statement.query_map([], |row| {
            let (version, name) = (row.get(0)?, row.get(1)?);
            Ok(Applied { version, name, checksum: row.get(2)?, oldest: row.get(3)? })
        })?;
        rows.collect::<Result<Vec<_>, _>>()?
    };
    let checksums = MIGRATIONS.map(|migration| checksum(migration.text));
    schema::check(&checksums, &applied)?;
    let ahead = MIGRATIONS.iter().zip(&checksums).zip(1_i64..).skip(applied.len());
    for ((Migration { name, text, oldest }, checksum), version) in ahead {
        transaction.execute_batch(text)?;
        if version == 1 {
            // In a new database no older binary has to read anything.
            const FRESH: &str = "
                update store set history_format = ?1, definition_format = ?2,
                    failure_event_format = ?3, subscription_format = ?4,
                    registry_answer_format = ?5";
            transaction.execute(FRESH, Formats::NEWEST.numbers())?;
        }
        const APPLIED: &str = "
            insert into migration (version, name, checksum, oldest, applied_at)
            values (?1, ?2, ?3, ?4, ?5)";
        transaction.execute(APPLIED, (version, name, checksum, oldest, now.as_micros()))?;
        transaction.pragma_update(None, "user_version", version)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    Ok(transaction.commit()?)
}

fn incompatible<T>(reason: String) -> Result<T, Failure> {
    Err(Error::Incompatible(reason).into())
}

/// FNV-1a of 64 bits. It detects edited files, and is not meant to resist an attacker.
fn checksum(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> Connection {
        let mut connection = Connection::open_in_memory().expect("in memory");
        migrate(&mut connection, Timestamp::default()).expect("a fresh schema");
        connection
    }

    fn refused(mut connection: Connection) -> String {
        match migrate(&mut connection, Timestamp::default()) {
            Err(Failure::Answer(Error::Incompatible(reason))) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn migrating_again_changes_nothing() {
        let mut connection = fresh();
        migrate(&mut connection, Timestamp::from_micros(9)).expect("the same schema");
        let version: i64 =
            connection.pragma_query_value(None, "user_version", |r| r.get(0)).expect("a version");
        assert_eq!(usize::try_from(version), Ok(MIGRATIONS.len()));
        let again: i64 = connection
            .query_row("select count(*) from migration where applied_at <> 0", [], |r| r.get(0))
            .expect("a count");
        assert_eq!(again, 0);
    }

    #[test]
    fn incompatible_edited_or_foreign_schema_is_refused() {
        let later = "
            insert into migration
            select max(version) + 1, 'later', 'x', max(version) + ?1, 0 from migration";
        let newer = fresh();
        newer.execute(later, [1]).expect("a newer migration");
        assert!(refused(newer).contains("newer"));
        let mut newer = fresh();
        newer.execute(later, [0]).expect("a newer migration");
        migrate(&mut newer, Timestamp::default()).expect("one that this binary may run on");

        let edited = fresh();
        edited.execute("update migration set checksum = 'x' where version = 3", []).expect("edits");
        assert!(refused(edited).contains("migration 3 (namespace) is not the one"));

        let foreign = Connection::open_in_memory().expect("in memory");
        foreign.execute_batch("create table other (id integer)").expect("a table");
        assert!(refused(foreign).contains("another application"));
    }
}
