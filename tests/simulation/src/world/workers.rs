//! What workers do, by stream and by poll: they begin, are handed tasks, hear from nodes, drain and die.
//! [`super::jobs`] has what they do with their tasks.

use recoup_engine::node::io::{Input, WorkerKey};

use crate::catalog::QUEUES;
use crate::events::Event;
use crate::workers::{Kind, Message, Report, TTL, Wake, Worker, session_key};
use crate::world::World;

impl World<'_> {
    pub fn begin_workers(&mut self) {
        for worker in 0..self.workers.all.len() {
            let after = self.random.millis(0, 3_000);
            self.after(after, Event::Worker(Wake::Begin(worker)));
        }
    }

    /// Makes sure that from now on every queue has a worker.
    pub fn heal_workers(&mut self) {
        for _ in 0..2 {
            let worker = Worker::new(Kind::Stream, QUEUES.to_vec(), 4);
            self.workers.all.push(worker);
            let index = self.workers.all.len() - 1;
            let after = self.random.millis(0, 300);
            self.after(after, Event::Worker(Wake::Begin(index)));
        }
    }

    pub fn name(&self, worker: usize) -> String {
        format!("w{worker}.{}", self.workers.all[worker].life)
    }

    /// The worker, if it is still the same process.
    pub fn process(&mut self, worker: usize, life: u64) -> Option<&mut Worker> {
        let process = self.workers.all.get_mut(worker)?;
        (process.alive && process.life == life).then_some(process)
    }

    pub fn worker(&mut self, wake: Wake) {
        match wake {
            Wake::Begin(worker) => self.begin_worker(worker),
            Wake::Connect(worker, life) => self.connect(worker, life),
            Wake::Hear(key, message) => self.hear(key, message),
            Wake::Work(worker, life, task) => self.work(worker, life, &task),
            Wake::ReportAgain(worker, life, task) => self.report(worker, life, &task),
            Wake::Answered(worker, life, report, answer) => {
                self.hear_answer(worker, life, &report, answer);
            }
            Wake::KeepAlive(worker, life) => self.keep_alive(worker, life),
            Wake::Beat(worker, life, task) => self.beat(worker, life, task),
            Wake::PollOver(key) => self.poll_over(key),
            Wake::GiveUp(worker, life, task) => self.job_over(worker, life, &task),
            Wake::Drain(worker) => self.drain(worker),
        }
    }

    fn begin_worker(&mut self, worker: usize) {
        let process = &mut self.workers.all[worker];
        process.life += 1;
        process.alive = true;
        process.draining = false;
        process.jobs.clear();
        process.link = None;
        let life = process.life;
        let name = self.name(worker);
        self.note(format_args!("worker {name} begins"));
        if self.workers.all[worker].has_session() {
            self.ledger.sessions.begin(name, TTL);
        }
        self.connect(worker, life);
        self.after(TTL / 3, Event::Worker(Wake::KeepAlive(worker, life)));
    }

    pub fn die(&mut self, worker: usize, life: u64) {
        let Some(process) = self.process(worker, life) else {
            return;
        };
        process.alive = false;
        process.jobs.clear();
        let name = self.name(worker);
        self.note(format_args!("worker {name} dies"));
        self.break_link(worker);
        let after = match self.random.below(2) {
            0 => self.random.millis(50, 1_000),
            _ => self.random.millis(1_000, 6_000),
        };
        self.after(after, Event::Worker(Wake::Begin(worker)));
    }

    /// A process finishes the tasks that it has begun, and ends.
    fn drain(&mut self, worker: usize) {
        let process = &mut self.workers.all[worker];
        if !process.alive || process.draining {
            return;
        }
        process.draining = true;
        let life = process.life;
        let name = self.name(worker);
        self.note(format_args!("worker {name} drains"));
        if let Some(key) = self.stream_key(worker) {
            self.over_link(worker, Input::Drain { worker: key });
        }
        self.end_if_drained(worker, life);
    }

    pub fn end_if_drained(&mut self, worker: usize, life: u64) {
        let Some(process) = self.process(worker, life) else {
            return;
        };
        let waits = process.link.as_ref().is_some_and(|link| link.on_the_way > 0);
        // The answer to a poll may be on its way, so it is waited for.
        let polls = process.kind != Kind::Stream && process.link.is_some();
        if !process.draining || !process.jobs.is_empty() || waits || polls {
            return;
        }
        process.alive = false;
        let link = process.link.clone();
        let name = self.name(worker);
        self.note(format_args!("worker {name} ends"));
        if let Some(link) = link {
            self.end_at_server(worker, &link);
        }
        self.drained += 1;
        let after = self.random.millis(50, 2_000);
        self.after(after, Event::Worker(Wake::Begin(worker)));
    }

    fn hear(&mut self, key: WorkerKey, message: Message) {
        let Some((worker, life)) = self.workers.links.get(&key).copied() else {
            return;
        };
        if self.process(worker, life).is_none() {
            return;
        }
        if let Some(link) = &mut self.workers.all[worker].link {
            link.on_the_way = link.on_the_way.saturating_sub(1);
        }
        match message {
            Message::Tasks(tasks) => {
                for (task, beats, task_type) in tasks {
                    let taken = &self.workers.all[worker].task_types;
                    if !taken.is_empty() && !taken.contains(&task_type) {
                        let what = format!("worker {worker} gets {task_type} of {task:?}");
                        return self
                            .violate("a worker gets only the task types that it takes", what);
                    }
                    self.take_task(worker, life, task, beats, &task_type);
                }
                if self.workers.all[worker].kind != Kind::Stream {
                    // This poll is over, and the node has detached it.
                    self.lose_link(worker, life);
                }
            }
            Message::CancelRequested(task) => {
                let stops = self.random.below(2) == 0;
                if let Some(job) = self.workers.all[worker].jobs.get_mut(&task)
                    && job.report.is_none()
                    && stops
                {
                    job.stop();
                    self.work(worker, life, &task);
                }
            }
            Message::Closed(task) => self.job_over(worker, life, &task),
            Message::Detached => self.lose_link(worker, life),
        }
        // It may have been waiting only for this message.
        self.end_if_drained(worker, life);
    }

    fn keep_alive(&mut self, worker: usize, life: u64) {
        let name = self.name(worker);
        let Some(process) = self.process(worker, life) else {
            return;
        };
        match process.kind {
            Kind::Stream => self.over_link(worker, Input::Touch { session: session_key(&name) }),
            // A worker that polls shows that it is alive by sending heartbeats for its tasks.
            Kind::Poll { has_session: false } => {}
            Kind::Poll { has_session: true } => {
                for task in process.jobs.keys().cloned().collect::<Vec<_>>() {
                    self.send_report(worker, life, Report::Beat { task });
                }
            }
        }
        self.after(TTL / 3, Event::Worker(Wake::KeepAlive(worker, life)));
    }
}
