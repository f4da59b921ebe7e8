//! The invariants that must hold when the run is over.

use std::collections::{BTreeMap, BTreeSet};

use recoup_core::event::{AttemptOutcome, DueCompensation, Event};
use recoup_core::execution::{
    CompensationOutcome, CompensationState, CompensationStepState, Execution, State,
};
use recoup_core::failure_event::{FailureEvent, failure_events};
use recoup_core::id::{ExecutionId, ItemKey, StepPath};
use recoup_core::plan::{Plan, StepPlan};
use recoup_store::{Executions, FeedRow, IndexRow, ListFilter, Overflow};

use super::NOBODY;
use crate::ledger::describe;
use crate::trace::short;
use crate::wait::ready;
use crate::world::World;

impl World<'_> {
    pub fn check_end(&mut self) {
        self.check_that_all_is_known();
        let ids: Vec<_> = self.ledger.histories.keys().copied().collect();
        for id in ids {
            if let Err((invariant, what)) = self.check_history(id) {
                let what = format!("{}: {what}\n{}", short(&id), self.history_text(id));
                return self.violate(invariant, what);
            }
        }
        self.check_effects();
        self.check_feed();
        self.check_nodes();
    }

    pub fn history_text(&self, id: ExecutionId) -> String {
        let rows = self.ledger.histories.get(&id);
        let lines = rows.into_iter().flatten().map(|row| {
            let events: Vec<_> = row.events.iter().map(describe).collect();
            format!("    #{} {}", row.state.sequence, events.join(", "))
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    fn check_that_all_is_known(&mut self) {
        let listed = ready(self.store.list(&ListFilter::default(), None, 100_000));
        let listed = listed.unwrap_or_default();
        for one in &listed {
            let rows = ready(self.store.load(NOBODY, &[one.execution])).unwrap_or_default();
            let stored = rows.first().map_or(0, |history| history.transitions.len());
            let seen = self.ledger.histories.get(&one.execution).map_or(0, Vec::len);
            if stored != seen {
                let what = format!("{}: {stored} rows, {seen} seen", one.execution);
                self.violate("every row was won by somebody", what);
            }
            let formats = rows.iter().flat_map(|history| &history.transitions);
            let highest = formats.map(|transition| transition.format).max();
            if highest != Some(one.index.format) {
                let what = format!("{}: {highest:?}, {}", one.execution, one.index.format);
                self.violate("the index row has the highest format of the history", what);
            }
            let state = self.ledger.latest(one.execution).cloned();
            if let Some(state) = state
                && let Some(differs) = index_differs(&one.index, &state)
            {
                let what = format!("{}: {differs}", one.execution);
                self.violate("the index row is that of the state", what);
            }
        }
        let there: BTreeSet<_> = listed.iter().map(|one| one.execution).collect();
        let lost: Vec<_> = self.ledger.known.difference(&there).copied().collect();
        if !lost.is_empty() {
            self.violate("nothing acknowledged is lost", format!("{lost:?} were started"));
        }
    }

    fn check_history(&self, id: ExecutionId) -> Result<(), (&'static str, String)> {
        let (Some(rows), Some(state)) = (self.ledger.histories.get(&id), self.ledger.latest(id))
        else {
            return Ok(());
        };
        let plan = self.catalog.plan(state.workflow.as_str());
        let plan = plan.ok_or(("executions have a plan", state.workflow.to_string()))?;
        let events: Vec<_> = rows.iter().flat_map(|row| &row.events).collect();
        ends_once(&events, state)?;
        attempts_are_bounded(&events, plan)?;
        scopes_hold(&events)?;
        handlers_once(&events, state, plan)?;
        compensated_in_order(&events, state, plan)
    }

    /// Checks that the subscriber got exactly the events that follow from the histories.
    fn check_feed(&mut self) {
        let mut due: BTreeMap<String, FailureEvent> = BTreeMap::new();
        for rows in self.ledger.histories.values() {
            for row in rows {
                let Some(plan) = self.catalog.plan(row.state.workflow.as_str()) else {
                    continue;
                };
                let events = failure_events(&row.state, plan, &row.events);
                due.extend(events.into_iter().map(|event| (event.id.clone(), event)));
            }
        }
        let mut wrong = None;
        let mut got = BTreeSet::new();
        let mut last: BTreeMap<ExecutionId, (u64, u64)> = BTreeMap::new();
        for event in &self.subscriber.got {
            let row = &event.row;
            if !got.insert(row.id.clone()) {
                wrong = Some(("each event is there once", row.id.clone()));
            }
            let Some(execution) = row.execution else {
                if !self.ledger.sessions_lost.contains(&row.id) {
                    wrong = Some(("the feed holds only what happened", row.id.clone()));
                }
                continue;
            };
            match due.get(&row.id) {
                None => wrong = Some(("the feed holds only what happened", row.id.clone())),
                Some(event) if !same(row, event) => {
                    wrong = Some(("the feed says what the history says", format!("{row:?}")));
                }
                Some(_) => {}
            }
            let place = place(&row.id);
            let before = last.insert(execution, place);
            if before.is_some_and(|before| before >= place) {
                wrong = Some(("the feed is in order for each execution", row.id.clone()));
            }
        }
        let skipped: Vec<_> = due.keys().filter(|id| !got.contains(*id)).collect();
        let sessions = self.ledger.sessions_lost.iter();
        let silent: Vec<_> = sessions.filter(|id| !got.contains(*id)).collect();
        if !skipped.is_empty() || !silent.is_empty() {
            wrong = Some(("the feed skips nothing", format!("{skipped:?} {silent:?}")));
        }
        if let Some((invariant, what)) = wrong {
            self.violate(invariant, what);
        }
    }

    fn check_nodes(&mut self) {
        let depth = ready(self.store.overflow_depth()).unwrap_or_default();
        if !depth.is_empty() {
            self.violate("overflow rows of ended attempts disappear", format!("{depth:?}"));
        }
        for machine in 0..self.machines.len() {
            let Some(node) = self.machines[machine].node.take() else {
                continue;
            };
            for (id, cached) in node.cached() {
                self.check_state(machine, cached);
                let latest = self.ledger.latest(id).map(|state| state.sequence);
                if latest != Some(cached.sequence) {
                    let what = format!(
                        "machine {machine} has {} #{}, the history #{latest:?}",
                        short(&id),
                        cached.sequence
                    );
                    let what = format!("{what}\n{}", node.belief(id));
                    self.violate("what nodes have in memory is the fold of the history", what);
                }
            }
            self.machines[machine].node = Some(node);
        }
    }
}

type Checked = Result<(), (&'static str, String)>;

fn index_differs(row: &IndexRow, state: &Execution) -> Option<String> {
    let error = state.error.as_ref().or(state.stop.as_ref().map(|stop| &stop.error));
    let error_type = error.map(|error| error.error_type.clone());
    let differs = row.namespace != state.namespace
        || row.workflow != state.workflow
        || row.version != state.version
        || row.key != state.key
        || row.state != state.state
        || row.phase != state.phase
        || row.compensation != state.compensation
        || row.run != state.run
        || row.error_type != error_type
        || row.started_at != state.started_at
        || row.ended_at != state.ended_at;
    differs.then(|| format!("{row:?} of {state:?}"))
}

fn same(row: &FeedRow, event: &FailureEvent) -> bool {
    let error_type = event.error.as_ref().map_or("", |error| &error.error_type);
    row.kind == event.kind
        && row.at == event.at
        && row.error_type == error_type
        && row.fingerprint == event.fingerprint
}

/// The sequence and the index of an event of an execution.
fn place(id: &str) -> (u64, u64) {
    let mut parts = id.rsplit('-');
    let mut next = || parts.next().and_then(|part| part.parse().ok()).unwrap_or(0);
    let index = next();
    (next(), index)
}

fn ends_once(events: &[&Event], state: &Execution) -> Checked {
    let ends = events.iter().filter(|event| matches!(event, Event::ExecutionEnded { .. })).count();
    if ends != 1 || !state.state.is_ended() {
        return Err(("one end event for each run", format!("{ends}, {:?}", state.state)));
    }
    let after = events.iter().skip_while(|event| !matches!(event, Event::ExecutionEnded { .. }));
    let late = after.filter(|event| {
        let path = match event {
            Event::StepCompleted { path, .. } => path,
            Event::OnFailureStarted { .. }
            | Event::FinallyStarted { .. }
            | Event::RunStopped { .. } => return true,
            other => match other.scheduled() {
                Some((path, ..)) => path,
                None => return false,
            },
        };
        path.compensated().is_none()
    });
    if late.count() > 0 {
        return Err(("nothing runs after the end", String::new()));
    }
    Ok(())
}

/// Checks the number of distinct attempts against the policy. A retry by an operator starts a new count.
fn attempts_are_bounded(events: &[&Event], plan: &Plan) -> Checked {
    let mut numbers: BTreeMap<StepPath, BTreeSet<u32>> = BTreeMap::new();
    let mut completed: BTreeMap<StepPath, u32> = BTreeMap::new();
    for event in events {
        if let Some((path, attempt, _)) = event.scheduled() {
            let of_step = numbers.entry(path.clone()).or_default();
            let max = plan.task(path).and_then(|task| task.retry.max_attempts());
            if !of_step.insert(attempt) {
                let what = format!("{path}:{attempt} is scheduled twice");
                return Err(("attempts have numbers of their own", what));
            }
            if max.is_some_and(|max| of_step.len() > max as usize) {
                let what = format!("{path}: {of_step:?} of {max:?}");
                return Err(("attempts never exceed the policy", what));
            }
        }
        match event {
            Event::CompensationRetried { path, .. } => {
                numbers.remove(&path.compensation());
                completed.remove(&path.compensation());
            }
            Event::StepCompleted { path, attempt, .. }
                if completed.insert(path.clone(), *attempt).is_some() =>
            {
                let what = format!("{path} completes twice");
                return Err(("one completion of a step in a run", what));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Checks that a step inside another one begins while the outer one runs and is not being stopped, that no
/// step of a stopped run begins, that a step ends only when no attempt inside it is open, and that one error
/// has at most one handler. A branch or an item ends once, when no attempt inside it is open.
fn scopes_hold(events: &[&Event]) -> Checked {
    const RULE: &str = "a step runs while the step around it runs";
    let (mut open, mut handled) = (BTreeSet::new(), BTreeSet::new());
    let (mut being_stopped, mut live) = (BTreeSet::new(), BTreeSet::new());
    let mut lanes = BTreeSet::new();
    let mut stopped = false;
    for event in events {
        if let Some((path, ..)) = event.scheduled() {
            live.insert(path.clone());
        }
        match event {
            Event::StepCompleted { path, .. } | Event::AttemptWithdrawn { path, .. } => {
                live.remove(path);
            }
            Event::AttemptFailed(failed) => {
                live.remove(&failed.path);
            }
            Event::BlockStarted { path, .. }
            | Event::ParallelStarted { path, .. }
            | Event::LoopStarted { path, .. }
            | Event::StepStarted { path, .. }
                if path.compensated().is_none() =>
            {
                let around = path.parent().filter(|around| !open.contains(around));
                if let Some(around) = around {
                    return Err((RULE, format!("{path} begins, and {around} does not run")));
                }
                let mut around = std::iter::successors(path.parent(), StepPath::parent);
                if let Some(around) = around.find(|around| being_stopped.contains(around)) {
                    return Err((RULE, format!("{path} begins, and {around} is being stopped")));
                }
                if stopped || !open.insert(path.clone()) {
                    let what = if stopped { "after the run has stopped" } else { "twice" };
                    return Err((RULE, format!("{path} begins {what}")));
                }
            }
            Event::HandlerStarted { path, .. }
                if stopped || !open.contains(path) || !handled.insert(path.clone()) =>
            {
                return Err(("one handler takes an error", format!("{path}, {stopped}")));
            }
            Event::BlockStopped { path, .. } => {
                being_stopped.insert(path.clone());
            }
            Event::BranchCompleted { path, branch: key, .. }
            | Event::BranchFailed { path, branch: key, .. }
            | Event::ItemCompleted { path, item: key, .. }
            | Event::ItemFailed { path, item: key, .. } => {
                if being_stopped.contains(path) || !open.contains(path) {
                    return Err((RULE, format!("{key} of {path} ends after it")));
                }
                if !lanes.insert((path.clone(), key.clone())) {
                    return Err((RULE, format!("{key} of {path} ends twice")));
                }
                let inside = |step: &&StepPath| {
                    let steps = std::iter::successors(Some((*step).clone()), StepPath::parent);
                    let around = steps.filter_map(|step| Some((step.parent()?, step)));
                    around.into_iter().any(|(around, step)| {
                        around == *path && key_of(&step).as_ref() == Some(key)
                    })
                };
                if let Some(step) = live.iter().find(inside) {
                    let what = format!("{key} of {path} ends, and {step} has an open attempt");
                    return Err((RULE, what));
                }
            }
            Event::BlockCompleted { path, .. }
            | Event::ParallelCompleted { path }
            | Event::LoopCompleted { path }
            | Event::ScopeReturned { path, .. }
            | Event::StepCaught { path, .. }
            | Event::StepFailed { path, .. }
            | Event::StepIgnored { path, .. }
                if !open.remove(path) =>
            {
                return Err((RULE, format!("{path} ends, and does not run")));
            }
            Event::RunStopped { .. } => stopped = true,
            Event::OnFailureStarted { .. } | Event::FinallyStarted { .. } => stopped = false,
            _ => {}
        }
        if let Event::HandlerStarted { path, .. }
        | Event::BlockCompleted { path, .. }
        | Event::ParallelCompleted { path }
        | Event::LoopCompleted { path }
        | Event::StepFailed { path, .. }
        | Event::StepIgnored { path, .. } = event
        {
            being_stopped.remove(path);
            let around = |step: &&StepPath| {
                std::iter::successors(step.parent(), StepPath::parent).any(|around| around == *path)
            };
            if let Some(step) = live.iter().find(around) {
                return Err((RULE, format!("{path} ends, and {step} has an open attempt")));
            }
        }
    }
    Ok(())
}

/// The branch or item in which a step stands, if it stands directly in one.
fn key_of(step: &StepPath) -> Option<ItemKey> {
    let segments = step.segments()?;
    segments.into_iter().rev().nth(1)?.key
}

/// Checks that `on_failure` and `finally` run once and whole if they are due, unless a step of theirs failed
/// or the cleanup's time ran out.
fn handlers_once(events: &[&Event], state: &Execution, plan: &Plan) -> Checked {
    let count = |is: fn(&Event) -> bool| events.iter().filter(|event| is(event)).count();
    let on_failure = count(|event| matches!(event, Event::OnFailureStarted { .. }));
    let is_failure = matches!(state.state, State::Failed | State::TimedOut);
    let is_due = is_failure && plan.on_failure().len() > 0;
    let begun = count(|event| matches!(event, Event::FinallyStarted { .. }));
    let due = plan.finally().len() > 0 && state.state != State::Terminated;
    let cut = events.iter().any(|event| matches!(event, Event::HandlerFailed { .. }));
    let mut steps = BTreeSet::new();
    for event in events {
        if let Event::StepStarted { path, .. } = event
            && plan.is_cleanup(path)
            && !steps.insert(path.clone())
        {
            return Err(("`finally` runs once", format!("{path} begins twice")));
        }
    }
    if begun > 1 || (due && begun == 0 && !cut) {
        return Err(("`finally` runs once", format!("it began {begun} times")));
    }
    let wrongly = on_failure > 0 && !is_failure && state.state != State::Terminated;
    if on_failure > 1 || wrongly || (is_due && on_failure == 0 && !cut) {
        return Err(("`on_failure` runs once", format!("it began {on_failure} times")));
    }
    let complete = |begun, mut steps: &mut dyn Iterator<Item = &StepPlan>| {
        begun == 0 || (&mut steps).all(|step| state.node(&step.path).is_some())
    };
    if state.state != State::Terminated
        && !cut
        && !(complete(begun, &mut plan.finally()) && complete(on_failure, &mut plan.on_failure()))
    {
        let steps = state.cleanup_steps().collect::<Vec<_>>();
        return Err(("handlers run whole", format!("{steps:?}")));
    }
    Ok(())
}

/// Checks that compensations ran in the order that follows from the ends of the steps, which is derived here
/// from the events alone.
fn compensated_in_order(events: &[&Event], state: &Execution, plan: &Plan) -> Checked {
    const ORDER: &str = "compensation is complete and in reverse order";
    let mut ends: Vec<(StepPath, CompensationOutcome)> = Vec::new();
    let mut planned: Option<Vec<DueCompensation>> = None;
    let mut begun: Vec<StepPath> = Vec::new();
    for event in events {
        match event {
            Event::StepCompleted { path, .. }
                if path.compensated().is_none() && !plan.is_cleanup(path) =>
            {
                ends.retain(|(other, _)| other != path);
                ends.push((path.clone(), CompensationOutcome::Completed));
            }
            Event::AttemptFailed(failed)
                if failed.outcome == AttemptOutcome::Unknown
                    && failed.path.compensated().is_none()
                    && !plan.is_cleanup(&failed.path) =>
            {
                ends.retain(|(other, _)| *other != failed.path);
                ends.push((failed.path.clone(), CompensationOutcome::Unknown));
            }
            Event::CompensationStarted { due, .. } => {
                if planned.is_some() {
                    return Err((ORDER, "it begins twice".into()));
                }
                let expected: Vec<_> = ends
                    .iter()
                    .rev()
                    .filter(|(path, outcome)| {
                        let undo = plan.step(path).and_then(|step| step.compensate.as_ref());
                        undo.is_some_and(|undo| {
                            *outcome == CompensationOutcome::Completed || !undo.only_completed
                        })
                    })
                    .cloned()
                    .collect();
                let found: Vec<_> = due.iter().map(|due| (due.step.clone(), due.outcome)).collect();
                if found != expected {
                    return Err((ORDER, format!("planned {found:?}, due {expected:?}")));
                }
                planned = Some(due.clone());
            }
            Event::StepStarted { path, .. } => {
                if let Some(step) = path.compensated()
                    && !begun.contains(&step)
                {
                    begun.push(step);
                }
            }
            _ => {}
        }
    }
    let succeeded = matches!(state.state, State::Succeeded | State::Warning);
    let due: Vec<_> = planned.iter().flatten().map(|due| due.step.clone()).collect();
    if succeeded && !due.is_empty() {
        return Err((ORDER, "a success is compensated".into()));
    }
    let any_due = ends.iter().any(|(path, outcome)| {
        let undo = plan.step(path).and_then(|step| step.compensate.as_ref());
        undo.is_some_and(|undo| *outcome == CompensationOutcome::Completed || !undo.only_completed)
    });
    // A run that succeeded and was terminated in its `finally` needs no compensation.
    let done = events.iter().any(|event| matches!(event, Event::RunSucceeded { .. }));
    if !succeeded && !done && any_due && planned.is_none() {
        return Err((ORDER, format!("never planned: {ends:?}")));
    }
    // A compensation that never began was parked by the end of the cleanup or by an operator.
    let in_order: Vec<_> = due.iter().filter(|step| begun.contains(step)).cloned().collect();
    let person = events.iter().any(|event| matches!(event, Event::CompensationRetried { .. }));
    if begun != in_order && !person {
        return Err((ORDER, format!("ran {begun:?}, due {due:?}")));
    }
    for compensation in state.compensations() {
        let open = matches!(
            compensation.state,
            CompensationStepState::Due | CompensationStepState::Running
        );
        if open {
            return Err((ORDER, format!("{} was left", compensation.step)));
        }
    }
    let parked = state
        .compensations()
        .iter()
        .any(|one| matches!(one.state, CompensationStepState::Parked { .. }));
    let says = match (due.is_empty(), parked) {
        (true, _) => CompensationState::None,
        (false, true) => CompensationState::Parked,
        (false, false) => CompensationState::Done,
    };
    if state.compensation != says {
        return Err((ORDER, format!("{:?}, and it is {says:?}", state.compensation)));
    }
    Ok(())
}
