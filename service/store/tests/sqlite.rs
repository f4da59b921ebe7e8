//! The embedded store passes the suite that every store must pass.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use recoup_store::conformance::Harness;
use recoup_store::format::Formats;
use recoup_store::sqlite::SqliteStore;
use recoup_store::{NodeId, Store};
use tempfile::TempDir;

/// A store in a folder that is removed at the end of the case.
struct Embedded {
    store: Mutex<Option<SqliteStore>>,
    folder: TempDir,
}

impl Embedded {
    fn new() -> Self {
        Self { store: Mutex::default(), folder: tempfile::tempdir().expect("a folder") }
    }
}

#[async_trait]
impl Harness for Embedded {
    async fn fresh(&self) -> Arc<dyn Store> {
        let store = SqliteStore::open(self.folder.path()).expect("an empty folder");
        *self.store.lock().expect("one test has it") = Some(store.clone());
        Arc::new(store)
    }

    async fn set_lane(&self, _node: NodeId, last: i64) {
        let store = self.store.lock().expect("one test has it").clone();
        store.expect("made before").set_lanes(last).await.expect("writes");
    }

    fn reading(&self, formats: Formats) -> Arc<dyn Store> {
        let store = self.store.lock().expect("one test has it").clone();
        Arc::new(store.expect("made before").reading(formats))
    }
}

recoup_store::conformance!(Embedded::new());

mod killed {
    //! A process that is killed during a commit has acknowledged nothing that is missing afterwards.

    use std::collections::BTreeSet;
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::process::ExitStatusExt;
    use std::path::Path;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use bytes::Bytes;
    use recoup_core::execution::{CompensationState, Phase, State};
    use recoup_core::failure_event::FailureKind;
    use recoup_core::id::{ExecutionId, TransitionId};
    use recoup_core::time::Timestamp;
    use recoup_store::sqlite::SqliteStore;
    use recoup_store::{
        Batch, Executions, Feed, FeedRow, IndexRow, NodeId, Nodes, PageLimit, Settled, Transition,
        Transitions,
    };
    use uuid::Uuid;

    /// Environment variables of the process that will be killed: its folder, and the first number to write.
    const FOLDER: &str = "RECOUP_TEST_KILLED_FOLDER";
    const FIRST: &str = "RECOUP_TEST_KILLED_FIRST";
    const ROUNDS: u64 = 5;
    const NUMBERS_PER_ROUND: u64 = 1_000_000;
    const WRITERS: u64 = 8;

    #[test]
    fn acknowledged_commits_survive_a_kill() {
        if let Some(folder) = std::env::var_os(FOLDER) {
            let first = std::env::var(FIRST).expect("set beside the folder");
            return write_until_killed(Path::new(&folder), first.parse().expect("a number"));
        }
        let folder = tempfile::tempdir().expect("a folder");
        let mut acknowledged = BTreeSet::new();
        for round in 0..ROUNDS {
            let first = round * NUMBERS_PER_ROUND;
            let before = acknowledged.len();
            // Each round kills at another moment: early, and after the log has grown.
            acknowledged.extend(write_and_kill(folder.path(), first, 20 + 150 * round));
            assert!(acknowledged.len() > before, "nothing was acknowledged in round {round}");
            check(folder.path(), &acknowledged);
        }
    }

