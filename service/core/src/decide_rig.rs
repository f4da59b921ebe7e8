//! A rig that runs one execution command by command.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::event::TERSE;
use crate::limits::{TRANSITION_BYTES_MAX, TRANSITION_EVENTS_MAX};

/// Runs one execution command by command. Every transition is also folded, and folding must give the
/// decided state. The same commands are decided for an execution with a terse history as well, which must
/// give the same result.
pub struct Rig {
    pub plan: Plan,
    pub state: Option<Box<Execution>>,
    pub folded: Option<Execution>,
    /// The state folded from a terse history. None before the start, and once the two executions have
    /// diverged: a transition has room for more events if they are terse, so a full one holds different
    /// events.
    pub terse: Option<Execution>,
    pub now: Timestamp,
    pub events: Vec<Event>,
    pub kinds: Vec<FailureKind>,
}

impl Rig {
    pub fn new(workflow: &Workflow) -> Self {
        Self::of(workflow, Payload::json("{\"amount\":5}"))
    }

    pub fn of(workflow: &Workflow, input: Payload) -> Self {
        let plan = Plan::compile(workflow, 1).expect("the test's workflow is valid");
        let now = Timestamp::from_micros(1_000_000);
        let (events, kinds) = (Vec::new(), Vec::new());
        let mut rig = Self { plan, state: None, folded: None, terse: None, now, events, kinds };
        rig.submit(start_with(now, input)).expect("a start is never rejected");
        rig
    }

    pub fn state(&self) -> &Execution {
        self.state.as_deref().expect("it was started")
    }

    pub fn submit(&mut self, command: Command) -> Result<(), Rejection> {
        self.submit_as(command, None)
    }

    pub fn submit_as(
        &mut self,
        command: Command,
        request: Option<&RequestId>,
    ) -> Result<(), Rejection> {
        self.submit_together([(command, request)]).remove(0)
    }

    /// Decides several commands in one transition.
    pub fn submit_together<'r>(
        &mut self,
        commands: impl IntoIterator<Item = (Command, Option<&'r RequestId>)>,
    ) -> Vec<Result<(), Rejection>> {
        // Comparing everything would take too long for a large execution.
        let is_small = self.state.as_ref().is_none_or(|state| state.steps().count() <= 1_000);
        let copy = |state: &Option<Box<Execution>>| is_small.then(|| state.clone()).flatten();
        let before = copy(&self.state);
        let commands: Vec<_> = commands.into_iter().collect();
        let terse = match self.state {
            Some(_) => self.terse.take().map(|terse| self.decide_terse(Some(terse), &commands)),
            None => Some(self.decide_terse(None, &commands)),
        };
        let decider = Decider::new(self.state.take(), &self.plan, self.now, 42);
        let mut decider = decider.starting_in(self.plan.needs_format);
        let mut decide = |(command, request)| {
            let (before, events) = (copy(&decider.state), decider.events.len());
            let verdict = decider.decide(command, request);
            if verdict.is_err() {
                assert_eq!(copy(&decider.state), before, "a rejected command changes nothing");
                assert_eq!(decider.events.len(), events);
            }
            verdict
        };
        let verdicts = commands.into_iter().map(&mut decide).collect();
        let is_spent = decider.is_spent();
        let Decided { state, events } = decider.finish();
        if events.is_empty() {
            assert_eq!(copy(&state), before, "without an event nothing has changed");
            self.state = state;
            self.terse = terse.and_then(|(terse, _)| terse);
            return verdicts;
        }
        let state = state.expect("events make a state");
        let transition = Transition {
            sequence: state.sequence,
            decided_at: state.decided_at,
            events: events.clone(),
        };
        let folded = fold(self.folded.take(), state.id, &transition).expect("it folds");
        if is_small || events.len() > 100 {
            assert_eq!(folded, *state, "folding gives the state that was decided");
            state.assert_kept();
        }
        if is_small {
            assert_attempts_named(before.as_deref(), &state, &events);
        }
        let bytes = events.iter().map(Event::size).sum::<usize>();
        // The last consequence of a command may exceed the limits a little, and may consist of two large
        // payloads.
        assert!(events.len() < TRANSITION_EVENTS_MAX + 10 && bytes < 2 * TRANSITION_BYTES_MAX);
        assert!(
            is_spent || !can_advance(&state),
            "all consequences are decided in the same transition"
        );
        self.kinds.extend(failure_events(&state, &self.plan, &events).iter().map(|e| e.kind));
        self.terse = terse.filter(|_| is_small && !is_spent).map(|(terse, told)| {
            let terse = terse.expect("it was started");
            let as_terse = Execution {
                event_count: terse.event_count,
                format: terse.format,
                ..(*state).clone()
            };
            assert_eq!(terse, as_terse, "a terse history folds to the same state");
            assert_eq!(told, verdicts);
            terse
        });
        self.folded = Some(folded);
        self.state = Some(state);
        self.events.extend(events);
        verdicts
    }

