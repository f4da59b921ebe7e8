//! What machines do. They take in what has arrived, let the node decide and carry out its outputs, as the driver
//! does in production; they pause, crash and boot.

use std::time::Duration;

use recoup_core::time::Timestamp;
use recoup_engine::clock::Now;
use recoup_engine::node::Node;
use recoup_engine::node::io::{Input, Output, WorkerKey};

use crate::clock::MachineClock;
use crate::events::Event;
use crate::faults::{Moment, Site};
use crate::machines::{Asker, Mail, ReplyId, Request};
use crate::world::World;

impl World<'_> {
    pub fn boot(&mut self, machine: usize) {
        if self.machines[machine].node.is_some() {
            return;
        }
        let (seed, now) = (self.random.next(), self.now());
        let gain = self.draw_gain();
        // It has asked the store for the time, and the answer took a while.
        let asked = self.network_delay();
        let believes = self.misread(self.database_now() - asked);
        let place = &mut self.machines[machine];
        place.clock = MachineClock::new(now, believes, gain);
        let mut node = Node::new(place.options().clone(), seed);
        node.begin(place.clock.says(now));
        place.node = Some(node);
        place.mailbox.clear();
        place.step_at = None;
        place.stopping = None;
        let life = place.life;
        self.note(format_args!("machine {machine} boots, life {life}, gains {gain}"));
        self.plan_step(machine, now);
    }

    /// Store time as the node of a machine knows it.
    pub fn store_time(&self, machine: usize) -> Timestamp {
        self.says(machine).time
    }

    fn says(&self, machine: usize) -> Now {
        self.machines[machine].clock.says(self.now())
    }

    fn draw_gain(&mut self) -> i64 {
        let most = self.profile.drift;
        i64::try_from(self.random.between(0, most * 2)).unwrap_or(0)
            - i64::try_from(most).unwrap_or(0)
    }

    /// Returns a wrong time now and then, as if the database had moved to a machine with a different clock.
    pub fn misread(&mut self, time: Timestamp) -> Timestamp {
        let most = self.profile.misread;
        if most == 0 || self.random.below(4) > 0 {
            return time;
        }
        time + self.random.millis(0, most) - self.random.millis(0, most)
    }

    /// Makes a machine's clock run at a different rate from now on.
    pub fn drift(&mut self, machine: usize) {
        let (gain, now) = (self.draw_gain(), self.now());
        self.machines[machine].clock.set_gain(gain, now);
        self.note(format_args!("machine {machine} gains {gain}"));
        if self.profile.drift > 0 {
            let after = self.random.millis(500, 5_000);
            self.after(after, Event::Drift { machine });
        }
    }

    pub fn plan_pause(&mut self, machine: usize) {
        let every = self.profile.pause_every;
        if every > 0 {
            let after = self.random.millis(every / 2, every * 2);
            self.after(after, Event::Pause { machine });
        }
    }

    pub fn pause(&mut self, machine: usize) {
        if !self.is_faulty() {
            return;
        }
        let length = self.random.millis(50, self.profile.pause_max);
        let now = self.now();
        let suspends = self.profile.suspends;
        let suspended = self.random.permille(suspends);
        let how = if suspended { "is suspended" } else { "pauses" };
        self.note(format_args!("machine {machine} {how} for {length:?}"));
        let place = &mut self.machines[machine];
        place.paused_until = now + length;
        if suspended {
            place.clock.stand_still(now, now + length);
        }
        self.plan_pause(machine);
    }

    pub fn power_cut(&mut self, machine: usize) {
        if self.is_faulty() && self.machines[machine].node.is_some() {
            self.crash(machine, "by chance");
        }
    }

    pub fn heal_machines(&mut self) {
        let now = self.now();
        for machine in 0..self.machines.len() {
            let place = &mut self.machines[machine];
            place.paused_until = now;
            place.clock.go_on(now);
            place.clock.set_gain(0, now);
            if self.machines[machine].node.is_none() {
                self.boot(machine);
            }
        }
    }

    /// Ends the process. Messages that it has sent may still arrive.
    pub fn crash(&mut self, machine: usize, why: &str) {
        self.note(format_args!("machine {machine} crashes {why}"));
        self.end_process(machine);
        let reboot = match self.random.below(3) {
            0 => self.random.millis(1, 200),
            1 => self.random.millis(200, 3_000),
            _ => self.random.millis(3_000, 8_000),
        };
        self.after(reboot, Event::Boot { machine });
    }

    pub fn end_process(&mut self, machine: usize) {
        let place = &mut self.machines[machine];
        place.node = None;
        place.life += 1;
        place.mailbox.clear();
        place.step_at = None;
        place.paused_until = Timestamp::default();
        place.stopping = None;
        self.break_links_to(machine);
    }

    /// Whether a crash is due at this point. If it is, the machine has crashed.
    pub fn crash_point(&mut self, machine: usize, site: Site, moment: Moment) -> bool {
        if !self.is_faulty() {
            return false;
        }
        let due = self.profile.crashes.iter_mut().position(|(at, when, passes)| {
            if (*at, *when) != (site, moment) {
                return false;
            }
            *passes -= 1;
            *passes == 0
        });
        let Some(due) = due else {
            return false;
        };
        self.profile.crashes.swap_remove(due);
        *self.crash_points.0.entry((site, moment)).or_insert(0) += 1;
        self.crash(machine, &format!("at {site:?}, {moment:?}"));
        true
    }

    pub fn plan_step(&mut self, machine: usize, at: Timestamp) {
        let place = &mut self.machines[machine];
        let at = at.max(place.paused_until);
        if place.node.is_some() && place.step_at.is_none_or(|planned| at < planned) {
            place.step_at = Some(at);
            self.at(at, Event::Step { machine });
        }
    }

    /// A request has arrived for a node.
    pub fn deliver(&mut self, machine: usize, life: Option<u64>, request: Request) {
        let place = &self.machines[machine];
        let leaving = place.stopping.as_ref().is_some_and(|stopping| stopping.leaving);
        if place.node.is_none() || leaving || life.is_some_and(|life| life != place.life) {
            return;
        }
        let request = match place.stopping.is_some() {
            true => self.while_stopping(request),
            false => Some(request),
        };
        let input = match request {
            Some(Request::Client(op)) => self.client_input(machine, op),
            Some(Request::Input(input)) => Some(*input),
            None => None,
        };
        if let Some(input) = input {
            self.heard(machine, &input);
            self.put(machine, Mail::Input(input));
        }
    }

    /// The store has answered a call.
    pub fn put_answer(
        &mut self,
        machine: usize,
        input: Input<ReplyId>,
        site: Site,
        asked: Duration,
    ) {
        self.put(machine, Mail::Answer(input, site, asked));
    }

    /// Queues the request to stop after everything that has arrived.
    pub fn put_stop(&mut self, machine: usize) {
        self.put(machine, Mail::Stop);
    }

    /// Inputs that the node gets before everything that has already arrived.
    pub fn put_first(&mut self, machine: usize, inputs: Vec<Input<ReplyId>>) {
        for input in inputs.into_iter().rev() {
            self.machines[machine].mailbox.push_front(Mail::Input(input));
        }
        let now = self.now();
        self.plan_step(machine, now);
    }

    fn put(&mut self, machine: usize, mail: Mail) {
        self.machines[machine].mailbox.push_back(mail);
        let at = self.now() + self.random.millis(0, 2);
        self.plan_step(machine, at);
    }

    /// One turn of the driver's loop.
    pub fn step(&mut self, machine: usize) {
        let now = self.now();
        let place = &mut self.machines[machine];
        if place.step_at != Some(now) {
            return;
        }
        place.step_at = None;
        if place.paused_until > now {
            let until = place.paused_until;
            return self.plan_step(machine, until);
        }
        if place.stopping.as_ref().is_some_and(|stopping| stopping.leaving) {
            return;
        }
        let Some(mut node) = place.node.take() else {
            return;
        };
        let (life, says) = (place.life, place.clock.says(now));
        // The latest time that the node was given. An answer may set the clock back, but the node's time does
        // not go back.
        let mut told = Now::default();
        // Some turns take in only a few messages.
        let taken = if self.random.below(4) == 0 { self.random.between(1, 3) } else { 1000 };
        for _ in 0..taken {
            let Some(mail) = self.machines[machine].mailbox.pop_front() else {
                break;
            };
            match mail {
                Mail::Input(input) => {
                    told = told.max(says);
                    node.handle(input, says);
                }
                Mail::Stop => {
                    self.note(format_args!("the node of machine {machine} stops"));
                    node.stop();
                }
                Mail::Answer(input, site, asked) => {
                    let input = self.take_answer(machine, input, asked);
                    let says = self.says(machine);
                    told = told.max(says);
                    node.handle(input, says);
                    if self.crash_point(machine, site, Moment::AfterAnswer) {
                        return;
                    }
                }
            }
        }
        let says = told.max(self.says(machine));
        if self.machines[machine].mailbox.is_empty() {
            node.tick(says);
        }
        node.flush(says);
        self.note_step(machine, says.time);
        while let Some(output) = node.output() {
            self.carry_out(machine, &node, output);
            if self.machines[machine].life != life {
                return;
            }
        }
        let (next, quiet) = (node.next_timer(), node.is_quiet());
        let id = node.node_id();
        let place = &mut self.machines[machine];
        let more = !place.mailbox.is_empty();
        let at = next.map(|next| place.clock.when(next, now));
        place.node = Some(node);
        let has_given_back =
            matches!(place.mailbox.front(), Some(Mail::Input(Input::Detach { .. })));
        if quiet && !has_given_back && self.leave_if_stopped(machine, id) {
            return;
        }
        if more {
            self.plan_step(machine, now);
        }
        if let Some(at) = at {
            self.plan_step(machine, at);
        }
    }

    /// Does what the driver does with an answer before the node gets it.
    fn take_answer(
        &mut self,
        machine: usize,
        mut input: Input<ReplyId>,
        asked: Duration,
    ) -> Input<ReplyId> {
        let now = self.now();
        if let Input::Loaded { loaded: Ok(loaded), .. } = &input {
            self.machines[machine].clock.read(&loaded.found, now);
        }
        if let Input::Joined(Ok(lease)) | Input::Renewed(_, Ok(lease)) = &mut input {
            let read = self.misread(lease.now);
            let place = &mut self.machines[machine];
            lease.now = read;
            let moved = place.clock.correct(lease, asked, now);
            if moved > Duration::ZERO {
                self.note(format_args!("the clock of machine {machine} goes forward by {moved:?}"));
            }
            if let Input::Joined(Ok(lease)) = &input {
                let node = lease.node;
                self.note(format_args!("machine {machine} is {node:?}"));
            }
        }
        input
    }

    fn carry_out(&mut self, machine: usize, node: &Node<ReplyId>, output: Output<ReplyId>) {
        match output {
            Output::Reply { reply, answer } => {
                let Some(asker) = self.ledger.askers.remove(&reply) else {
                    let what = format!("machine {machine} answers {reply} twice");
                    return self.violate("one answer for each request", what);
                };
                match asker {
                    Asker::Client(op, recorded) => {
                        self.client_answered(machine, op, recorded, answer);
                    }
                    Asker::Worker { worker, life, report } => {
                        self.worker_answered(machine, worker, life, report, answer);
                    }
                }
            }
            Output::Tell { worker, message } => self.tell(machine, node, worker, message),
            Output::FeedWritten => {}
            output => self.call(machine, output),
        }
    }

    /// A fresh reply id.
    pub fn ask(&mut self, asker: Asker) -> ReplyId {
        let id = self.id();
        self.ledger.askers.insert(id, asker);
        id
    }

    pub fn new_worker_key(&mut self) -> WorkerKey {
        self.id()
    }
}
