//! What happens to the connections of workers: they are made, carry messages in order, break, and end.

use std::time::Duration;

use recoup_core::command::TaskId;
use recoup_core::time::Timestamp;
use recoup_engine::HandedTask;
use recoup_engine::node::Node;
use recoup_engine::node::io::{Input, Offer, Session, WorkerKey, WorkerMessage};

use crate::catalog::queue;
use crate::events::Event;
use crate::machines::{ReplyId, Request};
use crate::trace::short;
use crate::workers::{Kind, Link, Message, TTL, Wake, session_key};
use crate::world::World;

impl World<'_> {
    pub fn connect(&mut self, worker: usize, life: u64) {
        let machine = self.pick_machine(worker);
        let name = self.name(worker);
        let Some(process) = self.process(worker, life) else {
            return;
        };
        if process.link.is_some() {
            return;
        }
        let held: Vec<_> = process.jobs.keys().cloned().collect();
        let busy = u32::try_from(held.len()).unwrap_or(u32::MAX);
        let credit = process.slots.saturating_sub(busy);
        let is_poll = process.kind != Kind::Stream;
        if is_poll && (credit == 0 || process.draining) {
            // It polls again when a task is finished.
            return;
        }
        let credit = if process.draining { 0 } else { credit };
        let session = process.has_session().then(|| Session { key: session_key(&name), ttl: TTL });
        let queues = process.queues.iter().map(|name| queue(name)).collect();
        let task_types = process.task_types.clone();
        let key = self.new_worker_key();
        let offer = Offer {
            queues,
            task_types,
            credit,
            session,
            worker: name.clone(),
            held: Some(held),
            once: is_poll,
        };
        let node_life = self.machines[machine].life;
        let now = self.now();
        let link =
            Link { key, machine, life: node_life, to_node: now, to_worker: now, on_the_way: 0 };
        self.workers.all[worker].link = Some(link);
        self.workers.links.insert(key, (worker, life));
        let held = offer.held.as_ref().map_or(0, Vec::len);
        self.note(format_args!("worker {name} attaches to machine {machine}, holds {held}"));
        if self.machines[machine].node.is_none() || self.machines[machine].stopping.is_some() {
            return self.lose_link(worker, life);
        }
        self.over_link(worker, Input::Attach { worker: key, offer });
        if is_poll {
            let wait = self.random.millis(300, 2_000);
            self.after(wait, Event::Worker(Wake::PollOver(key)));
        }
    }

    /// Picks a machine to connect to. In a run without faults, no worker picks a machine that refuses connections.
    pub fn pick_machine(&mut self, worker: usize) -> usize {
        if !self.profile.polite {
            return self.random.index(self.machines.len());
        }
        // A session is alive only on the node that hears from it, so a worker stays with one machine if it can.
        let first = worker % self.machines.len();
        let all = (0..self.machines.len()).map(|step| (first + step) % self.machines.len());
        let serves = |machine: &usize| {
            let place = &self.machines[*machine];
            place.node.is_some() && place.stopping.is_none()
        };
        all.clone().find(serves).unwrap_or(first)
    }

    /// Sends a message over a worker's connection, in order. The connection may break.
    pub fn over_link(&mut self, worker: usize, input: Input<ReplyId>) {
        let Some(mut link) = self.workers.all[worker].link.clone() else {
            return;
        };
        let broken = self.profile.broken;
        if self.random.permille(broken) {
            let name = self.name(worker);
            self.note(format_args!("the connection of {name} breaks"));
            return self.break_link(worker);
        }
        let at = (self.now() + self.network_delay()).max(link.to_node);
        link.to_node = at;
        let (machine, life) = (link.machine, Some(link.life));
        self.workers.all[worker].link = Some(link);
        self.at(at, Event::Deliver { machine, life, request: Request::Input(Box::new(input)) });
    }

    /// A connection breaks. The node and the worker both notice after a while.
    pub fn break_link(&mut self, worker: usize) {
        let Some(link) = self.workers.all[worker].link.clone() else {
            return;
        };
        let noticed = match self.is_rough() {
            true => self.random.millis(1, 2_500),
            false => self.random.millis(1, 100),
        };
        self.end_link(worker, &link, self.now() + noticed);
    }

    /// The server ends a connection, and from now on accepts nothing more on it.
    pub fn end_at_server(&mut self, worker: usize, link: &Link) -> Timestamp {
        self.workers.ended.insert(link.key);
        self.end_link(worker, link, self.now())
    }

    /// The node learns of the end after everything that was sent before.
    fn end_link(&mut self, worker: usize, link: &Link, noticed: Timestamp) -> Timestamp {
        let at = noticed.max(link.to_node);
        let request = Request::Input(Box::new(Input::Detach { worker: link.key }));
        let (machine, life) = (link.machine, Some(link.life));
        self.at(at, Event::Deliver { machine, life, request });
        let life = self.workers.all[worker].life;
        self.lose_link(worker, life);
        at
    }

    /// A server that is stopping ends the connections on which nothing is under way, or finally all. Returns
    /// when its node learns of the last one, if none is left.
    pub fn end_links(&mut self, machine: usize, all: bool) -> Option<Timestamp> {
        let (mut last, mut left) = (self.now(), false);
        for worker in 0..self.workers.all.len() {
            let process = &self.workers.all[worker];
            let Some(link) = process.link.clone().filter(|link| link.machine == machine) else {
                continue;
            };
            let busy = process.kind == Kind::Stream && !process.jobs.is_empty();
            if !all && (busy || link.on_the_way > 0) {
                left = true;
                continue;
            }
            last = self.end_at_server(worker, &link).max(last);
        }
        (!left).then_some(last)
    }

    pub fn stream_key(&self, worker: usize) -> Option<WorkerKey> {
        let process = &self.workers.all[worker];
        process.link.as_ref().filter(|_| process.kind == Kind::Stream).map(|link| link.key)
    }

    /// A server that is stopping hands no more tasks to its streams.
    pub fn drain_links(&mut self, machine: usize) {
        for worker in 0..self.workers.all.len() {
            let link = self.workers.all[worker].link.as_ref();
            let here = link.is_some_and(|link| link.machine == machine);
            if let Some(key) = self.stream_key(worker).filter(|_| here) {
                let life = Some(self.machines[machine].life);
                let request = Request::Input(Box::new(Input::Drain { worker: key }));
                self.after(Duration::ZERO, Event::Deliver { machine, life, request });
            }
        }
    }

    pub fn lose_link(&mut self, worker: usize, life: u64) {
        if let Some(link) = self.workers.all[worker].link.take() {
            self.workers.links.remove(&link.key);
        }
        let after = self.random.millis(1, if self.profile.polite { 200 } else { 600 });
        self.after(after, Event::Worker(Wake::Connect(worker, life)));
        if self.workers.all[worker].draining {
            self.end_if_drained(worker, life);
        }
    }

    /// A machine has crashed, and its connections with it.
    pub fn break_links_to(&mut self, machine: usize) {
        for worker in 0..self.workers.all.len() {
            let process = &self.workers.all[worker];
            if process.link.as_ref().is_some_and(|link| link.machine == machine) {
                let life = process.life;
                self.lose_link(worker, life);
            }
        }
    }

    /// Sends a message of a node to a worker.
    pub fn tell(
        &mut self,
        machine: usize,
        node: &Node<ReplyId>,
        key: WorkerKey,
        message: WorkerMessage,
    ) {
        let own = self.machines[machine].clock.elapsed(self.now());
        let is_stream = self
            .workers
            .links
            .get(&key)
            .is_some_and(|(worker, _)| self.workers.all[*worker].kind == Kind::Stream);
        let ends = match &message {
            WorkerMessage::CancelRequested(_) | WorkerMessage::Closed(_) => false,
            WorkerMessage::Tasks(_) => !is_stream,
            WorkerMessage::Detached | WorkerMessage::Superseded => true,
        };
        if ends {
            self.ledger.sessions.link_ends(key, own);
        }
        let message = match message {
            WorkerMessage::Tasks(tasks) => {
                let mut told = Vec::new();
                for handed in &tasks {
                    self.check_hand_out(machine, node, handed);
                    told.push(self.describe_task(machine, key, handed));
                }
                let ended = self.workers.ended.contains(&key);
                if ended || (is_stream && self.machines[machine].stopping.is_some()) {
                    // A stream that is ending passes no new tasks on.
                    return self.give_back(machine, key, ended, tasks);
                }
                for handed in &tasks {
                    self.check_sent(handed);
                    self.ledger.sessions.handed(key, &handed.id, own);
                }
                Message::Tasks(told)
            }
            WorkerMessage::CancelRequested(task) => Message::CancelRequested(task),
            WorkerMessage::Closed(task) => Message::Closed(task),
            WorkerMessage::Detached | WorkerMessage::Superseded => Message::Detached,
        };
        let Some((worker, _)) = self.workers.links.get(&key).copied() else {
            return;
        };
        let Some(mut link) = self.workers.all[worker].link.clone().filter(|link| link.key == key)
        else {
            return;
        };
        let (broken, lost) = (self.profile.broken, self.profile.lost);
        let is_poll = self.workers.all[worker].kind != Kind::Stream;
        if is_poll && self.random.permille(lost) {
            return self.note(format_args!("the answer to a poll is lost"));
        }
        if self.random.permille(broken) {
            let name = self.name(worker);
            self.note(format_args!("the connection of {name} breaks"));
            return self.break_link(worker);
        }
        let at = (self.now() + self.network_delay()).max(link.to_worker);
        link.to_worker = at;
        link.on_the_way += 1;
        self.workers.all[worker].link = Some(link);
        self.at(at, Event::Worker(Wake::Hear(key, message)));
    }

    /// Returns tasks that did not reach the worker to the node. The driver, which finds that the link is
    /// gone, detaches the worker first; otherwise the node would hand the same tasks to it again and again.
    fn give_back(&mut self, machine: usize, key: WorkerKey, gone: bool, tasks: Vec<HandedTask>) {
        let undelivered = tasks.into_iter().map(|handed| {
            let HandedTask { id: task, handed_at, .. } = handed;
            Input::Undelivered { task, handed_at }
        });
        if gone {
            // The driver does so at once, before it takes in anything else.
            let inputs = std::iter::once(Input::Detach { worker: key }).chain(undelivered);
            return self.put_first(machine, inputs.collect());
        }
        let life = Some(self.machines[machine].life);
        for input in undelivered {
            let request = Request::Input(Box::new(input));
            self.after(Duration::ZERO, Event::Deliver { machine, life, request });
        }
    }

    fn describe_task(
        &mut self,
        machine: usize,
        key: WorkerKey,
        handed: &HandedTask,
    ) -> (TaskId, Option<Duration>, String) {
        let task = handed.id.clone();
        let plan = handed.plan.task(&task.path);
        let beats = plan.and_then(|plan| plan.heartbeat);
        let task_type = plan.map_or(String::new(), |plan| plan.task_type.clone());
        let (execution, path, attempt) = (short(&task.execution), &task.path, task.attempt);
        self.note(format_args!("machine {machine} hands {execution} {path}:{attempt} to {key}"));
        (task, beats, task_type)
    }

    /// The API answers a poll that has got nothing, and detaches it.
    pub fn poll_over(&mut self, key: WorkerKey) {
        let Some((worker, _)) = self.workers.links.get(&key).copied() else {
            return;
        };
        let link = self.workers.all[worker].link.clone();
        if let Some(link) = link.filter(|link| link.key == key && link.on_the_way == 0) {
            self.end_at_server(worker, &link);
        }
    }
}
