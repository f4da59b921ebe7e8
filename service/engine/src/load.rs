//! Turns stored rows into states and plans.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use recoup_core::decide::next_wake;
use recoup_core::evolve::{Transition, fold};
use recoup_core::execution::{CompensationState, Execution, State, TraceContext};
use recoup_core::failure_event::Subject;
use recoup_core::id::{ExecutionId, Namespace, WorkflowName};
use recoup_core::plan::Plan;
use recoup_core::quarantine::QuarantineReason;
use recoup_store::format::Formats;
use recoup_store::{
    History, IndexRow, Listed, NodeId, Store, StoredTransition, Wanted, WorkflowVersion, format,
};

use crate::node::io::{Damage, Loaded, Read, Reading, Unusable};

/// How many plans are kept in memory. Beyond that, all are dropped and compiled again when needed.
const PLANS_MAX: usize = 10_000;
/// How many bytes of histories are read in one call, but at least one history.
pub const LOAD_BYTES_MAX: usize = 16 << 20;
/// How much a node folds itself onto a state that it has. If there is more, the whole history is read and
/// folded outside the node.
const AFTER_ROWS_MAX: usize = 100;
const AFTER_BYTES_MAX: usize = 1 << 20;
/// How long the latest version of a workflow may be cached.
const LATEST_MILLIS: u128 = 1_000;

type VersionKey = (Namespace, WorkflowName, u32);
/// The latest plan of a workflow, and when it was looked up.
type Latest = HashMap<(Namespace, WorkflowName), (Instant, Arc<Plan>)>;

/// Plans by version. Each is compiled once, because a version never changes.
#[derive(Default)]
pub struct Plans {
    plans: Mutex<HashMap<VersionKey, Arc<Plan>>>,
    latest: Mutex<Latest>,
}

impl Plans {
    /// The plan of a version. If `version` is `None`: of the latest version that is not retired, which is
    /// looked up again after a second, and at once after [`Plans::forget_latest`].
    pub async fn find(
        &self,
        store: &dyn Store,
        namespace: &Namespace,
        name: &WorkflowName,
        version: Option<u32>,
    ) -> Result<Option<Arc<Plan>>, String> {
        let found = self.look_up(store, namespace, name, version).await;
        found.map_err(unavailable)?.map_err(|unplanned| unplanned.to_string())
    }

    /// As [`Plans::find`], but distinguishes a store that does not answer from a definition that cannot be compiled.
    async fn look_up(
        &self,
        store: &dyn Store,
        namespace: &Namespace,
        name: &WorkflowName,
        version: Option<u32>,
    ) -> recoup_store::Result<Result<Option<Arc<Plan>>, Unplanned>> {
        let name_key = (namespace.clone(), name.clone());
        match version {
            Some(version) => {
                let key = (namespace.clone(), name.clone(), version);
                if let Some(plan) = lock(&self.plans).get(&key) {
                    return Ok(Ok(Some(plan.clone())));
                }
            }
            None => {
                if let Some((at, plan)) = lock(&self.latest).get(&name_key)
                    && at.elapsed().as_millis() < LATEST_MILLIS
                {
                    return Ok(Ok(Some(plan.clone())));
                }
            }
        }
        let Some(row) = store.workflow(namespace, name, version).await? else {
            return Ok(Ok(None));
        };
        let plan = match self.compile(&row) {
            Ok(plan) => plan,
            Err(unplanned) => return Ok(Err(unplanned)),
        };
        if version.is_none() {
            let mut latest = lock(&self.latest);
            if latest.len() >= PLANS_MAX {
                latest.clear();
            }
            latest.insert(name_key, (Instant::now(), plan.clone()));
        }
        Ok(Ok(Some(plan)))
    }

    /// Call this after a registration or a retirement on this node.
    pub fn forget_latest(&self, namespace: &Namespace, name: &WorkflowName) {
        lock(&self.latest).remove(&(namespace.clone(), name.clone()));
    }

