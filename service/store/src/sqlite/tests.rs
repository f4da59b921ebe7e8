use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Mutex;

use bytes::Bytes;
use recoup_core::execution::{CompensationState, Phase, State};
use recoup_core::id::{ExecutionId, TransitionId};
use tempfile::TempDir;

use super::*;
use crate::contract::*;

const LONG: Duration = Duration::from_secs(600);

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn open(folder: &Path) -> SqliteStore {
    SqliteStore::open(folder).expect("the store opens")
}

fn execution(number: u128) -> ExecutionId {
    ExecutionId(Uuid::from_u128(number))
}

fn start(number: u128) -> Transition {
    Transition {
        execution: execution(number),
        sequence: 1,
        transition_id: TransitionId(Uuid::from_u128(!number)),
        format: 1,
        data: Bytes::from(format!("start of {number}")),
        index: Some(IndexRow {
            format: 1,
            namespace: "default".into(),
            workflow: "order".into(),
            version: 1,
            key: None,
            state: State::Running.into(),
            phase: Phase::Steps.into(),
            compensation: CompensationState::None.into(),
            run: 1,
            error_type: None,
            started_at: Timestamp::from_micros(1),
            ended_at: None,
            wake_at: None,
        }),
        request: None,
        feed: vec![],
        overflow_done: vec![],
        may_be_gone: true,
    }
}

fn event(id: &str) -> FeedRow {
    FeedRow {
        id: id.into(),
        namespace: "default".into(),
        kind: recoup_core::failure_event::FailureKind::StepFailed.into(),
        workflow: "order".into(),
        error_type: "payment".into(),
        execution: None,
        fingerprint: String::new(),
        at: Timestamp::from_micros(1),
        format: 1,
        data: Bytes::from_static(b"event"),
    }
}

fn batch(transitions: Vec<Transition>) -> Batch {
    Batch { transitions, ..Batch::default() }
}

async fn join(store: &SqliteStore) -> NodeId {
    store.join("test:1", LONG).await.expect("a node joins").node
}

async fn feed(store: &SqliteStore, after: &Cursor) -> Vec<String> {
    let page = store.read_feed(after, PageLimit::events(100)).await.expect("the feed is read");
    page.events.into_iter().map(|event| event.row.id).collect()
}

#[tokio::test]
async fn folder_cannot_be_opened_again_until_every_handle_is_dropped() {
    let folder = folder();
    let first = open(folder.path());
    let clone = first.clone();
    assert!(matches!(SqliteStore::open(folder.path()), Err(Error::InUse)));
    drop(first);
    assert!(
        matches!(SqliteStore::open(folder.path()), Err(Error::InUse)),
        "a clone still has it open"
    );
    drop(clone);
    open(folder.path());
}

#[tokio::test]
async fn folder_and_files_are_accessible_to_their_owner_alone() {
    let parent = folder();
    let path = parent.path().join("a/b");
    let store = open(&path);
    let mode = |path: &Path| std::fs::metadata(path).expect("it is there").permissions().mode();
    assert_eq!(mode(&path) & 0o777, 0o700);
    join(&store).await;
    for file in std::fs::read_dir(&path).expect("a folder") {
        let file = file.expect("a file").path();
        assert_eq!(mode(&file) & 0o077, 0, "{}", file.display());
    }
}

#[tokio::test]
async fn committed_rows_survive_a_restart() {
    let folder = folder();
    let store = open(folder.path());
    let before = join(&store).await;
    let with_event = Transition { feed: vec![event("e1")], ..start(1) };
    store.commit(before, &batch(vec![with_event])).await.expect("commits");
    let unread = store.feed_start().await.expect("a start");
    drop(store);
    let log = std::fs::metadata(folder.path().join("recoup.db-wal"));
    assert!(log.is_err(), "the log is still there after the store was closed");

    let store = open(folder.path());
    let history = store.load(before, &[execution(1)]).await.expect("loads").pop().expect("there");
    assert_eq!(history.transitions.len(), 1);
    assert_eq!(history.owner, None, "the earlier lease ended with its process");
    assert!(matches!(store.renew(before, LONG, Timestamp::default()).await, Err(Error::LeaseLost)));
    let after = join(&store).await;
    assert!(after > before);
    assert_eq!(store.adopt(after, 10).await.expect("adopts"), [execution(1)]);

    // Numbers continue after the earlier ones, and cursors of the earlier life stay valid.
    let more = Batch { feed: vec![event("e2")], ..Batch::default() };
    store.commit(after, &more).await.expect("commits");
    assert_eq!(feed(&store, &unread).await, ["e1", "e2"]);
}

