//! Request ids of mutations that belong to no execution. They stay valid when the server that answered first is
//! gone.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use recoup_proto::v1;
use recoup_store::memory::MemoryStore;
use recoup_store::{Retention, Subscriptions};
use tonic::Code;

use crate::server::{ORDER, Server, assert_refused, source};

/// Two servers on one store. The second answers repetitions of requests that the first has answered.
async fn servers() -> [Server; 2] {
    let store = Arc::new(MemoryStore::with_system_clock());
    [Server::on(store.clone(), |_| {}).await, Server::on(store, |_| {}).await]
}

const REUSED: (Code, &str, &[&str]) = (Code::AlreadyExists, "REQUEST_ID_REUSED", &["request_id"]);

fn namespace(name: &str, description: &str) -> v1::CreateNamespaceRequest {
    let namespace = v1::Namespace {
        name: name.into(),
        description: description.into(),
        retention: Some(Duration::from_secs(600).into()),
        ..Default::default()
    };
    v1::CreateNamespaceRequest { namespace: Some(namespace), request_id: "id".into() }
}

#[tokio::test]
async fn repeated_namespace_creation_returns_the_first_answer() {
    let [first, second] = servers().await;
    let request = namespace("team", "ours");
    let created = first.namespaces().create_namespace(request.clone()).await.expect("it is new");
    let again = second.namespaces().create_namespace(request.clone()).await.expect("it repeats");
    assert_eq!(created.into_inner(), again.into_inner());

    let (code, reason, fields) = REUSED;
    for other in [namespace("team", "theirs"), namespace("other", "ours")] {
        let refused = second.namespaces().create_namespace(other).await;
        assert_refused(refused, code, reason, fields);
    }
    let next = v1::CreateNamespaceRequest { request_id: "id 2".into(), ..request };
    let refused = first.namespaces().create_namespace(next).await;
    assert_refused(refused, Code::AlreadyExists, "NAMESPACE_EXISTS", &[]);
    // The refused request did not use up its id.
    let free = v1::CreateNamespaceRequest { request_id: "id 2".into(), ..namespace("free", "") };
    first.namespaces().create_namespace(free).await.expect("the id is free");
}

#[tokio::test]
async fn repeated_registration_or_retirement_returns_the_first_answer() {
    let [first, second] = servers().await;
    let registration = |text: &str, id: &str| v1::RegisterWorkflowRequest {
        request_id: id.into(),
        ..source(text)
    };
    let changed = ORDER.replace("charge", "take");
    let broken = registration("name: 7x\nsteps: 1\n", "1");
    first.workflows().register_workflow(broken).await.expect_err("it is not a definition");
    let one = first.workflows().register_workflow(registration(ORDER, "1")).await;
    let one = one.expect("a rejected call does not use up its request id").into_inner();
    assert_eq!((one.version, one.created), (1, true));
    let two = first.workflows().register_workflow(registration(&changed, "2")).await;
    assert_eq!(two.expect("the definition is valid").into_inner().version, 2);
    let again = second.workflows().register_workflow(registration(ORDER, "1")).await;
    assert_eq!(
        again.expect("it repeats").into_inner(),
        one,
        "the first answer, not the latest version"
    );
    let refused = second.workflows().register_workflow(registration(&changed, "1")).await;
    let (code, reason, fields) = REUSED;
    assert_refused(refused, code, reason, fields);

    let retire = |version| v1::RetireWorkflowRequest {
        name: "order".into(),
        version,
        request_id: "retire".into(),
        ..Default::default()
    };
    let retired = first.workflows().retire_workflow(retire(None)).await.expect("it is there");
    let three = first.workflows().register_workflow(registration(ORDER, "3")).await;
    assert_eq!(three.expect("the definition is valid").into_inner().version, 3);
    let again = second.workflows().retire_workflow(retire(None)).await.expect("it repeats");
    assert_eq!(again.into_inner(), retired.into_inner());
    assert_eq!(second.begin("order").await.len(), 36, "the repetition retired the third version");
    let refused = second.workflows().retire_workflow(retire(Some(3))).await;
    assert_refused(refused, code, reason, fields);
    // The id of a registration cannot be used for another call either.
    let other = v1::RetireWorkflowRequest { request_id: "1".into(), ..retire(None) };
    assert_refused(second.workflows().retire_workflow(other).await, code, reason, fields);
}