    fn write_and_kill(folder: &Path, first: u64, until: u64) -> Vec<u64> {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "killed::acknowledged_commits_survive_a_kill", "--nocapture"])
            .env(FOLDER, folder)
            .env(FIRST, first.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this test runs itself");
        let output = BufReader::new(child.stdout.take().expect("it is a pipe"));
        let mut acknowledged = Vec::new();
        // Lines that are still in the pipe when the process dies were acknowledged too.
        for line in output.split(b'\n') {
            let line = line.expect("the pipe is read");
            let Some(number) = line.strip_prefix(b"acknowledged ") else { continue };
            let number = str::from_utf8(number).expect("a number");
            // The last line may be cut off. Only a number followed by the full stop is complete.
            if let Some(number) = number.strip_suffix('.') {
                acknowledged.push(number.parse().expect("a number"));
            }
            if acknowledged.len() as u64 == until {
                child.kill().expect("it runs");
            }
        }
        let ended = child.wait().expect("it ends");
        assert_eq!(ended.signal(), Some(9), "the process was not killed: {ended}");
        acknowledged
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Runtime::new().expect("a runtime")
    }

    fn execution(number: u64) -> ExecutionId {
        ExecutionId(Uuid::from_u128(number.into()))
    }

    fn event_id(number: u64) -> String {
        format!("event {number}")
    }

    fn data(number: u64) -> Bytes {
        Bytes::from(format!("transition {number} ").repeat(20))
    }

    fn transition(number: u64) -> Transition {
        let at = Timestamp::from_micros(1);
        Transition {
            execution: execution(number),
            sequence: 1,
            transition_id: TransitionId(Uuid::from_u128(number.into())),
            format: 1,
            data: data(number),
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
                started_at: at,
                ended_at: None,
                wake_at: None,
            }),
            request: None,
            feed: vec![FeedRow {
                id: event_id(number),
                namespace: "default".into(),
                kind: FailureKind::StepFailed.into(),
                workflow: "order".into(),
                error_type: "payment".into(),
                execution: Some(execution(number)),
                fingerprint: String::new(),
                at,
                format: 1,
                data: Bytes::from_static(b"event"),
            }],
            overflow_done: vec![],
            may_be_gone: true,
        }
    }

    fn write_until_killed(folder: &Path, first: u64) {
        let runtime = runtime();
        let store = SqliteStore::open(folder).expect("the one before is dead");
        let join = store.join("test:1", Duration::from_secs(600));
        let node = runtime.block_on(join).expect("joins").node;
        let writers = (0..WRITERS).map(|writer| {
            let store = store.clone();
            runtime.spawn(async move {
                for number in (first + writer..first + NUMBERS_PER_ROUND).step_by(8) {
                    let one = Batch { transitions: vec![transition(number)], ..Batch::default() };
                    let settled = store.commit(node, &one).await.expect("commits");
                    assert_eq!(settled, [Settled::Won]);
                    let line = format!("acknowledged {number}.\n");
                    // Each line is written by one call, so that lines of several writers do not mix.
                    std::io::stdout().lock().write_all(line.as_bytes()).expect("the pipe");
                }
            })
        });
        let writers: Vec<_> = writers.collect();
        for writer in writers {
            runtime.block_on(writer).expect("it runs until it is killed");
        }
    }

    /// Checks that every acknowledged transition exists, and that every transition that exists is complete.
    fn check(folder: &Path, acknowledged: &BTreeSet<u64>) {
        let store = SqliteStore::open(folder).expect("it recovers");
        runtime().block_on(async {
            let ids: Vec<_> = acknowledged.iter().map(|number| execution(*number)).collect();
            let histories = store.load(NodeId(0), &ids).await.expect("loads");
            assert_eq!(histories.len(), acknowledged.len(), "acknowledged but missing");
            for (number, history) in acknowledged.iter().zip(histories) {
                assert_eq!(history.transitions[0].data, data(*number));
            }
            let heads = store.heads(&ids).await.expect("heads");
            assert_eq!(heads.len(), acknowledged.len(), "acknowledged without an index row");
            // An event exists exactly if its transition does.
            let (mut cursor, mut events) = (store.feed_start().await.expect("a start"), 0);
            let mut missing: BTreeSet<_> = acknowledged.iter().map(|n| event_id(*n)).collect();
            loop {
                let page = store
                    .read_feed(&cursor, PageLimit::events(500))
                    .await
                    .expect("the feed is read");
                cursor = page.cursor;
                events += page.events.len();
                let of = page.events.iter().filter_map(|event| event.row.execution);
                let of: Vec<_> = of.collect();
                let there = store.load(NodeId(0), &of).await.expect("loads").len();
                assert_eq!(there, of.len(), "an event without its transition");
                for event in &page.events {
                    missing.remove(&event.row.id);
                }
                if page.events.len() < 500 {
                    break;
                }
            }
            assert!(missing.is_empty(), "acknowledged without their events: {missing:?}");
            assert!(events >= acknowledged.len());
        });
    }
}