/// The clock stands still, and shows an earlier time after the restart. Numbers and times grow regardless.
#[tokio::test]
async fn feed_numbers_grow_even_if_the_clock_stops_or_goes_back() {
    let folder = folder();
    let standing = |micros| -> Clock { Arc::new(move || Timestamp::from_micros(micros)) };
    let mut numbers = Vec::new();
    for (life, micros) in [1_000_000, 5_000].into_iter().enumerate() {
        let store =
            SqliteStore::open_with_clock(folder.path(), standing(micros)).expect("the store opens");
        let nodes = [join(&store).await, join(&store).await];
        for (i, node) in nodes.into_iter().cycle().take(6).enumerate() {
            let one = Batch { feed: vec![event(&format!("{life}.{i}"))], ..Batch::default() };
            store.commit(node, &one).await.expect("commits");
            let written = store.failure(&format!("{life}.{i}")).await.expect("asks");
            numbers.push(written.expect("there").position.number);
        }
    }
    assert!(numbers.is_sorted_by(|one, next| one < next), "{numbers:?}");
    assert_eq!(numbers[0], 1_000_000);
}

#[tokio::test]
async fn restored_or_copied_database_is_another_incarnation() {
    let (folder, backup) = (folder(), folder());
    let database = |at: &Path| at.join("recoup.db");
    drop(open(folder.path()));
    std::fs::copy(database(folder.path()), database(backup.path())).expect("a backup");
    let store = open(folder.path());
    let cursor = store.feed_end().await.expect("an end");
    drop(store);
    let same = open(folder.path());
    assert_eq!(same.feed_end().await.expect("an end").incarnation, cursor.incarnation);
    drop(same);

    // The backup is written over the existing file, so that only its content shows that it was restored.
    let bytes = std::fs::read(database(backup.path())).expect("the backup");
    std::fs::write(database(folder.path()), bytes).expect("restores");
    let restored = open(folder.path());
    assert!(matches!(
        restored.read_feed(&cursor, PageLimit::events(1)).await,
        Err(Error::ForeignCursor)
    ));

    let copied = open(backup.path());
    assert!(matches!(
        copied.read_feed(&cursor, PageLimit::events(1)).await,
        Err(Error::ForeignCursor)
    ));
}

/// Nothing is answered before the log is on disk. The test asks the writer's own connection for the settings,
/// rather than trusting that they were set.
#[tokio::test]
async fn the_writer_syncs_every_commit() {
    let folder = folder();
    let store = open(folder.path());
    let pragma = |sql: &'static str| {
        store.write(move |write| {
            let value = |row: &rusqlite::Row<'_>| row.get::<_, rusqlite::types::Value>(0);
            Ok(write.prepare(sql)?.query_row([], value)?)
        })
    };
    assert_eq!(pragma("pragma synchronous").await.expect("a setting"), 2_i64.into());
    let journal = pragma("pragma journal_mode").await.expect("a setting");
    assert_eq!(journal, "wal".to_owned().into());
}

/// Limits what a lone execution writes. Each commit writes every page that it changes as a whole.
#[tokio::test]
async fn lone_start_writes_less_than_16_kb_to_the_log() {
    let folder = folder();
    let store = open(folder.path());
    let node = join(&store).await;
    // The log starts again at its beginning once it has reached the size at which it is copied, so those
    // commits are not counted.
    let log = || std::fs::metadata(folder.path().join("recoup.db-wal")).expect("a log").len();
    let mut written = Vec::new();
    for number in 1..=100 {
        let before = log();
        store.commit(node, &batch(vec![start(number)])).await.expect("commits");
        written.extend(log().checked_sub(before));
    }
    let start = written.iter().sum::<u64>() / u64::try_from(written.len()).expect("a few");
    assert!((1..16_000).contains(&start), "{start} bytes for a start");
}

