//! Namespaces, workflow versions and subscriptions.

use std::time::Duration;

use bytes::Bytes;

use super::world::{LONG, World};
use crate::contract::*;

pub(super) fn version(name: &str, definition: &'static str) -> NewVersion {
    let mut digest = [0; 32];
    digest[..definition.len()].copy_from_slice(definition.as_bytes());
    NewVersion {
        namespace: "default".into(),
        name: name.into(),
        digest,
        format: 3,
        definition: Bytes::from_static(definition.as_bytes()),
    }
}

pub async fn namespaces_are_unique_and_listed_in_the_order_of_bytes(world: World) {
    let store = &world.store;
    let default = store.namespace(&"default".into()).await.expect("asks").expect("always there");
    assert_eq!(default.name.as_str(), "default");
    assert_eq!(default.retention, RETENTION_DEFAULT, "the value that the migrations set");
    let day = Duration::from_secs(24 * 3600);
    let made = store.create_namespace(&"a.b".into(), "ours", day, None).await.expect("creates");
    assert_eq!(
        (made.name.as_str(), made.description.as_str(), made.retention),
        ("a.b", "ours", day)
    );
    assert!(made.created_at >= world.now);
    assert_eq!(store.namespace(&"a.b".into()).await.expect("asks"), Some(made.clone()));
    assert_eq!(store.namespace(&"a".into()).await.expect("asks"), None);
    for name in ["a.b", "default"] {
        let again = store.create_namespace(&name.into(), "theirs", LONG, None).await;
        assert!(matches!(again, Err(Error::AlreadyExists)), "{again:?}");
    }
    assert_eq!(store.namespace(&"a.b".into()).await.expect("asks"), Some(made));

    for name in ["z", "a", "a-b", "B"] {
        store.create_namespace(&name.into(), "", LONG, None).await.expect("creates");
    }
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = store.list_namespaces(after.as_ref(), 2).await.expect("lists");
        after = page.last().map(|row| row.name.clone());
        let count = page.len();
        seen.extend(page.into_iter().map(|row| row.name.as_str().to_owned()));
        if count < 2 {
            break;
        }
    }
    assert_eq!(seen, ["B", "a", "a-b", "a.b", "default", "z"], "in the order of bytes");
}

pub async fn only_a_definition_that_differs_from_the_latest_gets_a_new_version(world: World) {
    let store = &world.store;
    let (one, new) = store.register(&version("w", "one"), None).await.expect("registers");
    assert_eq!((one.version, new, one.retired_at), (1, true, None));
    let asked = version("w", "one");
    assert_eq!(
        (&one.namespace, &one.name, one.digest, one.format, &one.definition),
        (&asked.namespace, &asked.name, asked.digest, asked.format, &asked.definition)
    );
    // Versions are compared by digest alone.
    let same = NewVersion { format: 4, definition: Bytes::new(), ..version("w", "one") };
    assert_eq!(store.register(&same, None).await.expect("registers"), (one.clone(), false));
    let (two, new) = store.register(&version("w", "two"), None).await.expect("registers");
    assert_eq!((two.version, new), (2, true));
    // Equal to a version that is not the latest.
    let (three, new) = store.register(&version("w", "one"), None).await.expect("registers");
    assert_eq!((three.version, new), (3, true));
    let (elsewhere, new) = store.register(&version("v", "one"), None).await.expect("registers");
    assert_eq!((elsewhere.version, new), (1, true));

    let nowhere = NewVersion { namespace: "nowhere".into(), ..version("w", "one") };
    let refused = store.register(&nowhere, None).await;
    assert!(matches!(refused, Err(Error::NotFound)), "{refused:?}");

    let (namespace, name) = ("default".into(), "w".into());
    let by_number = async |number| store.workflow(&namespace, &name, number).await.expect("asks");
    assert_eq!(by_number(None).await, Some(three.clone()));
    assert_eq!(by_number(Some(1)).await, Some(one.clone()));
    assert_eq!(by_number(Some(4)).await, None);
    let versions = async |before, limit| {
        store.list_versions(&namespace, &name, before, limit).await.expect("lists")
    };
    assert_eq!(versions(None, 2).await, [three, two]);
    assert_eq!(versions(Some(2), 2).await, [one]);
}

pub async fn retired_version_is_never_the_latest(world: World) {
    let store = &world.store;
    let (namespace, name) = ("default".into(), "w".into());
    for definition in ["one", "two", "three"] {
        store.register(&version("w", definition), None).await.expect("registers");
    }
    let retire = async |number| store.retire(&namespace, &name, number, None).await;
    let latest = async || {
        let latest = store.workflow(&namespace, &name, None).await.expect("asks");
        latest.map(|version| version.version)
    };
    let retired_at = retire(Some(3)).await.expect("retires");
    assert_eq!(latest().await, Some(2));
    let named = store.workflow(&namespace, &name, Some(3)).await.expect("asks").expect("there");
    assert!(retired_at >= world.now);
    assert_eq!(named.retired_at, Some(retired_at));
    assert_eq!(retire(Some(3)).await.expect("once more changes nothing"), retired_at);
    let again = store.workflow(&namespace, &name, Some(3)).await.expect("asks").expect("there");
    assert_eq!(again, named);
    // The latest version that is not retired is `two`. New numbers continue after the retired version.
    let (same, new) = store.register(&version("w", "two"), None).await.expect("registers");
    assert_eq!((same.version, new), (2, false));
    let (four, new) = store.register(&version("w", "three"), None).await.expect("registers");
    assert_eq!((four.version, new), (4, true));

    let of_all = retire(None).await.expect("retires all");
    let last = store.workflow(&namespace, &name, Some(4)).await.expect("asks").expect("there");
    assert_eq!(last.retired_at, Some(of_all), "the retirement time of the latest version");
    assert_eq!(latest().await, None);
    for missing in [Some(9), Some(0)] {
        let missing = retire(missing).await;
        assert!(matches!(missing, Err(Error::NotFound)), "{missing:?}");
    }
    let missing = store.retire(&namespace, &"nothing".into(), None, None).await;
    assert!(matches!(missing, Err(Error::NotFound)), "{missing:?}");
    let (five, new) = store.register(&version("w", "three"), None).await.expect("registers");
    assert_eq!((five.version, new), (5, true));
}

