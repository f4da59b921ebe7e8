//! The nodes of the steps that have begun. Their ids follow the order in which the steps started, so a step
//! has a greater id than every step around it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::lanes::{BlockWork, Lanes};
use super::{LaneResult, Node, NodeState, Part};
use crate::id::{ItemKey, StepPath};
use crate::time::Timestamp;

/// Identifies a step that has begun, by its place in the order of starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u32);

impl NodeId {
    pub(super) const FIRST: Self = Self(0);
}

/// A list of steps in an execution: one of the workflow's own lists, or a list inside a step. If that step
/// is a `parallel` or a `for_each`, the scope is one of its branches or items, and `item` is the id of the
/// branch or the key of the item.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    Steps,
    OnFailure,
    Finally,
    Inside { node: NodeId, part: Part, item: Option<ItemKey> },
}

/// What is known about a scope without looking at its steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// How many steps have begun.
    pub begun: u32,
    /// How many of these are running.
    pub running: u32,
    /// The latest step that has an output, in the order of their starts.
    pub last_output: Option<NodeId>,
    /// The `return` that ended the scope.
    pub returned: Option<NodeId>,
}

/// How many running steps a node counts as, and whether it has an output.
fn counted(node: &Node) -> (u32, bool) {
    (u32::from(node.is_running()), node.has_output())
}

/// The values of a node by which [`Nodes`] indexes it.
#[derive(Clone, Copy, PartialEq)]
struct Facts {
    counted: (u32, bool),
    /// The list of steps that runs.
    active: Option<Part>,
    /// Whether the node owns a list of steps and has not ended.
    is_block: bool,
    is_stopped: bool,
    deadline: Option<Timestamp>,
    has_attempt: bool,
}

impl Facts {
    fn of(node: &Node) -> Self {
        let is_running = node.is_running();
        let is_stopped = is_running && node.stopped.is_some();
        let part = node.part.filter(|_| is_running);
        let is_handling = matches!(part, Some(Part::Handler(_)));
        Self {
            counted: counted(node),
            active: part.filter(|_| !is_stopped),
            is_block: part.is_some(),
            is_stopped,
            deadline: node.deadline.filter(|_| is_running && !is_stopped && !is_handling),
            has_attempt: node.task().is_some_and(|task| task.open.is_some()),
        }
    }

    /// Those of a node that does not exist yet.
    const NONE: Self = Self {
        counted: (0, false),
        active: None,
        is_block: false,
        is_stopped: false,
        deadline: None,
        has_attempt: false,
    };
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Nodes {
    list: Vec<Node>,
    by_path: HashMap<StepPath, NodeId>,
    steps: Counters,
    on_failure: Counters,
    finally: Counters,
    inside: BTreeMap<Scope, Counters>,
    /// The scopes inside steps that have begun and not ended.
    open: BTreeSet<Scope>,
    /// Those of the open scopes in which no step is running.
    idle: BTreeSet<Scope>,
    /// The steps that run other steps and have not ended.
    blocks: BTreeSet<NodeId>,
    /// The branches of every `parallel`, and the items of every `for_each`, that has begun.
    lanes: BTreeMap<NodeId, Lanes>,
    /// For each step that is being stopped, the steps inside it that have an open attempt.
    live: BTreeMap<NodeId, BTreeSet<NodeId>>,
    /// When steps that run other steps time out.
    deadlines: BTreeSet<(Timestamp, NodeId)>,
    /// The steps that can begin a branch or an item.
    beginning: BTreeSet<NodeId>,
    /// The steps whose branches or items have all ended, and those that are being stopped and have no open
    /// attempt left inside them.
    settled: BTreeSet<NodeId>,
}

impl Nodes {
    /// The scope in which the step with this path stands. `root` is the answer if the step stands inside no
    /// other step.
    pub fn scope_of(&self, path: &StepPath, root: Scope) -> Result<Scope, &'static str> {
        // A path without a dot names a step of the workflow itself, as almost every path does.
        if !path.as_str().contains('.') {
            return Ok(root);
        }
        let segments = path.segments().ok_or("a path that names no step")?;
        let around = segments.iter().rev().nth(1).ok_or("a path that names no step")?;
        let parent = path.parent().and_then(|parent| self.find(&parent));
        let node = parent.ok_or("the step around it has not begun")?;
        let part = self.get(node).part.ok_or("the step around it runs no steps")?;
        let item = around.key.clone();
        if part.is_keyed() {
            let lanes = self.lanes.get(&node).ok_or("the step around it has no branches")?;
            let key = item.as_ref().ok_or("the path names no branch or item")?;
            if !lanes.has_begun_or_may_begin(key) {
                return Err("the branch or item is not running");
            }
        } else if item.is_some() {
            return Err("the step around it has no branches or items");
        }
        Ok(Scope::Inside { node, part, item })
    }

