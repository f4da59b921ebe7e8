//! Request ids of the registry: a repeated call gets the answer of the first one.

use std::time::Duration;

use bytes::Bytes;
use recoup_core::id::Namespace;
use recoup_core::time::Timestamp;

use super::registry::version;
use super::world::{LONG, NAMESPACE, World};
use crate::contract::*;

const STATE: Bytes = Bytes::from_static(b"state");

/// A request id, unique in the namespace that all cases use.
fn request(id: &str, digest: u64) -> RegistryRequest {
    RegistryRequest { namespace: NAMESPACE.into(), request_id: id.into(), digest }
}

fn is_reused<T: std::fmt::Debug>(result: Result<T>) -> bool {
    match result {
        Err(Error::RequestIdReused) => true,
        Ok(_) | Err(Error::NotFound | Error::AlreadyExists) => false,
        other => panic!("{other:?}"),
    }
}

async fn create(
    world: &World,
    name: &str,
    state: &Bytes,
    request: &RegistryRequest,
) -> Result<SubscriptionRow> {
    world.store.create_subscription(&NAMESPACE.into(), name, 2, state, Some(request)).await
}

async fn delete(world: &World, name: &str, request: &RegistryRequest) -> Result<()> {
    world.store.delete_subscription(&NAMESPACE.into(), name, Some(request)).await
}

async fn stored(world: &World, name: &str) -> Option<SubscriptionRow> {
    world.store.subscription(&NAMESPACE.into(), name).await.expect("asks")
}

async fn retire(
    world: &World,
    name: &str,
    number: Option<u32>,
    request: &RegistryRequest,
) -> Result<Timestamp> {
    world.store.retire(&NAMESPACE.into(), &name.into(), number, Some(request)).await
}

pub async fn repeated_creation_of_a_namespace_gets_the_first_answer(world: World) {
    let store = &world.store;
    let of_none = RegistryRequest { namespace: "".into(), ..request("n", 7) };
    let day = Duration::from_secs(24 * 3600);
    let create = async |name: &str, digest| {
        let request = RegistryRequest { digest, ..of_none.clone() };
        store.create_namespace(&name.into(), "ours", day, Some(&request)).await
    };
    let first = create("a.b", 7).await.expect("creates");
    assert_eq!(create("a.b", 7).await.expect("again"), first);
    assert!(is_reused(create("a.c", 8).await));
    assert_eq!(store.namespace(&"a.c".into()).await.expect("asks"), None);
    let answer = store.answered(RegistryOperation::CreateNamespace, &of_none).await;
    assert_eq!(answer.expect("asks"), Some(RegistryAnswer::NamespaceCreated(first)));
    // The same id in a namespace is another id.
    let (version, new) =
        store.register(&version("w", "one"), Some(&request("n", 9))).await.expect("registers");
    assert_eq!((version.version, new), (1, true));
}

pub async fn repeated_registration_gets_the_first_answer(world: World) {
    let store = &world.store;
    let register = async |definition: &'static str, id: &str| {
        store.register(&version("w", definition), Some(&request(id, 1))).await.expect("registers")
    };
    let first = register("one", "1").await;
    assert_eq!((first.0.version, first.1), (1, true));
    let same = register("one", "same").await;
    assert_eq!((same.0.version, same.1), (1, false));
    let second = register("two", "2").await;
    assert_eq!((second.0.version, second.1), (2, true));
    assert_eq!(register("one", "1").await, first, "although another version followed");
    assert_eq!(register("one", "same").await, same, "although another version followed");

    let retired_at = retire(&world, "w", Some(1), &request("r", 1)).await.expect("retires");
    assert_eq!(register("one", "1").await, first, "although it was retired since");
    retire(&world, "w", None, &request("all", 1)).await.expect("retires");
    let again = retire(&world, "w", Some(1), &request("r", 1)).await.expect("again");
    assert_eq!(again, retired_at);
    // Registered again, so that this version would be retired if the repetition had any effect.
    let third = register("one", "3").await;
    assert_eq!((third.0.version, third.1), (3, true));
    let of_all = retire(&world, "w", None, &request("all", 1)).await.expect("again");
    let latest = store.workflow(&NAMESPACE.into(), &"w".into(), None).await.expect("asks");
    assert_eq!(latest, Some(third.0));
    let two = store.workflow(&NAMESPACE.into(), &"w".into(), Some(2)).await.expect("asks");
    assert_eq!(
        two.and_then(|version| version.retired_at),
        Some(of_all),
        "the answer is the retirement time of the latest version"
    );
}

