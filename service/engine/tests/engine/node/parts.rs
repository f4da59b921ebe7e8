//! A batch that is too large for the store is settled in parts.

use std::time::Duration;

use recoup_core::command::Command;
use recoup_core::id::ExecutionId;
use recoup_engine::node::io::{Input, Offer};
use recoup_engine::options::Options;
use recoup_store::format::decode_transition;
use recoup_store::{Batch, Executions, NodeId, Transition};

use crate::fixture::world::{World, ready, stream};

const MINUTE: Duration = Duration::from_secs(60);

/// Starts that are decided in one batch, which has not been sent to the store yet.
fn starts_in_an_unsent_batch(world: &mut World, count: usize) -> Vec<ExecutionId> {
    world.machines[0].hold_back = &["commit"];
    let first = world.start_later(0, "default");
    let rest = (1..count).map(|_| world.start_later(0, "default"));
    let ids: Vec<_> = std::iter::once(first).chain(rest).collect();
    world.machines[0].hold_back = &[];
    world.machines[0].batches.clear();
    ids
}

fn answer_the_first(world: &mut World) {
    let answer = world.machines[0].late.remove(0);
    world.put(0, answer);
}

fn executions(batch: &Batch) -> Vec<ExecutionId> {
    batch.transitions.iter().map(|transition| transition.execution).collect()
}

#[test]
fn oversized_batch_is_settled_in_parts_and_in_order() {
    for written_anyway in [false, true] {
        let mut world = World::new(1);
        let ids = starts_in_an_unsent_batch(&mut world, 41);
        world.machines[0].overwhelmed_by = Some(8);
        world.machines[0].written_anyway = written_anyway;
        answer_the_first(&mut world);
        world.pass(MINUTE);

        let batches = std::mem::take(&mut world.machines[0].batches);
        assert_eq!(executions(&batches[0]), ids[1..], "the first try sends all of them");
        let mut settled = Vec::new();
        for batch in &batches {
            let executions = executions(batch);
            if executions.len() <= 8 {
                settled.extend(executions);
            } else {
                let next = &ids[1 + settled.len()..][..executions.len()];
                assert_eq!(executions, next, "nothing is skipped");
            }
        }
        assert_eq!(settled[..40], ids[1..], "each is settled once, in order");
        let largest = batches.iter().skip(1).map(|batch| batch.transitions.len()).max();
        assert_eq!(largest, Some(20), "after a success the batch does not return to its full size");
        // They are sent with the same transition ids, so a row that an earlier try wrote is recognised and not lost.
        let histories = ready(world.store.load(NodeId(0), &ids[1..])).expect("the model loads");
        assert_eq!(histories.len(), 40);
        for history in histories {
            assert_eq!(history.transitions.len(), 1);
            let sent = batches.iter().flat_map(|batch| &batch.transitions);
            for transition in sent.filter(|sent| sent.execution == history.execution) {
                assert_eq!(transition.transition_id, history.transitions[0].transition_id);
            }
        }
        assert_eq!(world.machines[0].replies.len(), ids.len(), "every start is answered");
        assert!(world.machines[0].replies.values().all(Result::is_ok));
    }
}

/// The size without the last transition, which may exceed the limit.
fn bytes_before_the_last(batch: &Batch) -> usize {
    let written = |transition: &Transition| {
        let events = transition.feed.iter().map(|event| event.data.len()).sum::<usize>();
        transition.data.len() + events
    };
    batch.transitions.iter().rev().skip(1).map(written).sum()
}