    pub fn push(&mut self, node: Node) -> NodeId {
        let id = NodeId(u32::try_from(self.list.len()).unwrap_or(u32::MAX));
        self.by_path.insert(node.path.clone(), id);
        let scope = node.scope.clone();
        self.list.push(node);
        // A branch or an item begins with the first of its steps.
        if let Scope::Inside { node: owner, part: Part::Branch | Part::Item, item: Some(key) } =
            &scope
            && !self.open.contains(&scope)
        {
            if let Some(lanes) = self.lanes.get_mut(owner) {
                lanes.begin(key);
            }
            self.open.insert(scope.clone());
            self.note_due(*owner);
        }
        self.counters_mut(&scope).begun += 1;
        self.count(id, &scope, (0, false));
        self.index(id, Facts::NONE);
        id
    }

    /// Changes a node and updates everything that follows from it.
    pub fn change(&mut self, id: NodeId, change: impl FnOnce(&mut Node)) {
        let node = &mut self.list[id.0 as usize];
        let before = Facts::of(node);
        change(node);
        let scope = node.scope.clone();
        if before.counted != counted(node) {
            self.count(id, &scope, before.counted);
        }
        self.index(id, before);
    }

    /// Brings everything but the counters in step with a node; `before` is what was known of it.
    fn index(&mut self, id: NodeId, before: Facts) {
        let after = Facts::of(self.get(id));
        if before == after {
            return;
        }
        if before.active != after.active {
            if let Some(part) = before.active {
                self.close_part(id, part);
            }
            // A branch or an item opens with its first step.
            if let Some(part) = after.active.filter(|part| !part.is_keyed()) {
                self.open_scope(Scope::Inside { node: id, part, item: None });
            }
        }
        if before.deadline != after.deadline {
            before.deadline.map(|at| self.deadlines.remove(&(at, id)));
            self.deadlines.extend(after.deadline.map(|at| (at, id)));
        }
        if after.is_block {
            self.blocks.insert(id);
        } else {
            self.blocks.remove(&id);
        }
        if before.is_stopped != after.is_stopped {
            if after.is_stopped {
                self.live.insert(id, BTreeSet::new());
            } else {
                self.live.remove(&id);
            }
            self.note_due(id);
        }
        if before.has_attempt && !after.has_attempt && !self.live.is_empty() {
            let around: Vec<_> = self.around(id).filter(|id| self.live.contains_key(id)).collect();
            for stopped in around {
                self.live.entry(stopped).or_default().remove(&id);
                self.note_due(stopped);
            }
        }
    }

    /// Adds the branches or items of a step that has just begun.
    pub fn start_lanes(&mut self, id: NodeId, lanes: Lanes) {
        self.lanes.insert(id, lanes);
        self.note_due(id);
    }