pub async fn repeated_calls_neither_recreate_nor_delete_a_subscription(world: World) {
    let first = create(&world, "s", &STATE, &request("c", 1)).await.expect("creates");
    let moved = SubscriptionRow { state: Bytes::from_static(b"moved"), ..first.clone() };
    world.store.update_subscription(&moved).await.expect("updates");
    assert_eq!(create(&world, "s", &STATE, &request("c", 1)).await.expect("again"), first);

    delete(&world, "s", &request("d", 1)).await.expect("deletes");
    assert_eq!(create(&world, "s", &STATE, &request("c", 1)).await.expect("again"), first);
    assert_eq!(stored(&world, "s").await, None, "the repeated call created it again");
    delete(&world, "s", &request("d", 1)).await.expect("again");

    let next = create(&world, "s", &STATE, &request("c 2", 1)).await.expect("creates");
    delete(&world, "s", &request("d", 1)).await.expect("again");
    assert_eq!(stored(&world, "s").await, Some(next), "the repeated call deleted the next one");
}

pub async fn accepted_subscription_becomes_the_answer_to_its_request_id(world: World) {
    let store = &world.store;
    let row = create(&world, "s", &STATE, &request("c", 1)).await.expect("creates");
    let moved = SubscriptionRow { state: Bytes::from_static(b"moved"), ..row.clone() };
    let accept = async |row: &SubscriptionRow, id: &str, digest| {
        store.accept_subscription(row, &request(id, digest)).await
    };
    assert_eq!(accept(&moved, "a", 1).await.expect("accepts"), moved);
    assert_eq!(accept(&row, "a", 1).await.expect("again"), moved, "the first answer");
    assert_eq!(stored(&world, "s").await, Some(row.clone()), "accepting does not change the row");
    assert!(is_reused(accept(&row, "a", 2).await));
    delete(&world, "s", &request("d", 1)).await.expect("deletes");
    assert_eq!(create(&world, "s", &STATE, &request("a", 1)).await.expect("again"), moved);
    assert_eq!(stored(&world, "s").await, None);
    // In the other order: accepting a subscription does not overwrite the answer to the request that created
    // it.
    assert_eq!(accept(&moved, "c", 1).await.expect("again"), row);
}

pub async fn request_id_with_another_operation_or_body_is_refused(world: World) {
    let store = &world.store;
    let namespace = Namespace::from(NAMESPACE);
    store.register(&version("w", "one"), Some(&request("register", 1))).await.expect("registers");
    retire(&world, "w", Some(1), &request("retire", 1)).await.expect("retires");
    create(&world, "s", &STATE, &request("create", 1)).await.expect("creates");
    create(&world, "t", &STATE, &request("create t", 1)).await.expect("creates");
    delete(&world, "t", &request("delete", 1)).await.expect("deletes");
    let ids = [
        ("register", RegistryOperation::RegisterWorkflow),
        ("retire", RegistryOperation::RetireWorkflow),
        ("create", RegistryOperation::CreateSubscription),
        ("delete", RegistryOperation::DeleteSubscription),
    ];
    for (id, of) in ids {
        // Makes every call with this id, once with each digest. Only the call that the id belongs to is accepted.
        for digest in [1, 2] {
            let request = request(id, digest);
            let is_other = |operation| (operation, digest) != (of, 1);
            for operation in RegistryOperation::ALL {
                let answered = store.answered(operation, &request).await;
                assert_eq!(is_reused(answered), is_other(operation), "{id} {digest} {operation:?}");
            }
            let refused = [
                is_reused(store.create_namespace(&"n".into(), "", LONG, Some(&request)).await),
                is_reused(store.register(&version("v", "one"), Some(&request)).await),
                is_reused(retire(&world, "w", None, &request).await),
                is_reused(create(&world, "u", &STATE, &request).await),
                is_reused(delete(&world, "s", &request).await),
            ];
            assert_eq!(refused, RegistryOperation::ALL.map(is_other), "{id} {digest}");
        }
        let elsewhere = RegistryRequest { namespace: "other".into(), ..request(id, 2) };
        assert_eq!(store.answered(of, &elsewhere).await.expect("asks"), None, "{id}");
    }
    // None of the refused calls had an effect, and none of the answered ones had it twice.
    assert_eq!(store.namespace(&"n".into()).await.expect("asks"), None);
    assert_eq!(store.list_workflows(&namespace, None, 9).await.expect("lists").len(), 1);
    assert!(stored(&world, "s").await.is_some() && stored(&world, "u").await.is_none());
}

