//! The places of the steps in a definition: an arena of nodes and of the scopes that they form, built
//! before any expression is compiled. A path resolves to a node and the keys of the items around it, and
//! the reverse. Which steps an expression may read follows from its place. No function here searches all
//! steps.
//!
//! A scope is a list of steps that run one after the other: the workflow's `steps`, `on_failure` or
//! `finally`, or one of the lists inside a step.

use std::collections::{HashMap, HashSet};

use crate::id::{ItemKey, StepId, StepPath};
use crate::path::Segment;
use crate::state::Part;

/// A step of the definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PlanNodeId(u32);

/// A list of steps of the definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScopeId(u32);

impl ScopeId {
    /// The workflow's `steps`.
    pub const STEPS: Self = Self(0);
    pub const ON_FAILURE: Self = Self(1);
    pub const FINALLY: Self = Self(2);

    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

impl PlanNodeId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// A place in a scope: that of the step at this position, or the place after the last step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub scope: ScopeId,
    pub position: usize,
}

impl Place {
    /// The place after all steps of a scope.
    pub fn end_of(scope: ScopeId) -> Self {
        Self { scope, position: usize::MAX }
    }
}

/// Whether an expression at a place may read a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    Visible,
    /// The step stands in the same scope or in one around it, and comes later.
    Later,
    /// The step stands inside a step that does not surround the place.
    Hidden,
}

#[derive(Debug)]
struct Node {
    id: StepId,
    place: Place,
    /// The lists of steps inside the step.
    parts: Vec<(Part, ScopeId)>,
}

/// What stands in brackets after the step that contains a scope, in the paths of the steps of the scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    None,
    /// The id of the branch.
    Branch(ItemKey),
    /// The scope runs once per item of its owner, and paths name the item.
    Item,
}

#[derive(Debug)]
struct Scope {
    /// The step that contains the scope; none for the workflow's own lists.
    owner: Option<PlanNodeId>,
    /// The surrounding place: every step that can be read there can also be read in this scope.
    outer: Option<Place>,
    key: Key,
    /// For a branch: the branches that must have completed before it begins.
    after: Vec<ScopeId>,
    steps: Vec<PlanNodeId>,
}

#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
    scopes: Vec<Scope>,
    by_id: HashMap<StepId, PlanNodeId>,
}

impl Default for Tree {
    fn default() -> Self {
        let scope = |outer| Scope {
            owner: None,
            outer,
            key: Key::None,
            after: Vec::new(),
            steps: Vec::new(),
        };
        let after_steps = || scope(Some(Place::end_of(ScopeId::STEPS)));
        let scopes = vec![scope(None), after_steps(), after_steps()];
        Self { nodes: Vec::new(), scopes, by_id: HashMap::new() }
    }
}

impl Tree {
    /// Adds a step at the end of a scope. If the id is already taken, it continues to name the first step
    /// that had it.
    pub fn add_step(&mut self, scope: ScopeId, id: StepId) -> PlanNodeId {
        let node = PlanNodeId(u32::try_from(self.nodes.len()).unwrap_or(u32::MAX));
        let steps = &mut self.scopes[scope.0 as usize].steps;
        let place = Place { scope, position: steps.len() };
        steps.push(node);
        self.by_id.entry(id.clone()).or_insert(node);
        self.nodes.push(Node { id, place, parts: Vec::new() });
        node
    }

    /// Adds a scope inside a step. Every step that `owner` can read can also be read in the new scope.
    pub fn add_scope(&mut self, owner: PlanNodeId, part: Part, key: Key) -> ScopeId {
        let scope = ScopeId(u32::try_from(self.scopes.len()).unwrap_or(u32::MAX));
        let (owner_of, outer) = (Some(owner), Some(self.place(owner)));
        let (after, steps) = (Vec::new(), Vec::new());
        self.scopes.push(Scope { owner: owner_of, outer, key, after, steps });
        self.nodes[owner.index()].parts.push((part, scope));
        scope
    }

    /// Makes a branch begin after other branches of the same step.
    pub fn set_after(&mut self, branch: ScopeId, after: Vec<ScopeId>) {
        self.scopes[branch.index()].after = after;
    }

