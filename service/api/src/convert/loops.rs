//! Converts the `for_each` steps of an execution, and decides which of their items an answer lists. A loop may
//! have thousands of items, and the answer must stay small; the history has all of them.

use std::collections::{BTreeSet, HashMap};
use std::ptr::from_ref;

use recoup_core::error::TaskError;
use recoup_core::execution::{
    Compensation, CompensationStepState, Execution, Handled, LaneResult, Lanes, Loop, Node, Open,
    Output, Scope,
};
use recoup_core::id::StepPath;
use recoup_proto::v1;

use super::block::state;
use super::inline::{Inline, least_of_error, least_of_output};

/// How many items of a loop are listed, from the first on.
const FIRST_MAX: u32 = 20;
/// How many more items of a loop are listed that are running.
const RUNNING_MAX: usize = 20;
/// How many more items of a loop are listed that failed.
const FAILED_MAX: usize = 50;
/// The most steps inside the items that are listed, over all loops.
const STEPS_MAX: usize = 2_000;
/// How many compensations are listed of items that are not.
const COMPENSATIONS_MAX: usize = 100;
/// Bytes of a loop or an item, besides its path or key, its error and its output.
const ENTRY_BYTES: usize = 64;

/// The loops of an execution, and which of their items are listed.
pub struct Listing<'a> {
    execution: &'a Execution,
    begun: Vec<Begun<'a>>,
    /// The indexes of the items that are listed. The path of a loop would be compared too often, so a loop is
    /// known by its place in memory.
    listed: HashMap<*const Loop, BTreeSet<u32>>,
}

/// A `for_each` step that has begun.
struct Begun<'a> {
    node: &'a Node,
    items: &'a Loop,
    state: v1::BlockState,
    error: Option<&'a TaskError>,
    /// The output of a step that completed or whose error was caught.
    output: Option<Output<'a>>,
}

impl<'a> Listing<'a> {
    pub fn of(execution: &'a Execution) -> Self {
        let mut own = Self { execution, begun: Vec::new(), listed: HashMap::new() };
        let nodes = || execution.steps().chain(execution.cleanup_steps());
        let items_of = |node: &Node| match execution.lanes(&node.path) {
            Some(Lanes::Items(items)) => Some(&**items),
            _ => None,
        };
        let loops: Vec<_> = nodes().filter_map(|node| Some((node, items_of(node)?))).collect();
        if loops.is_empty() {
            return own;
        }
        // How many steps each item has begun, apart from those of loops inside it.
        let mut steps: HashMap<(*const Loop, u32), usize> = HashMap::new();
        for node in nodes() {
            if let Some((items, key)) = execution.items_around(&node.scope).last()
                && let Some(index) = items.index(key)
            {
                *steps.entry((from_ref(*items), index)).or_default() += 1;
            }
        }
        let mut room = STEPS_MAX;
        // A loop begins before those inside it, so whether it is listed is known before theirs is asked for.
        for (node, items) in loops {
            if !own.is_listed(&node.scope) {
                continue;
            }
            let state = state(node);
            let mut listed = BTreeSet::new();
            for index in candidates(items, state) {
                let size = steps.get(&(from_ref(items), index)).copied().unwrap_or_default();
                if let Some(left) = room.checked_sub(size) {
                    room = left;
                    listed.insert(index);
                }
            }
            own.listed.insert(from_ref(items), listed);
            own.begun.push(Begun {
                node,
                items,
                state,
                error: node.error().or(node.handled.as_deref().map(|handled| &handled.error)),
                output: execution.output(&node.path).filter(|_| node.has_output()),
            });
        }
        own
    }

    /// Whether the steps of a scope are listed: those outside loops, and those inside items that are listed.
    fn is_listed(&self, scope: &Scope) -> bool {
        self.execution.items_around(scope).into_iter().all(|(items, key)| {
            let listed = self.listed.get(&from_ref(items));
            listed.is_some_and(|own| items.index(key).is_some_and(|index| own.contains(&index)))
        })
    }

    pub fn lists(&self, node: &Node) -> bool {
        self.listed.is_empty() || self.is_listed(&node.scope)
    }

    fn lists_step(&self, step: &StepPath) -> bool {
        self.execution.node(step).is_none_or(|node| self.lists(node))
    }

