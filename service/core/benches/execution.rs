//! The time that one decision and one folded transition take, and the memory that a node takes. None of
//! them may grow with the execution. Run with `cargo bench -p recoup-core`; the figures are in
//! `docs/performance.md`.

use std::cell::RefCell;

use divan::Bencher;
use divan::counter::ItemsCount;
use recoup_core::command::{Command, StartExecution, TaskId};
use recoup_core::decide::{Decided, Decider, next_wake};
use recoup_core::definition::{Block, Defaults, OnError, Step, StepKind, Task, Workflow};
use recoup_core::event::{Event, PayloadSource};
use recoup_core::evolve::{Transition, fold};
use recoup_core::execution::{Execution, TraceContext};
use recoup_core::id::{ExecutionId, StepPath};
use recoup_core::limits::TRANSITION_EVENTS_MAX;
use recoup_core::payload::Payload;
use recoup_core::plan::Plan;
use recoup_core::time::Timestamp;

const NODES: [usize; 3] = [10, 1_000, 10_000];
const EVENTS: [usize; 2] = [100, 50_000];
/// How many decisions or transitions are measured together.
const IN_A_ROW: usize = 8;
/// Events per completed step.
const EVENTS_PER_STEP: usize = 3;

fn main() {
    print_memory_per_node();
    divan::main();
}

/// One step completes and the next one begins, after `nodes` steps that have begun before.
#[divan::bench(args = NODES, sample_size = 1, sample_count = 500)]
fn decide_in_sequence(bencher: Bencher<'_, '_>, nodes: usize) {
    let plan = plan(nodes + growth(nodes) + 1);
    let state = Box::new(sequence(&plan, nodes));
    in_a_row(bencher, &state, growth(nodes), |state| decide(&plan, state));
}

/// The last of `nodes` and more open attempts completes.
#[divan::bench(args = NODES, sample_size = 1, sample_count = 500)]
fn decide_among_open(bencher: Bencher<'_, '_>, nodes: usize) {
    let plan = plan(nodes + growth(nodes));
    let mut history = History::start(&plan);
    let begun = (1..nodes + growth(nodes)).flat_map(|n| begin(n, history.now));
    let begun = begun.collect();
    history.add(begun);
    in_a_row(bencher, &Box::new(history.state), growth(nodes), |state| decide(&plan, state));
}

/// Folds one more transition into a history of this many events: one step completes and the next one
/// begins. Building the events is part of the measurement, because a node that loads an execution gets them
/// fresh from the decoder.
#[divan::bench(args = EVENTS, sample_size = 1, sample_count = 500)]
fn fold_one(bencher: Bencher<'_, '_>, events: usize) {
    let steps = events / EVENTS_PER_STEP;
    let plan = plan(steps);
    let state = sequence(&plan, steps);
    let first = state.sequence;
    in_a_row(bencher, &state, growth(steps), |state| {
        let (sequence, decided_at) = (state.sequence + 1, state.decided_at);
        let n = steps + (state.sequence - first) as usize;
        let events = [complete(n - 1)].into_iter().chain(begin(n, decided_at)).collect();
        let transition = Transition { sequence, decided_at, events };
        fold(Some(state), execution_id(), &transition).expect("it folds")
    });
}

/// One decision closes as many of the open attempts as a transition has room for, with the largest number
/// of attempts open. The result is the cost of deciding the events of one batch, from which
/// `Options::batch_events_max` of the engine was chosen.
#[divan::bench(sample_size = 1, sample_count = 200)]
fn decide_a_full_transition(bencher: Bencher<'_, '_>) {
    let nodes = NODES[NODES.len() - 1];
    let plan = plan(nodes);
    let mut history = History::start(&plan);
    let begun = (1..nodes).flat_map(|n| begin(n, history.now)).collect();
    history.add(begun);
    let state = Box::new(history.state);
    bencher
        .counter(ItemsCount::new(TRANSITION_EVENTS_MAX))
        .with_inputs(|| state.clone())
        .bench_local_values(|state| {
            let reason = "a termination".to_owned();
            let command = Command::TerminateExecution { reason, unstarted: Vec::new() };
            let mut decider = Decider::new(Some(state), &plan, Timestamp::from_micros(2), 7);
            decider.decide(command, None).expect("it runs");
            let decided = decider.finish();
            assert!(decided.events.len() >= TRANSITION_EVENTS_MAX);
            decided
        });
}

/// How many nodes an execution may gain while it is measured.
fn growth(nodes: usize) -> usize {
    (nodes / 2).max(IN_A_ROW + 1)
}

/// Measures `next`, each time on the state that the call before has left, as in an execution that stays in
/// memory. After `steps` calls it starts again from a copy of `state`.
fn in_a_row<S: Clone>(bencher: Bencher<'_, '_>, state: &S, steps: usize, next: impl Fn(S) -> S) {
    let living = RefCell::new((None, 0));
    bencher
        .counter(ItemsCount::new(IN_A_ROW))
        .with_inputs(|| match living.take() {
            (Some(state), done) if done + IN_A_ROW <= steps => (state, done),
            // A fresh copy has no spare capacity, so the first call, which allocates it, is not measured.
            _ => (next(state.clone()), 1),
        })
        .bench_local_values(|(state, done)| {
            let state = (0..IN_A_ROW).fold(state, |state, _| next(state));
            living.replace((Some(state), done + IN_A_ROW));
        });
}