/// A statement that may write several rows first puts them into a temporary table, and keeps a copy of each
/// page that it changes. This would take a third of a commit's time.
#[tokio::test]
async fn ordinary_commit_uses_no_temporary_tables() {
    let folder = folder();
    let store = open(folder.path());
    let steps = |sql: &'static str| {
        store.write(move |write| {
            let mut explained = write.connection().prepare(&format!("explain {sql}"))?;
            let unbound = vec![rusqlite::types::Null; explained.parameter_count()];
            let steps = explained.query_map(rusqlite::params_from_iter(unbound), |row| {
                Ok((row.get::<_, String>("opcode")?, row.get::<_, Option<String>>("p4")?))
            })?;
            Ok(steps.collect::<rusqlite::Result<Vec<_>>>()?)
        })
    };
    for sql in super::commit::ORDINARY {
        let steps = steps(sql).await.expect("a valid statement");
        assert!(steps.iter().any(|(opcode, _)| opcode == "Transaction"), "{steps:?}");
        let own = |(opcode, _): &&(String, _)| opcode.starts_with("OpenEphemeral");
        assert_eq!(steps.iter().find(own), None, "{sql}");
    }
}

/// Writes that queue up together may share a transaction, but each caller gets its own answer.
#[tokio::test]
async fn concurrent_callers_each_get_their_own_verdict() {
    let folder = folder();
    let store = open(folder.path());
    let node = join(&store).await;
    let taken = start(7);
    store.commit(node, &batch(vec![taken])).await.expect("commits");
    let commits = (1..=200_u128).map(|number| {
        let store = store.clone();
        let transition = Transition { transition_id: TransitionId(Uuid::nil()), ..start(number) };
        tokio::spawn(async move { store.commit(node, &batch(vec![transition])).await })
    });
    let commits: Vec<_> = commits.collect();
    for (number, commit) in (1..).zip(commits) {
        let expected = if number == 7 { Settled::Lost } else { Settled::Won };
        assert_eq!(commit.await.expect("it ends").expect("commits"), [expected], "{number}");
    }
    let all: Vec<_> = (1..=200).map(execution).collect();
    assert_eq!(store.heads(&all).await.expect("heads").len(), 200);
}

/// Exercises the second, careful run: a constraint that no check anticipated fails in the middle of a group.
#[tokio::test]
async fn constraint_violation_refuses_only_the_offending_write() {
    let folder = folder();
    let store = open(folder.path());
    let node = join(&store).await;
    let fine = |number: i64| {
        let store = store.clone();
        tokio::spawn(async move {
            store
                .write(move |write| {
                    write.execute("insert into namespace values (?1, '', 1, 1)", [number])?;
                    Ok(number)
                })
                .await
        })
    };
    let before: Vec<_> = (0..20).map(fine).collect();
    let broken = store.write(|write| {
        write.execute("insert into namespace values ('broken', '', 1, 1)", [])?;
        write.execute("insert into namespace values ('negative', '', -1, 1)", [])?;
        Ok(())
    });
    let broken = broken.await;
    assert!(matches!(broken, Err(Error::Data(_))), "{broken:?}");
    for (number, task) in before.into_iter().enumerate() {
        let written = task.await.expect("it ends").expect("writes");
        assert_eq!(usize::try_from(written), Ok(number));
    }
    let names = store.list_namespaces(None, 100).await.expect("lists");
    assert_eq!(names.len(), 21, "{names:?}");

    // Inside one batch, only the transition is refused.
    store
        .write(|write| {
            write.execute(
                "create temp trigger refuse before insert on history when new.format = 9
                begin select raise(abort, 'refused by the test'); end",
                (),
            )?;
            Ok(())
        })
        .await
        .expect("a trigger");
    let culprit = Transition {
        format: 9,
        request: Some(StartRequest {
            namespace: "default".into(),
            request_id: "r".into(),
            digest: 1,
        }),
        ..start(2)
    };
    let settled = store.commit(node, &batch(vec![start(1), culprit, start(3)])).await;
    let settled = settled.expect("commits");
    assert_eq!((&settled[0], &settled[2]), (&Settled::Won, &Settled::Won));
    assert!(matches!(&settled[1], Settled::Refused(reason) if reason.contains("by the test")));
    assert_eq!(store.started_by(&"default".into(), "r").await.expect("asks"), None);
    assert_eq!(store.heads(&[1, 2, 3].map(execution)).await.expect("heads").len(), 2);
}

