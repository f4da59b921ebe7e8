//! An execution in memory: the state itself, and what is known of it while the state is away.

use std::sync::Arc;

use recoup_core::decide::next_wake;
use recoup_core::execution::{CompensationState, Execution, Phase, State};
use recoup_core::id::Namespace;
use recoup_core::plan::Plan;
use recoup_core::time::Timestamp;

/// A decision changes the state in place, so the state travels with the transition that is under way to
/// the store and comes back when that is committed. If it is not, the state is read again.
#[derive(Debug)]
pub(super) struct Resident {
    pub plan: Arc<Plan>,
    pub committed: Committed,
    /// As committed; none while it is away.
    pub state: Option<Box<Execution>>,
}

/// What is asked about an execution at any moment, as of its last transition that is known to be committed.
#[derive(Clone, Debug)]
pub(super) struct Committed {
    pub sequence: u64,
    pub namespace: Namespace,
    pub state: State,
    pub compensation: CompensationState,
    /// Something remains to be done without a person.
    pub is_active: bool,
    /// No further step begins.
    pub is_stopping: bool,
    /// The steps that run are to stop.
    pub is_ending: bool,
    /// The earliest deadline that follows from the state.
    pub wake: Option<Timestamp>,
    /// When the first of its open attempts may be handed out.
    pub first_scheduled: Option<Timestamp>,
}

impl Committed {
    /// `wake`: its [`next_wake`].
    pub fn new(state: &Execution, wake: Option<Timestamp>) -> Self {
        Self {
            sequence: state.sequence,
            namespace: state.namespace.clone(),
            state: state.state,
            compensation: state.compensation,
            is_active: state.is_active(),
            is_stopping: state.is_stopping(),
            is_ending: state.is_stopping() && state.phase == Phase::Steps,
            wake,
            first_scheduled: state.first_scheduled(),
        }
    }
}

impl Resident {
    /// As it was read.
    pub fn read(state: Box<Execution>, plan: Arc<Plan>) -> Self {
        let wake = next_wake(&state, &plan);
        Self { committed: Committed::new(&state, wake), plan, state: Some(state) }
    }
}
