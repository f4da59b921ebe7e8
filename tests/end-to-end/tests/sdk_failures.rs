//! A failure subscriber of the Rust SDK against a server that is killed. The subscriber reconnects by itself
//! and resumes where it was.

use std::collections::BTreeMap;
use std::time::Duration;

use recoup_end_to_end::server::{Folder, Server, connected};
use recoup_sdk::proto::{FailureKind, Subscription};
use recoup_sdk::{AckOutcome, Client, Delivery, Failures, TaskContext, TaskError, Worker};

/// How long the tests wait before they fail.
const PATIENCE: Duration = Duration::from_secs(30);
/// Each execution has three failed attempts and an end: four events.
const WORKFLOW: &str = "
name: failing
defaults: {retry: {constant: {interval: 1ms}, max_attempts: 3}}
steps:
- {id: only, task: {type: fail}}
";
const KINDS: [FailureKind; 4] = [
    FailureKind::AttemptFailed,
    FailureKind::AttemptFailed,
    FailureKind::StepFailed,
    FailureKind::ExecutionFailed,
];

struct Site {
    server: Server,
    client: Client,
    _folder: Folder,
}

impl Site {
    async fn start(name: &str) -> Self {
        let (folder, server, client) = connected(name).await;
        client.register_workflow(WORKFLOW).await.expect("it is correct");
        let worker = Worker::builder(client.clone()).task("fail", |_: TaskContext, (): ()| async {
            Err::<(), _>(TaskError::new("test.always"))
        });
        tokio::spawn(worker.run(std::future::pending()));
        Self { server, client, _folder: folder }
    }

    /// Runs executions that fail. Returns their ids once they have ended.
    async fn fail(&self, count: usize) -> Vec<String> {
        let mut ids = Vec::new();
        for _ in 0..count {
            let ended = self.client.run("failing").wait_at_most(PATIENCE).send().await;
            let ended = ended.expect("it ends");
            assert!(!ended.succeeded());
            ids.push(ended.execution_id);
        }
        ids
    }

    fn crash(&mut self) {
        self.server.kill();
        self.server.restart();
    }
}

async fn next(failures: &mut Failures) -> Delivery {
    let next = tokio::time::timeout(PATIENCE, failures.next()).await;
    next.expect("a delivery arrives").expect("the subscription has no error")
}

/// Checks that each execution's events were received completely, in order and once.
fn assert_complete<'a>(received: impl IntoIterator<Item = &'a Delivery>, executions: &[String]) {
    let mut kinds: BTreeMap<&str, Vec<FailureKind>> = BTreeMap::new();
    for delivery in received {
        kinds.entry(&delivery.event.execution_id).or_default().push(delivery.event.kind());
    }
    let wanted: BTreeMap<&str, Vec<FailureKind>> =
        executions.iter().map(|id| (id.as_str(), KINDS.to_vec())).collect();
    assert_eq!(kinds, wanted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ephemeral_subscriber_resumes_from_its_cursor() {
    let mut site = Site::start("sdk-ephemeral").await;
    let mut executions = site.fail(3).await;
    let mut failures = site.client.failures().from_beginning().subscribe().expect("a valid set-up");
    let mut received = Vec::new();
    // Stops in the middle of an execution, and in the middle of a batch that the stream delivered.
    for _ in 0..5 {
        received.push(next(&mut failures).await);
    }
    let cursor = failures.cursor().to_owned();
    assert_eq!(cursor, received[4].cursor);
    site.crash();
    // These executions fail while the subscriber is disconnected.
    executions.extend(site.fail(2).await);
    while received.len() < 14 {
        received.push(next(&mut failures).await);
    }
    site.crash();
    executions.extend(site.fail(1).await);
    while received.len() < 4 * executions.len() {
        received.push(next(&mut failures).await);
    }
    assert_complete(&received, &executions);

    // A new subscriber that resumes from the cursor which the first one kept.
    let mut later = site.client.failures().after(cursor).subscribe().expect("a valid set-up");
    for earlier in &received[5..] {
        assert_eq!(next(&mut later).await.event, earlier.event);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_from_now_misses_no_event_after_the_first_answer() {
    let mut site = Site::start("sdk-from-now").await;
    site.fail(1).await;
    let mut failures = site.client.failures().subscribe().expect("a valid set-up");
    let standing = async {
        while failures.cursor().is_empty() {
            // Nothing has happened since the subscription began, so the answer holds a cursor and no event.
            let wait = tokio::time::timeout(Duration::from_millis(20), failures.next()).await;
            assert!(wait.is_err(), "an event from before the subscription");
        }
    };
    tokio::time::timeout(PATIENCE, standing).await.expect("the first answer arrives at once");
    site.crash();
    let executions = site.fail(1).await;
    let mut received = Vec::new();
    while received.len() < 4 {
        received.push(next(&mut failures).await);
    }
    assert_complete(&received, &executions);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_durable_subscriber_gets_unacknowledged_events_again() {
    let mut site = Site::start("sdk-durable").await;
    let subscription = Subscription {
        name: "alerts".to_owned(),
        // Outstanding events are redelivered after this time at the latest.
        ack_deadline: Some(Duration::from_secs(2).into()),
        ..Subscription::default()
    };
    site.client.create_subscription(subscription).await.expect("it is new");
    let mut executions = site.fail(2).await;
    let durable = || site.client.failures().durable("alerts").consumer("test").subscribe();
    let mut failures = durable().expect("a valid set-up");
    let mut acked = Vec::new();
    while acked.len() < 2 {
        let delivery = next(&mut failures).await;
        assert_eq!(delivery.ack().await.expect("it answers"), AckOutcome::Accepted);
        acked.push(delivery);
    }
    let unacked = next(&mut failures).await;
    site.crash();
    executions.extend(site.fail(1).await);

    let mut again = 0;
    while acked.len() < 4 * executions.len() {
        let delivery = next(&mut failures).await;
        let id = &delivery.event.id;
        assert!(acked.iter().all(|earlier| earlier.event.id != *id), "{id} was acknowledged");
        again += usize::from(*id == unacked.event.id);
        // An event that arrived before the crash but was not read may be outstanding twice. The first
        // acknowledgement then may not be accepted.
        if delivery.ack().await.expect("it answers") == AckOutcome::Accepted {
            acked.push(delivery);
        }
    }
    assert!(again > 0, "the unacknowledged event was not redelivered");
    // Unacknowledged events came again after the later events of the same batch, so sort before comparing.
    acked.sort_by_key(|Delivery { event, .. }| {
        (event.history_sequence, event.kind() == FailureKind::ExecutionFailed)
    });
    assert_complete(&acked, &executions);
    let left = site.client.subscription("alerts").await.expect("it exists");
    assert_eq!(left.outstanding, 0, "{left:?}");
    // A new consumer starts after everything that was acknowledged.
    drop(failures);
    let last = site.fail(1).await;
    let mut failures =
        site.client.failures().durable("alerts").subscribe().expect("a valid set-up");
    let mut received = Vec::new();
    while received.len() < 4 {
        let delivery = next(&mut failures).await;
        delivery.ack().await.expect("it answers");
        received.push(delivery);
    }
    assert_complete(&received, &last);
}
