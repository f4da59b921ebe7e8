//! Tests the tables of the module, row by row.

use recoup_core::command::{Command, StartBasis, StartExecution};
use recoup_core::decide::Decider;
use recoup_core::definition::{Defaults, Delivery, OnError, Step, StepKind, Task, Workflow};
use recoup_core::execution::TraceContext;
use recoup_core::id::ExecutionId;
use recoup_core::payload::Payload;
use recoup_core::time::Timestamp;
use recoup_store::QueueName;

use super::super::attempt::Source;
use super::super::io::SessionKey;
use super::*;
use crate::clock::Tick;

const GRACE: Duration = Duration::from_secs(5);
const NOW: i64 = 1_000_000_000;

fn plan(delivery: Delivery) -> Plan {
    let task = Task { task_type: "charge".into(), delivery, ..Task::default() };
    let charge = Step {
        id: "charge".into(),
        description: String::new(),
        kind: StepKind::Task(task),
        when: None,
        retry: None,
        timeout: None,
        catch: Vec::new(),
        on_error: OnError::Fail,
        allow_warning: false,
        compensate: None,
    };
    let workflow = Workflow {
        name: "order".into(),
        description: String::new(),
        defaults: Defaults::default(),
        steps: vec![charge].into(),
        on_failure: Vec::new(),
        finally: Vec::new(),
        timeout: None,
        cleanup_timeout: None,
        cancel_grace: None,
    };
    Plan::compile(&workflow, 1).expect("the test's workflow is valid")
}

fn now() -> Now {
    Now { tick: Tick::after(Duration::from_secs(1_000)), time: Timestamp::from_micros(NOW) }
}

/// What the history says about the attempt.
#[derive(Clone, Copy)]
enum History {
    NotStarted,
    /// Started by this session, a second ago.
    Started(&'static str),
    /// Started by this session, before the grace period.
    StartedLongAgo(&'static str),
}

impl History {
    fn started_at(self) -> Timestamp {
        match self {
            Self::StartedLongAgo(_) => Timestamp::from_micros(NOW) - 2 * GRACE,
            _ => Timestamp::from_micros(NOW) - Duration::from_secs(1),
        }
    }

    /// One execution with one open attempt.
    fn state(self, plan: &Plan) -> Box<Execution> {
        let begun = Timestamp::from_micros(NOW) - 3 * GRACE;
        let start = Command::StartExecution(Box::new(StartExecution {
            id: ExecutionId::new(begun, [7; 10]),
            namespace: "default".into(),
            key: None,
            input: Payload::null(),
            timeout: None,
            trace: TraceContext::default(),
        }));
        let mut decider = Decider::new(None, plan, begun, 1);
        decider.decide(start, None).expect("a start is never rejected");
        let state = decider.finish().state.expect("it was started");
        let (Self::Started(session) | Self::StartedLongAgo(session)) = self else {
            return state;
        };
        let task = state.open_attempts().next().map(|open| state.task_id(&open));
        let task = task.expect("the first step is open");
        let (worker, session, at) = ("w".to_owned(), session.to_owned(), self.started_at());
        let basis = StartBasis::Held;
        let mut decider = Decider::new(Some(state), plan, at, 1);
        let record = Command::RecordStart { task, worker, session, at, basis };
        decider.decide(record, None).expect("the attempt is open");
        decider.finish().state.expect("it was started")
    }
}

fn queued() -> DispatchState {
    let queue = QueueName { namespace: "default".into(), queue: "default".into() };
    DispatchState::Queued { queue, order: (0, 1) }
}

fn starting(at: Timestamp) -> DispatchState {
    let start =
        recoup_core::execution::Started { worker: "w".to_owned(), session: "t".to_owned(), at };
    DispatchState::Starting { worker: 3, start }
}

fn session(id: &str) -> SessionKey {
    SessionKey { namespace: "default".into(), id: id.to_owned() }
}

fn with(session: Option<SessionKey>) -> DispatchState {
    DispatchState::Handed(Handed {
        name: "w".to_owned(),
        session,
        since: Timestamp::from_micros(NOW),
        began: now().tick,
        beat_at: now().tick,
        source: Source::Node,
        details: None,
    })
}

fn grace() -> DispatchState {
    DispatchState::Grace { until: now().tick }
}

fn kind(place: &DispatchState) -> &'static str {
    match place {
        DispatchState::Scheduled => "due",
        DispatchState::Grace { .. } => "in grace",
        DispatchState::Queued { .. } => "queued",
        DispatchState::Starting { .. } => "starting",
        DispatchState::Handed(Handed { session: None, source: Source::History, .. }) => {
            "by hearsay"
        }
        DispatchState::Handed(Handed { session: None, .. }) => "without a session",
        DispatchState::Handed(_) => "with a session",
        DispatchState::Overflowed => "overflowed",
    }
}

struct Known {
    dispatch: DispatchState,
    history: History,
    committed: bool,
    held: bool,
    claimed: bool,
    was_acting: bool,
    /// A command of the node's own about it waits to be decided.
    acting: bool,
    /// The start on record is that of a hand-over that never left.
    unsent: bool,
    once: bool,
}

impl Known {
    fn new(dispatch: DispatchState, history: History) -> Self {
        let (committed, held, claimed) = (false, false, false);
        let (was_acting, acting, unsent, once) = (false, false, false, false);
        Self { dispatch, history, committed, held, claimed, was_acting, acting, unsent, once }
    }

