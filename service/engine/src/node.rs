//! A node without I/O. Inputs change its state, [`Node::flush`] decides the commands that have gathered, and
//! outputs say what the driver must do. Time is an argument, on both clocks of [`crate::clock`]. The same
//! inputs in the same order give the same outputs.
//!
//! | module | holds |
//! | --- | --- |
//! | `slots`, `slot` | executions in memory, and the commands and callers that wait for them |
//! | `resident` | what is known about one execution: its state, and a summary of it while the state is away |
//! | `loader`, `reading` | which executions are read, and how the answer is taken in |
//! | `requests` | requests of callers, and the answers to callers that wait |
//! | `residency` | which executions stay in memory, and when each must be checked |
//! | `decide`, `batch` | deciding, and putting decisions into a batch |
//! | `keyed` | starts with an execution key, in a call of their own |
//! | `committer`, `commit` | writes that are under way to the store, and settling its answers |
//! | `flight` | sending a batch until all of it is settled, in parts if need be |
//! | `attempt`, `attempts`, `queue`, `queues` | where an open attempt is, and which tasks wait for workers |
//! | `reconcile` | where an attempt is once the node has a new state of its execution |
//! | `dispatch`, `hand_over` | bringing attempts and queues in line with the states, and handing attempts out |
//! | `worker`, `sessions`, `workers` | workers, sessions, and the attempts that they hold |
//! | `notices` | notices to sessions: that tasks they hold should stop, or are closed |
//! | `trade`, `offers` | which tasks go to other nodes, and the idle workers that nodes publish |
//! | `io` | the inputs and outputs of a node |
//! | `timers` | when the node must check what |
//! | `effects` | work for the driver: outputs, and tasks on their way to workers |
//! | `quarantine` | executions that do not proceed until an operator releases them |
//! | `patience` | callers that wait for a store that does not respond |
//! | `life`, `ownership` | the lease, adoption, the overflow, and changes made by other nodes |
//!
//! Invariants:
//!
//! - Nothing is answered, handed out or built upon before it is committed.
//! - An execution is in at most one batch that is decided but not settled. At most one batch is under way,
//!   and at most one more is drafted to go next.
//! - Everything in memory may be dropped at any time, because all of it follows from the store.

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

/// A timer that is handled later than this shows that the node was suspended, or was too busy to run.
const LATE: Duration = Duration::from_millis(200);
/// How long such a node first takes in the input that has piled up, before it judges any worker as silent.
const CATCH_UP: Duration = Duration::from_millis(200);

/// How far the node has progressed towards its end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Serving,
    /// The server accepts no new connections. Callers that wait for the end of an execution are answered at
    /// once. Workers that are not connected cannot reach this node, so their silence means nothing.
    Closing,
    /// Accepts nothing new.
    Stopping,
}

pub struct Node<R> {
    options: Options,
    /// Store time: the time that is stored, and by which work is scheduled.
    now: Timestamp,
    /// The same moment on the monotonic clock, by which silence, attempts and the lease are measured.
    monotonic: Tick,
    /// When the store was last asked for heads.
    heads_asked_at: Tick,
    caught_up_at: Timestamp,
    random: Random,
    life: Life,
    /// The leases of other nodes.
    watched: Watch,
    stage: Stage,

    slots: Slots<R>,
    loader: Loader,
    committer: Committer<R>,
    /// Where the last page of due executions ended, if there are more pages.
    due_after: Option<Due>,

    queues: Queues,
    trade: Trade,
    workers: Workers,
    sessions: Sessions,

    /// In store time, which may jump forward when the database's clock is set.
    timers: Timers,
    effects: Effects<R>,
}

impl<R> Node<R> {
    /// `seed` is the source of all randomness in this life of the node.
    pub fn new(options: Options, seed: u64) -> Self {
        Self {
            options,
            now: Timestamp::default(),
            monotonic: Tick::default(),
            heads_asked_at: Tick::default(),
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

    /// The id of this life of the node, once the life has begun.
    pub fn node_id(&self) -> Option<NodeId> {
        self.life.node()
    }

    /// The states that this node has in memory.
    #[cfg(feature = "mutants")]
    pub fn cached(
        &self,
    ) -> impl Iterator<Item = (recoup_core::id::ExecutionId, &recoup_core::execution::Execution)>
    {
        self.slots.iter().filter_map(|(id, slot)| Some((id, slot.state()?)))
    }

    /// How many executions the node asks the store about, round after round.
    #[cfg(feature = "mutants")]
    pub fn in_doubt(&self) -> usize {
        self.slots.in_doubt()
    }

    /// Everything that this node knows about an execution, for finding out why it is stuck.
    #[cfg(feature = "mutants")]
    pub fn belief(&self, id: recoup_core::id::ExecutionId) -> String {
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

    /// Begins the first life of the node: asks the store for a lease.
    pub fn begin(&mut self, now: Now) {
        self.is_now(now);
        self.life.begin(self.monotonic);
        self.watch_patience();
        self.join();
    }

    /// Moves both clocks forward. Neither ever goes back.
    fn is_now(&mut self, now: Now) {
        let now = self.at().max(now);
        (self.monotonic, self.now) = (now.tick, now.time);
    }

    fn at(&self) -> Now {
        Now { tick: self.monotonic, time: self.now }
    }

    /// Stops taking anything new.
    pub fn stop(&mut self) {
        self.settle_committed();
        self.stage = Stage::Stopping;
        // The next owners of this node's executions must be able to read which attempts are with workers.
        self.record_starts();
    }

    pub fn is_stopping(&self) -> bool {
        self.stage == Stage::Stopping
    }

    /// Whether a worker that is not connected can still reach this node.
    fn is_reachable(&self) -> bool {
        self.stage == Stage::Serving
    }

    /// Whether every accepted request has been answered or left to other nodes.
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

    /// Handles all timers that are due.
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
                // The next flush asks for what is wanted.
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

    /// After a pause of the node, messages that workers sent meanwhile may still be unread. Timers that judge
    /// workers are therefore put off for a moment.
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

    /// Decides the commands that have gathered and hands out the tasks that may go.
    pub fn flush(&mut self, now: Now) {
        self.is_now(now);
        self.settle_committed();
        if self.life.is_alive() {
            self.give_away_new();
            self.commit_ready();
            self.start_keyed_ready();
            // A decision may find that the state in memory is stale, so reads are asked for last.
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