/// A full disk makes every write fail and roll back. Once there is space again, writes succeed.
#[tokio::test]
async fn full_disk_is_unavailable_until_there_is_space_again() {
    let folder = folder();
    let store = open(folder.path());
    let node = join(&store).await;
    let limit = |pages: &'static str| {
        store.write(move |write| {
            let set = format!("pragma max_page_count = {pages}");
            Ok(write.prepare(&set)?.query_row([], |row| row.get::<_, i64>(0))?)
        })
    };
    limit("1").await.expect("as small as it is");
    let large = Transition { data: Bytes::from(vec![7; 1 << 20]), ..start(1) };
    let full = store.commit(node, &batch(vec![large.clone()])).await;
    assert!(matches!(full, Err(Error::Unavailable(_))), "{full:?}");
    assert!(store.load(node, &[execution(1)]).await.expect("loads").is_empty());
    limit("1073741823").await.expect("space");
    let settled = store.commit(node, &batch(vec![large])).await.expect("commits");
    assert_eq!(settled, [Settled::Won]);
}

#[tokio::test]
async fn start_request_id_can_be_used_again_after_a_day() {
    let folder = folder();
    let time = Arc::new(Mutex::new(Timestamp::from_micros(1_000_000)));
    let clock: Clock = {
        let time = Arc::clone(&time);
        Arc::new(move || *time.lock().expect("nothing panics"))
    };
    let store = SqliteStore::open_with_clock(folder.path(), clock).expect("the store opens");
    let node = join(&store).await;
    let request =
        |digest| StartRequest { namespace: "default".into(), request_id: "r".into(), digest };
    let start = |number, digest| Transition { request: Some(request(digest)), ..start(number) };
    let settle = async |number, digest| {
        let settled = store.commit(node, &batch(vec![start(number, digest)])).await;
        settled.expect("commits").pop().expect("one answer")
    };
    let started = async || store.started_by(&"default".into(), "r").await.expect("asks");
    assert_eq!(settle(1, 7).await, Settled::Won);
    *time.lock().expect("nothing panics") = Timestamp::from_micros(999_999) + REQUEST_KEPT;
    let taken = Settled::RequestTaken { execution: execution(1), digest: 7, started: true };
    assert_eq!(settle(2, 8).await, taken);
    assert_eq!(started().await, Some((execution(1), 7)));
    *time.lock().expect("nothing panics") = Timestamp::from_micros(1_000_000) + REQUEST_KEPT;
    assert_eq!(started().await, None);
    assert_eq!(settle(2, 8).await, Settled::Won);
    assert_eq!(started().await, Some((execution(2), 8)));
    assert_eq!(
        store.expire(Timestamp::MAX, 10).await.expect("expires").start_requests,
        0,
        "the request id is new"
    );
}

