//! How workers treat their tasks: they complete, fail, hang, die, report twice, report late, give tasks back,
//! and send heartbeats or not.

use std::time::Duration;

use recoup_core::command::{Command, Rejection, TaskId};
use recoup_core::error::TaskError;
use recoup_core::payload::Payload;
use recoup_engine::node::io::{Answer, Input, Refusal};

use crate::events::Event;
use crate::machines::{Asker, Request};
use crate::trace::short;
use crate::workers::{Job, Kind, Report, Todo, Wake, session_key};
use crate::world::World;

impl World<'_> {
    pub fn take_task(
        &mut self,
        worker: usize,
        life: u64,
        task: TaskId,
        beats: Option<Duration>,
        task_type: &str,
    ) {
        if self.workers.all[worker].jobs.contains_key(&task) {
            // The task was handed again to the worker that has it. Only the credit must be restored.
            if self.workers.all[worker].kind == Kind::Stream {
                let key = self.workers.all[worker].link.as_ref().map_or(0, |link| link.key);
                self.over_link(worker, Input::Credit { worker: key, tasks: 1 });
            }
            return;
        }
        if self.workers.all[worker].draining && self.workers.all[worker].kind == Kind::Stream {
            return self.release(worker, task);
        }
        self.check_receipt(worker, life, &task);
        let roll = self.random.below(100);
        let prone = task_type.contains("fails") && self.random.below(3) > 0;
        let todo = match (self.is_rough(), roll) {
            _ if prone => Todo::Fail,
            (true, 0..=66) | (false, 0..=91) => Todo::Complete,
            (true, 67..=83) | (false, _) => Todo::Fail,
            (true, 84..=88) => Todo::Hang,
            (true, 89..=92) => Todo::Twice,
            (true, 93..=95) => Todo::Die,
            (true, _) => Todo::GiveBack,
        };
        let duration = match self.random.below(12) {
            0 if self.is_rough() => self.random.millis(2_000, 4_500),
            1 | 2 => self.random.millis(300, 1_500),
            _ => self.random.millis(1, 250),
        };
        let job = Job { todo, report: None, beats };
        self.workers.all[worker].jobs.insert(task.clone(), job);
        if let Some(beats) = beats {
            self.after(beats / 3, Event::Worker(Wake::Beat(worker, life, task.clone())));
        }
        self.after(duration, Event::Worker(Wake::Work(worker, life, task)));
    }

    /// A job ends, one way or another.
    pub fn work(&mut self, worker: usize, life: u64, task: &TaskId) {
        let number = self.random.below(100);
        let error = match self.random.below(4) {
            0 => TaskError::new("user.declined", "no"),
            1 => TaskError {
                next_retry_delay: Some(Duration::from_millis(90)),
                ..TaskError::new("user.slow", "later")
            },
            _ => TaskError::new("user.transient", "try again"),
        };
        let name = self.name(worker);
        let Some(process) = self.process(worker, life) else {
            return;
        };
        let Some(job) = process.jobs.get_mut(task).filter(|job| job.report.is_none()) else {
            return;
        };
        let output = Payload::json(format!("{{\"n\":{number},\"by\":\"{name}\"}}"));
        let complete = |output| Report::Complete { task: task.clone(), output };
        match job.todo {
            Todo::Complete => job.report = Some(complete(output)),
            Todo::Fail => job.report = Some(Report::Fail { task: task.clone(), error }),
            Todo::Twice => {
                job.report = Some(complete(output));
                let other = Payload::json(format!("{{\"n\":{number},\"by\":\"other\"}}"));
                let other = complete(other);
                self.send_report(worker, life, other);
            }
            Todo::Hang => {
                let give_up = Wake::GiveUp(worker, life, task.clone());
                return self.after(Duration::from_secs(7), Event::Worker(give_up));
            }
            Todo::Die => return self.die(worker, life),
            Todo::GiveBack => {
                self.release(worker, task.clone());
                return self.job_over(worker, life, task);
            }
        }
        self.report(worker, life, task);
    }

    /// Gives a task back unstarted.
    fn release(&mut self, worker: usize, task: TaskId) {
        self.note_release(worker, &task);
        let life = self.workers.all[worker].life;
        self.send_report(worker, life, Report::Release { task });
    }

    /// Any message on a stream shows that its session is alive.
    fn touch(&mut self, worker: usize) {
        let session = session_key(&self.name(worker));
        self.over_link(worker, Input::Touch { session });
    }

    pub fn report(&mut self, worker: usize, life: u64, task: &TaskId) {
        let report = self
            .process(worker, life)
            .and_then(|process| process.jobs.get(task).and_then(|job| job.report.clone()));
        let Some(report) = report else {
            return;
        };
        self.send_report(worker, life, report);
        let after = match self.profile.polite {
            true => self.random.millis(200, 400),
            false => self.random.millis(2_000, 4_000),
        };
        self.after(after, Event::Worker(Wake::ReportAgain(worker, life, task.clone())));
    }

    pub fn send_report(&mut self, worker: usize, life: u64, report: Report) {
        let name = self.name(worker);
        let doubled = self.profile.doubled;
        let copies = if self.random.permille(doubled) { 2 } else { 1 };
        for _ in 0..copies {
            let reply = self.ask(Asker::Worker { worker, life, report: report.clone() });
            let execution = report.task().execution;
            let input = match report.clone() {
                Report::Complete { task, output } => {
                    let command = Command::CompleteTask { task, output, worker: name.clone() };
                    Input::Submit { execution, command, request: None, reply }
                }
                Report::Fail { task, error } => {
                    let command = Command::FailTask { task, error, worker: name.clone() };
                    Input::Submit { execution, command, request: None, reply }
                }
                Report::Beat { task } => Input::Heartbeat { task, details: None, reply },
                Report::Release { task } => {
                    let has_session = self.workers.all[worker].has_session();
                    let session = if has_session { name.clone() } else { String::new() };
                    Input::Release { task, session, reply }
                }
            };
            if self.workers.all[worker].kind == Kind::Stream {
                self.touch(worker);
                self.over_link(worker, input);
            } else {
                let machine = self.pick_machine(worker);
                self.send(machine, None, Request::Input(Box::new(input)));
            }
        }
    }

    /// A node has answered a report.
    pub fn worker_answered(
        &mut self,
        machine: usize,
        worker: usize,
        life: u64,
        report: Report,
        answer: Result<Answer, Refusal>,
    ) {
        let task = report.task();
        let (execution, path, attempt) = (short(&task.execution), &task.path, task.attempt);
        let name = self.name(worker);
        let text = match &answer {
            Ok(_) => "ok".to_owned(),
            Err(refusal) => refusal.to_string(),
        };
        let place = format!("{execution} {path}:{attempt}");
        self.note(format_args!("machine {machine} answers {name} about {place}: {text}"));
        self.check_worker_answer(machine, &report, &answer);
        let lost = self.profile.lost;
        if self.random.permille(lost) {
            return;
        }
        let answer = match answer {
            Ok(_) => Ok(true),
            Err(Refusal::Rejected(Rejection::AttemptClosed)) => Err(true),
            Err(_) => Err(false),
        };
        let delay = self.network_delay();
        self.after(delay, Event::Worker(Wake::Answered(worker, life, report, answer)));
    }

    pub fn hear_answer(
        &mut self,
        worker: usize,
        life: u64,
        report: &Report,
        answer: Result<bool, bool>,
    ) {
        let is_beat = matches!(report, Report::Beat { .. } | Report::Release { .. });
        match answer {
            Ok(_) if is_beat => {}
            Ok(_) | Err(true) => self.job_over(worker, life, report.task()),
            // The report was not accepted; it is sent again after a while.
            Err(false) => {}
        }
    }

    pub fn job_over(&mut self, worker: usize, life: u64, task: &TaskId) {
        let Some(process) = self.process(worker, life) else {
            return;
        };
        if process.jobs.remove(task).is_none() {
            return;
        }
        if process.draining {
            return self.end_if_drained(worker, life);
        }
        let key = process.link.as_ref().map(|link| link.key);
        match (process.kind, key) {
            (Kind::Stream, Some(key)) => {
                self.over_link(worker, Input::Credit { worker: key, tasks: 1 });
            }
            (Kind::Stream, None) => {}
            (Kind::Poll { .. }, _) => self.connect(worker, life),
        }
    }

    pub fn beat(&mut self, worker: usize, life: u64, task: TaskId) {
        let Some(process) = self.process(worker, life) else {
            return;
        };
        let Some(job) = process.jobs.get(&task).filter(|job| job.todo != Todo::Hang) else {
            return;
        };
        let Some(beats) = job.beats else {
            return;
        };
        self.send_report(worker, life, Report::Beat { task: task.clone() });
        self.after(beats / 3, Event::Worker(Wake::Beat(worker, life, task)));
    }
}