    fn compile(&self, row: &WorkflowVersion) -> Result<Arc<Plan>, Unplanned> {
        let key = (row.namespace.clone(), row.name.clone(), row.version);
        if let Some(plan) = lock(&self.plans).get(&key) {
            return Ok(plan.clone());
        }
        let definition = format::decode_workflow(row.format, &row.definition);
        let definition = definition.map_err(|error| match error {
            format::Error::Newer(_) => {
                Unplanned::Newer(format!("version {} of {}: {error}", row.version, row.name))
            }
            _ => Unplanned::Unreadable(format!("version {} of {}: {error}", row.version, row.name)),
        })?;
        let plan = Plan::of_accepted(&definition, row.version).map_err(|issues| {
            let (version, name) = (row.version, &row.name);
            Unplanned::Unreadable(format!(
                "version {version} of {name} does not compile: {issues:?}"
            ))
        })?;
        let plan = Arc::new(plan);
        let mut plans = lock(&self.plans);
        if plans.len() >= PLANS_MAX {
            plans.clear();
        }
        plans.insert(key, plan.clone());
        Ok(plan)
    }
}

/// Why a workflow version that exists has no plan.
#[derive(Clone, Debug, thiserror::Error)]
enum Unplanned {
    /// A newer binary wrote it.
    #[error("{0}")]
    Newer(String),
    #[error("{0}")]
    Unreadable(String),
}

/// The reason in [`Refusal::Unavailable`](crate::Refusal), whose message already says that the store is unavailable.
pub(crate) fn unavailable(error: recoup_store::Error) -> String {
    match error {
        recoup_store::Error::Unavailable(reason) => reason,
        other => other.to_string(),
    }
}

/// A panic cannot leave a map half changed, so a poisoned lock is safe to use.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Loads executions with their plans, up to [`LOAD_BYTES_MAX`] bytes. For executions that the node knows,
/// only the later transitions are loaded. An execution that cannot be continued is reported as such and does
/// not affect the others.
pub async fn load(
    store: &dyn Store,
    plans: &Plans,
    node: NodeId,
    wanted: &[Wanted],
) -> Result<Reading, String> {
    let histories = store.load_within(node, wanted, LOAD_BYTES_MAX).await;
    let histories = histories.map_err(|error| error.to_string())?;
    let known: HashMap<_, _> = wanted.iter().map(|one| (one.execution, one.after)).collect();
    let mut rest: Vec<_> = match histories.is_empty() {
        // None of the executions exists.
        true => Vec::new(),
        false => {
            let found: HashSet<_> = histories.iter().map(|history| history.execution).collect();
            wanted.iter().map(|one| one.execution).filter(|id| !found.contains(id)).collect()
        }
    };
    let mut loaded = Vec::with_capacity(histories.len());
    for mut history in histories {
        let after = known.get(&history.execution).copied().unwrap_or_default();
        let mut read = None;
        if after > 0 {
            read = transitions_after(&history, after);
            if read.is_none() {
                let whole = [Wanted::whole(history.execution)];
                let again = store.load_within(node, &whole, LOAD_BYTES_MAX).await;
                match again.map_err(|error| error.to_string())?.pop() {
                    Some(again) => history = again,
                    None => {
                        rest.push(history.execution);
                        continue;
                    }
                }
            }
        }
        let state = match &history.quarantine {
            Some(row) if row.in_force() => Err(Unusable::Quarantined(row.quarantine.clone())),
            _ if history.format > Formats::NEWEST.history => {
                Err(Unusable::Newer(format::Error::Newer(history.format).to_string()))
            }
            _ => match read {
                Some(transitions) => Ok(Read::After { after, transitions }),
                None => judge(store, plans, &history).await?,
            },
        };
        let History { execution, owner, wake_at, format, quarantine, .. } = history;
        loaded.push(Loaded { execution, owner, wake_at, format, state, quarantine });
    }
    Ok(Reading { found: loaded, rest })
}

/// The transitions that follow a state which has reached the sequence `after`. `None` if there are too many,
/// or if any of them is faulty: then the whole history is read, to find the fault.
fn transitions_after(history: &History, after: u64) -> Option<Vec<Transition>> {
    let rows = &history.transitions;
    if rows.len() > AFTER_ROWS_MAX || history.bytes() > AFTER_BYTES_MAX {
        return None;
    }
    let decode = |(row, expected)| decode_row(history.execution, expected, row).ok();
    rows.iter().zip(after + 1..).map(decode).collect()
}