    /// The branches that must have completed before a branch begins.
    pub fn after(&self, branch: ScopeId) -> &[ScopeId] {
        &self.scope(branch).after
    }

    /// The id of a branch; none for other scopes.
    pub fn branch_id(&self, scope: ScopeId) -> Option<&ItemKey> {
        match &self.scope(scope).key {
            Key::Branch(id) => Some(id),
            Key::None | Key::Item => None,
        }
    }

    /// The branch with this id that an expression at a place may read: one that has completed before the
    /// innermost branch around the place, of those that have such a branch before them, begins.
    pub fn earlier_branch(&self, from: Place, id: &str) -> Option<ScopeId> {
        let mut here = Some(from);
        while let Some(place) = here {
            let mut found = self.all_before(place.scope);
            let found =
                found.find(|scope| self.branch_id(*scope).is_some_and(|own| own.as_str() == id));
            if found.is_some() {
                return found;
            }
            here = self.scope(place.scope).outer;
        }
        None
    }

    /// The loops around a place, outermost first.
    pub fn loops_around(&self, from: Place) -> Vec<PlanNodeId> {
        let mut loops = Vec::new();
        let mut here = Some(from);
        while let Some(place) = here {
            let scope = self.scope(place.scope);
            loops.extend(scope.owner.filter(|_| scope.key == Key::Item));
            here = scope.outer;
        }
        loops.reverse();
        loops
    }

