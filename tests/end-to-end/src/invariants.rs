//! The invariants that must hold once the faults are over. They are checked from three sides: the histories,
//! the records of the workers, and the events that the subscriber received.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use recoup_proto::v1::history_entry::Event;
use recoup_proto::v1::{
    AttemptOutcome, CompensationState, ExecutionFilter, ExecutionInfo, ExecutionState,
    HistoryEntry, ListExecutionHistoryRequest, ListExecutionsRequest, ListFailuresRequest,
    RetryReason, RetryVerdict, StartExecutionRequest, StepRef,
};
use tonic::transport::Channel;

use crate::connect;
use crate::load::{self, Started};
use crate::order::{ATTEMPTS_MAX, COMPENSATED_STEPS, COMPENSATION_ATTEMPTS_MAX, STEPS};
use crate::record::{Attempt, Entry};
use crate::subscriber::Received;
use crate::worker::{self, Transport};

const PAGE: u32 = 1000;
const OPEN: [ExecutionState; 5] = [
    ExecutionState::Running,
    ExecutionState::Retrying,
    ExecutionState::Paused,
    ExecutionState::Compensating,
    ExecutionState::Cancelling,
];

type History = Vec<HistoryEntry>;

/// The violations that were found. An empty list means that every invariant holds.
#[derive(Debug, Default)]
pub struct Violations(Vec<String>);

impl Violations {
    fn check(&mut self, holds: bool, violation: impl FnOnce() -> String) {
        if !holds {
            self.0.push(violation());
        }
    }

    /// The violations, one sentence each.
    pub fn found(&self) -> &[String] {
        &self.0
    }

    /// # Panics
    ///
    /// If there is a violation.
    pub fn assert_none(&self) {
        let first: Vec<&str> = self.0.iter().take(20).map(String::as_str).collect();
        assert!(self.0.is_empty(), "{} violations:\n{}", self.0.len(), first.join("\n"));
    }
}

/// Everything that a run leaves for the checks to examine.
#[derive(Debug)]
pub struct Evidence {
    pub started: Vec<Started>,
    pub executions: Vec<ExecutionInfo>,
    pub histories: BTreeMap<String, History>,
    pub records: BTreeMap<String, Vec<Entry>>,
    pub received: Received,
    /// The ids of all failure events that a scan of the feed finds.
    pub listed: BTreeSet<String>,
}

