//! A node without I/O. Inputs change it, [`Node::flush`] decides what has gathered, outputs say what
//! is to be done; time is an argument, on both clocks of [`crate::clock`]. The same inputs in the same order give the same outputs.
//!
//! | module | holds |
//! | --- | --- |
//! | `slots`, `slot` | executions in memory, and what waits for them |
//! | `resident` | what is known of one: its state, and what is committed while that is away |
//! | `loader`, `reading` | which executions are read, and what comes of it |
//! | `requests` | what callers ask, and how those who wait are answered |
//! | `residency` | which executions stay in memory, and when each is looked at |
//! | `decide`, `batch` | deciding, and putting what was decided into a batch |
//! | `keyed` | starts with an execution key, in a call of their own |
//! | `committer`, `commit` | what is under way to the store, and settling what it answered |
//! | `flight` | sending a batch until all of it is settled, in parts if need be |
//! | `attempt`, `attempts`, `queue`, `queues` | where an open attempt is, and what waits for workers |
//! | `reconcile` | where an attempt is once a state has come anew |
//! | `dispatch`, `hand_over` | bringing attempts and queues in line with the states, and handing out |
//! | `worker`, `sessions`, `workers` | workers, sessions, and what they hold |
//! | `notices` | what sessions are told: that tasks they hold should stop or are over |
//! | `trade`, `offers` | which tasks go to other nodes, and what those are told of idle workers |
//! | `effects` | what is to be done: outputs, and tasks on their way to workers |
//! | `quarantine` | executions that nobody may go on with |
//! | `patience` | callers that wait for a store that takes nothing |
//! | `life`, `ownership` | the lease, adoption, overflow, and what other nodes did |
//!
//! Invariants:
//!
//! - Nothing is answered, handed out or decided on before it is committed.
//! - An execution is in at most one batch that is decided and not settled: at most one is under way, and one goes next.
//! - What is in memory may be dropped at any time: all of it follows from the store.

pub mod io;

mod attempt;
mod attempts;
mod batch;
mod commit;
mod committer;
mod decide;
mod dispatch;
mod effects;
mod flight;
mod hand_over;
mod keyed;
mod life;
mod loader;
mod notices;
mod offers;
mod ownership;
mod patience;
mod quarantine;
mod queue;
mod queues;
mod reading;
mod reconcile;
mod requests;
mod residency;
mod resident;
mod sessions;
mod slot;
mod slots;
mod timers;
mod trade;
mod worker;
mod workers;

use std::time::Duration;

use recoup_core::id::ExecutionId;
use recoup_core::random::Random;
use recoup_core::time::Timestamp;
use recoup_store::{Due, NodeId};

use crate::clock::{Now, Tick};
use crate::options::Options;
use committer::Committer;
use effects::Effects;
use io::{Input, Output, Refusal};
use life::{Life, Watch};
use loader::Loader;
use queues::Queues;
use sessions::Sessions;
use slots::Slots;
use timers::{Timer, Timers};
use trade::Trade;
use worker::Workers;

/// So late a node has been asleep, or has had no time for its work.
const LATE: Duration = Duration::from_millis(200);
/// How long it then takes in what has piled up before it judges anybody's silence.
const CATCH_UP: Duration = Duration::from_millis(200);

/// How far a node is on its way to its end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Serving,
    /// The server takes no new connections: callers that wait for an end are answered at once, and workers that
    /// are not connected can say nothing here, so that their silence means nothing.
    Closing,
    /// Takes nothing new.
    Stopping,
}

pub struct Node<R> {
    options: Options,
    /// Store time: what is stored and scheduled.
    now: Timestamp,
    /// The same moment for silence, attempts and the lease.
    monotonic: Tick,
    caught_up_at: Timestamp,
    random: Random,
    life: Life,
    /// The leases of other nodes.
    watched: Watch,
    stage: Stage,

    slots: Slots<R>,
    loader: Loader,
    committer: Committer<R>,
    /// Where the last page of due executions ended, if more of them are due.
    due_after: Option<Due>,

    queues: Queues,
    trade: Trade,
    workers: Workers,
    sessions: Sessions,

