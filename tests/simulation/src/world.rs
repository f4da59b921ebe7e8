//! The world of one run: its clock, its queue of events, and all participants.

mod calls;
mod clients;
mod jobs;
mod links;
mod machines;
mod stopping;
mod workers;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use recoup_core::id::ExecutionId;
use recoup_core::time::Timestamp;
use recoup_store::format::Formats;
use recoup_store::memory::{self, MemoryStore};
use recoup_store::{Nodes, Overflow};
use uuid::Uuid;

use crate::calls::{Call, CallId, Late};
use crate::catalog::Catalog;
use crate::clients::{Clients, Subscriber};
use crate::events::{Event, Stage};
use crate::faults::{ClockStep, CrashPoints, Defect, Profile};
use crate::ledger::{Ledger, Violation};
use crate::machines::Machine;
use crate::random::Random;
use crate::trace::Trace;
use crate::wait::ready;
use crate::workers::Workers;

/// When runs begin, in store time.
pub const EPOCH_MICROS: i64 = 1_700_000_000_000_000;
/// After the faults, everything must come to its end within this time.
const HEALING_MAX: Duration = Duration::from_secs(300);
/// How long the world runs on after everything has ended, to tidy up what is left.
const SETTLING: Duration = Duration::from_secs(15);
/// All steps of a clock together set it back by less than this.
const CLAIMS_END: Duration = Duration::from_secs(7 * 3600);
/// The most events in a run. If there are more, the world is spinning.
const EVENTS_MAX: u64 = 2_000_000;

pub struct World<'a> {
    pub catalog: &'a Catalog,
    clock: Arc<AtomicI64>,
    /// The database's clock minus the world's, in microseconds.
    clock_set_by: Arc<AtomicI64>,
    pub store: MemoryStore,
    pub random: Random,
    pub trace: Trace,
    pub profile: Profile,
    /// The clocks of different machines may disagree.
    pub skewed: bool,
    pub stage: Stage,
    queue: BTreeMap<(Timestamp, u64), Event>,
    next_event: u64,
    pub machines: Vec<Machine>,
    pub calls: BTreeMap<CallId, Call>,
    pub late: BTreeMap<u64, Late>,
    pub next_id: u64,
    pub clients: Clients,
    pub workers: Workers,
    pub subscriber: Subscriber,
    pub ledger: Ledger,
    pub crash_points: CrashPoints,
    pub polite_stops: u64,
    pub drained: u64,
    pub violation: Option<Violation>,
    healed_at: Timestamp,
    settled_at: Timestamp,
    finalizes_after: Option<Duration>,
}

