//! The nodes of the steps that have begun. Their ids follow the order in which the steps started.

use std::collections::{BTreeMap, HashMap};

use super::{Node, NodeState};
use crate::id::{ItemKey, StepPath};

/// Identifies a step that has begun, by its place in the order of starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u32);

impl NodeId {
    pub(super) const FIRST: Self = Self(0);
}

/// A list of steps in an execution: the workflow's `steps`, its `finally`, or a list inside a step. If that
/// step is a loop, the scope belongs to one of its items.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    Steps,
    Finally,
    Inside { node: NodeId, item: Option<ItemKey> },
}

/// How many steps of a scope have begun, and how many of these are running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub begun: u32,
    pub running: u32,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Nodes {
    list: Vec<Node>,
    by_path: HashMap<StepPath, NodeId>,
    steps: Counters,
    finally: Counters,
    inside: BTreeMap<Scope, Counters>,
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
        Ok(Scope::Inside { node, item: around.key.clone() })
    }

    pub fn push(&mut self, node: Node) -> NodeId {
        let id = NodeId(u32::try_from(self.list.len()).unwrap_or(u32::MAX));
        self.by_path.insert(node.path.clone(), id);
        let running = u32::from(matches!(node.state, NodeState::Running));
        let counters = self.counters_mut(&node.scope);
        counters.begun += 1;
        counters.running += running;
        self.list.push(node);
        id
    }

    /// Changes a node and updates the counters of its scope.
    pub fn change(&mut self, id: NodeId, change: impl FnOnce(&mut Node)) {
        let is_running = |node: &Node| u32::from(matches!(node.state, NodeState::Running));
        let node = &mut self.list[id.0 as usize];
        let before = is_running(node);
        change(node);
        let after = is_running(node);
        if before != after {
            let scope = node.scope.clone();
            let counters = self.counters_mut(&scope);
            counters.running = counters.running - before + after;
        }
    }

    /// The latest node with this path.
    pub fn find(&self, path: &StepPath) -> Option<NodeId> {
        self.by_path.get(path).copied()
    }

    pub fn get(&self, id: NodeId) -> &Node {
        &self.list[id.0 as usize]
    }

    /// Whether the step is one of `finally`, or stands inside one.
    pub fn is_finally(&self, node: &Node) -> bool {
        match &node.scope {
            Scope::Steps => false,
            Scope::Finally => true,
            Scope::Inside { node, .. } => self.is_finally(self.get(*node)),
        }
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Node> {
        self.list.iter()
    }

    pub fn counters(&self, scope: &Scope) -> Counters {
        match scope {
            Scope::Steps => self.steps,
            Scope::Finally => self.finally,
            Scope::Inside { .. } => self.inside.get(scope).copied().unwrap_or_default(),
        }
    }

    fn counters_mut(&mut self, scope: &Scope) -> &mut Counters {
        match scope {
            Scope::Steps => &mut self.steps,
            Scope::Finally => &mut self.finally,
            Scope::Inside { .. } => self.inside.entry(scope.clone()).or_default(),
        }
    }
}
