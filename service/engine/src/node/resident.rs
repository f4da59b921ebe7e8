//! What is known of an execution in memory: the state itself, and what is asked about it while the state is away. How
//! that is kept is seen here alone.

use std::sync::Arc;

use recoup_core::command::TaskId;
use recoup_core::decide::next_wake;
use recoup_core::execution::{CompensationState, Execution, Phase, State};
use recoup_core::id::Namespace;
use recoup_core::plan::Plan;
use recoup_core::time::Timestamp;

/// What is known of an execution.
#[derive(Debug, Default)]
pub(super) struct Known(Belief);

#[derive(Debug, Default)]
enum Belief {
    /// Not read yet, or no longer to be believed.
    #[default]
    Unread,
    /// About to be started here.
    New(Arc<Plan>),
    Resident(Box<Resident>),
    /// Found here, and on its way to the store. What waits is refused when it is there, and the slot
    /// is dropped: who asks after that reads it.
    Quarantined,
}

impl Known {
    /// Of an execution that is about to be started here.
    pub fn new(plan: Arc<Plan>) -> Self {
        Self(Belief::New(plan))
    }

    pub fn is_unread(&self) -> bool {
        matches!(self.0, Belief::Unread)
    }

    /// Whether it is about to be started here.
    pub fn is_new(&self) -> bool {
        matches!(self.0, Belief::New(_))
    }

    pub fn is_resident(&self) -> bool {
        self.resident().is_some()
    }

    /// Whether it was found here to be damaged, and the store does not know yet.
    pub fn is_quarantined(&self) -> bool {
        matches!(self.0, Belief::Quarantined)
    }

    fn resident(&self) -> Option<&Resident> {
        match &self.0 {
            Belief::Resident(resident) => Some(resident),
            Belief::Unread | Belief::New(_) | Belief::Quarantined => None,
        }
    }

    /// None as well while it is away with a transition.
    pub fn state(&self) -> Option<&Execution> {
        self.resident()?.state.as_deref()
    }

    pub fn state_and_plan(&self) -> Option<(&Execution, &Arc<Plan>)> {
        let resident = self.resident()?;
        Some((resident.state.as_deref()?, &resident.plan))
    }

    /// Of an execution that has begun.
    pub fn plan(&self) -> Option<&Arc<Plan>> {
        self.resident().map(|resident| &resident.plan)
    }

    pub fn committed(&self) -> Option<&Committed> {
        self.resident().map(|resident| &resident.committed)
    }

    /// Whether the state says that somebody has an attempt.
    pub fn has_started(&self, task: &TaskId) -> bool {
        let task = self.state().and_then(|state| state.task(&task.path));
        let open = task.and_then(|task| task.open.as_ref());
        open.is_some_and(|open| open.started.is_some())
    }

    /// The plan to decide by; none if there is nothing to decide on.
    pub fn plan_to_decide(&self) -> Option<Arc<Plan>> {
        match &self.0 {
            Belief::Resident(resident) if resident.state.is_some() => Some(resident.plan.clone()),
            Belief::New(plan) => Some(plan.clone()),
            Belief::Resident(_) | Belief::Unread | Belief::Quarantined => None,
        }
    }

    /// The state goes away with a transition.
    pub fn take_state(&mut self) -> Option<Box<Execution>> {
        match &mut self.0 {
            Belief::Resident(resident) => resident.state.take(),
            Belief::Unread | Belief::New(_) | Belief::Quarantined => None,
        }
    }

    /// The state comes back as it was taken.
    pub fn return_state(&mut self, state: Option<Box<Execution>>) {
        if let Belief::Resident(resident) = &mut self.0 {
            resident.state = state;
        }
    }

    /// A transition is committed, and the state is back.
    pub fn commit(&mut self, plan: Arc<Plan>, committed: Committed, state: Box<Execution>) {
        let resident = Resident { plan, committed, state: Some(state) };
        match &mut self.0 {
            Belief::Resident(before) => **before = resident,
            belief => *belief = Belief::Resident(Box::new(resident)),
        }
    }

    /// The state has been read.
    pub fn read(&mut self, state: Box<Execution>, plan: Arc<Plan>) {
        let committed = Committed::new(&state, next_wake(&state, &plan));
        self.0 = Belief::Resident(Box::new(Resident { plan, committed, state: Some(state) }));
    }

    /// Nothing of it is to be believed any more.
    pub fn forget(&mut self) {
        self.0 = Belief::Unread;
    }

    pub fn quarantine(&mut self) {
        self.0 = Belief::Quarantined;
    }
}

/// A decision changes the state in place, so the state travels with the transition that is under way to
/// the store and comes back when that is committed. If it is not, the state is read again.
#[derive(Debug)]
struct Resident {
    plan: Arc<Plan>,
    committed: Committed,
    /// As committed; none while it is away.
    state: Option<Box<Execution>>,
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