impl<'a> World<'a> {
    pub fn new(catalog: &'a Catalog, seed: u64, defect: Option<Defect>, print: bool) -> Self {
        let clock = Arc::new(AtomicI64::new(EPOCH_MICROS));
        let clock_set_by = Arc::new(AtomicI64::new(0));
        let (tell, set_by) = (clock.clone(), clock_set_by.clone());
        // Some runs begin on a store that may not hold the newest formats yet.
        let finalizes_after = seed.is_multiple_of(4).then(|| Duration::from_secs(seed / 4 % 16));
        let options = memory::Options {
            writable: finalizes_after.map(|_| Formats::FIRST),
            incarnation: Some(Uuid::from_u128(1)),
            mutant_scalar_cursor: defect == Some(Defect::ScalarCursor),
            mutant_companions_for_losers: defect == Some(Defect::CompanionsForLosers),
        };
        let store = MemoryStore::with_options(
            Arc::new(move || {
                let micros = tell.load(Ordering::Relaxed) + set_by.load(Ordering::Relaxed);
                Timestamp::from_micros(micros)
            }),
            options,
        );
        catalog.register(&store);
        let mut random = Random::new(seed.wrapping_mul(0x2545_f491_4f6c_dd1d).wrapping_add(seed));
        let mut profile = Profile::draw(&mut random);
        if !profile.polite {
            // The steps are drawn from a generator of their own, so runs without steps are the same as
            // without this fault.
            profile.clock_steps = ClockStep::draw(&mut Random::new(!seed), profile.phase);
        }
        let subscriber = Subscriber::new(&store);
        let options = crate::faults::options_of_nodes(&mut random, defect);
        let machines = options.into_iter().map(Machine::new).collect();
        let workers = Workers::new(&profile, &catalog.task_types(), &mut random);
        let mut world = Self {
            catalog,
            clock,
            clock_set_by,
            store,
            random,
            trace: Trace::new(print),
            skewed: profile.is_skewed(),
            profile,
            stage: Stage::Faults,
            queue: BTreeMap::new(),
            next_event: 0,
            machines,
            calls: BTreeMap::new(),
            late: BTreeMap::new(),
            next_id: 1,
            clients: Clients::default(),
            workers,
            subscriber,
            ledger: Ledger::default(),
            crash_points: CrashPoints::default(),
            polite_stops: 0,
            drained: 0,
            violation: None,
            healed_at: Timestamp::MAX,
            settled_at: Timestamp::MAX,
            finalizes_after,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        let profile = format!("{:?}", self.profile);
        self.note(format_args!("{profile}"));
        for machine in 0..self.machines.len() {
            let options = self.machines[machine].options();
            let (grace, record) = (options.reconnect_grace, options.record_start_after);
            self.note(format_args!(
                "machine {machine} waits {grace:?} for workers, records starts after {record:?}"
            ));
            let after = self.random.millis(0, 500);
            self.after(after, Event::Boot { machine });
            self.plan_pause(machine);
            if self.profile.drift > 0 {
                self.after(after, Event::Drift { machine });
            }
            if self.random.permille(300) && !self.profile.polite {
                let after = self.random.millis(1_000, 12_000);
                self.after(after, Event::PowerCut { machine });
            }
        }
        for step in self.profile.clock_steps.clone() {
            self.after(step.after, Event::SetClock(step));
        }
        self.plan_stops();
        self.begin_clients();
        self.begin_workers();
        self.plan_drains();
        self.after(Duration::from_millis(5), Event::Read);
        let phase = self.profile.phase;
        self.after(phase, Event::Heal);
        if let Some(after) = self.finalizes_after {
            self.after(after, Event::Finalize);
        }
    }

    pub fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.clock.load(Ordering::Relaxed))
    }

    /// The time on the database's clock.
    pub fn database_now(&self) -> Timestamp {
        let set_by = self.clock_set_by.load(Ordering::Relaxed);
        Timestamp::from_micros(self.now().as_micros() + set_by)
    }

    fn set_clock(&mut self, step: ClockStep) {
        self.note(format_args!("the database's clock is set by {} us", step.micros));
        self.clock_set_by.fetch_add(step.micros, Ordering::Relaxed);
    }

    pub fn after(&mut self, delay: Duration, event: Event) {
        self.at(self.now() + delay, event);
    }

    pub fn at(&mut self, at: Timestamp, event: Event) {
        self.next_event += 1;
        self.queue.insert((at.max(self.now()), self.next_event), event);
    }

    pub fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub fn is_faulty(&self) -> bool {
        self.stage == Stage::Faults
    }

    /// Whether faults may happen, beyond orderly stops.
    pub fn is_rough(&self) -> bool {
        self.is_faulty() && !self.profile.polite
    }

    pub fn note(&mut self, what: std::fmt::Arguments<'_>) {
        let at = Timestamp::from_micros(self.now().as_micros() - EPOCH_MICROS);
        self.trace.line(at, what);
    }

    pub fn violate(&mut self, invariant: &'static str, what: String) {
        self.note(format_args!("VIOLATED {invariant}: {what}"));
        self.violation.get_or_insert(Violation { invariant, what });
    }

    pub fn new_execution_id(&mut self) -> ExecutionId {
        let (high, low) = (self.random.next().to_be_bytes(), self.random.next().to_be_bytes());
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&high);
        bytes[8..].copy_from_slice(&low[..2]);
        ExecutionId::new(self.now(), bytes)
    }

    /// Runs to the end, or to the first violation.
    pub fn run(&mut self) {
        let mut events = 0_u64;
        while self.violation.is_none() && self.stage != Stage::Done {
            let Some(((at, _), event)) = self.queue.pop_first() else {
                self.violate("the world goes on", "nothing is going to happen".into());
                return;
            };
            self.clock.store(at.as_micros(), Ordering::Relaxed);
            events += 1;
            if events > EVENTS_MAX {
                self.violate("no spinning", format!("{EVENTS_MAX} events without an end"));
                return;
            }
            self.happen(event);
        }
        if self.violation.is_none() {
            self.check_end();
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Step { machine } => self.step(machine),
            Event::Boot { machine } => self.boot(machine),
            Event::Pause { machine } => self.pause(machine),
            Event::PowerCut { machine } => self.power_cut(machine),
            Event::Drift { machine } => self.drift(machine),
            Event::SetClock(step) => self.set_clock(step),
            Event::Stop { machine } => self.stop(machine),
            Event::Drained { machine, life } => self.look_whether_drained(machine, life),
            Event::TellStop { machine, life } => self.tell_stop(machine, life),
            Event::Effect(call) => self.effect(call),
            Event::Finish(call) => self.finish(call),
            Event::Answer(call) => self.answer(call),
            Event::Late(late) => self.land(late),
            Event::Deliver { machine, life, request } => self.deliver(machine, life, request),
            Event::Client(wake) => self.client(wake),
            Event::Worker(wake) => self.worker(wake),
            Event::Read => self.read_feed(),
            Event::Heal => self.heal(),
            Event::Finalize => {
                let _ = ready(self.store.finalize());
            }
            Event::Look => self.look(),
        }
    }

    fn heal(&mut self) {
        self.stage = Stage::Healing;
        self.healed_at = self.now();
        self.note(format_args!("HEALING"));
        self.profile.heal();
        self.heal_machines();
        self.heal_workers();
        self.heal_clients();
        self.after(Duration::from_secs(1), Event::Look);
    }

    /// Whether rows in the overflow are still claimed by lives that are over. Such a claim ends later by as
    /// much as the database's clock was set back while no node ran.
    fn waits_for_claims(&self) -> bool {
        let rows = ready(self.store.overflow_depth()).unwrap_or_default();
        !rows.is_empty() && self.now() < self.settled_at + CLAIMS_END
    }

    /// Checks whether everything is over.
    fn look(&mut self) {
        let now = self.now();
        match self.stage {
            Stage::Healing => {
                let open = self.open_executions();
                let waiting = self.clients.waiting();
                if open.is_empty() && waiting.is_none() {
                    self.note(format_args!("SETTLING"));
                    self.stage = Stage::Settling;
                    self.settled_at = now;
                } else if now > self.healed_at + HEALING_MAX {
                    if let Some(id) = open.first() {
                        let nodes = self.machines.iter().filter_map(|place| place.node.as_ref());
                        let beliefs: Vec<_> = nodes.map(|node| node.belief(*id)).collect();
                        let (history, beliefs) = (self.history_text(*id), beliefs.join("\n    "));
                        let what = format!("{open:?}\n{history}\n    {beliefs}");
                        self.violate("no execution is stuck", what);
                    } else if let Some(waiting) = waiting {
                        self.violate("every request is answered", waiting);
                    }
                }
            }
            Stage::Settling if now > self.settled_at + SETTLING && !self.waits_for_claims() => {
                // A request that was repeated in the meantime may have started an execution, which must end too.
                let is_over = self.open_executions().is_empty() && self.clients.waiting().is_none();
                self.stage = if is_over { Stage::Done } else { Stage::Healing };
            }
            _ => {}
        }
        self.after(Duration::from_secs(1), Event::Look);
    }
}
