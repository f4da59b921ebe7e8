//! Derives the events that must be on the feed from the histories alone. Each history is read from the store
//! and folded, transition by transition, with the function that the engine uses to make its feed rows.

use std::collections::BTreeMap;

use recoup_core::evolve::{Transition, fold};
use recoup_core::execution::Execution;
use recoup_core::failure_event::failure_events;
use recoup_core::id::ExecutionId;
use recoup_engine::load::Plans;
use recoup_store::{History, NodeId, Store};

/// How many histories are read at once.
const PAGE: usize = 100;
/// The node id under which the test reads. It belongs to no node, so reading takes nothing over.
const NOBODY: NodeId = NodeId(0);

/// The ids of the failure events of each execution, in order, by execution id.
pub type EventIds = BTreeMap<String, Vec<String>>;

/// Folds the histories of these executions and returns the ids of their failure events.
///
/// # Panics
///
/// If a history is missing or does not fold.
pub async fn failure_events_of_histories(
    store: &dyn Store,
    executions: &[ExecutionId],
) -> EventIds {
    let plans = Plans::default();
    let mut by_execution = EventIds::new();
    for page in executions.chunks(PAGE) {
        let histories = store.load(NOBODY, page).await.expect("the store answers");
        assert_eq!(histories.len(), page.len(), "each has a history");
        for history in histories {
            let ids = of_history(store, &plans, &history).await;
            by_execution.insert(history.execution.to_string(), ids);
        }
    }
    by_execution
}

async fn of_history(store: &dyn Store, plans: &Plans, history: &History) -> Vec<String> {
    let mut state: Option<Execution> = None;
    let mut ids = Vec::new();
    for row in &history.transitions {
        let data = row.decode(history.execution).expect("a known format");
        let transition =
            Transition { sequence: row.sequence, decided_at: data.decided_at, events: data.events };
        let next = fold(state.take(), history.execution, &transition).expect("it folds");
        let version = Some(next.version);
        let plan = plans.find(store, &next.namespace, &next.workflow, version).await;
        let plan = plan.expect("the store answers").expect("its version is kept");
        let events = failure_events(&next, &plan, &transition.events);
        ids.extend(events.into_iter().map(|event| event.id));
        state = Some(next);
    }
    ids
}
