//! From stored rows back to states and plans.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use recoup_core::evolve::{Transition, fold};
use recoup_core::execution::Execution;
use recoup_core::id::{ExecutionId, Namespace, WorkflowName};
use recoup_core::plan::Plan;
use recoup_store::{History, NodeId, Store, WorkflowVersion, format};

use crate::node::io::Loaded;

/// Plans in memory; beyond it all are made anew.
const PLANS_MAX: usize = 10_000;
/// How long "the latest version" may be what it was.
const LATEST_MILLIS: u128 = 1_000;

type VersionKey = (Namespace, WorkflowName, u32);
/// The latest plan of a workflow, and when it was found to be that.
type Latest = HashMap<(Namespace, WorkflowName), (Instant, Arc<Plan>)>;

/// Plans by version, each compiled once: a version never changes.
#[derive(Default)]
pub struct Plans {
    plans: Mutex<HashMap<VersionKey, Arc<Plan>>>,
    latest: Mutex<Latest>,
}

impl Plans {
    /// The plan of a version, or of the latest that is not retired. The latest is looked up again
    /// after a second, and at once after [`Plans::forget_latest`].
    pub async fn find(
        &self,
        store: &dyn Store,
        namespace: &Namespace,
        name: &WorkflowName,
        version: Option<u32>,
    ) -> Result<Option<Arc<Plan>>, String> {
        let name_key = (namespace.clone(), name.clone());
        match version {
            Some(version) => {
                let key = (namespace.clone(), name.clone(), version);
                if let Some(plan) = lock(&self.plans).get(&key) {
                    return Ok(Some(plan.clone()));
                }
            }
            None => {
                if let Some((at, plan)) = lock(&self.latest).get(&name_key)
                    && at.elapsed().as_millis() < LATEST_MILLIS
                {
                    return Ok(Some(plan.clone()));
                }
            }
        }
        let row = store.workflow(namespace, name, version).await.map_err(|e| e.to_string())?;
        let Some(row) = row else {
            return Ok(None);
        };
        let plan = self.compile(&row)?;
        if version.is_none() {
            let mut latest = lock(&self.latest);
            if latest.len() >= PLANS_MAX {
                latest.clear();
            }
            latest.insert(name_key, (Instant::now(), plan.clone()));
        }
        Ok(Some(plan))
    }

    /// After a registration or a retirement on this node.
    pub fn forget_latest(&self, namespace: &Namespace, name: &WorkflowName) {
        lock(&self.latest).remove(&(namespace.clone(), name.clone()));
    }

    fn compile(&self, row: &WorkflowVersion) -> Result<Arc<Plan>, String> {
        let key = (row.namespace.clone(), row.name.clone(), row.version);
        if let Some(plan) = lock(&self.plans).get(&key) {
            return Ok(plan.clone());
        }
        let definition = format::decode_workflow(row.format, &row.definition);
        let definition = definition.map_err(|error| error.to_string())?;
        let plan = Plan::compile(&definition, row.version).map_err(|issues| {
            format!("version {} of {} does not compile: {issues:?}", row.version, row.name)
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

/// No panic leaves a map half changed, so a poisoned lock is as good as a whole one.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Loads executions with their plans. One that can not be folded is reported as such and hurts no
/// other.
pub async fn load(
    store: &dyn Store,
    plans: &Plans,
    node: NodeId,
    executions: &[ExecutionId],
) -> Result<Vec<Loaded>, String> {
    let histories = store.load(node, executions).await.map_err(|error| error.to_string())?;
    let mut loaded = Vec::with_capacity(histories.len());
    for history in histories {
        let state = match fold_history(&history) {
            Ok(state) => {
                let version = Some(state.version);
                // A plan that can not be read now may be readable later: the whole load fails.
                match plans.find(store, &state.namespace, &state.workflow, version).await? {
                    Some(plan) => Ok((Arc::new(state), plan)),
                    None => Err("its workflow version is gone".to_owned()),
                }
            }
            Err(reason) => Err(reason),
        };
        loaded.push(Loaded { execution: history.execution, owner: history.owner, state });
    }
    Ok(loaded)
}

/// Folds a whole history.
pub fn fold_history(history: &History) -> Result<Execution, String> {
    let mut state = None;
    for row in &history.transitions {
        let data = format::decode_transition(row.format, &row.data).map_err(|e| e.to_string())?;
        let sequence = row.sequence;
        let transition = Transition { sequence, decided_at: data.decided_at, events: data.events };
        let next = fold(state.take(), history.execution, &transition).map_err(|e| e.to_string())?;
        state = Some(next);
    }
    state.ok_or_else(|| "its history is empty".to_owned())
}