    /// The branches that come before a branch, directly or not, each of them once.
    pub fn all_before(&self, branch: ScopeId) -> impl Iterator<Item = ScopeId> + use<'_> {
        let mut next: Vec<ScopeId> = self.after(branch).to_vec();
        let mut seen = HashSet::new();
        std::iter::from_fn(move || {
            loop {
                let scope = next.pop()?;
                if seen.insert(scope) {
                    next.extend(self.after(scope));
                    return Some(scope);
                }
            }
        })
    }

    /// The scopes inside a step, in the order in which they were added.
    pub fn parts(&self, owner: PlanNodeId) -> &[(Part, ScopeId)] {
        &self.nodes[owner.index()].parts
    }

    /// The scope that is this part of a step; `key` is the id of the branch, if it is one.
    pub fn part(&self, owner: PlanNodeId, part: Part, key: Option<&ItemKey>) -> Option<ScopeId> {
        let mut parts = self.parts(owner).iter();
        let is_it = |scope: ScopeId| match &self.scope(scope).key {
            Key::Branch(id) => key == Some(id),
            Key::None | Key::Item => true,
        };
        parts.find(|(own, scope)| *own == part && is_it(*scope)).map(|(_, scope)| *scope)
    }

    /// The step that contains a scope; none for the workflow's own lists.
    pub fn owner(&self, scope: ScopeId) -> Option<PlanNodeId> {
        self.scope(scope).owner
    }

    /// The number of scopes. Their indexes are below it.
    pub(crate) fn scope_count(&self) -> usize {
        self.scopes.len()
    }

    /// Whether a step is one of `on_failure` or `finally`, or stands inside one.
    pub fn is_cleanup(&self, node: PlanNodeId) -> bool {
        let around = std::iter::successors(Some(node), |node| self.parent(*node)).last();
        around.is_some_and(|outermost| self.place(outermost).scope != ScopeId::STEPS)
    }

    /// The step with this id; ids are unique within a workflow.
    pub fn find(&self, id: &str) -> Option<PlanNodeId> {
        self.by_id.get(id).copied()
    }

    pub fn id(&self, node: PlanNodeId) -> &StepId {
        &self.nodes[node.index()].id
    }

    pub fn place(&self, node: PlanNodeId) -> Place {
        self.nodes[node.index()].place
    }

    /// The step that contains a step; none for a step of the workflow itself.
    pub fn parent(&self, node: PlanNodeId) -> Option<PlanNodeId> {
        self.scope(self.place(node).scope).owner
    }

    /// The steps of a scope in the order in which they run.
    pub fn children(&self, scope: ScopeId) -> &[PlanNodeId] {
        &self.scope(scope).steps
    }

    /// Whether an expression at a place may read the result of a step. It may read the earlier steps of its
    /// own scope and of the scopes around it.
    pub fn sight(&self, from: Place, node: PlanNodeId) -> Sight {
        let target = self.place(node);
        let mut here = Some(from);
        while let Some(place) = here {
            if place.scope == target.scope {
                let is_earlier = target.position < place.position;
                return if is_earlier { Sight::Visible } else { Sight::Later };
            }
            here = self.scope(place.scope).outer;
        }
        match target.scope {
            ScopeId::ON_FAILURE | ScopeId::FINALLY => Sight::Later,
            _ => Sight::Hidden,
        }
    }

    /// The node that a path names, and the keys of the items around it, outermost first. None if the
    /// definition has no such step at that place.
    pub fn resolve(&self, path: &StepPath) -> Option<(PlanNodeId, Vec<ItemKey>)> {
        // Almost every path names a step that stands inside no other step.
        if let Some(node) = self.find(path.as_str())
            && self.parent(node).is_none()
        {
            return Some((node, Vec::new()));
        }
        let segments = path.segments()?;
        let found = self.find(segments.last()?.step)?;
        let mut keys = Vec::new();
        let mut inner = found;
        for segment in segments.iter().rev().skip(1) {
            let scope = self.scope(self.place(inner).scope);
            inner = scope.owner.filter(|owner| self.id(*owner).as_str() == segment.step)?;
            match (&scope.key, &segment.key) {
                (Key::None, None) => {}
                (Key::Branch(id), Some(key)) if id == key => {}
                (Key::Item, Some(key)) => keys.push(key.clone()),
                _ => return None,
            }
        }
        keys.reverse();
        self.parent(inner).is_none().then_some((found, keys))
    }

    /// The path of a node within these items, outermost first. None if the number of keys differs from the
    /// number of loops around the node.
    pub fn path(&self, node: PlanNodeId, keys: &[ItemKey]) -> Option<StepPath> {
        let mut keys = keys.iter().rev();
        let mut segments = vec![Segment { step: self.id(node).as_str(), key: None }];
        let mut scope = self.scope(self.place(node).scope);
        while let Some(owner) = scope.owner {
            let key = match &scope.key {
                Key::None => None,
                Key::Branch(id) => Some(id.clone()),
                Key::Item => Some(keys.next()?.clone()),
            };
            segments.push(Segment { step: self.id(owner).as_str(), key });
            scope = self.scope(self.place(owner).scope);
        }
        let is_whole = keys.next().is_none();
        is_whole.then(|| StepPath::of_segments(segments.into_iter().rev()))
    }

    /// The path of a node with empty keys of items: its only path, if it stands in no loop.
    pub fn own_path(&self, node: PlanNodeId) -> StepPath {
        let around = std::iter::successors(Some(node), |node| self.parent(*node));
        let loops = around.filter(|node| self.scope(self.place(*node).scope).key == Key::Item);
        let keys = vec![ItemKey::from(""); loops.count()];
        self.path(node, &keys).expect("there is a key for each loop around it")
    }

    /// The path of a node without keys, as [`StepPath::pattern`] gives it.
    pub fn pattern(&self, node: PlanNodeId) -> StepPath {
        StepPath::from(&*self.own_path(node).pattern())
    }

    /// All steps, in the order in which they were added.
    pub fn nodes(&self) -> impl Iterator<Item = PlanNodeId> + use<> {
        let end = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        (0..end).map(PlanNodeId)
    }

    fn scope(&self, scope: ScopeId) -> &Scope {
        &self.scopes[scope.0 as usize]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Steps `a`, `lines` [ `pack` { `wrap`, `seal` }, `ship` ], `b`; finally `tidy`.
    fn tree() -> Tree {
        let mut tree = Tree::default();
        tree.add_step(ScopeId::STEPS, "a".into());
        let lines = tree.add_step(ScopeId::STEPS, "lines".into());
        let items = tree.add_scope(lines, Part::Body, Key::Item);
        let pack = tree.add_step(items, "pack".into());
        let body = tree.add_scope(pack, Part::Body, Key::None);
        tree.add_step(body, "wrap".into());
        tree.add_step(body, "seal".into());
        tree.add_step(items, "ship".into());
        tree.add_step(ScopeId::STEPS, "b".into());
        tree.add_step(ScopeId::FINALLY, "tidy".into());
        tree
    }

    #[test]
    fn expression_sees_earlier_steps_of_its_own_and_enclosing_scopes() {
        use Sight::{Hidden, Later, Visible};
        let tree = tree();
        let sight = |from: &str, of: &str| {
            let find = |id| tree.find(id).expect("it is a step");
            tree.sight(tree.place(find(from)), find(of))
        };
        for (from, of, sees) in [
            ("b", "a", Visible),
            ("a", "a", Later),
            ("a", "b", Later),
            ("seal", "wrap", Visible),
            ("wrap", "seal", Later),
            ("seal", "a", Visible),
            ("seal", "b", Later),
            ("seal", "lines", Later),
            ("ship", "pack", Visible),
            ("ship", "wrap", Hidden),
            ("b", "ship", Hidden),
            ("b", "lines", Visible),
            ("b", "tidy", Later),
            ("tidy", "b", Visible),
            ("tidy", "wrap", Hidden),
        ] {
            assert_eq!(sight(from, of), sees, "{of} from {from}");
        }
    }

    #[test]
    fn path_resolves_only_if_every_segment_is_in_its_place() {
        let tree = tree();
        for wrong in [
            "",
            "c",
            "ship",
            "lines.ship",
            "lines[1]",
            "lines[1].wrap",
            "pack.wrap",
            "a.b",
            "lines[1].pack[2].wrap",
            "tidy.a",
            "lines[1].pack.wrap/compensate",
        ] {
            assert_eq!(tree.resolve(&wrong.into()), None, "{wrong}");
        }
        let (node, keys) = tree.resolve(&"lines[x].pack.seal".into()).expect("it is a step");
        assert_eq!((tree.id(node).as_str(), keys), ("seal", vec!["x".into()]));
        assert_eq!(tree.parent(node), tree.find("pack"));
        let children = |scope| tree.children(scope).iter().map(|node| tree.id(*node).as_str());
        assert_eq!(children(ScopeId::STEPS).collect::<Vec<_>>(), ["a", "lines", "b"]);
        assert_eq!(children(ScopeId::FINALLY).collect::<Vec<_>>(), ["tidy"]);
    }

    /// Trees of any shape: each step stands in a scope that was added before it, and may get a scope of its
    /// own.
    fn trees() -> impl Strategy<Value = Tree> {
        let step = (any::<prop::sample::Index>(), proptest::option::of(0..3));
        proptest::collection::vec(step, 1..30).prop_map(|steps| {
            let mut tree = Tree::default();
            let mut scopes = vec![ScopeId::STEPS, ScopeId::ON_FAILURE, ScopeId::FINALLY];
            for (at, (place, scope)) in steps.into_iter().enumerate() {
                let node = tree.add_step(*place.get(&scopes), format!("s{at}").into());
                let key = scope.map(|kind| match kind {
                    0 => Key::None,
                    1 => Key::Item,
                    _ => Key::Branch("left".into()),
                });
                scopes.extend(key.map(|key| tree.add_scope(node, Part::Body, key)));
            }
            tree
        })
    }

    proptest! {
        #[test]
        fn path_and_tree_node_are_found_from_each_other(
            tree in trees(),
            keys in proptest::collection::vec(any::<String>(), 30),
        ) {
            for node in tree.nodes() {
                let loops = std::iter::successors(Some(node), |node| tree.parent(*node));
                let loops = loops.filter(|node| tree.scope(tree.place(*node).scope).key == Key::Item);
                let keys: Vec<ItemKey> =
                    keys.iter().take(loops.count()).map(|key| key.as_str().into()).collect();
                let path = tree.path(node, &keys).expect("as many keys as loops");
                prop_assert_eq!(tree.resolve(&path), Some((node, keys.clone())));
                prop_assert_eq!(StepPath::from(&*path.pattern()), tree.pattern(node));
                prop_assert!(tree.path(node, &[&keys[..], &["more".into()]].concat()).is_none());
                let parent = tree.parent(node).map(|parent| tree.id(parent).as_str().to_owned());
                let segments = path.parent();
                let named = segments.as_ref().and_then(StepPath::segments);
                let named = named.and_then(|named| named.last().map(|last| last.step.to_owned()));
                prop_assert_eq!(named, parent, "the path alone names the parent");
            }
        }
    }
}