/// Waits until every execution has ended.
///
/// # Panics
///
/// If one is still open after `within`: it is stuck.
pub async fn until_all_ended(channel: Channel, within: Duration) {
    let deadline = Instant::now() + within;
    loop {
        let open = executions(channel.clone(), &OPEN).await;
        if open.is_empty() {
            return;
        }
        if Instant::now() > deadline {
            let stuck: Vec<&str> = open.iter().map(|info| info.execution_id.as_str()).collect();
            let first = history(channel, stuck[0]).await;
            panic!("{} executions are stuck: {stuck:?}\nthe first: {first:#?}", stuck.len());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// All executions in one of these states, or in any state if none is given.
pub async fn executions(channel: Channel, states: &[ExecutionState]) -> Vec<ExecutionInfo> {
    let mut client = connect::executions(channel);
    let states = states.iter().map(|&state| state.into()).collect();
    let filter = Some(ExecutionFilter { states, ..ExecutionFilter::default() });
    let mut request = ListExecutionsRequest { filter, page_size: PAGE, ..Default::default() };
    let mut all = Vec::new();
    loop {
        let page = client.list_executions(request.clone()).await;
        let page = page.expect("the faults are over").into_inner();
        all.extend(page.executions);
        if page.next_page_token.is_empty() {
            return all;
        }
        request.page_token = page.next_page_token;
    }
}

pub async fn history(channel: Channel, execution: &str) -> History {
    let mut client = connect::executions(channel);
    let execution_id = execution.to_owned();
    let mut request =
        ListExecutionHistoryRequest { execution_id, page_size: PAGE, ..Default::default() };
    let mut all = Vec::new();
    loop {
        let page = client.list_execution_history(request.clone()).await;
        let page = page.unwrap_or_else(|status| panic!("{execution}: {status:?}")).into_inner();
        all.extend(page.entries);
        if page.next_page_token.is_empty() {
            return all;
        }
        request.page_token = page.next_page_token;
    }
}

/// The ids of all failure events in the namespace `default`.
pub async fn listed_failures(channel: Channel) -> BTreeSet<String> {
    let mut client = connect::failures(channel);
    let mut request = ListFailuresRequest { page_size: PAGE, ..Default::default() };
    let mut all = BTreeSet::new();
    loop {
        let page = client.list_failures(request.clone()).await;
        let page = page.expect("the faults are over").into_inner();
        for event in page.failures {
            let id = event.id.clone();
            assert!(all.insert(event.id), "the list holds {id} twice");
        }
        if page.next_page_token.is_empty() {
            return all;
        }
        request.page_token = page.next_page_token;
    }
}

/// Repeats the starts. The same request id must be answered with the same execution.
pub async fn starts_again(channel: Channel, started: &[Started], violations: &mut Violations) {
    let mut client = connect::executions(channel);
    for start in started {
        let request_id = load::request_id(start.order);
        let execution = Some(load::spec(start.order));
        let request = StartExecutionRequest { execution, request_id };
        let answer = client.start_execution(request).await.map(|answer| answer.into_inner());
        violations.check(
            answer.as_ref().is_ok_and(|answer| answer.execution_id == start.execution),
            || format!("{start:?} sent again: {answer:?}"),
        );
    }
}

impl Evidence {
    /// Checks every invariant except the one that [`starts_again`] checks.
    pub fn check(&self, violations: &mut Violations) {
        self.check_starts(violations);
        for start in &self.started {
            if let Some(history) = self.histories.get(&start.execution) {
                check_history(start, history, violations);
            }
        }
        for info in &self.executions {
            check_index(info, &self.histories, violations);
        }
        self.check_records(violations);
        self.check_feed(violations);
    }

    /// Every acknowledged start has exactly one execution.
    fn check_starts(&self, violations: &mut Violations) {
        let acknowledged: BTreeSet<&str> =
            self.started.iter().map(|start| start.execution.as_str()).collect();
        let existing: BTreeSet<&str> =
            self.executions.iter().map(|info| info.execution_id.as_str()).collect();
        violations.check(acknowledged.len() == self.started.len(), || {
            "two orders were acknowledged with the same execution".to_owned()
        });
        for lost in acknowledged.difference(&existing) {
            violations
                .check(false, || format!("{lost}: its start was acknowledged, it is not there"));
        }
        for doubled in existing.difference(&acknowledged) {
            violations.check(false, || format!("{doubled}: no order was acknowledged with it"));
        }
    }

    /// Every result that was acknowledged to a worker is in the history, and the history holds no result that
    /// no worker reported.
    fn check_records(&self, violations: &mut Violations) {
        let mut completed: BTreeMap<String, (Attempt, String)> = BTreeMap::new();
        let mut failed: BTreeSet<(Attempt, String)> = BTreeSet::new();
        for (execution, history) in &self.histories {
            for entry in history {
                match &entry.event {
                    Some(Event::StepCompleted(done)) => {
                        let attempt = attempt(execution, done.step.as_ref(), done.attempt);
                        let mark = worker::mark(done.output.as_ref());
                        let by = worker::maker(done.output.as_ref());
                        // A unary call that reports a result does not name its worker, and a server that has
                        // just started has not yet heard of the worker's session. The history may then hold no
                        // worker name.
                        let is_named = done.worker == by
                            || (done.worker.is_empty() && by.starts_with(Transport::Unary.name()));
                        violations.check(is_named, || {
                            format!("{attempt:?} was completed by {by}, not {}", done.worker)
                        });
                        completed.insert(mark, (attempt, by));
                    }
                    Some(Event::AttemptFailed(failure)) => {
                        let attempt = attempt(execution, failure.step.as_ref(), failure.attempt);
                        let error = failure.error.clone().unwrap_or_default();
                        failed.insert((attempt, error.r#type));
                    }
                    _ => {}
                }
            }
        }
        let mut begun: BTreeSet<(&str, &Attempt)> = BTreeSet::new();
        let mut keys: BTreeMap<(&str, &str, bool), &str> = BTreeMap::new();
        for (name, entries) in &self.records {
            for entry in entries {
                match entry {
                    Entry::Begun { attempt, idempotency_key } => {
                        begun.insert((name, attempt));
                        let step = (attempt.execution.as_str(), attempt.step.as_str());
                        let key = keys.entry((step.0, step.1, attempt.compensation));
                        let key = *key.or_insert(idempotency_key);
                        violations.check(key == idempotency_key, || {
                            format!("{attempt:?} has the key {idempotency_key}, another had {key}")
                        });
                        violations
                            .check(attempt.number <= attempts_max(attempt.compensation), || {
                                format!("{attempt:?} is one too many")
                            });
                    }
                    Entry::Completed { attempt, mark } => {
                        let found = completed.get(mark);
                        violations.check(found.is_some_and(|found| found.0 == *attempt), || {
                            format!("{attempt:?} was acknowledged with {mark}, there is {found:?}")
                        });
                    }
                    Entry::Failed { attempt, error_type } => {
                        let failure = (attempt.clone(), error_type.clone());
                        violations.check(failed.contains(&failure), || {
                            format!("{failure:?} was acknowledged, and is not in the history")
                        });
                    }
                    Entry::Refused { attempt, reason } => {
                        violations.check(reason.ends_with("ATTEMPT_CLOSED"), || {
                            format!("{attempt:?} was refused: {reason}")
                        });
                    }
                }
            }
        }
        for (attempt, worker) in completed.values() {
            violations.check(begun.contains(&(worker.as_str(), attempt)), || {
                format!("{attempt:?} was completed by {worker}, who never began it")
            });
        }
    }

    /// The subscriber received exactly the events that a scan finds. Those of executions are exactly the ones
    /// that the histories require.
    fn check_feed(&self, violations: &mut Violations) {
        let received: BTreeSet<&str> =
            self.received.events.iter().map(|event| event.id.as_str()).collect();
        let listed: BTreeSet<&str> = self.listed.iter().map(String::as_str).collect();
        let mut wanted = BTreeSet::new();
        for (execution, history) in &self.histories {
            failure_ids(execution, history, &mut wanted);
        }
        let wanted: BTreeSet<&str> = wanted.iter().map(String::as_str).collect();
        let of_executions: BTreeSet<&str> =
            received.iter().filter(|id| !id.starts_with("session-")).copied().collect();
        for (what, left, right) in [
            ("listed, never received", &listed, &received),
            ("received, not listed", &received, &listed),
            ("in a history, never received", &wanted, &of_executions),
            ("received, in no history", &of_executions, &wanted),
        ] {
            for id in left.difference(right) {
                violations.check(false, || format!("{what}: {id}"));
            }
        }
        let refusals = &self.received.refusals;
        violations
            .check(refusals.is_empty(), || format!("the subscriber was refused: {refusals:?}"));
        let wrong = self.received.out_of_order();
        violations.check(wrong.is_empty(), || format!("events came out of order: {wrong:?}"));
    }

    /// A summary of the counts, for people to read.
    pub fn summary(&self) -> String {
        let count = |is: fn(&Entry) -> bool| {
            self.records.values().flatten().filter(|entry| is(entry)).count()
        };
        let entries = self.histories.values().flatten();
        let compensated = entries
            .filter(|entry| matches!(&entry.event, Some(Event::CompensationStarted(_))))
            .count();
        format!(
            "{} executions acknowledged, {} there, {compensated} of them compensated; workers: {} \
             tasks begun, {} completions and {} errors acknowledged, {} refused; failure events: {} \
             received by the subscriber over {} connections ({} more than once), {} found by a scan",
            self.started.len(),
            self.executions.len(),
            count(|entry| matches!(entry, Entry::Begun { .. })),
            count(|entry| matches!(entry, Entry::Completed { .. })),
            count(|entry| matches!(entry, Entry::Failed { .. })),
            count(|entry| matches!(entry, Entry::Refused { .. })),
            self.received.events.len(),
            self.received.connections,
            self.received.repeated,
            self.listed.len(),
        )
    }
}

/// The history has one end, the one of its order's fate; its attempts stay within the policy; its compensations
/// are complete and in order.
fn check_history(start: &Started, history: &History, violations: &mut Violations) {
    let id = &start.execution;
    let mut ends = Vec::new();
    let mut results: BTreeMap<(String, bool), u32> = BTreeMap::new();
    let mut scheduled: BTreeSet<Attempt> = BTreeSet::new();
    // Steps that took effect or may have done so, in the order in which that happened.
    let mut effects: Vec<String> = Vec::new();
    let mut due: Option<Vec<String>> = None;
    let mut undone: Vec<String> = Vec::new();
    let mut failed_step = String::new();
    let mut last = (0, 0);
    for entry in history {
        let next = (entry.sequence, entry.index);
        let follows = next == (last.0, last.1 + 1) || next == (last.0 + 1, 0);
        violations.check(follows, || format!("{id}: {next:?} follows {last:?}"));
        last = next;
        match &entry.event {
            Some(Event::AttemptScheduled(event)) => {
                let attempt = attempt(id, event.step.as_ref(), event.attempt);
                violations.check(attempt.number <= attempts_max(attempt.compensation), || {
                    format!("{attempt:?} is one too many")
                });
                violations.check(scheduled.insert(attempt.clone()), || {
                    format!("{attempt:?} was scheduled twice")
                });
            }
            Some(Event::StepCompleted(event)) => {
                let step = event.step.clone().unwrap_or_default();
                let key = (step.step_path.clone(), step.compensation);
                *results.entry(key).or_default() += 1;
                if step.compensation {
                    undone.push(step.step_path);
                } else {
                    took_effect(&mut effects, step.step_path);
                }
            }
            Some(Event::AttemptFailed(event)) => {
                let step = event.step.clone().unwrap_or_default();
                if !step.compensation && event.outcome() == AttemptOutcome::Unknown {
                    took_effect(&mut effects, step.step_path);
                }
            }
            Some(Event::StepFailed(event)) => {
                failed_step = event.step.clone().unwrap_or_default().step_path;
            }
            Some(Event::CompensationStarted(event)) => {
                violations.check(due.is_none(), || format!("{id}: compensation began twice"));
                due = Some(event.due.iter().map(|due| due.step_path.clone()).collect());
            }
            Some(Event::CompensationParked(event)) => {
                violations.check(false, || format!("{id}: parked: {event:?}"));
            }
            Some(Event::ExecutionEnded(event)) => ends.push(event.state()),
            _ => {}
        }
    }
    violations
        .check(ends == [start.fate.end()], || format!("{id}: {:?} ended as {ends:?}", start.fate));
    if let Some(end) = start.end {
        violations.check(ends == [end], || format!("{id}: {end:?} was answered, it is {ends:?}"));
    }
    for ((step, compensation), count) in &results {
        violations.check(*count == 1, || {
            format!("{id}: {step} (compensation: {compensation}) has {count} results")
        });
    }
    violations.check(failed_step == start.fate.failed_step(), || {
        format!("{id}: {:?} failed at {failed_step:?}", start.fate)
    });
    if start.fate.end() == ExecutionState::Succeeded {
        let all = STEPS.iter().all(|step| results.contains_key(&((*step).to_owned(), false)));
        violations.check(all, || format!("{id}: succeeded with {results:?}"));
        violations.check(due.is_none(), || format!("{id}: succeeded and was compensated"));
        return;
    }
    effects.retain(|step| COMPENSATED_STEPS.contains(&step.as_str()));
    effects.reverse();
    let due = due.unwrap_or_default();
    violations.check(due == effects, || format!("{id}: due is {due:?}, effects were {effects:?}"));
    violations.check(undone == due, || format!("{id}: undone is {undone:?}, due was {due:?}"));
}

/// The index of executions agrees with the history.
fn check_index(
    info: &ExecutionInfo,
    histories: &BTreeMap<String, History>,
    violations: &mut Violations,
) {
    let id = &info.execution_id;
    let end = histories.get(id).and_then(|history| {
        history.iter().find_map(|entry| match &entry.event {
            Some(Event::ExecutionEnded(event)) => Some(event.state()),
            _ => None,
        })
    });
    violations.check(end == Some(info.state()), || {
        format!("{id}: listed as {:?}, its history says {end:?}", info.state())
    });
    let compensation = info.compensation_state();
    let settled = matches!(compensation, CompensationState::None | CompensationState::Done);
    violations.check(settled, || format!("{id}: its compensation is {compensation:?}"));
    violations.check(!info.quarantined, || format!("{id}: quarantined"));
}

/// Adds the ids of the events that a history puts on the feed. An id consists of execution, sequence and index.
fn failure_ids(execution: &str, history: &History, ids: &mut BTreeSet<String>) {
    let mut last = (0, 0);
    for entry in history {
        let is_failure = match &entry.event {
            Some(Event::AttemptFailed(event)) => {
                let decision = event.decision.unwrap_or_default();
                decision.verdict() == RetryVerdict::Retry
                    || (decision.reason() == RetryReason::Cancelled
                        && event.outcome() == AttemptOutcome::Known)
            }
            Some(Event::CompensationEnded(event)) => event.state() == CompensationState::Done,
            Some(Event::ExecutionEnded(event)) => event.state() != ExecutionState::Succeeded,
            Some(
                Event::StepFailed(_)
                | Event::StepIgnored(_)
                | Event::CompensationStarted(_)
                | Event::CompensationParked(_)
                | Event::HandlerFailed(_),
            ) => true,
            _ => false,
        };
        if is_failure {
            let index = if last.0 == entry.sequence { last.1 + 1 } else { 0 };
            last = (entry.sequence, index);
            ids.insert(format!("{execution}-{}-{index}", entry.sequence));
        }
    }
}

fn took_effect(effects: &mut Vec<String>, step: String) {
    effects.retain(|other| *other != step);
    effects.push(step);
}

fn attempts_max(compensation: bool) -> u32 {
    if compensation { COMPENSATION_ATTEMPTS_MAX } else { ATTEMPTS_MAX }
}

fn attempt(execution: &str, step: Option<&StepRef>, number: u32) -> Attempt {
    let step = step.cloned().unwrap_or_default();
    let (step, compensation) = (step.step_path, step.compensation);
    Attempt { execution: execution.to_owned(), step, compensation, number }
}