/// The state after these transitions. Transitions that the state already contains are skipped. `None` if they
/// do not follow the state, or if the result cannot be continued.
pub(crate) fn follow(
    state: Box<Execution>,
    plan: &Plan,
    transitions: &[Transition],
) -> Option<Box<Execution>> {
    let (id, known) = (state.id, state.sequence);
    let mut next = transitions.iter().filter(|transition| transition.sequence > known);
    let folded = catch_unwind(AssertUnwindSafe(|| {
        next.try_fold(*state, |state, transition| fold(Some(state), id, transition))
    }));
    let state = Box::new(folded.ok()?.ok()?);
    is_sound(&state, plan).then_some(state)
}

/// Folds a history and finds its plan. An `Err` is a failure of the store, so the execution can be read later.
async fn judge(
    store: &dyn Store,
    plans: &Plans,
    history: &History,
) -> Result<Result<Read, Unusable>, String> {
    let Folded { state, fault } = fold_history(history);
    let (reason, detail) = match (&state, fault) {
        (Some(known), None) => {
            let version = Some(known.version);
            let found = plans.look_up(store, &known.namespace, &known.workflow, version).await;
            match found.map_err(|error| error.to_string())? {
                Ok(Some(plan)) if is_sound(known, &plan) => {
                    let state = Box::new(state.expect("it was there just now"));
                    return Ok(Ok(Read::Whole(state, plan)));
                }
                Ok(Some(_)) => (QuarantineReason::DecisionPanicked, "its next step panics".into()),
                Ok(None) => {
                    (QuarantineReason::WorkflowUnreadable, "its workflow version is gone".into())
                }
                Err(Unplanned::Newer(reason)) => return Ok(Err(Unusable::Newer(reason))),
                Err(Unplanned::Unreadable(reason)) => {
                    (QuarantineReason::WorkflowUnreadable, reason)
                }
            }
        }
        (_, Some(Fault::Newer(reason))) => return Ok(Err(Unusable::Newer(reason))),
        (_, Some(Fault::Gap(what))) => (QuarantineReason::HistoryGap, what),
        (_, Some(Fault::Unreadable(what))) => (QuarantineReason::HistoryUnreadable, what),
        (None, None) => (QuarantineReason::HistoryGap, "the history is empty".into()),
    };
    let (namespace, subject) = match &state {
        Some(state) => (state.namespace.clone(), Subject::of(state)),
        None => {
            let listed = store.indexed(history.execution).await;
            let listed = listed.map_err(|error| error.to_string())?;
            subject_of(history.execution, listed.map(|listed| listed.index))
        }
    };
    let damage = Damage { reason, detail, namespace, subject };
    Ok(Err(Unusable::Damaged(Box::new(damage))))
}

/// Computes the next wake-up here, where a panic affects nothing else.
fn is_sound(state: &Execution, plan: &Plan) -> bool {
    catch_unwind(AssertUnwindSafe(|| next_wake(state, plan))).is_ok()
}

/// What the index says about an execution whose history cannot be read at all.
fn subject_of(execution: ExecutionId, index: Option<IndexRow>) -> (Namespace, Subject) {
    let (namespace, workflow) = match &index {
        Some(index) => (index.namespace.clone(), index.workflow.clone()),
        // The store has no such execution, so it neither quarantines anything nor writes an event.
        None => (Namespace::from("default"), WorkflowName::from("")),
    };
    let subject = Subject {
        execution,
        key: index.as_ref().and_then(|index| index.key.clone()),
        workflow,
        version: index.as_ref().map_or(0, |index| index.version),
        run: index.as_ref().map_or(0, |index| index.run),
        step: None,
        attempt: 0,
        max_attempts: None,
        is_final: true,
        decision: None,
        state: index.as_ref().and_then(|index| index.state.known()).unwrap_or(State::Running),
        compensation: index
            .as_ref()
            .and_then(|index| index.compensation.known())
            .unwrap_or(CompensationState::None),
        completed: Vec::new(),
        sequence: 0,
        trace: TraceContext::default(),
    };
    (namespace, subject)
}