fn decide(plan: &Plan, state: Box<Execution>) -> Box<Execution> {
    let open = state.open_attempts().next_back().expect("an attempt is open");
    let command = complete_command(state.task_id(&open));
    let mut decider = Decider::new(Some(state), plan, Timestamp::from_micros(2), 7);
    decider.decide(command, None).expect("the attempt is open");
    let Decided { state, events } = decider.finish();
    let state = state.expect("it was given");
    divan::black_box((next_wake(&state, plan), events));
    state
}

struct History {
    state: Execution,
    now: Timestamp,
}

impl History {
    fn start(plan: &Plan) -> Self {
        let now = Timestamp::from_micros(1);
        let start = StartExecution {
            id: execution_id(),
            namespace: "default".into(),
            key: None,
            input: Payload::json("{\"amount\":5}"),
            timeout: None,
            trace: TraceContext::default(),
        };
        let mut decider = Decider::new(None, plan, now, 7);
        let start = Command::StartExecution(Box::new(start));
        decider.decide(start, None).expect("a start is never rejected");
        let state = decider.finish().state.expect("a start makes a state");
        Self { state: *state, now }
    }

    fn add(&mut self, events: Vec<Event>) {
        let (sequence, decided_at) = (self.state.sequence + 1, self.now);
        let transition = Transition { sequence, decided_at, events };
        let state = fold(Some(self.state.clone()), self.state.id, &transition);
        self.state = state.expect("it folds");
    }
}

/// An execution in which all of the first `steps` steps but the last have completed.
fn sequence(plan: &Plan, steps: usize) -> Execution {
    let mut history = History::start(plan);
    let events = (1..steps).flat_map(|n| {
        let [started, scheduled] = begin(n, history.now);
        [complete(n - 1), started, scheduled]
    });
    let events = events.collect();
    history.add(events);
    history.state
}

fn path(n: usize) -> StepPath {
    StepPath::from(format!("step_{n}"))
}

fn begin(n: usize, at: Timestamp) -> [Event; 2] {
    let input = Payload::json("{\"amount\":5}");
    let started = Event::StepStarted {
        path: path(n),
        generation: 0,
        input: PayloadSource::Inline(input),
        first: None,
    };
    [started, Event::AttemptScheduled { path: path(n), attempt: 1, at }]
}

fn complete(n: usize) -> Event {
    let output = Payload::json("{\"id\":\"0123456789\"}");
    Event::StepCompleted { path: path(n), attempt: 1, output, worker: "worker".into() }
}

fn complete_command(task: TaskId) -> Command {
    let output = Payload::json("{\"id\":\"0123456789\"}");
    Command::CompleteTask { task, output, worker: "worker".into() }
}

fn execution_id() -> ExecutionId {
    ExecutionId::new(Timestamp::from_micros(1), [7; 10])
}

/// More steps than a definition may have today, because the items of a loop will be as many nodes.
fn plan(steps: usize) -> Plan {
    let step = |n: usize| Step {
        id: format!("step_{n}").into(),
        description: String::new(),
        kind: StepKind::Task(Task { task_type: "work".into(), ..Task::default() }),
        when: None,
        retry: None,
        timeout: None,
        catch: Vec::new(),
        on_error: OnError::Fail,
        allow_warning: false,
        compensate: None,
    };
    let workflow = Workflow {
        name: "bench".into(),
        description: String::new(),
        defaults: Defaults::default(),
        steps: Block::from((0..steps).map(step).collect::<Vec<_>>()),
        on_failure: Vec::new(),
        finally: Vec::new(),
        timeout: None,
        cleanup_timeout: None,
        cancel_grace: None,
    };
    Plan::of_accepted(&workflow, 1).expect("it compiles")
}

fn print_memory_per_node() {
    const COPIES: usize = 10;
    let nodes = NODES[NODES.len() - 1];
    let plan = plan(nodes + 1);
    let state = sequence(&plan, nodes);
    let before = resident_bytes();
    let copies: Vec<_> = (0..COPIES).map(|_| state.clone()).collect();
    let after = resident_bytes();
    let counted = state.weight() / nodes;
    match before.zip(after) {
        Some((before, after)) => {
            let measured = after.saturating_sub(before) / (copies.len() * nodes);
            println!("memory per node: {measured} bytes measured, {counted} counted");
        }
        None => println!("memory per node: {counted} bytes counted, none measured here"),
    }
}

/// The memory of this process, if the operating system is Linux.
fn resident_bytes() -> Option<usize> {
    const PAGE_BYTES: usize = 4096;
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(text.split(' ').nth(1)?.parse::<usize>().ok()? * PAGE_BYTES)
}
