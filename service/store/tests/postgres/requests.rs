//! Request ids of the registry's mutations, in cases that only a remote database has: the connection is lost
//! around COMMIT, several servers share the database, and a day passes.

use std::sync::Arc;
use std::time::Duration;

use recoup_core::time::Timestamp;
use recoup_store::postgres::{Options, PostgresStore};
use recoup_store::{
    Error, Namespaces, NewVersion, Registry, RegistryOperation, RegistryRequest, Result, Retention,
    Subscriptions, Workflows,
};
use recoup_test_postgres::Server;
use recoup_test_postgres::proxy::{Fault, Proxy};

/// Shorter than the time after which Postgres ends a silent transaction. The old server process therefore still
/// exists when the call is repeated.
const COMMIT_TIMEOUT: Duration = Duration::from_millis(700);

fn request(id: &str, digest: u64) -> RegistryRequest {
    RegistryRequest { namespace: "default".into(), request_id: id.into(), digest }
}

fn version(name: &str) -> NewVersion {
    NewVersion {
        namespace: "default".into(),
        name: name.into(),
        digest: [7; 32],
        format: 1,
        definition: "definition".into(),
    }
}

/// Repeats the call until there is a definite answer. Also returns how many calls had an unknown outcome.
async fn settle<T>(mut call: impl AsyncFnMut() -> Result<T>) -> (T, usize) {
    let mut unknown = 0;
    loop {
        match call().await {
            Ok(answer) => return (answer, unknown),
            Err(Error::OutcomeUnknown(_)) => unknown += 1,
            Err(error) => panic!("{error}"),
        }
    }
}

/// The call is repeated with its request id. It takes effect exactly once, whichever of the two calls was
/// committed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mutation_repeated_after_a_cut_connection_takes_effect_once() {
    let database = Server::shared().database().await;
    let proxy = Proxy::start(database.port).await;
    let options = Options { commit_timeout: COMMIT_TIMEOUT, ..Options::default() };
    let url = database.url_through(proxy.port());
    let store = PostgresStore::connect(&url, options).await.expect("through the proxy");
    let default = "default".into();
    let state = "state".into();
    for fault in [Fault::CutBeforeCommit, Fault::CutBeforeAnswer, Fault::HalfOpen] {
        let name = format!("{fault:?}").to_lowercase();
        let id = |call: &str| request(&format!("{call} {name}"), 1);
        let of_none = RegistryRequest { namespace: "".into(), ..id("namespace") };

        proxy.arm(fault);
        let create = async || {
            let retention = Duration::from_secs(60);
            let name = name.as_str().into();
            store.create_namespace(&name, "", retention, Some(&of_none)).await
        };
        let (row, unknown) = settle(create).await;
        assert_eq!((row.name.as_str(), unknown), (name.as_str(), 1));

        proxy.arm(fault);
        let new = version(&name);
        let register = id("register");
        let ((row, is_new), unknown) =
            settle(async || store.register(&new, Some(&register)).await).await;
        assert_eq!((row.version, is_new, unknown), (1, true, 1), "{fault:?}");

        proxy.arm(fault);
        let workflow = name.as_str().into();
        let retire = id("retire");
        let (retired_at, unknown) =
            settle(async || store.retire(&default, &workflow, None, Some(&retire)).await).await;
        let version = store.workflow(&default, &workflow, Some(1)).await.expect("reads");
        assert_eq!(version.and_then(|row| row.retired_at), Some(retired_at), "{fault:?}");
        assert_eq!(unknown, 1);

        proxy.arm(fault);
        let create = id("create");
        let (row, unknown) = settle(async || {
            store.create_subscription(&default, &name, 1, &state, Some(&create)).await
        })
        .await;
        assert_eq!(unknown, 1);
        let there = store.subscription(&default, &name).await.expect("reads");
        assert_eq!(there, Some(row), "{fault:?}");

        proxy.arm(fault);
        let delete = id("delete");
        let ((), unknown) =
            settle(async || store.delete_subscription(&default, &name, Some(&delete)).await).await;
        assert_eq!(unknown, 1);
        assert_eq!(store.subscription(&default, &name).await.expect("reads"), None, "{fault:?}");
        assert!(!proxy.is_armed(), "the fault did not strike");
    }
}

