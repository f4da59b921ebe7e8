//! Orderly stops. A server ends its streams, answers its requests and gives its lease back. A worker gives
//! back the tasks that it has not begun and finishes the rest. Neither may cause anything to happen twice.

use std::time::Duration;

use recoup_engine::node::io::Input;
use recoup_store::NodeId;

use crate::events::Event;
use crate::machines::{Request, Stopping};
use crate::workers::{Wake, session_key};
use crate::world::World;

/// How long a node that was asked to stop may take before its process is killed.
const PATIENCE: Duration = Duration::from_secs(10);

impl World<'_> {
    pub fn plan_stops(&mut self) {
        let phase = u64::try_from(self.profile.phase.as_millis()).unwrap_or(0);
        for machine in 0..self.machines.len() {
            for _ in 0..self.profile.stops {
                let after = self.random.millis(1_000, phase);
                self.after(after, Event::Stop { machine });
            }
        }
    }

    /// The server ends its streams and polls. Workers that are busy may finish.
    pub fn stop(&mut self, machine: usize) {
        if !self.is_faulty() {
            return;
        }
        let until = self.now() + self.random.millis(100, 5_000);
        let place = &mut self.machines[machine];
        if place.node.is_none() || place.stopping.is_some() {
            return;
        }
        place.stopping = Some(Stopping { until, told_at: None, leaving: false });
        let life = place.life;
        self.note(format_args!("machine {machine} is told to stop"));
        self.deliver(machine, None, Request::Input(Box::new(Input::Close)));
        self.drain_links(machine);
        self.look_whether_drained(machine, life);
    }

    pub fn look_whether_drained(&mut self, machine: usize, life: u64) {
        let now = self.now();
        if !self.machines[machine].is_up(life) {
            return;
        }
        let Some(Stopping { until, told_at, .. }) = self.machines[machine].stopping else {
            return;
        };
        match told_at {
            None => {
                let is_late = now >= until;
                let last = self.end_links(machine, is_late);
                if let Some(last) = last {
                    if let Some(stopping) = &mut self.machines[machine].stopping {
                        stopping.told_at = Some(last);
                    }
                    self.at(last, Event::TellStop { machine, life });
                }
            }
            Some(told_at) if now > told_at + PATIENCE => {
                if self.profile.polite {
                    return self.violate("a polite stop ends", format!("machine {machine}"));
                }
                return self.crash(machine, "because it is killed");
            }
            Some(_) => {}
        }
        let after = self.random.millis(20, 60);
        self.after(after, Event::Drained { machine, life });
    }

    pub fn tell_stop(&mut self, machine: usize, life: u64) {
        if self.machines[machine].is_up(life) {
            self.put_stop(machine);
        }
    }

    /// Whether the process has finished its work and only gives its lease back.
    pub fn leave_if_stopped(&mut self, machine: usize, node: Option<NodeId>) -> bool {
        let is_told = self.machines[machine].node.as_ref().is_some_and(|node| node.is_stopping());
        let Some(stopping) = &mut self.machines[machine].stopping else {
            return false;
        };
        if !is_told || stopping.leaving {
            return stopping.leaving;
        }
        stopping.leaving = true;
        match node {
            Some(node) => self.call_leave(machine, node),
            None => self.left(machine),
        }
        true
    }

    /// The process has ended in an orderly way.
    pub fn left(&mut self, machine: usize) {
        self.note(format_args!("machine {machine} has stopped"));
        self.polite_stops += 1;
        self.end_process(machine);
        let reboot = self.random.millis(50, 3_000);
        self.after(reboot, Event::Boot { machine });
    }

    /// A server that is stopping accepts on its streams only what workers report about tasks that they hold.
    pub fn while_stopping(&mut self, request: Request) -> Option<Request> {
        let Request::Input(input) = request else {
            return Some(request);
        };
        match *input {
            Input::Credit { worker, .. } => {
                let session = session_key(&self.ledger.sessions.of(worker)?);
                Some(Request::Input(Box::new(Input::Touch { session })))
            }
            input => Some(Request::Input(Box::new(input))),
        }
    }

    pub fn plan_drains(&mut self) {
        let phase = u64::try_from(self.profile.phase.as_millis()).unwrap_or(0);
        let chance = self.profile.drains;
        for worker in 0..self.workers.count() {
            for _ in 0..2 {
                if self.random.permille(chance) {
                    let after = self.random.millis(500, phase);
                    self.after(after, Event::Worker(Wake::Drain(worker)));
                }
            }
        }
    }
}
