//! The order of the branches of a `parallel`.

use std::collections::HashMap;

use crate::definition::Parallel;
use crate::id::StepId;
use crate::tree::{PlanNodeId, Tree};

/// Tells the tree which branches of a step come after which.
pub(super) fn order(tree: &mut Tree, node: PlanNodeId, parallel: &Parallel) {
    let scopes: HashMap<String, _> = tree
        .parts(node)
        .iter()
        .filter_map(|(_, scope)| Some((tree.branch_id(*scope)?.as_str().to_owned(), *scope)))
        .collect();
    for (id, branch) in &parallel.branches {
        let after = branch.after.iter().filter_map(|id| scopes.get(id.as_str()).copied());
        if let Some(scope) = scopes.get(id.as_str()) {
            tree.set_after(*scope, after.collect());
        }
    }
}

/// Branches of which each comes after the next, and the last after the first; none if there is no such
/// cycle.
pub(super) fn cycle(parallel: &Parallel) -> Option<Vec<&StepId>> {
    // Leave out the branches that can begin, again and again. Every branch that remains comes after another
    // one that remains.
    let mut left: HashMap<&StepId, Vec<&StepId>> = HashMap::new();
    for (id, branch) in &parallel.branches {
        let known = branch.after.iter().filter(|id| parallel.branches.contains_key(id.as_str()));
        left.insert(id, known.collect());
    }
    let mut followers: HashMap<&StepId, Vec<&StepId>> = HashMap::new();
    for (id, after) in &left {
        for earlier in after {
            followers.entry(earlier).or_default().push(id);
        }
    }
    let mut ready: Vec<&StepId> =
        left.iter().filter(|(_, after)| after.is_empty()).map(|(id, _)| *id).collect();
    while let Some(id) = ready.pop() {
        left.remove(id);
        for follower in followers.get(id).into_iter().flatten() {
            if let Some(after) = left.get_mut(follower) {
                let waited = after.len();
                after.retain(|earlier| *earlier != id);
                if waited > 0 && after.is_empty() {
                    ready.push(follower);
                }
            }
        }
    }
    let mut walk = vec![parallel.branches.keys().find(|id| left.contains_key(id))?];
    loop {
        let next = left.get(walk.last()?)?.first()?;
        if let Some(start) = walk.iter().position(|id| id == next) {
            return Some(walk.split_off(start));
        }
        walk.push(next);
    }
}
