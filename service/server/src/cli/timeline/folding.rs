//! Which items of long loops have no lines of their own. A loop may have thousands of items, and most of them
//! tell nothing that the others do not tell as well.

use std::collections::{HashMap, HashSet};

use recoup_proto::v1::history_entry::Event;
use recoup_proto::v1::{ExecutionInfo, HistoryEntry, StepRef};

/// A loop of more items than this is folded.
const WHOLE_MAX: usize = 20;
/// How many items of a folded loop have lines, from the first on.
const FIRST_MAX: usize = 5;
/// How many more items of a folded loop have lines that failed.
const FAILED_MAX: usize = 50;

/// The items of the loops that are folded.
#[derive(Default)]
pub struct Folding<'a> {
    /// The beginnings of the paths of items without lines, such as `lines[3]`.
    hidden: HashSet<&'a str>,
    /// How many items of a loop have no lines, by the paths of the loops.
    counts: HashMap<&'a str, usize>,
}

#[derive(Default)]
struct Seen<'a> {
    /// In the order of their beginning.
    items: Vec<&'a str>,
    /// Those that failed.
    failed: Vec<&'a str>,
    /// Those that have an open attempt.
    pending: HashSet<&'a str>,
}

impl<'a> Folding<'a> {
    pub fn of(execution: &'a ExecutionInfo, history: &'a [HistoryEntry]) -> Self {
        let events = || history.iter().filter_map(|entry| entry.event.as_ref());
        let mut loops: HashMap<&str, Seen<'a>> = HashMap::new();
        let mut known = HashSet::new();
        for event in events() {
            if let Event::LoopStarted(begun) = event {
                loops.insert(path(begun.step.as_ref()), Seen::default());
            }
            for (of, item) in step_of(event).into_iter().flat_map(items) {
                if let Some(seen) = loops.get_mut(of)
                    && known.insert(item)
                {
                    seen.items.push(item);
                }
            }
            if let Event::ItemFailed(failed) = event {
                let of = path(failed.step.as_ref());
                let item = items(&failed.failed_step).find(|(around, _)| *around == of);
                if let (Some(seen), Some((_, item))) = (loops.get_mut(of), item) {
                    seen.failed.push(item);
                }
            }
        }
        for (of, item) in execution.pending_attempts.iter().flat_map(|own| items(&own.step_path)) {
            if let Some(seen) = loops.get_mut(of) {
                seen.pending.insert(item);
            }
        }
        let mut folding = Self::default();
        for (of, seen) in loops.into_iter().filter(|(_, seen)| seen.items.len() > WHOLE_MAX) {
            let failed = seen.failed.iter().take(FAILED_MAX);
            let shown: HashSet<_> = seen.items.iter().take(FIRST_MAX).chain(failed).collect();
            let is_hidden = |item: &&&str| !shown.contains(item) && !seen.pending.contains(**item);
            let hidden: Vec<_> = seen.items.iter().filter(is_hidden).copied().collect();
            folding.counts.insert(of, hidden.len());
            folding.hidden.extend(hidden);
        }
        folding
    }

    /// Whether an event has no line because it is inside an item that has none.
    pub fn hides(&self, event: &Event) -> bool {
        let hides = |path: &str| items(path).any(|(_, item)| self.hidden.contains(item));
        let failed = match event {
            Event::ItemFailed(own) => Some(own.failed_step.as_str()),
            _ => None,
        };
        !self.hidden.is_empty() && step_of(event).into_iter().chain(failed).any(hides)
    }

    /// How many items of a loop have no lines. From now on, none.
    pub fn take_count(&mut self, of: &str) -> Option<usize> {
        self.counts.remove(of).filter(|count| *count > 0)
    }

    /// The loops of which some items have no lines, with the numbers of these items.
    pub fn into_rest(self) -> Vec<(&'a str, usize)> {
        let counts = self.counts.into_iter();
        let mut rest: Vec<_> = counts
            .filter(|(of, count)| {
                *count > 0 && !items(of).any(|(_, item)| self.hidden.contains(item))
            })
            .collect();
        rest.sort_unstable();
        rest
    }
}

/// The items and branches in a path, outermost first: the path of the step around it, and the beginning of the
/// path up to its key. A key contains no bracket.
fn items(path: &str) -> impl Iterator<Item = (&str, &str)> {
    let ends = path.match_indices(']').map(|(end, _)| end);
    ends.filter_map(move |end| Some((&path[..path[..end].rfind('[')?], &path[..=end])))
}

fn path(step: Option<&StepRef>) -> &str {
    step.map_or("", |step| &step.step_path)
}

/// The path of the step that an event is about. None if it is about no step, or must always have its line.
fn step_of(event: &Event) -> Option<&str> {
    let step = match event {
        Event::StepStarted(own) => &own.step,
        Event::StepSkipped(own) => &own.step,
        Event::AttemptScheduled(own) => &own.step,
        Event::AttemptStarted(own) => &own.step,
        Event::AttemptFailed(own) => &own.step,
        Event::AttemptWithdrawn(own) => &own.step,
        Event::StepCompleted(own) => &own.step,
        Event::StepFailed(own) => &own.step,
        Event::StepIgnored(own) => &own.step,
        Event::BlockStarted(own) => &own.step,
        Event::BlockCompleted(own) => &own.step,
        Event::ScopeReturned(own) => &own.step,
        Event::HandlerStarted(own) => &own.step,
        Event::StepCaught(own) => &own.step,
        Event::ParallelStarted(own) => &own.step,
        Event::BranchCompleted(own) => &own.step,
        Event::BranchFailed(own) => &own.step,
        Event::ParallelCompleted(own) => &own.step,
        Event::LoopStarted(own) => &own.step,
        Event::ItemCompleted(own) => &own.step,
        Event::ItemFailed(own) => &own.step,
        Event::LoopCompleted(own) => &own.step,
        Event::BlockStopped(own) => &own.step,
        Event::HandlerFailed(own) => &own.step,
        Event::ExecutionStarted(_)
        | Event::RunSucceeded(_)
        | Event::RunStopped(_)
        | Event::CancelRequested(_)
        | Event::CompensationStarted(_)
        | Event::CompensationParked(_)
        | Event::CompensationRetried(_)
        | Event::CompensationSkipped(_)
        | Event::CompensationEnded(_)
        | Event::OnFailureStarted(_)
        | Event::FinallyStarted(_)
        | Event::ExecutionEnded(_)
        | Event::RequestRecorded(_) => return None,
    };
    step.as_ref().map(|step| step.step_path.as_str())
}
