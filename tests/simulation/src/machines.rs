//! The machines that nodes live on: they take in what has arrived, let the node decide and carry out
//! what it says, as the driver does in earnest; they pause, crash and boot.

use std::collections::VecDeque;

use recoup_core::time::Timestamp;
use recoup_engine::Options;
use recoup_engine::node::Node;
use recoup_engine::node::io::{Input, Output, WorkerKey};

use crate::clients::OpId;
use crate::faults::{Moment, Site};
use crate::workers::Report;
use crate::world::{Event, World};

/// How a node's answers find back.
pub type ReplyId = u64;

/// Who asked.
#[derive(Clone, Debug)]
pub enum Asker {
    Client(OpId),
    Worker { worker: usize, life: u64, report: Report },
}

pub enum Request {
    /// The API makes an input of it when it arrives.
    Client(OpId),
    Input(Box<Input<ReplyId>>),
}

struct Mail {
    input: Input<ReplyId>,
    /// The call that it answers.
    answers: Option<Site>,
}

pub struct Machine {
    options: Options,
    pub node: Option<Node<ReplyId>>,
    /// Counts processes.
    pub life: u64,
    mailbox: VecDeque<Mail>,
    step_at: Option<Timestamp>,
    paused_until: Timestamp,
}

impl Machine {
    pub fn new(options: Options) -> Self {
        Self {
            options,
            node: None,
            life: 0,
            mailbox: VecDeque::new(),
            step_at: None,
            paused_until: Timestamp::default(),
        }
    }

    pub fn is_up(&self, life: u64) -> bool {
        self.node.is_some() && self.life == life
    }

    pub fn options(&self) -> &Options {
        &self.options
    }
}

impl World<'_> {
    pub fn boot(&mut self, machine: usize) {
        let (seed, now) = (self.random.next(), self.now());
        let place = &mut self.machines[machine];
        if place.node.is_some() {
            return;
        }
        let mut node = Node::new(place.options.clone(), seed);
        node.begin(now);
        place.node = Some(node);
        place.mailbox.clear();
        place.step_at = None;
        let life = place.life;
        self.note(format_args!("machine {machine} boots, life {life}"));
        self.plan_step(machine, now);
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
        self.note(format_args!("machine {machine} pauses for {length:?}"));
        self.machines[machine].paused_until = now + length;
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
            self.machines[machine].paused_until = now;
            if self.machines[machine].node.is_none() {
                self.boot(machine);
            }
        }
    }

    /// The process ends; what it had sent may still arrive.
    pub fn crash(&mut self, machine: usize, why: &str) {
        self.note(format_args!("machine {machine} crashes {why}"));
        let place = &mut self.machines[machine];
        place.node = None;
        place.life += 1;
        place.mailbox.clear();
        place.step_at = None;
        place.paused_until = Timestamp::default();
        let reboot = match self.random.below(3) {
            0 => self.random.millis(1, 200),
            1 => self.random.millis(200, 3_000),
            _ => self.random.millis(3_000, 8_000),
        };
        self.after(reboot, Event::Boot { machine });
        self.ledger.polls_break(machine);
        self.break_links_to(machine);
    }

    /// Whether a crash is due here; if so, it has happened.
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

    /// Something has arrived for a node.
    pub fn deliver(&mut self, machine: usize, life: Option<u64>, request: Request) {
        let place = &self.machines[machine];
        if place.node.is_none() || life.is_some_and(|life| life != place.life) {
            return;
        }
        let input = match request {
            Request::Client(op) => self.client_input(op),
            Request::Input(input) => Some(*input),
        };
        if let Some(input) = input {
            self.heard(machine, &input);
            self.put(machine, input, None);
        }
    }

    pub fn put(&mut self, machine: usize, input: Input<ReplyId>, answers: Option<Site>) {
        self.machines[machine].mailbox.push_back(Mail { input, answers });
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
        let Some(mut node) = place.node.take() else {
            return;
        };
        let life = place.life;
        // A turn takes in only so much.
        let taken = if self.random.below(4) == 0 { self.random.between(1, 3) } else { 1000 };
        for _ in 0..taken {
            let Some(mail) = self.machines[machine].mailbox.pop_front() else {
                break;
            };
            node.handle(mail.input, now);
            if let Some(site) = mail.answers
                && self.crash_point(machine, site, Moment::AfterAnswer)
            {
                return;
            }
        }
        if self.machines[machine].mailbox.is_empty() {
            node.tick(now);
        }
        node.flush(now);
        while let Some(output) = node.output() {
            self.carry_out(machine, &node, output);
            if self.machines[machine].life != life {
                return;
            }
        }
        let next = node.next_timer();
        let place = &mut self.machines[machine];
        let more = !place.mailbox.is_empty();
        place.node = Some(node);
        if more {
            self.plan_step(machine, now);
        }
        if let Some(next) = next {
            self.plan_step(machine, next.max(now));
        }
    }

    fn carry_out(&mut self, machine: usize, node: &Node<ReplyId>, output: Output<ReplyId>) {
        match output {
            Output::Reply { reply, answer } => {
                let Some(asker) = self.ledger.askers.remove(&reply) else {
                    let what = format!("machine {machine} answers {reply} twice");
                    return self.violate("one answer for each request", what);
                };
                match asker {
                    Asker::Client(op) => self.client_answered(machine, op, answer),
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

    /// A message of a session has come: whether or not the node has read it, the session lives.
    fn heard(&mut self, machine: usize, input: &Input<ReplyId>) {
        let now = self.now();
        match input {
            Input::Attach { worker, offer } => {
                if let Some(session) = &offer.session {
                    self.ledger.touched(machine, &session.key.id, now);
                    self.ledger.links.insert(*worker, session.key.id.clone());
                    if offer.once {
                        self.ledger.poll_begins(machine, *worker, &session.key.id, now);
                    }
                }
            }
            Input::Touch { session } => self.ledger.touched(machine, &session.id, now),
            Input::Detach { worker } => self.ledger.poll_ends(*worker, now),
            Input::Credit { worker, .. } => self.ledger.touched_by(machine, *worker, now),
            _ => {}
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