    fn committed(self) -> Self {
        Self { committed: true, ..self }
    }

    fn check(self, expected: (&str, Then)) {
        let plan = plan(if self.once { Delivery::AtMostOnce } else { Delivery::AtLeastOnce });
        let state = self.history.state(&plan);
        let reconciler = Reconciler {
            state: &state,
            plan: &plan,
            committed: self.committed,
            now: now(),
            grace: GRACE,
        };
        let open = state.open_attempts().next().expect("an attempt is open");
        let name = "w".to_owned();
        let holder = Holder { session: session("s"), name, started_at: None };
        let none = Evidence { holder: None, claimed: false, acting: false };
        let (mut attempt, _) = reconciler.unknown(&open, &none);
        attempt.dispatch = self.dispatch.clone();
        attempt.acting = self.was_acting;
        attempt.unsent = self.unsent.then(|| self.history.started_at());
        let holder = self.held.then_some(&holder);
        let evidence = Evidence { holder, claimed: self.claimed, acting: self.acting };
        let (left, then) = reconciler.known(&mut attempt, &open, &evidence);
        assert_eq!((kind(&attempt.dispatch), then), expected, "from {:?}", self.dispatch);
        assert_eq!(left.is_some(), kind(&attempt.dispatch) != kind(&self.dispatch));
        assert_eq!(attempt.acting, self.acting);
    }
}

#[test]
fn known_attempt_follows_the_first_matching_row_of_the_table() {
    use History::{NotStarted, Started, StartedLongAgo};
    let free = |known: Known| Known { claimed: true, ..known };
    let held = |known: Known| Known { held: true, ..known };
    let acting = |known: Known| Known { was_acting: true, ..known };

    // The attempt is with no worker, and a worker of this node holds it.
    for place in [DispatchState::Scheduled, queued(), DispatchState::Overflowed, grace()] {
        held(Known::new(place, NotStarted)).check(("with a session", Then::Nothing));
    }
    // Its row is claimed here, and no worker can still have it.
    free(Known::new(grace(), NotStarted)).check(("due", Then::Enqueue));
    free(Known::new(with(None), StartedLongAgo("t"))).check(("due", Then::Enqueue));
    free(Known::new(grace(), Started(NOBODYS))).check(("due", Then::Enqueue));
    free(Known::new(grace(), Started("t"))).check(("in grace", Then::Nothing));
    Known { once: true, ..free(Known::new(grace(), NotStarted)) }
        .check(("in grace", Then::Nothing));
    // Its own start is durable, or a different one is.
    let own = starting(Started("t").started_at());
    Known::new(own.clone(), Started("t")).committed().check(("starting", Then::FinishStart(3)));
    Known::new(own, Started("t")).check(("starting", Then::Nothing));
    let other = starting(Timestamp::from_micros(NOW));
    Known { acting: true, ..Known::new(other.clone(), Started("t")).committed() }
        .check(("starting", Then::Nothing));
    Known::new(other, Started("t")).committed().check(("in grace", Then::Nothing));
    // The history has the start of a hand-over that never left.
    Known { unsent: true, ..Known::new(queued(), Started("t")) }.check(("queued", Then::Nothing));
    // It was given back while its start was on the way to the history.
    acting(Known::new(queued(), Started("t")).committed()).check(("queued", Then::Disown));
    acting(Known::new(DispatchState::Overflowed, Started("t")).committed())
        .check(("due", Then::Enqueue));
    // The state was read, and the history names the worker that has the attempt now.
    Known::new(grace(), Started("")).check(("by hearsay", Then::Nothing));
    Known::new(with(None), Started("t")).check(("in grace", Then::Nothing));
    for place in [DispatchState::Scheduled, queued(), DispatchState::Overflowed] {
        Known::new(place.clone(), Started("t")).check(("in grace", Then::Nothing));
        Known::new(place, Started("")).check(("by hearsay", Then::Nothing));
    }
    // In any other case it stays where it was.
    for (place, name) in [
        (DispatchState::Scheduled, "due"),
        (queued(), "queued"),
        (DispatchState::Overflowed, "overflowed"),
        (grace(), "in grace"),
        (with(Some(session("s"))), "with a session"),
        (with(None), "without a session"),
    ] {
        Known::new(place, NotStarted).check((name, Then::Nothing));
    }
    Known::new(with(Some(session("s"))), Started("t")).check(("with a session", Then::Nothing));
}

#[test]
fn new_attempt_follows_the_first_matching_row_of_the_table() {
    use History::{NotStarted, Started, StartedLongAgo};
    let plan = plan(Delivery::AtLeastOnce);
    let name = "w".to_owned();
    let holder = Holder { session: session("s"), name, started_at: None };
    let check = |history: History, later: bool, held: bool, claimed: bool, committed: bool| {
        let state = history.state(&plan);
        let mut now = now();
        if later {
            now.time = state.started_at - Duration::from_secs(60);
        }
        let reconciler = Reconciler { state: &state, plan: &plan, committed, now, grace: GRACE };
        let open = state.open_attempts().next().expect("an attempt is open");
        let evidence = Evidence { holder: held.then_some(&holder), claimed, acting: false };
        let (attempt, then) = reconciler.unknown(&open, &evidence);
        (kind(&attempt.dispatch), then, attempt.possibly_started, attempt.claimed)
    };
    let due = |then, possibly_started, claimed| ("due", then, possibly_started, claimed);
    // It is not due yet by this clock, but it was for the node that scheduled it, whose clock is ahead.
    assert_eq!(check(NotStarted, true, false, false, false), due(Then::Nothing, true, true));
    // A worker of this node holds it.
    let with = ("with a session", Then::Nothing, true, true);
    assert_eq!(check(NotStarted, false, true, false, false), with);
    assert_eq!(check(Started("t"), false, true, true, false), with);
    // This very commit scheduled it, so no worker has had it.
    assert_eq!(check(NotStarted, false, false, false, true), due(Then::Enqueue, false, false));
    // It was claimed: no worker has it now, but one may have had it.
    assert_eq!(check(NotStarted, false, false, true, false), due(Then::Enqueue, true, true));
    assert_eq!(
        check(StartedLongAgo("t"), false, false, true, false),
        due(Then::Enqueue, true, true)
    );
    let grace = ("in grace", Then::Nothing, true, true);
    assert_eq!(check(Started("t"), false, false, true, false), grace);
    // The state was read: the last owner may have handed it out.
    assert_eq!(check(NotStarted, false, false, false, false), grace);
    assert_eq!(check(Started("t"), false, false, false, false), grace);
    let hearsay = ("by hearsay", Then::Nothing, true, true);
    assert_eq!(check(Started(""), false, false, false, false), hearsay);
}