pub async fn refused_call_does_not_use_up_its_request_id(world: World) {
    let store = &world.store;
    store.create_namespace(&"taken".into(), "", LONG, None).await.expect("creates");
    create(&world, "taken", &STATE, &request("taken", 1)).await.expect("creates");
    let nowhere = NewVersion { namespace: "nowhere".into(), ..version("w", "one") };
    let one = request("one", 1);
    let refused = store.create_namespace(&"taken".into(), "", LONG, Some(&one)).await;
    assert!(matches!(refused, Err(Error::AlreadyExists)), "{refused:?}");
    let refused = store.register(&nowhere, Some(&one)).await;
    assert!(matches!(refused, Err(Error::NotFound)), "{refused:?}");
    let refused = retire(&world, "nothing", None, &one).await;
    assert!(matches!(refused, Err(Error::NotFound)), "{refused:?}");
    let refused = create(&world, "taken", &STATE, &one).await;
    assert!(matches!(refused, Err(Error::AlreadyExists)), "{refused:?}");
    let refused = delete(&world, "nothing", &one).await;
    assert!(matches!(refused, Err(Error::NotFound)), "{refused:?}");
    for operation in RegistryOperation::ALL {
        assert_eq!(store.answered(operation, &one).await.expect("asks"), None);
    }
    // The id can be used for another operation, with another body.
    create(&world, "s", &STATE, &request("one", 2)).await.expect("the id is free");
    let answered = store.answered(RegistryOperation::CreateSubscription, &request("one", 2)).await;
    assert!(answered.expect("asks").is_some());
}

/// Several identical calls at once: one has the effect, and all get the same answer.
pub async fn racing_calls_with_one_request_id_have_one_effect(world: World) {
    const CALLERS: usize = 8;
    for round in 0..5 {
        let name = format!("s{round}");
        let calls: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let (store, name) = (world.store.clone(), name.clone());
                let state = Bytes::from(vec![u8::try_from(caller).expect("few")]);
                let request = request(&name, 1);
                tokio::spawn(async move {
                    let namespace = NAMESPACE.into();
                    store.create_subscription(&namespace, &name, 2, &state, Some(&request)).await
                })
            })
            .collect();
        let mut rows = Vec::new();
        for call in calls {
            rows.push(call.await.expect("the call ends").expect("one creates, the others find it"));
        }
        assert_eq!(stored(&world, &name).await, Some(rows[0].clone()));
        rows.dedup();
        assert_eq!(rows.len(), 1, "{rows:?}");
    }
    for round in 0..5 {
        // The bodies differ, so one call wins and the others are refused.
        let name = format!("w{round}");
        let calls: Vec<_> = ["one", "two", "three", "four"]
            .into_iter()
            .zip(1..)
            .map(|(definition, digest)| {
                let store = world.store.clone();
                let (new, request) = (version(&name, definition), request(&name, digest));
                tokio::spawn(async move { store.register(&new, Some(&request)).await })
            })
            .collect();
        let mut won = 0;
        for call in calls {
            let answer = call.await.expect("the call ends");
            won += usize::from(answer.is_ok());
            assert!(answer.is_ok() || is_reused(answer));
        }
        assert_eq!(won, 1);
        let versions =
            world.store.list_versions(&NAMESPACE.into(), &name.as_str().into(), None, 9).await;
        assert_eq!(versions.expect("lists").len(), 1);
    }
}

/// Retention deletes request ids that are older than a day, and this one is not.
pub async fn retention_keeps_a_request_id_of_today(world: World) {
    create(&world, "s", &STATE, &request("c", 1)).await.expect("creates");
    assert_eq!(world.store.expire(Timestamp::MAX, 10).await.expect("expires"), Expired::default());
    let operation = RegistryOperation::CreateSubscription;
    let answered = world.store.answered(operation, &request("c", 1)).await;
    assert!(answered.expect("asks").is_some());
}