pub async fn workflows_are_listed_in_pages(world: World) {
    let store = &world.store;
    store.create_namespace(&"other".into(), "", LONG, None).await.expect("creates");
    for name in ["d", "b", "a", "c"] {
        for definition in ["one", "two"] {
            store.register(&version(name, definition), None).await.expect("registers");
        }
    }
    let other = NewVersion { namespace: "other".into(), ..version("e", "one") };
    store.register(&other, None).await.expect("registers");
    let page = async |after: Option<&str>| {
        let after = after.map(Into::into);
        let rows = store.list_workflows(&"default".into(), after.as_ref(), 3).await.expect("lists");
        rows.into_iter().map(|row| (row.name.as_str().to_owned(), row.version)).collect::<Vec<_>>()
    };
    let rows = |names: &[&str]| names.iter().map(|name| ((*name).into(), 2)).collect::<Vec<_>>();
    assert_eq!(page(None).await, rows(&["a", "b", "c"]));
    assert_eq!(page(Some("c")).await, rows(&["d"]));
    assert_eq!(page(Some("d")).await, []);
}

pub async fn subscription_is_updated_only_if_it_has_not_changed_since(world: World) {
    let store = &world.store;
    let namespace = "default".into();
    let state = Bytes::from_static(b"\x00\xffbegin");
    let row = store.create_subscription(&namespace, "s", 2, &state, None).await.expect("creates");
    assert_eq!((row.name.as_str(), row.format, &row.state), ("s", 2, &state));
    assert!(row.created_at >= world.now);
    assert_eq!(store.subscription(&namespace, "s").await.expect("asks"), Some(row.clone()));
    assert_eq!(store.subscription(&namespace, "t").await.expect("asks"), None);
    let again = store.create_subscription(&namespace, "s", 2, &state, None).await;
    assert!(matches!(again, Err(Error::AlreadyExists)), "{again:?}");

    let moved = SubscriptionRow { state: Bytes::from_static(b"on"), format: 3, ..row.clone() };
    let version = store.update_subscription(&moved).await.expect("updates");
    assert_ne!(version, row.version);
    let there = store.subscription(&namespace, "s").await.expect("asks").expect("there");
    assert_eq!(there, SubscriptionRow { version, ..moved.clone() });
    let stale = store.update_subscription(&moved).await;
    assert!(matches!(stale, Err(Error::Conflict)), "{stale:?}");
    assert_eq!(store.subscription(&namespace, "s").await.expect("asks"), Some(there.clone()));

    store.delete_subscription(&namespace, "s", None).await.expect("deletes");
    assert_eq!(store.subscription(&namespace, "s").await.expect("asks"), None);
    let gone = store.update_subscription(&there).await;
    assert!(matches!(gone, Err(Error::NotFound)), "{gone:?}");
    let gone = store.delete_subscription(&namespace, "s", None).await;
    assert!(matches!(gone, Err(Error::NotFound)), "{gone:?}");

    // Of several writers that have read the same row, one wins.
    let row = store.create_subscription(&namespace, "s", 2, &state, None).await.expect("creates");
    let writers: Vec<_> = (0..8u8)
        .map(|writer| {
            let (store, row) = (store.clone(), row.clone());
            let row = SubscriptionRow { state: vec![writer].into(), ..row };
            tokio::spawn(async move { store.update_subscription(&row).await })
        })
        .collect();
    let mut won = 0;
    for writer in writers {
        match writer.await.expect("the writer ends") {
            Ok(_) => won += 1,
            Err(Error::Conflict) => {}
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(won, 1);
}

pub async fn subscriptions_are_listed_in_pages(world: World) {
    let store = &world.store;
    store.create_namespace(&"other".into(), "", LONG, None).await.expect("creates");
    for name in ["d", "b", "a", "c"] {
        let state = Bytes::from_static(b"s");
        store.create_subscription(&"default".into(), name, 1, &state, None).await.expect("creates");
    }
    store.create_subscription(&"other".into(), "b", 1, &Bytes::new(), None).await.expect("creates");
    let page = async |after: Option<&str>| {
        let rows = store.list_subscriptions(&"default".into(), after, 3).await.expect("lists");
        rows.into_iter().map(|row| row.name).collect::<Vec<_>>()
    };
    assert_eq!(page(None).await, ["a", "b", "c"]);
    assert_eq!(page(Some("c")).await, ["d"]);
    assert!(page(Some("d")).await.is_empty());
}

pub async fn clock_of_the_store_advances(world: World) {
    let lease = world.store.join("test:1", LONG).await.expect("joins");
    assert!(lease.now >= world.now, "leases use the store's clock");
    super::world::eventually("the clock", || async {
        let now = world.store.now().await.expect("asks");
        (now > lease.now).then_some(())
    })
    .await;
}
