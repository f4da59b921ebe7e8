//! Starts with an execution key, and the store's answers to them.

use recoup_core::id::ExecutionId;
use recoup_engine::node::io::{Input, Refusal};
use recoup_store::KeySettled;

use crate::fixture::world::World;

#[test]
fn start_is_refused_and_names_the_holder_if_its_key_is_held_in_a_newer_format() {
    let mut world = World::new(1);
    world.machines[0].hold_back = &["start_keyed"];
    let refused = world.start_keyed_later(0, "order-7", "1");
    world.machines[0].late.clear();
    let holder = ExecutionId(uuid::Uuid::from_u128(7));
    let node = world.machines[0].node.node_id().expect("it lives");
    let settled = Ok(vec![KeySettled::TooNew { execution: holder }]);
    world.put(0, Input::KeyedStarted(node, settled));
    let (_, answer) = world.machines[0].replies.pop_last().expect("the caller is answered");
    match answer {
        Err(Refusal::TooNew(reason)) => assert!(reason.contains(&holder.to_string()), "{reason}"),
        other => panic!("the start is not refused: {other:?}"),
    }
    assert!(world.machines[0].node.is_quiet(), "nothing of {refused} is pending");
}
