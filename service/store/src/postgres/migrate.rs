//! Brings the schema `recoup` up to what this binary knows: in one transaction, under a lock, so that
//! several may start at once. A file that was applied is never edited: its checksum is kept.

use super::error::Failure;
use super::session::Session;
use crate::contract::Error;

/// Name and text of each migration; its place gives its version, from 1 on.
const MIGRATIONS: [(&str, &str); 14] = [
    ("store", include_str!("../../migrations/postgres/0001_store.sql")),
    ("node", include_str!("../../migrations/postgres/0002_node.sql")),
    ("namespace", include_str!("../../migrations/postgres/0003_namespace.sql")),
    ("workflow_version", include_str!("../../migrations/postgres/0004_workflow_version.sql")),
    ("subscription", include_str!("../../migrations/postgres/0005_subscription.sql")),
    ("history", include_str!("../../migrations/postgres/0006_history.sql")),
    ("execution", include_str!("../../migrations/postgres/0007_execution.sql")),
    ("start_request", include_str!("../../migrations/postgres/0008_start_request.sql")),
    ("execution_key", include_str!("../../migrations/postgres/0009_execution_key.sql")),
    ("feed", include_str!("../../migrations/postgres/0010_feed.sql")),
    ("overflow_task", include_str!("../../migrations/postgres/0011_overflow_task.sql")),
    ("history_range", include_str!("../../migrations/postgres/0012_history_range.sql")),
    ("registry_request", include_str!("../../migrations/postgres/0013_registry_request.sql")),
    ("quarantine", include_str!("../../migrations/postgres/0014_quarantine.sql")),
];

/// Any number that nothing else on the server locks: "recoup" and a one.
const LOCK: i64 = 0x0072_6563_6f75_7001;

const TABLE: &str = "
    create table if not exists migration (
        version integer not null,
        name text not null,
        checksum text not null,
        applied_at timestamptz not null default clock_timestamp(),
        constraint migration_pk primary key (version)
    )";

/// Changes nothing if it fails.
pub(super) async fn migrate(session: &mut Session) -> Result<(), Failure> {
    session.run("begin").await?;
    let migrated = apply(session).await;
    session.run(if migrated.is_ok() { "commit" } else { "rollback" }).await?;
    migrated
}

async fn apply(session: &mut Session) -> Result<(), Failure> {
    // Another node's migration may take its time.
    session.run("set local lock_timeout = 0").await?;
    session.query("select pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    // A role that may not create schemas finds one made for it.
    if session.query("select from pg_namespace where nspname = 'recoup'", &[]).await?.is_empty() {
        session.run("create schema recoup").await?;
    }
    session.run(TABLE).await?;

    let texts = MIGRATIONS.map(|(_, text)| text);
    const CHECKSUMS: &str = "
        select encode(sha256(convert_to(text, 'UTF8')), 'hex')
        from unnest($1::text[]) with ordinality as known (text, version) order by version";
    let checksums = session.query(CHECKSUMS, &[&&texts[..]]).await?;
    let applied = session
        .query("select version, name, checksum from migration order by version", &[])
        .await?;
    for (row, version) in applied.iter().zip(1..) {
        let (found, name): (i32, String) = (row.try_get(0)?, row.try_get(1)?);
        if found != version {
            return Err(incompatible(format!("migration {version} is missing")));
        }
        let Some(known) = usize::try_from(version - 1).ok().and_then(|at| checksums.get(at)) else {
            let reason = format!("migration {version} ({name}) is of a newer version of recoup");
            return Err(incompatible(reason));
        };
        if known.try_get::<_, String>(0)? != row.try_get::<_, String>(2)? {
            let reason = format!("migration {version} ({name}) is not the one that was applied");
            return Err(incompatible(reason));
        }
    }
    let ahead = MIGRATIONS.iter().zip(&checksums).zip(1_i32..).skip(applied.len());
    for (((name, text), checksum), version) in ahead {
        session.run(text).await?;
        const APPLIED: &str = "insert into migration (version, name, checksum) values ($1, $2, $3)";
        let checksum: String = checksum.try_get(0)?;
        session.execute(APPLIED, &[&version, name, &checksum]).await?;
    }
    Ok(())
}

fn incompatible(reason: String) -> Failure {
    Error::Incompatible(reason).into()
}