    /// Decides the same commands for an execution with a terse history. Returns its folded state and the
    /// verdicts.
    fn decide_terse(
        &self,
        terse: Option<Execution>,
        commands: &[(Command, Option<&RequestId>)],
    ) -> (Option<Execution>, Vec<Result<(), Rejection>>) {
        let before = terse.clone();
        let decider = Decider::new(terse.map(Box::new), &self.plan, self.now, 42);
        let mut decider = decider.starting_in(TERSE.max(self.plan.needs_format));
        let verdicts =
            commands.iter().map(|(command, request)| decider.decide(command.clone(), *request));
        let verdicts = verdicts.collect();
        let Decided { state, events } = decider.finish();
        let Some(state) = state.filter(|_| !events.is_empty()) else {
            return (before, verdicts);
        };
        let (sequence, decided_at) = (state.sequence, state.decided_at);
        assert_attempts_named(before.as_ref(), &state, &events);
        let transition = Transition { sequence, decided_at, events };
        let folded = fold(before, state.id, &transition).expect("it folds");
        assert_eq!(folded, *state, "folding gives the state that was decided");
        (Some(folded), verdicts)
    }

    /// The only attempt that is open.
    pub fn open(&self) -> TaskId {
        let mut open = self.state().open_attempts();
        let task = self.state().task_id(&open.next().expect("an attempt is open"));
        assert!(open.next().is_none(), "one attempt is open");
        task
    }

    pub fn complete(&mut self, path: &str) {
        let task = self.open();
        assert_eq!(task.path.as_str(), path);
        self.pass_to_schedule();
        let output = Payload::json(format!("\"{path}\""));
        let complete = Command::CompleteTask { task, output, worker: "w".into() };
        self.submit(complete).expect("the attempt is open");
    }

    pub fn fail(&mut self, path: &str, error: TaskError) {
        let task = self.open();
        assert_eq!(task.path.as_str(), path);
        self.pass_to_schedule();
        let fail = Command::FailTask { task, error, worker: "w".into() };
        self.submit(fail).expect("the attempt is open");
    }

    pub fn lose(&mut self) {
        self.pass_to_schedule();
        let task = self.open();
        self.submit(Command::LoseWorker { task, worker: "w".into() }).expect("the attempt is open");
    }

    pub fn pass_to_schedule(&mut self) {
        let at = self.state().open_attempts().map(|open| open.attempt.scheduled_at).max();
        self.now = self.now.max(at.unwrap_or(self.now));
    }

    pub fn wake(&mut self) {
        let at = next_wake(self.state(), &self.plan).expect("a deadline is set");
        self.now = self.now.max(at);
        self.submit(Command::Wake).expect("the deadline has passed");
    }

    pub fn ended(&self) -> (State, CompensationState) {
        assert!(self.state().state.is_ended(), "{:?}", self.state().state);
        (self.state().state, self.state().compensation)
    }

    pub fn started(&self) -> Vec<String> {
        let started = self.events.iter().filter_map(|event| match event {
            Event::StepStarted { path, .. } => Some(path.to_string()),
            _ => None,
        });
        started.collect()
    }
}

/// Starts an execution with this input.
pub fn start_with(now: Timestamp, input: Payload) -> Command {
    Command::StartExecution(Box::new(StartExecution {
        id: ExecutionId::new(now, [7; 10]),
        namespace: "default".into(),
        key: None,
        input,
        timeout: None,
        trace: TraceContext::default(),
    }))
}

/// Checks that the events of a transition name every attempt that the transition opens or closes, or whose
/// holder it records. A node looks only at the attempts that are named.
fn assert_attempts_named(before: Option<&Execution>, after: &Execution, events: &[Event]) {
    let named: BTreeSet<_> = events.iter().filter_map(Event::attempt_path).collect();
    let open = |state: &Execution| -> BTreeMap<_, _> {
        let open = state.open_attempts().filter(|open| !named.contains(&open.path));
        open.map(|open| (state.task_id(&open), open.attempt.clone())).collect()
    };
    let before = before.map(open).unwrap_or_default();
    assert_eq!(before, open(after), "an attempt changed but no event names it");
    for path in &named {
        let listed = after.open_attempts().find(|open| open.path == **path);
        assert_eq!(after.open_attempt_of(path), listed);
    }
}