/// Twelve callers use two servers, half of them each. One call creates the row, and all callers get its answer;
/// none gets an error of the database.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identical_calls_to_two_servers_get_the_same_answer() {
    let database = Server::shared().database().await;
    let mut servers = Vec::new();
    for _ in 0..2 {
        let store = PostgresStore::connect(&database.url(), Options::default()).await;
        servers.push(Arc::new(store.expect("opens")));
    }
    for round in 0..20 {
        let calls: Vec<_> = (0..12)
            .map(|caller| {
                let store = servers[caller % 2].clone();
                tokio::spawn(async move {
                    let new = version(&format!("w{}", round % 5));
                    // Every second round uses another operation, which takes other locks.
                    let request = request(&format!("r{round}"), 1);
                    if round % 2 == 0 {
                        let (row, is_new) = store.register(&new, Some(&request)).await?;
                        return Ok((row.version, is_new, row.created_at));
                    }
                    let name = format!("s{round}");
                    let state = vec![u8::try_from(caller).expect("few")].into();
                    let namespace = "default".into();
                    let row = store
                        .create_subscription(&namespace, &name, 1, &state, Some(&request))
                        .await?;
                    Ok((u32::from(row.state[0]), true, row.created_at))
                })
            })
            .collect();
        let mut answers = Vec::new();
        for call in calls {
            let answer: Result<_> = call.await.expect("the call ends");
            answers.push(answer.expect("all get the answer of the one"));
        }
        answers.dedup();
        assert_eq!(answers.len(), 1, "round {round}: {answers:?}");
    }
}

#[tokio::test]
async fn registry_request_id_can_be_used_again_after_a_day() {
    let database = Server::shared().database().await;
    let store = PostgresStore::connect(&database.url(), Options::default()).await.expect("opens");
    let client = database.client().await;
    let pass = async |time: &str| {
        let sql = format!(
            "update recoup.registry_request set created_at = created_at - interval '{time}'"
        );
        client.execute(&sql, &[]).await.expect("is valid")
    };
    let register = async |name: &str, id: &str, digest| {
        store.register(&version(name), Some(&request(id, digest))).await
    };
    register("a", "r", 1).await.expect("registers");
    register("b", "s", 1).await.expect("registers");
    pass("23 hours 59 minutes").await;
    let (row, is_new) = register("a", "r", 1).await.expect("again");
    assert_eq!((row.version, is_new), (1, true));
    let reused = register("c", "r", 2).await;
    assert!(matches!(reused, Err(Error::RequestIdReused)), "{reused:?}");
    assert_eq!(store.expire(Timestamp::MAX, 10).await.expect("expires").registry_requests, 0);

    pass("1 minute").await;
    let operation = RegistryOperation::RegisterWorkflow;
    assert_eq!(store.answered(operation, &request("s", 1)).await.expect("asks"), None);
    let (_, is_new) = register("b", "s", 2).await.expect("the id is free");
    assert!(!is_new);
    register("c", "t", 1).await.expect("registers");
    let expired = store.expire(Timestamp::MAX, 10).await.expect("expires");
    assert_eq!((expired.registry_requests, expired.more), (1, false), "`s` was recorded anew");
    pass("1 day").await;
    for more in [true, false] {
        let expired = store.expire(Timestamp::MAX, 1).await.expect("expires");
        assert_eq!((expired.registry_requests, expired.more), (1, more));
    }
}

/// The row comes from a call that only a newer server knows, so its request id belongs to another operation.
#[tokio::test]
async fn request_id_of_an_unknown_operation_is_refused_for_every_other() {
    let database = Server::shared().database().await;
    let store = PostgresStore::connect(&database.url(), Options::default()).await.expect("opens");
    let client = database.client().await;
    const INSERT: &str = "insert into recoup.registry_request
        values ('default', 'r', 'RENAME_WORKFLOW', 1, 9, '\\x00')";
    client.execute(INSERT, &[]).await.expect("no constraint lists the operations");
    for operation in RegistryOperation::ALL {
        let answered = store.answered(operation, &request("r", 1)).await;
        assert!(matches!(answered, Err(Error::RequestIdReused)), "{answered:?}");
    }
    let registered = store.register(&version("a"), Some(&request("r", 1))).await;
    assert!(matches!(registered, Err(Error::RequestIdReused)), "{registered:?}");
}