    /// In store time, which a step of the database's clock may take forward.
    timers: Timers,
    effects: Effects<R>,
}

impl<R> Node<R> {
    /// `seed` is the randomness of this life: nothing else in the node is left to chance.
    pub fn new(options: Options, seed: u64) -> Self {
        Self {
            options,
            now: Timestamp::default(),
            monotonic: Tick::default(),
            caught_up_at: Timestamp::default(),
            random: Random::new(seed),
            life: Life::default(),
            watched: Watch::default(),
            stage: Stage::Serving,
            slots: Slots::default(),
            loader: Loader::default(),
            committer: Committer::default(),
            due_after: None,
            queues: Queues::default(),
            trade: Trade::default(),
            workers: Workers::default(),
            sessions: Sessions::default(),
            timers: Timers::default(),
            effects: Effects::default(),
        }
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    /// This life of the node, once it has begun.
    pub fn node_id(&self) -> Option<NodeId> {
        self.life.node()
    }

    /// What this node believes of the executions in its memory.
    #[cfg(feature = "mutants")]
    pub fn cached(
        &self,
    ) -> impl Iterator<Item = (ExecutionId, &recoup_core::execution::Execution)> {
        self.slots.iter().filter_map(|(id, slot)| Some((id, slot.state()?)))
    }

    /// How many executions a round of questions to the store goes by.
    #[cfg(feature = "mutants")]
    pub fn in_doubt(&self) -> usize {
        self.slots.in_doubt()
    }

    /// All that this node has about an execution, for whoever looks into why it is stuck.
    #[cfg(feature = "mutants")]
    pub fn belief(&self, id: ExecutionId) -> String {
        let Some(slot) = self.slots.get(id) else {
            return "nothing".to_owned();
        };
        let (loading, wanted) = (self.loader.is_loading(id), self.loader.is_wanted(id));
        let inbox: Vec<_> = slot.inbox.iter().map(|pending| &pending.command).collect();
        let sequence = slot.committed().map(|committed| committed.sequence);
        format!(
            "as {:?}: #{sequence:?} owned {} in flight {} doubted {} loading {loading} wanted {wanted} \
             timer {:?} attempts {:?} inbox {inbox:?} claimed {:?}",
            self.node_id(),
            slot.owned,
            slot.in_flight,
            slot.doubted,
            slot.timer_at,
            slot.attempts,
            slot.claimed,
        )
    }

    /// Asks for a life.
    pub fn begin(&mut self, now: Now) {
        self.is_now(now);
        self.life.begin(self.monotonic);
        self.watch_patience();
        self.join();
    }

    /// Neither clock goes back.
    fn is_now(&mut self, now: Now) {
        let now = self.at().max(now);
        (self.monotonic, self.now) = (now.tick, now.time);
    }

    fn at(&self) -> Now {
        Now { tick: self.monotonic, time: self.now }
    }

    /// Takes nothing new from now on.
    pub fn stop(&mut self) {
        self.settle_committed();
        self.stage = Stage::Stopping;
        // Whoever goes on with what this node owns must know what is with workers.
        self.record_starts();
    }

    pub fn is_stopping(&self) -> bool {
        self.stage == Stage::Stopping
    }

    /// Whether a worker that is not connected can still get through to this node.
    fn is_reachable(&self) -> bool {
        self.stage == Stage::Serving
    }

    /// Whether everything that was taken has been answered or left to other nodes.
    pub fn is_quiet(&self) -> bool {
        self.effects.is_empty()
            && self.committer.is_quiet()
            && self.slots.iter().all(|(_, slot)| slot.inbox.is_empty())
    }

    pub fn next_timer(&self) -> Option<Timestamp> {
        self.timers.next_at()
    }

    pub fn output(&mut self) -> Option<Output<R>> {
        self.effects.pop()
    }

    pub fn handle(&mut self, input: Input<R>, now: Now) {
        self.is_now(now);
        self.settle_committed();
        match input {
            Input::Start { spec, reply } => self.start(*spec, reply),
            Input::Submit { execution, command, request, reply } => {
                self.submit(execution, command, request, Some(reply));
            }
            Input::Await { execution, until, reply } => self.wait(execution, Some(until), reply),
            Input::Get { execution, reply } => self.wait(execution, None, reply),
            Input::Attach { worker, offer } => self.attach(worker, offer),
            Input::Credit { worker, tasks } => self.credit(worker, tasks),
            Input::Close => self.close_doors(),
            Input::Drain { worker } => self.drain(worker),
            Input::Touch { session } => self.sessions.touch(&session, self.monotonic),
            Input::Detach { worker } => self.detach(worker),
            Input::Heartbeat { task, details, reply } => self.heartbeat(task, details, reply),
            Input::Release { task, session, reply } => self.release(task, &session, reply),
            Input::Undelivered { task, handed_at } => self.undelivered(&task, handed_at),
            Input::Untold { session, task, notice } => self.untold(&session, task, notice),
            Input::ReleaseQuarantine { execution, release, reply } => {
                self.release_quarantine(execution, release, reply);
            }
            Input::QuarantineReleased { node, execution, released, reply } => {
                self.quarantine_released(node, execution, released, reply);
            }
            Input::Joined(joined) => self.joined(joined),
            Input::Renewed(node, renewed) => self.renewed(node, renewed),
            Input::Committed(node, settled) => self.committed(node, settled),
            Input::KeyedStarted(node, settled) => self.keyed_started(node, settled),
            Input::Loaded { node, asked, loaded } => self.loaded(node, &asked, loaded),
            Input::Adopted(node, adopted) => self.adopted(node, adopted),
            Input::Heads(node, heads) => self.heads(node, heads),
            Input::Due(node, due) => self.due(node, due),
            Input::Published(node, peers) => self.published(node, peers),
            Input::Claimed(node, claimed) => self.claimed(node, claimed),
            Input::Overflowed { node, tasks, result } => self.overflowed(node, &tasks, result),
        }
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Now) {
        self.is_now(now);
        self.settle_committed();
        self.catch_up();
        while let Some(timer) = self.timers.pop_due(self.now) {
            match timer {
                Timer::Execution(id) => self.wake(id),
                Timer::Session(id) => self.check_session(&id),
                Timer::Renew => self.renew(),
                Timer::Join => self.join(),
                Timer::Commit => self.commit_again(),
                Timer::StartKeyed => self.start_keyed_again(),
                // The next flush asks.
                Timer::Load => {}
                Timer::Adopt => self.adopt(),
                Timer::Heads => self.ask_heads(),
                Timer::Due => self.ask_due(),
                Timer::Publish => self.publish(),
                Timer::Claim => self.claim(),
                Timer::Dispatch => self.dispatch_all(),
                Timer::Patience => self.check_patience(),
            }
        }
    }

    /// After a pause, what workers sent meanwhile may still lie unread: clocks that judge them strike
    /// a moment later.
    fn catch_up(&mut self) {
        let Some(due) = self.timers.next_at() else {
            return;
        };
        let is_late = self.now.since(due) > LATE;
        if !is_late || self.now < self.caught_up_at + CATCH_UP * 5 {
            return;
        }
        self.caught_up_at = self.now + CATCH_UP;
        for id in self.timers.put_off(self.now, self.caught_up_at) {
            if let Some(slot) = self.slots.get_mut(id) {
                slot.timer_at = Some(self.caught_up_at);
            }
        }
    }

    /// Decides what has gathered and hands out what may go.
    pub fn flush(&mut self, now: Now) {
        self.is_now(now);
        self.settle_committed();
        if self.life.is_alive() {
            self.give_away_new();
            self.commit_ready();
            self.start_keyed_ready();
            // Deciding may find that memory is old.
            self.load_wanted();
        }
        for (worker, tasks) in self.effects.take_all_back() {
            self.effects.tell(worker, io::WorkerMessage::Tasks(tasks));
            self.detach_served(worker);
        }
    }

    fn reply(&mut self, reply: R, answer: Result<io::Answer, Refusal>) {
        self.effects.reply(reply, answer);
    }

    fn set_timer(&mut self, after: Duration, timer: Timer) {
        self.timers.set(self.now + after, timer);
    }
}