/// How far a history could be folded.
pub struct Folded {
    /// The state after the last readable transition. `None` if the first could not be read.
    pub state: Option<Execution>,
    /// What is wrong with the next transition, if there is one.
    pub fault: Option<Fault>,
}

/// Why a history does not fold to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A transition is missing.
    Gap(String),
    /// A transition cannot be decoded, or does not fit the state.
    Unreadable(String),
    /// A newer binary wrote it. It is not damaged.
    Newer(String),
}

/// Folds a history as far as possible.
pub fn fold_history(history: &History) -> Folded {
    let History { execution, transitions, .. } = history;
    match fold_rows(*execution, transitions) {
        Ok(state) => Folded { state, fault: None },
        Err((sound, fault)) => {
            // The first fold consumed the state, so the sound transitions are folded again.
            let state = fold_rows(*execution, &transitions[..sound]).ok().flatten();
            Folded { state, fault: Some(fault) }
        }
    }
}

/// The state after all rows, or how many rows are sound and what is wrong with the next.
fn fold_rows(
    execution: ExecutionId,
    rows: &[StoredTransition],
) -> Result<Option<Execution>, (usize, Fault)> {
    let mut state = None;
    for (sound, row) in rows.iter().enumerate() {
        let next = fold_row(state.take(), execution, sound as u64 + 1, row);
        state = Some(next.map_err(|fault| (sound, fault))?);
    }
    Ok(state)
}

fn fold_row(
    state: Option<Execution>,
    execution: ExecutionId,
    expected: u64,
    row: &StoredTransition,
) -> Result<Execution, Fault> {
    let transition = decode_row(execution, expected, row)?;
    let sequence = transition.sequence;
    match catch_unwind(AssertUnwindSafe(|| fold(state, execution, &transition))) {
        Ok(folded) => folded.map_err(|misfit| Fault::Unreadable(misfit.to_string())),
        Err(_) => Err(Fault::Unreadable(format!("transition {sequence}: folding it panics"))),
    }
}

fn decode_row(
    execution: ExecutionId,
    expected: u64,
    row: &StoredTransition,
) -> Result<Transition, Fault> {
    let sequence = row.sequence;
    if sequence != expected {
        return Err(Fault::Gap(format!("transition {expected} is missing, {sequence} follows")));
    }
    let data = row.decode(execution).map_err(|error| match error {
        format::Error::Newer(_) => Fault::Newer(format!("transition {sequence}: {error}")),
        _ => Fault::Unreadable(format!("transition {sequence}: {error}")),
    })?;
    Ok(Transition { sequence, decided_at: data.decided_at, events: data.events })
}

/// What is known about an execution that no node continues.
#[derive(Clone, Debug)]
pub struct PartialExecution {
    /// Its entry in the index, with its quarantine.
    pub listed: Listed,
    /// The state as far as its history folds.
    pub state: Option<Execution>,
    /// `None` if the plan cannot be read.
    pub plan: Option<Arc<Plan>>,
}

pub(crate) async fn read_partial(
    store: &dyn Store,
    plans: &Plans,
    execution: ExecutionId,
) -> recoup_store::Result<Option<PartialExecution>> {
    /// Reads without being a node.
    const NOBODY: NodeId = NodeId(0);
    let Some(listed) = store.indexed(execution).await? else {
        return Ok(None);
    };
    let history = store.load(NOBODY, &[execution]).await?.pop();
    let state = history.and_then(|history| fold_history(&history).state);
    let index = &listed.index;
    let version = Some(index.version);
    let plan = plans.look_up(store, &index.namespace, &index.workflow, version).await?;
    Ok(Some(PartialExecution { listed, state, plan: plan.ok().flatten() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Refusal;

    #[test]
    fn refusal_says_only_once_that_the_store_is_unavailable() {
        let told = |error| Refusal::Unavailable(unavailable(error)).to_string();
        let away = recoup_store::Error::Unavailable("it is away".to_owned());
        assert_eq!(told(away), "the store is unavailable: it is away");
        let lost = told(recoup_store::Error::LeaseLost);
        assert_eq!(lost, "the store is unavailable: the lease of the node was lost");
    }
}