#[tokio::test]
async fn registry_request_id_survives_a_restart_and_can_be_used_again_after_a_day() {
    let folder = folder();
    let time = Arc::new(Mutex::new(Timestamp::from_micros(1_000_000)));
    let set = |now: Timestamp| *time.lock().expect("nothing panics") = now;
    let reopen = || {
        let time = Arc::clone(&time);
        let clock: Clock = Arc::new(move || *time.lock().expect("nothing panics"));
        SqliteStore::open_with_clock(folder.path(), clock).expect("the store opens")
    };
    let create = async |store: &SqliteStore, name: &str, request_id: &str, digest| {
        let request_id = request_id.to_owned();
        let request = RegistryRequest { namespace: "".into(), request_id, digest };
        store.create_namespace(&name.into(), "", LONG, Some(&request)).await
    };
    let store = reopen();
    let first = create(&store, "a", "r", 1).await.expect("creates");
    create(&store, "b", "s", 1).await.expect("creates");
    drop(store);
    let store = reopen();
    set(Timestamp::from_micros(999_999) + REQUEST_KEPT);
    assert_eq!(create(&store, "a", "r", 1).await.expect("again"), first);
    let reused = create(&store, "c", "r", 2).await;
    assert!(matches!(reused, Err(Error::RequestIdReused)), "{reused:?}");
    assert_eq!(store.expire(Timestamp::MAX, 10).await.expect("expires").registry_requests, 0);
    set(Timestamp::from_micros(1_000_000) + REQUEST_KEPT);
    let taken = create(&store, "a", "r", 1).await;
    assert!(matches!(taken, Err(Error::AlreadyExists)), "{taken:?}");
    create(&store, "c", "r", 2).await.expect("the id is free");
    create(&store, "d", "t", 1).await.expect("creates");
    set(Timestamp::from_micros(1_000_000) + REQUEST_KEPT * 2);
    for more in [true, false] {
        let expired = store.expire(Timestamp::MAX, 2).await.expect("expires");
        assert_eq!((expired.registry_requests, expired.more), (if more { 2 } else { 1 }, more));
    }
}

/// The row comes from a call that only a newer server knows, so its request id belongs to another operation.
#[tokio::test]
async fn request_id_of_an_unknown_operation_is_refused_for_every_other() {
    let folder = folder();
    let store = open(folder.path());
    let insert = |write: &mut Write<'_>| {
        const INSERT: &str = "
            insert into registry_request values ('default', 'r', 'RENAME_WORKFLOW', 1, 9, x'00', ?1)";
        write.execute(INSERT, [write.now.as_micros()]).map(drop)
    };
    store.write(insert).await.expect("no constraint lists the operations");
    let (namespace, request_id) = ("default".into(), "r".into());
    let request = RegistryRequest { namespace, request_id, digest: 1 };
    for operation in RegistryOperation::ALL {
        let answered = store.answered(operation, &request).await;
        assert!(matches!(answered, Err(Error::RequestIdReused)), "{answered:?}");
    }
}

/// The path that every successful execution takes must not write more than it has to.
#[tokio::test]
async fn queries_use_their_index_and_need_no_sorting() {
    let folder = folder();
    let store = open(folder.path());
    let plan = |sql: &'static str| {
        store.read(move |connection| {
            let mut statement = connection.prepare(&format!("explain query plan {sql}"))?;
            let rows = statement.query_map([], |row| row.get::<_, String>(3))?;
            Ok(rows.collect::<Result<Vec<_>, _>>()?.join("; "))
        })
    };
    for (sql, index) in [
        ("select id from execution where namespace = 'a' order by id desc", "execution_list"),
        (
            "select id from execution where namespace = 'a' and state in ('FAILED', 'TIMED_OUT')
            and (state = 'FAILED' or state = 'TIMED_OUT' or state = 'CANCELLED'
                or state = 'TERMINATED')
            order by id desc",
            "execution_failed",
        ),
        (
            "select id from execution where owner = 1 and wake_at is not null and wake_at <= 5
            order by wake_at, id",
            "execution_due",
        ),
        ("select min(owner) from execution where active = 1 and owner > 4", "execution_owned"),
        (
            "select id from execution where ended_at is not null and active = 0
            and compensation <> 'PARKED' and namespace = 'a' and ended_at < 5
            and compensation in ('NONE', 'PENDING', 'DONE') order by ended_at",
            "execution_ended",
        ),
        ("select namespace from feed where namespace > 'a' order by namespace", "feed_age"),
        ("select * from feed where lane = 1 and number > 5 order by number", "feed_lane"),
        (
            "select * from overflow_task where namespace = 'a' and queue = 'b'
            order by priority desc, available_at, execution_id, path, attempt",
            "overflow_task_claim",
        ),
    ] {
        let plan = plan(sql).await.expect("a plan");
        assert!(plan.contains(index), "{sql}: {plan}");
        assert!(!plan.contains("TEMP B-TREE"), "{sql}: {plan}");
    }
}
