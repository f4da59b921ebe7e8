//! What is known about an execution in memory: the state itself, and a summary that remains while the state
//! is away. How they are kept is private to this file.

use std::collections::BTreeSet;
use std::sync::Arc;

use recoup_core::command::TaskId;
use recoup_core::decide::next_wake;
use recoup_core::execution::{CompensationState, Execution, Phase, State};
use recoup_core::id::{Namespace, StepPath};
use recoup_core::plan::Plan;
use recoup_core::time::Timestamp;

/// What is known about an execution.
#[derive(Debug, Default)]
pub(super) struct Known(Belief);

#[derive(Debug, Default)]
enum Belief {
    /// Not read yet, or no longer believed.
    #[default]
    Unread,
    /// About to be started by this node.
    New(Arc<Plan>),
    Resident(Box<Resident>),
    /// This node has found it to be damaged, and the quarantine is on its way to the store. Once it is
    /// committed, waiting callers are refused and the slot is dropped; later requests read the quarantine
    /// from the store.
    Quarantined,
}

impl Known {
    /// For an execution that this node is about to start.
    pub fn new(plan: Arc<Plan>) -> Self {
        Self(Belief::New(plan))
    }

    pub fn is_unread(&self) -> bool {
        matches!(self.0, Belief::Unread)
    }

    /// Whether this node is about to start it.
    pub fn is_new(&self) -> bool {
        matches!(self.0, Belief::New(_))
    }

    pub fn is_resident(&self) -> bool {
        self.resident().is_some()
    }

    /// Whether this node has found it to be damaged and the store does not know yet.
    pub fn is_quarantined(&self) -> bool {
        matches!(self.0, Belief::Quarantined)
    }

    fn resident(&self) -> Option<&Resident> {
        match &self.0 {
            Belief::Resident(resident) => Some(resident),
            Belief::Unread | Belief::New(_) | Belief::Quarantined => None,
        }
    }

    /// `None` also while the state is away with a transition.
    pub fn state(&self) -> Option<&Execution> {
        self.resident()?.state.as_deref()
    }

    pub fn state_and_plan(&self) -> Option<(&Execution, &Arc<Plan>)> {
        let resident = self.resident()?;
        Some((resident.state.as_deref()?, &resident.plan))
    }

    /// The plan of an execution that has begun.
    pub fn plan(&self) -> Option<&Arc<Plan>> {
        self.resident().map(|resident| &resident.plan)
    }

    pub fn committed(&self) -> Option<&Committed> {
        self.resident().map(|resident| &resident.committed)
    }

    /// Whether the state says that a worker has the attempt.
    pub fn has_started(&self, task: &TaskId) -> bool {
        let task = self.state().and_then(|state| state.task(&task.path));
        let open = task.and_then(|task| task.open.as_ref());
        open.is_some_and(|open| open.started.is_some())
    }

    /// The plan to decide with. `None` if there is no state to decide on.
    pub fn plan_to_decide(&self) -> Option<Arc<Plan>> {
        match &self.0 {
            Belief::Resident(resident) if resident.state.is_some() => Some(resident.plan.clone()),
            Belief::New(plan) => Some(plan.clone()),
            Belief::Resident(_) | Belief::Unread | Belief::Quarantined => None,
        }
    }

    /// Takes the state out, to travel with a transition.
    pub fn take_state(&mut self) -> Option<Box<Execution>> {
        match &mut self.0 {
            Belief::Resident(resident) => resident.state.take(),
            Belief::Unread | Belief::New(_) | Belief::Quarantined => None,
        }
    }

    /// Puts the state back unchanged.
    pub fn return_state(&mut self, state: Option<Box<Execution>>) {
        if let Belief::Resident(resident) = &mut self.0 {
            resident.state = state;
        }
    }

    /// A transition is committed, and its state comes back.
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

    /// Nothing that is known about it is believed any more.
    pub fn forget(&mut self) {
        self.0 = Belief::Unread;
    }

    pub fn quarantine(&mut self) {
        self.0 = Belief::Quarantined;
    }
}

/// A decision changes the state in place. So the state travels with the transition that is under way to the
/// store and comes back once the transition is committed. If the transition is not committed, the state is
/// read again.
#[derive(Debug)]
struct Resident {
    plan: Arc<Plan>,
    committed: Committed,
    /// The committed state; `None` while it is away.
    state: Option<Box<Execution>>,
}

/// The facts that may be asked for at any moment, as of the last transition that is known to be committed.
#[derive(Clone, Debug)]
pub(super) struct Committed {
    pub sequence: u64,
    pub namespace: Namespace,
    pub state: State,
    pub compensation: CompensationState,
    /// Something remains to be done that does not need an operator.
    pub is_active: bool,
    /// Which of the steps that are running should stop.
    pub ending: Ending,
    /// The earliest deadline that follows from the state.
    pub wake: Option<Timestamp>,
    /// When the first of its open attempts may be handed out.
    pub first_scheduled: Option<Timestamp>,
}

impl Committed {
    /// `wake`: the result of [`next_wake`].
    pub fn new(state: &Execution, wake: Option<Timestamp>) -> Self {
        Self {
            sequence: state.sequence,
            namespace: state.namespace.clone(),
            state: state.state,
            compensation: state.compensation,
            is_active: state.is_active(),
            ending: Ending::of(state),
            wake,
            first_scheduled: state.first_scheduled(),
        }
    }
}

/// Which of the steps that are running should stop. Compensations, and the steps of `on_failure` and
/// `finally`, do not stop with the run.
#[derive(Clone, Debug)]
pub(super) enum Ending {
    None,
    /// The run is being stopped.
    All,
    /// Steps around these are being stopped.
    Some(BTreeSet<StepPath>),
}

impl Ending {
    fn of(state: &Execution) -> Self {
        if state.is_stopping() && state.phase == Phase::Steps {
            return Self::All;
        }
        let steps: BTreeSet<_> = state.steps_being_stopped().cloned().collect();
        if steps.is_empty() { Self::None } else { Self::Some(steps) }
    }

    pub fn includes(&self, path: &StepPath) -> bool {
        match self {
            Self::None => false,
            Self::All => path.compensated().is_none(),
            Self::Some(steps) => steps.contains(path),
        }
    }
}
