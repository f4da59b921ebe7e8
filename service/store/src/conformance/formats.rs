//! Binaries of several versions that use one store.

use std::time::Duration;

use super::world::idle;
use super::{Harness, World};
use crate::contract::{IndexRow, NodeId, OverflowTask, Store, StoreFormats, Transition};
use crate::format::Formats;

const LONG: Duration = Duration::from_secs(3600);

pub async fn only_finalizing_raises_the_formats_that_may_be_written(
    world: World,
    harness: &impl Harness,
) {
    let newest = Formats::NEWEST;
    let (history, definition) = (newest.history, newest.definition);
    let older = harness.reading(Formats { history: history + 1, ..newest });
    let newer =
        harness.reading(Formats { history: history + 2, definition: definition + 1, ..newest });
    let nothing = world.store.finalize().await.expect("answers");
    assert_eq!(nothing, StoreFormats { writable: newest, nodes: vec![] }, "no node has joined");

    let first = newer.join("new:1", LONG).await.expect("joins");
    let second = older.join("old:1", LONG).await.expect("joins");
    assert_eq!([first.writable, second.writable], [newest; 2], "joining raises nothing");
    let formats = newer.formats().await.expect("answers");
    assert_eq!(formats.writable, newest);
    let listed =
        formats.nodes.iter().map(|node| (node.node, &*node.address, node.readable.history));
    let expected = [(first.node, "new:1", history + 2), (second.node, "old:1", history + 1)];
    assert_eq!(listed.collect::<Vec<_>>(), expected);
    assert_eq!(formats.readable().map(|formats| formats.history), Some(history + 1));

    let raised = Formats { history: history + 1, ..newest };
    let formats = newer.finalize().await.expect("answers");
    assert_eq!(formats.writable, raised, "the older node holds the rest back");
    let renewed = older.renew(second.node, LONG, world.now).await.expect("renews");
    assert_eq!(renewed.writable, raised);

    older.leave(second.node).await.expect("leaves");
    assert_eq!(older.formats().await.expect("answers").writable, raised, "leaving raises nothing");
    let whole = Formats { history: history + 2, definition: definition + 1, ..newest };
    assert_eq!(newer.finalize().await.expect("answers").writable, whole);
    older.join("old:1", LONG).await.expect("an older binary may still run");
    assert_eq!(older.finalize().await.expect("answers").writable, whole, "nothing is lowered");
}

async fn join(store: &dyn Store) -> NodeId {
    store.join("test:1", LONG).await.expect("joins").node
}

pub async fn execution_that_a_binary_cannot_read_is_left_to_newer_ones(
    world: World,
    harness: &impl Harness,
) {
    let later = Formats::NEWEST.history + 1;
    let older = harness.reading(Formats::NEWEST);
    let newer = harness.reading(Formats { history: later, ..Formats::NEWEST });
    let gone = join(&*newer).await;
    let (plain, grown) =
        (world.begun(gone, world.index()).await, world.begun(gone, world.index()).await);
    // The transition that needs the later format raises the format of its execution.
    let raised = IndexRow { format: later, wake_at: Some(world.now), ..world.index() };
    let waits = IndexRow { wake_at: Some(world.now), ..world.index() };
    let transitions = [
        Transition { format: later, index: Some(raised.clone()), ..world.next(grown, 2) },
        Transition { index: Some(waits), ..world.next(plain, 2) },
    ];
    world.won(gone, transitions).await;
    let tasks = [plain, grown].map(|id| world.task(id, "a"));
    newer.overflow(gone, &tasks).await.expect("overflows");
    let listed = older.indexed(grown).await.expect("asks").expect("there");
    assert_eq!(listed.index, raised, "the row is written whole");
    for (id, format) in [(plain, 1), (grown, later)] {
        assert_eq!(world.load(gone, id).await.expect("there").format, format);
    }

    assert_eq!(newer.unread().await.expect("counts"), 0, "its owner reads it");
    newer.leave(gone).await.expect("leaves");
    let old = join(&*older).await;
    assert_eq!(older.unread().await.expect("counts"), 1, "no live node reads it");
    assert_eq!(older.adopt(old, 10).await.expect("adopts"), [plain]);
    assert_eq!(older.adopt(old, 10).await.expect("adopts"), []);
    assert_eq!(world.head(grown).await.expect("there").owner, None);
    let workers = [idle(&["a"], 10)];
    let claim = async |store: &dyn Store, node| {
        let claimed = store.claim(node, &workers, 10, LONG, world.now).await.expect("claims");
        claimed.iter().map(OverflowTask::key).map(|key| key.execution).collect::<Vec<_>>()
    };
    assert_eq!(claim(&*older, old).await, [plain]);

    let new = join(&*newer).await;
    assert_eq!(older.unread().await.expect("counts"), 0, "a node that reads it has joined");
    assert_eq!(newer.adopt(new, 10).await.expect("adopts"), [grown]);
    assert_eq!(claim(&*newer, new).await, [grown]);
    let due = async |store: &dyn Store| {
        let due = store.due(new, world.now, None, 10).await.expect("asks");
        due.iter().map(|due| due.execution).collect::<Vec<_>>()
    };
    assert_eq!(due(&*newer).await, [grown]);
    assert_eq!(due(&*older).await, [], "a binary that cannot read it must not wake it");
}