/// A repeated request gets its answer even if there would be no room for a new subscription.
#[tokio::test]
async fn repeated_creation_at_the_subscription_limit_returns_the_first_answer() {
    let store = Arc::new(MemoryStore::with_system_clock());
    for number in 1..1000 {
        let (name, state) = (format!("s{number}"), Bytes::new());
        let made = store.create_subscription(&"default".into(), &name, 1, &state, None).await;
        made.expect("it is new");
    }
    let server = Server::on(store, |_| {}).await;
    let create = async |id| server.failures().create_subscription(subscription(id, 7)).await;
    let created = create("c").await.expect("there is room for one").into_inner();
    assert_eq!(create("c").await.expect("it repeats").into_inner(), created);
    let mut other = subscription("d", 7);
    other.subscription.as_mut().expect("it has one").name = "other".into();
    let refused = server.failures().create_subscription(other).await;
    assert_refused(refused, Code::ResourceExhausted, "LIMIT_REACHED", &[]);
}

fn subscription(id: &str, window: u32) -> v1::CreateSubscriptionRequest {
    let name = "ops".into();
    let subscription = v1::Subscription { name, window, ..Default::default() };
    v1::CreateSubscriptionRequest { subscription: Some(subscription), request_id: id.into() }
}

#[tokio::test]
async fn deleted_subscription_is_not_recreated_by_a_repeated_request() {
    let [first, second] = servers().await;
    let delete = |id: &str| v1::DeleteSubscriptionRequest {
        subscription: Some(v1::SubscriptionRef { name: "ops".into(), ..Default::default() }),
        request_id: id.into(),
    };
    let (code, reason, fields) = REUSED;
    let created = first.failures().create_subscription(subscription("c", 7)).await;
    let created = created.expect("it is new").into_inner();
    let again = second.failures().create_subscription(subscription("c", 7)).await;
    assert_eq!(again.expect("it repeats").into_inner(), created);
    let refused = second.failures().create_subscription(subscription("c", 8)).await;
    assert_refused(refused, code, reason, fields);
    // The subscription exists with the same settings, and the request id is new.
    let same = first.failures().create_subscription(subscription("same", 7)).await;
    assert_eq!(same.expect("the same settings").into_inner(), created);

    first.failures().delete_subscription(delete("d")).await.expect("it is there");
    for id in ["c", "same"] {
        let again = second.failures().create_subscription(subscription(id, 7)).await;
        assert_eq!(again.expect("it repeats").into_inner(), created);
    }
    let gone = second.failures().delete_subscription(delete("d 2")).await;
    assert_refused(gone, Code::NotFound, "SUBSCRIPTION_NOT_FOUND", &[]);
    first.failures().create_subscription(subscription("c 2", 8)).await.expect("the name is free");
    second.failures().delete_subscription(delete("d")).await.expect("it repeats");
    let refused = second.failures().delete_subscription(delete("c 2")).await;
    assert_refused(refused, code, reason, fields);
    second
        .failures()
        .delete_subscription(delete("d 2"))
        .await
        .expect("the new subscription exists");
}

#[tokio::test]
async fn resume_retention_reports_the_pause_only_once() {
    let store = Arc::new(MemoryStore::with_system_clock());
    let server = Server::on(store.clone(), |_| {}).await;
    store.pause_retention().await.expect("the store pauses retention");
    let resume = async || {
        let answer = server.namespaces().resume_retention(v1::ResumeRetentionRequest {}).await;
        answer.expect("it answers").into_inner().paused_at
    };
    assert!(resume().await.is_some(), "it was paused");
    assert_eq!(resume().await, None, "it is no longer paused");
}