    /// Whether an open attempt is listed. Compensations run one at a time, so the attempt of one always is.
    pub fn lists_attempt(&self, open: &Open<'_>) -> bool {
        open.path.compensated().is_some() || self.lists_step(&open.path)
    }

    /// The compensations that are listed.
    pub fn compensations(&self) -> impl Iterator<Item = &'a Compensation> {
        let mut room = COMPENSATIONS_MAX;
        self.execution.compensations().iter().filter(move |own| {
            if self.lists_step(&own.step) {
                return true;
            }
            let concerns_a_person = matches!(
                own.state,
                CompensationStepState::Running | CompensationStepState::Parked { .. }
            );
            let is_listed = concerns_a_person && room > 0;
            room -= usize::from(is_listed);
            is_listed
        })
    }

    /// The fewest bytes that the loops take in an answer.
    pub fn least(&self) -> usize {
        let of_item = |(index, begun): (u32, &Begun<'_>)| {
            let error = failure(begun.items, index)
                .map_or(0, |failed| failed.origin.as_str().len() + least_of_error(&failed.error));
            ENTRY_BYTES + begun.items.key(index).as_str().len() + error
        };
        let of_loop = |begun: &Begun<'_>| {
            let output = least_of_output(begun.output);
            let error = begun.error.map_or(0, least_of_error);
            let items = self.listed_of(begun.items).map(|index| of_item((index, begun)));
            ENTRY_BYTES + begun.node.path.as_str().len() + output + error + items.sum::<usize>()
        };
        self.begun.iter().map(of_loop).sum()
    }

    pub fn to_proto(&self, inline: &mut Inline) -> Vec<v1::LoopInfo> {
        self.begun.iter().map(|begun| self.loop_to_proto(begun, inline)).collect()
    }

    fn listed_of(&self, items: &Loop) -> impl Iterator<Item = u32> + '_ {
        self.listed.get(&from_ref(items)).into_iter().flatten().copied()
    }

    fn loop_to_proto(&self, begun: &Begun<'_>, inline: &mut Inline) -> v1::LoopInfo {
        let items = begun.items;
        let error = begun.error.map(|error| inline.error(error));
        let shown = self.listed_of(items).map(|index| {
            let failed = failure(items, index);
            v1::ItemInfo {
                item: items.key(index).as_str().to_owned(),
                index,
                state: item_state(begun, index).into(),
                failed_step: failed.map(|own| own.origin.as_str().to_owned()).unwrap_or_default(),
                error: failed.map(|failed| inline.error(&failed.error)),
            }
        });
        let shown: Vec<_> = shown.collect();
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let (ended, failed) = (count(items.results().count()), count(items.failures().count()));
        let is_running = begun.state == v1::BlockState::Running;
        v1::LoopInfo {
            step_path: begun.node.path.as_str().to_owned(),
            state: begun.state.into(),
            item_count: items.count(),
            begun_count: items.begun(),
            running_count: if is_running { items.begun().saturating_sub(ended) } else { 0 },
            completed_count: ended - failed,
            failed_count: failed,
            omitted_count: items.begun().saturating_sub(count(shown.len())),
            items: shown,
            output: inline.output(begun.output),
            error,
        }
    }
}

/// The items of a loop that are listed if there is room for their steps, the most important ones first.
fn candidates(items: &Loop, state: v1::BlockState) -> impl Iterator<Item = u32> + '_ {
    let first = 0..items.begun().min(FIRST_MAX);
    let failed = items.failures().map(|(index, _)| index).filter(|index| *index >= FIRST_MAX);
    let running = (FIRST_MAX..items.begun())
        .filter(move |index| state == v1::BlockState::Running && items.result(*index).is_none());
    failed.take(FAILED_MAX).chain(running.take(RUNNING_MAX)).chain(first)
}

fn failure(items: &Loop, index: u32) -> Option<&Handled> {
    match items.result(index)? {
        LaneResult::Failed(failed) => Some(failed),
        LaneResult::Completed(_) => None,
    }
}

fn item_state(begun: &Begun<'_>, index: u32) -> v1::ItemState {
    match begun.items.result(index) {
        Some(LaneResult::Completed(_)) => v1::ItemState::Completed,
        Some(LaneResult::Failed(_)) => v1::ItemState::Failed,
        None if begun.state == v1::BlockState::Running => v1::ItemState::Running,
        None => v1::ItemState::Stopped,
    }
}