#[test]
fn failure_events_count_towards_the_bytes_of_a_batch() {
    const MAX: usize = 512 << 10;
    let mut world = World::with(1, Options { batch_bytes_max: MAX, ..Options::default() });
    let worker = world.attach(0, Offer { credit: 40, ..stream("default", "s", &[]) });
    for _ in 0..40 {
        world.start(0, "default");
    }
    let tasks = world.handed(0, worker);
    assert_eq!(tasks.len(), 40);
    world.machines[0].hold_back = &["commit"];
    for (reply, task) in tasks.into_iter().enumerate() {
        let error = recoup_core::error::TaskError::new("declined", "x".repeat(32 << 10));
        let execution = task.execution;
        let command = Command::FailTask { task, error, worker: String::new() };
        let reply = 1_000 + reply as u64;
        world.put(0, Input::Submit { execution, command, request: None, reply });
    }
    world.machines[0].hold_back = &[];
    world.machines[0].batches.clear();
    answer_the_first(&mut world);
    let batches = &world.machines[0].batches;
    let failed: usize = batches.iter().map(|batch| batch.transitions.len()).sum();
    assert_eq!(failed, 39, "all but the first, which was committed alone");
    for batch in batches {
        let bytes = bytes_before_the_last(batch);
        assert!(bytes < MAX, "{bytes} bytes and another transition in one batch");
    }
    assert!(batches.len() > 1, "the transitions were not split: {} batch", batches.len());
}

#[test]
fn keyed_starts_are_split_at_the_byte_limit() {
    const MAX: usize = 64 << 10;
    let mut world = World::with(1, Options { batch_bytes_max: MAX, ..Options::default() });
    world.machines[0].hold_back = &["start_keyed"];
    for number in 0..20 {
        world.start_keyed_later(0, &format!("key {number}"), &"x".repeat(16 << 10));
    }
    world.machines[0].hold_back = &[];
    answer_the_first(&mut world);
    assert_eq!(world.machines[0].replies.len(), 20);
    let calls = &world.machines[0].keyed;
    for starts in calls {
        let before_the_last = starts.iter().rev().skip(1);
        let bytes: usize = before_the_last.map(|start| start.transition.data.len()).sum();
        assert!(bytes < MAX, "{bytes} bytes and another start in one call");
    }
    assert!(calls.len() < 20, "every call has only one start: {}", calls.len());
}

/// The number of events in each of these transitions.
fn events_of<'a>(transitions: impl Iterator<Item = &'a Transition>) -> Vec<usize> {
    let decoded = transitions.map(|one| decode_transition(one.format, &one.data));
    decoded.map(|data| data.expect("it is readable").events.len()).collect()
}

/// Whether the last transition reached the limit and no transition was decided after it.
fn is_cut_at(max: usize, events: &[usize]) -> bool {
    let (last, before) = events.split_last().expect("no batch is empty");
    before.iter().sum::<usize>() < max && before.iter().sum::<usize>() + last >= max
}

#[test]
fn flush_stops_at_the_event_limit_and_leaves_the_rest_to_the_next() {
    const MAX: usize = 7;
    let options = Options { batch_events_max: MAX, ..Options::default() };
    let mut world = World::with(1, options);
    let ids = starts_in_an_unsent_batch(&mut world, 16);
    answer_the_first(&mut world);
    let batches = &world.machines[0].batches;
    let (last, full) = batches.split_last().expect("there are many");
    assert!(full.len() > 1);
    for batch in full {
        let events = events_of(batch.transitions.iter());
        assert!(is_cut_at(MAX, &events), "{events:?}");
    }
    assert!(!last.transitions.is_empty());
    let all: Vec<_> = batches.iter().flat_map(|batch| executions(batch)).collect();
    assert_eq!(all, ids[1..], "in order of arrival");
    assert_eq!(world.machines[0].replies.len(), ids.len(), "every start is answered");
}

#[test]
fn keyed_starts_are_split_at_the_event_limit() {
    const MAX: usize = 7;
    let options = Options { batch_events_max: MAX, ..Options::default() };
    let mut world = World::with(1, options);
    world.machines[0].hold_back = &["start_keyed"];
    for number in 0..16 {
        world.start_keyed_later(0, &format!("key {number}"), "x");
    }
    world.machines[0].hold_back = &[];
    answer_the_first(&mut world);
    assert_eq!(world.machines[0].replies.len(), 16);
    let (_, full) = world.machines[0].keyed[1..].split_last().expect("there are many");
    assert!(full.len() > 1);
    for starts in full {
        let events = events_of(starts.iter().map(|start| &start.transition));
        assert!(is_cut_at(MAX, &events), "{events:?}");
    }
}