    /// Ends a branch or an item; `ready` are the branches that may begin now.
    pub fn end_lane(
        &mut self,
        id: NodeId,
        key: &ItemKey,
        result: LaneResult,
        ready: &[ItemKey],
    ) -> Result<(), &'static str> {
        let lanes = self.lanes.get_mut(&id).ok_or("it has no branches or items")?;
        if !lanes.has_begun_or_may_begin(key) {
            return Err("the branch or item is not running");
        }
        lanes.end(key, result, ready);
        if let Some(part) = self.get(id).part {
            self.close_scope(&Scope::Inside { node: id, part, item: Some(key.clone()) });
        }
        self.note_due(id);
        Ok(())
    }

    /// Says which steps inside a step that is being stopped have an open attempt.
    pub fn set_live(&mut self, id: NodeId, live: BTreeSet<NodeId>) {
        self.live.insert(id, live);
        self.note_due(id);
    }

    /// Marks a scope as ended by a `return`.
    pub fn end_by_return(&mut self, id: NodeId) {
        let scope = self.get(id).scope.clone();
        self.counters_mut(&scope).returned = Some(id);
    }

    /// Counts a node of a scope; `before` is how it was counted so far.
    fn count(&mut self, id: NodeId, scope: &Scope, before: (u32, bool)) {
        let (running, has_output) = counted(self.get(id));
        let counters = self.counters_mut(scope);
        counters.running = counters.running - before.0 + running;
        if has_output {
            counters.last_output = counters.last_output.max(Some(id));
        }
        if self.open.contains(scope) {
            self.note_idle(scope);
        }
    }

    fn note_idle(&mut self, scope: &Scope) {
        if self.counters(scope).running == 0 {
            self.idle.insert(scope.clone());
        } else {
            self.idle.remove(scope);
        }
    }

    fn note_due(&mut self, id: NodeId) {
        self.beginning.remove(&id);
        self.settled.remove(&id);
        match self.block_work(id) {
            Some(BlockWork::Begin(..)) => self.beginning.insert(id),
            Some(BlockWork::Settle) => self.settled.insert(id),
            None => false,
        };
    }

    fn open_scope(&mut self, scope: Scope) {
        self.note_idle(&scope);
        self.open.insert(scope);
    }

    fn close_scope(&mut self, scope: &Scope) {
        self.open.remove(scope);
        self.idle.remove(scope);
    }

    /// Closes the scopes of a part of a step.
    fn close_part(&mut self, node: NodeId, part: Part) {
        let first = Scope::Inside { node, part, item: None };
        if !part.is_keyed() {
            return self.close_scope(&first);
        }
        let is_lane = |scope: &&Scope| matches!(scope, Scope::Inside { node: own, part: of, .. } if (*own, *of) == (node, part));
        let open: Vec<_> = self.open.range(first..).take_while(is_lane).cloned().collect();
        for scope in open {
            self.close_scope(&scope);
        }
        if let Some(lanes) = self.lanes.get_mut(&node) {
            lanes.close();
        }
        self.note_due(node);
    }

    /// The first scope inside a step that is open and in which no step is running: its next step may begin,
    /// or it has ended.
    pub fn first_idle(&self) -> Option<&Scope> {
        self.idle.first()
    }

    /// The first step inside which nothing lives any more.
    pub fn first_settled(&self) -> Option<NodeId> {
        self.settled.first().copied()
    }

    /// The first step that can begin a branch or an item.
    pub fn first_beginning(&self) -> Option<NodeId> {
        self.beginning.first().copied()
    }

    /// What can be done for a step that runs branches or is being stopped.
    pub fn block_work(&self, id: NodeId) -> Option<BlockWork> {
        if let Some(live) = self.live.get(&id) {
            return live.is_empty().then_some(BlockWork::Settle);
        }
        self.lanes.get(&id)?.work()
    }

    /// The steps that run other steps and have not ended.
    pub fn running_blocks(&self) -> impl Iterator<Item = NodeId> {
        self.blocks.iter().copied()
    }

    /// Those of the running blocks that stand inside a step.
    pub fn running_blocks_inside(&self, id: NodeId) -> impl Iterator<Item = NodeId> {
        let later = self.blocks.range(id..).copied();
        later.filter(move |inner| self.is_inside(*inner, id))
    }

    /// The steps that are being stopped, with how long their live attempts may run.
    pub fn stopped_blocks(&self) -> impl Iterator<Item = (NodeId, Timestamp)> {
        self.live.keys().filter_map(|id| {
            let stopped = self.get(*id).stopped.as_ref()?;
            Some((*id, stopped.grace_until))
        })
    }

    /// The steps with an open attempt inside a step that is being stopped.
    pub fn live_inside(&self, id: NodeId) -> impl Iterator<Item = NodeId> {
        self.live.get(&id).into_iter().flatten().copied()
    }

    /// Whether a step stands inside one that is being stopped.
    pub fn is_being_stopped(&self, id: NodeId) -> bool {
        !self.live.is_empty() && self.around(id).any(|id| self.live.contains_key(&id))
    }

    /// The next step that runs other steps to time out.
    pub fn first_deadline(&self) -> Option<(Timestamp, NodeId)> {
        self.deadlines.first().copied()
    }

    /// The earliest deadline of the steps around a step.
    pub fn deadline_around(&self, id: NodeId) -> Option<Timestamp> {
        if self.deadlines.is_empty() {
            return None;
        }
        let around = self.around(id).filter_map(|id| Facts::of(self.get(id)).deadline);
        around.min()
    }

    pub fn is_inside(&self, inner: NodeId, outer: NodeId) -> bool {
        self.around(inner).any(|id| id == outer)
    }

    /// The steps around a step, innermost first.
    fn around(&self, id: NodeId) -> impl Iterator<Item = NodeId> {
        let owner = |id: &NodeId| match self.get(*id).scope {
            Scope::Inside { node, .. } => Some(node),
            Scope::Steps | Scope::OnFailure | Scope::Finally => None,
        };
        std::iter::successors(Some(id), owner).skip(1)
    }

    /// The branches of a `parallel`, or the items of a `for_each`.
    pub fn lanes(&self, id: NodeId) -> Option<&Lanes> {
        self.lanes.get(&id)
    }

    #[cfg(test)]
    pub fn all_lanes(&self) -> impl Iterator<Item = &Lanes> {
        self.lanes.values()
    }

    /// The ids of all nodes, in the order of [`Self::iter`].
    #[cfg(test)]
    pub fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        let end = u32::try_from(self.list.len()).unwrap_or(u32::MAX);
        (0..end).map(NodeId)
    }

    #[cfg(test)]
    pub fn scopes(&self) -> (&BTreeSet<Scope>, &BTreeSet<Scope>) {
        (&self.open, &self.idle)
    }

    #[cfg(test)]
    pub fn due(&self) -> (&BTreeSet<NodeId>, &BTreeSet<NodeId>) {
        (&self.beginning, &self.settled)
    }

    /// The latest node with this path.
    pub fn find(&self, path: &StepPath) -> Option<NodeId> {
        self.by_path.get(path).copied()
    }

    pub fn get(&self, id: NodeId) -> &Node {
        &self.list[id.0 as usize]
    }

    /// Whether the step is one of `on_failure` or `finally`, or stands inside one.
    pub fn is_cleanup(&self, node: &Node) -> bool {
        match &node.scope {
            Scope::Steps => false,
            Scope::OnFailure | Scope::Finally => true,
            Scope::Inside { node, .. } => self.is_cleanup(self.get(*node)),
        }
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Node> {
        self.list.iter()
    }

    pub fn counters(&self, scope: &Scope) -> Counters {
        match scope {
            Scope::Steps => self.steps,
            Scope::OnFailure => self.on_failure,
            Scope::Finally => self.finally,
            Scope::Inside { .. } => self.inside.get(scope).copied().unwrap_or_default(),
        }
    }

    fn counters_mut(&mut self, scope: &Scope) -> &mut Counters {
        match scope {
            Scope::Steps => &mut self.steps,
            Scope::OnFailure => &mut self.on_failure,
            Scope::Finally => &mut self.finally,
            Scope::Inside { .. } => self.inside.entry(scope.clone()).or_default(),
        }
    }
}

impl Node {
    pub fn is_running(&self) -> bool {
        matches!(self.state, NodeState::Running)
    }
}
