//! The nodes of the steps that have begun. Their ids follow the order in which the steps started.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Node, NodeState, Part};
use crate::id::{ItemKey, StepPath};

/// Identifies a step that has begun, by its place in the order of starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u32);

impl NodeId {
    pub(super) const FIRST: Self = Self(0);
}

/// A list of steps in an execution: one of the workflow's own lists, or a list inside a step. If that step
/// is a loop, the scope belongs to one of its items.
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
    (u32::from(matches!(node.state, NodeState::Running)), node.output().is_some())
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
        Ok(Scope::Inside { node, part, item: around.key.clone() })
    }

    pub fn push(&mut self, node: Node) -> NodeId {
        let id = NodeId(u32::try_from(self.list.len()).unwrap_or(u32::MAX));
        self.by_path.insert(node.path.clone(), id);
        let scope = node.scope.clone();
        let part = node.part;
        self.list.push(node);
        self.counters_mut(&scope).begun += 1;
        self.count(id, &scope, (0, false));
        if let Some(part) = part {
            self.open_scope(Scope::Inside { node: id, part, item: None });
        }
        id
    }

    /// Changes a node and updates everything that follows from it.
    pub fn change(&mut self, id: NodeId, change: impl FnOnce(&mut Node)) {
        let node = &mut self.list[id.0 as usize];
        let (before, part) = (counted(node), node.part);
        change(node);
        let (after, part_after, scope) = (counted(node), node.part, node.scope.clone());
        if before != after {
            self.count(id, &scope, before);
        }
        if part != part_after || before.0 > after.0 {
            if let Some(part) = part {
                self.close_scope(&Scope::Inside { node: id, part, item: None });
            }
            if let Some(part) = part_after.filter(|_| after.0 > 0) {
                self.open_scope(Scope::Inside { node: id, part, item: None });
            }
        }
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

    fn open_scope(&mut self, scope: Scope) {
        self.note_idle(&scope);
        self.open.insert(scope);
    }

    fn close_scope(&mut self, scope: &Scope) {
        self.open.remove(scope);
        self.idle.remove(scope);
    }

    /// The first scope inside a step that is open and in which no step is running: its next step may begin,
    /// or it has ended.
    pub fn first_idle(&self) -> Option<&Scope> {
        self.idle.first()
    }

    /// The steps whose scopes are open.
    pub fn owners_of_open_scopes(&self) -> impl Iterator<Item = NodeId> {
        self.open.iter().filter_map(|scope| match scope {
            Scope::Inside { node, .. } => Some(*node),
            Scope::Steps | Scope::OnFailure | Scope::Finally => None,
        })
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
