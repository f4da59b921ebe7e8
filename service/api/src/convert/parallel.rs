//! Converts the `parallel` steps of an execution and their branches.

use std::collections::{HashMap, HashSet};

use recoup_core::error::TaskError;
use recoup_core::execution::{Execution, Handled, Node, Output, Parallel};
use recoup_core::plan::Plan;
use recoup_core::tree::ScopeId;
use recoup_proto::v1;

use super::block::state;
use super::inline::{Inline, least_of_error, least_of_output};
use super::loops::Listing;

/// Bytes of a step or a branch, besides its path or id, its error and its output.
const ENTRY_BYTES: usize = 64;

/// A `parallel` step that has begun.
pub struct Begun<'a> {
    node: &'a Node,
    state: v1::BlockState,
    branches: Vec<Branch<'a>>,
    error: Option<&'a TaskError>,
    /// The output of a step that completed or whose error was caught.
    output: Option<Output<'a>>,
}

struct Branch<'a> {
    id: &'a str,
    state: v1::BranchState,
    failed: Option<&'a Handled>,
}

/// The `parallel` steps of an execution, in the order in which they began. The plan tells the branches that
/// have not begun. Steps inside items that are not listed are left out.
pub fn begun<'a>(
    execution: &'a Execution,
    plan: Option<&'a Plan>,
    listing: &Listing<'a>,
) -> Vec<Begun<'a>> {
    let nodes = || execution.steps().chain(execution.cleanup_steps());
    // The path of a step in a branch begins with that of the branch, such as `fan[left]`.
    let scopes: HashSet<&str> =
        nodes().filter_map(|node| Some(node.path.as_str().rsplit_once('.')?.0)).collect();
    let convert = |(node, parallel): (&'a Node, &'a Parallel)| {
        let state = state(node);
        Begun {
            node,
            state,
            branches: branches(node, parallel, plan, state, &scopes),
            error: node.error().or(node.handled.as_deref().map(|handled| &handled.error)),
            output: execution.output(&node.path).filter(|_| node.has_output()),
        }
    };
    let parallels = nodes().filter_map(|node| Some((node, execution.parallel(&node.path)?)));
    parallels.filter(|(node, _)| listing.lists(node)).map(convert).collect()
}

/// The fewest bytes that a step takes in an answer.
pub fn least(begun: &Begun<'_>) -> usize {
    let of_branch = |branch: &Branch<'_>| {
        let error = |failed: &Handled| failed.origin.as_str().len() + least_of_error(&failed.error);
        ENTRY_BYTES + branch.id.len() + branch.failed.map_or(0, error)
    };
    let output = least_of_output(begun.output);
    let error = begun.error.map_or(0, least_of_error);
    let branches = begun.branches.iter().map(of_branch).sum::<usize>();
    ENTRY_BYTES + begun.node.path.as_str().len() + error + output + branches
}

pub fn to_proto(begun: &Begun<'_>, inline: &mut Inline) -> v1::ParallelInfo {
    let error = begun.error.map(|error| inline.error(error));
    let branches = begun.branches.iter().map(|branch| v1::BranchInfo {
        branch: branch.id.to_owned(),
        state: branch.state.into(),
        failed_step: branch.failed.map(|own| own.origin.as_str().to_owned()).unwrap_or_default(),
        error: branch.failed.map(|failed| inline.error(&failed.error)),
    });
    let branches = branches.collect();
    v1::ParallelInfo {
        step_path: begun.node.path.as_str().to_owned(),
        state: begun.state.into(),
        branches,
        output: inline.output(begun.output),
        error,
    }
}

/// The branches of a step, in the order of their ids. `scopes` are the paths of the lists of steps in which a
/// step has begun.
fn branches<'a>(
    node: &Node,
    parallel: &'a Parallel,
    plan: Option<&'a Plan>,
    state: v1::BlockState,
    scopes: &HashSet<&str>,
) -> Vec<Branch<'a>> {
    use v1::BranchState as Proto;
    let failed: HashMap<&str, &Handled> =
        parallel.failures().map(|(id, failed)| (id.as_str(), failed)).collect();
    let planned = plan.and_then(|plan| Some((plan, plan.tree.resolve(&node.path)?.0)));
    let Some((plan, own)) = planned else {
        let ended = parallel.results().map(|(id, _)| id.as_str());
        let ended = ended.map(|id| match failed.get(id).copied() {
            None => Branch { id, state: Proto::Completed, failed: None },
            failed => Branch { id, state: Proto::Failed, failed },
        });
        return ended.collect();
    };
    let goes_on = state == v1::BlockState::Running;
    let ids = || {
        let parts = plan.tree.parts(own).iter();
        parts.filter_map(|(_, scope)| Some((plan.tree.branch_id(*scope)?.as_str(), *scope)))
    };
    let failed_scopes = ids().filter(|(id, _)| failed.contains_key(id)).map(|(_, scope)| scope);
    let blocked = match goes_on {
        true => after(plan, ids().map(|(_, scope)| scope), failed_scopes.collect()),
        false => HashSet::new(),
    };
    let convert = |(id, scope): (&'a str, ScopeId)| {
        let has_begun = || scopes.contains(format!("{}[{id}]", node.path).as_str());
        let failed = failed.get(id).copied();
        let state = match failed {
            Some(_) => Proto::Failed,
            None if parallel.output(id).is_some() => Proto::Completed,
            None if has_begun() && goes_on => Proto::Running,
            None if has_begun() => Proto::Stopped,
            None if goes_on && !blocked.contains(&scope) => Proto::Waiting,
            None => Proto::NotRun,
        };
        Branch { id, state, failed }
    };
    ids().map(convert).collect()
}

/// The branches that come after others, directly or not.
fn after(
    plan: &Plan,
    branches: impl Iterator<Item = ScopeId>,
    mut others: Vec<ScopeId>,
) -> HashSet<ScopeId> {
    let mut found = HashSet::new();
    if others.is_empty() {
        return found;
    }
    let mut followers: HashMap<ScopeId, Vec<ScopeId>> = HashMap::new();
    for branch in branches {
        for earlier in plan.tree.after(branch) {
            followers.entry(*earlier).or_default().push(branch);
        }
    }
    while let Some(branch) = others.pop() {
        for follower in followers.get(&branch).into_iter().flatten() {
            if found.insert(*follower) {
                others.push(*follower);
            }
        }
    }
    found
}
