//! The store's side of the nodes' calls: when a call takes effect, how it is answered, and what can go wrong
//! in between.

use std::sync::Arc;
use std::time::Duration;

use recoup_engine::load::load;
use recoup_engine::node::io::{Adopted, Input, Output};
use recoup_store::memory::PendingCommit;
use recoup_store::{
    Batch, Error, Executions, KeySettled, KeyedStart, NodeId, Nodes, Overflow, Settled, Transitions,
};

use crate::calls::{Call, CallId, Late, LateWork, Progress, Reported, refused};
use crate::events::Event;
use crate::faults::{Moment, Site};
use crate::machines::ReplyId;
use crate::trace::{named, short, task_name};
use crate::wait::ready;
use crate::world::World;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    Unavailable,
    /// It took effect, and the answer is lost.
    UnknownDone,
    /// It did not take effect.
    UnknownNotDone,
    /// It takes effect later.
    UnknownLate,
    /// It has begun, and finishes later.
    UnknownOpen,
}

impl World<'_> {
    pub fn call(&mut self, machine: usize, output: Output<ReplyId>) {
        let Some(site) = Site::of(&output) else {
            return;
        };
        self.begin_call(machine, site, Progress::Asked(output));
    }

    pub fn call_leave(&mut self, machine: usize, node: NodeId) {
        self.begin_call(machine, Site::Leave, Progress::Leaving(node));
    }

    fn begin_call(&mut self, machine: usize, site: Site, progress: Progress) {
        let life = self.machines[machine].life;
        let asked = self.machines[machine].clock.elapsed(self.now());
        let id = self.id();
        let call = Call { machine, life, site, asked, progress };
        self.calls.insert(id, call);
        let delay = self.store_delay();
        self.after(delay, Event::Effect(id));
        self.crash_point(machine, site, Moment::BeforeEffect);
    }

    fn store_delay(&mut self) -> Duration {
        let late = self.profile.late;
        if self.random.permille(late) {
            return self.random.millis(50, 1_500);
        }
        Duration::from_micros(self.random.between(200, 4_000))
    }

    fn fault(&mut self, site: Site) -> Option<Fault> {
        let (unavailable, unknown) = (self.profile.unavailable, self.profile.unknown);
        if self.random.permille(unavailable) {
            return Some(Fault::Unavailable);
        }
        let commits = matches!(site, Site::Commit | Site::StartKeyed);
        if !commits || !self.random.permille(unknown) {
            return None;
        }
        let kinds =
            [Fault::UnknownDone, Fault::UnknownNotDone, Fault::UnknownLate, Fault::UnknownOpen];
        let kind = *self.random.pick(&kinds);
        if kind == Fault::UnknownOpen && site == Site::StartKeyed {
            return Some(Fault::UnknownLate);
        }
        Some(kind)
    }

    /// A call reaches the store.
    pub fn effect(&mut self, id: CallId) {
        let Some(call) = self.calls.get_mut(&id) else {
            return;
        };
        let (machine, life, site) = (call.machine, call.life, call.site);
        let progress = std::mem::replace(&mut call.progress, Progress::Taken);
        let orphan = !self.machines[machine].is_up(life);
        if orphan && self.random.below(2) == 0 {
            // The call is lost with the process that made it.
            self.calls.remove(&id);
            return;
        }
        let fault = if orphan { None } else { self.fault(site) };
        let output = match progress {
            Progress::Asked(output) => output,
            Progress::Leaving(node) => {
                // Whether or not the lease can be given back, the process ends.
                if fault.is_none() {
                    drop(ready(self.store.leave(node)));
                    self.note(format_args!("{node:?} leaves"));
                }
                return self.answer_later(id, None);
            }
            _ => return,
        };
        let unavailable = || Error::Unavailable("simulated".into());
        let unknown = || Error::OutcomeUnknown("simulated".into());
        if fault == Some(Fault::Unavailable) {
            return self.answer_later(id, refused(output, unavailable));
        }
        let input = match output {
            Output::Join => {
                let ttl = self.machines[machine].options().lease_ttl;
                let joined = ready(self.store.join("", ttl));
                if let Ok(lease) = &joined {
                    self.ledger.sessions.process_of.insert(lease.node, (machine, life));
                }
                Input::Joined(joined)
            }
            Output::Renew { node, reached } => {
                let ttl = self.machines[machine].options().lease_ttl;
                Input::Renewed(node, ready(self.store.renew(node, ttl, reached)))
            }
            Output::Commit(node, batch) => return self.commit(id, node, batch, fault),
            Output::StartKeyed(node, starts) => {
                self.land_all_of(node);
                match fault {
                    Some(Fault::UnknownNotDone) => Input::KeyedStarted(node, Err(unknown())),
                    Some(Fault::UnknownLate) => {
                        self.land_later(node, LateWork::Keyed(starts));
                        Input::KeyedStarted(node, Err(unknown()))
                    }
                    fault => {
                        let settled = ready(self.store.start_keyed(node, &starts));
                        self.keyed(node, &starts, &settled);
                        match fault {
                            Some(Fault::UnknownDone) => Input::KeyedStarted(node, Err(unknown())),
                            _ => Input::KeyedStarted(node, settled),
                        }
                    }
                }
            }
            Output::Load(node, asked) => {
                self.ledger.read_in_life.extend(asked.iter().map(|one| (node, one.execution)));
                let loaded = ready(load(&self.store, &self.catalog.cache, node, &asked));
                Input::Loaded { node, asked, loaded }
            }
            Output::Adopt { node, silent, limit } => {
                let adopted = ready(Adopted::ask(&self.store, node, &silent, limit));
                if let Ok(Adopted { executions, .. }) = &adopted
                    && !executions.is_empty()
                {
                    let adopted: Vec<_> = executions.iter().map(short).collect();
                    let adopted = adopted.join(", ");
                    self.note(format_args!("machine {machine} as {node:?} adopts {adopted}"));
                }
                Input::Adopted(node, adopted)
            }
            Output::Heads(node, ids) => Input::Heads(node, ready(self.store.heads(&ids))),
            Output::Due(node, until, after, limit) => {
                Input::Due(node, ready(self.store.due(node, until, after, limit)))
            }
            Output::Publish(node, idle) => {
                Input::Published(node, ready(self.store.publish_idle(node, &idle)))
            }
            Output::Claim { node, idle, limit, lease, now } => {
                let claimed = ready(self.store.claim(node, &idle, limit, lease, now));
                if let Ok(claimed) = &claimed
                    && !claimed.is_empty()
                {
                    let names = claimed.iter().map(|one| named(&one.task)).collect::<Vec<_>>();
                    let claimed = names.join(", ");
                    self.note(format_args!("machine {machine} as {node:?} claims {claimed}"));
                }
                Input::Claimed(node, claimed)
            }
            Output::Overflow(node, tasks) => {
                let result = ready(self.store.overflow(node, &tasks));
                let names = tasks.iter().map(|one| named(&one.task)).collect::<Vec<_>>();
                let names = names.join(", ");
                let left_out = match &result {
                    Ok(refused) if !refused.is_empty() => format!(", {} left out", refused.len()),
                    _ => String::new(),
                };
                self.note(format_args!(
                    "machine {machine} as {node:?} overflows {names}{left_out}"
                ));
                Input::Overflowed { node, tasks, result }
            }
            Output::WithdrawOverflow(keys) => {
                let _ = ready(self.store.withdraw(&keys));
                let names = keys.iter().map(|key| task_name(key.execution, &key.path, key.attempt));
                let names = names.collect::<Vec<_>>().join(", ");
                self.note(format_args!("machine {machine} withdraws {names}"));
                return self.answer_later(id, None);
            }
            Output::ReleaseQuarantine { node, execution, release, reply } => {
                let released = ready(self.store.release_quarantine(node, execution, &release));
                Input::QuarantineReleased { node, execution, released, reply }
            }
            Output::Reply { .. } | Output::Tell { .. } | Output::FeedWritten => return,
        };
        self.answer_later(id, Some(input));
    }

    fn commit(&mut self, id: CallId, node: NodeId, batch: Arc<Batch>, fault: Option<Fault>) {
        self.land_all_of(node);
        let unknown =
            || Some(Input::Committed(node, Err(Error::OutcomeUnknown("simulated".into()))));
        match fault {
            Some(Fault::UnknownNotDone) => return self.answer_later(id, unknown()),
            Some(Fault::UnknownLate) => {
                self.land_later(node, LateWork::Batch(batch));
                return self.answer_later(id, unknown());
            }
            _ => {}
        }
        let pending = match self.store.begin_commit(node, &batch) {
            Ok(pending) => pending,
            Err(error) => return self.answer_later(id, Some(Input::Committed(node, Err(error)))),
        };
        if fault == Some(Fault::UnknownOpen) {
            self.land_later(node, LateWork::Open(pending));
            return self.answer_later(id, unknown());
        }
        let reported = match fault {
            Some(Fault::UnknownDone) => Reported::Unknown,
            _ => Reported::Truth,
        };
        if let Some(call) = self.calls.get_mut(&id) {
            call.progress = Progress::Open(pending, reported);
        }
        let slow = self.profile.slow_commit;
        let open = match self.random.permille(slow) {
            true => self.random.millis(20, 1_200),
            false => Duration::from_micros(self.random.between(50, 3_000)),
        };
        self.after(open, Event::Finish(id));
    }

    /// An open transaction ends.
    pub fn finish(&mut self, id: CallId) {
        let Some(call) = self.calls.get_mut(&id) else {
            return;
        };
        let (machine, life) = (call.machine, call.life);
        let progress = std::mem::replace(&mut call.progress, Progress::Taken);
        let Progress::Open(pending, reported) = progress else {
            return;
        };
        let orphan = !self.machines[machine].is_up(life);
        if orphan && self.random.below(3) == 0 {
            self.note(format_args!("a transaction of {:?} is rolled back", pending.node()));
            self.store.abort(pending);
            self.calls.remove(&id);
            return;
        }
        let node = pending.node();
        let settled = self.finish_commit(pending);
        let input = match reported {
            Reported::Truth => Input::Committed(node, settled),
            Reported::Unknown => {
                Input::Committed(node, Err(Error::OutcomeUnknown("simulated".into())))
            }
        };
        self.answer_later(id, Some(input));
    }

    fn finish_commit(&mut self, pending: PendingCommit) -> recoup_store::Result<Vec<Settled>> {
        let (node, batch) = (pending.node(), pending.batch().clone());
        let settled = self.store.finish(pending);
        match &settled {
            Ok(settled) => {
                for row in &batch.feed {
                    self.note(format_args!("{node:?} tells of {}", row.id));
                    self.check_lost_session(node, row);
                }
                for (transition, settled) in batch.transitions.iter().zip(settled) {
                    let (id, sequence) = (transition.execution, transition.sequence);
                    match settled {
                        Settled::Won => {
                            self.ledger.read_in_life.insert((node, id));
                            self.advance_mirror(node, id);
                            let events = self.ledger.described(id, sequence);
                            self.note(format_args!(
                                "{node:?} wins {} #{sequence}: {events}",
                                short(&id)
                            ));
                        }
                        settled => {
                            self.note(format_args!(
                                "{node:?} at {} #{sequence}: {settled:?}",
                                short(&id)
                            ));
                        }
                    }
                }
            }
            Err(error) => self.note(format_args!("{node:?} commits nothing: {error}")),
        }
        settled
    }

    fn keyed(
        &mut self,
        node: NodeId,
        starts: &[KeyedStart],
        settled: &recoup_store::Result<Vec<KeySettled>>,
    ) {
        let Ok(settled) = settled else {
            return;
        };
        for (start, settled) in starts.iter().zip(settled) {
            let (id, key) = (start.transition.execution, &start.key);
            self.note(format_args!("{node:?} starts {} with {key}: {settled:?}", short(&id)));
            if *settled == KeySettled::Won {
                self.ledger.read_in_life.insert((node, id));
                self.advance_mirror(node, id);
                self.check_key(key);
            }
        }
    }

    fn land_later(&mut self, node: NodeId, what: LateWork) {
        let id = self.id();
        self.late.insert(id, Late { node, what });
        let after = self.random.millis(1, 400);
        self.after(after, Event::Late(id));
    }

    pub fn land(&mut self, id: u64) {
        let Some(Late { node, what }) = self.late.remove(&id) else {
            return;
        };
        self.note(format_args!("a commit of {node:?} lands late"));
        match what {
            LateWork::Open(pending) => drop(self.finish_commit(pending)),
            LateWork::Batch(batch) => {
                if let Ok(pending) = self.store.begin_commit(node, &batch) {
                    drop(self.finish_commit(pending));
                }
            }
            LateWork::Keyed(starts) => {
                let settled = ready(self.store.start_keyed(node, &starts));
                self.keyed(node, &starts, &settled);
            }
        }
    }

    /// Lets all late commits of one life take effect, because a life commits one batch after the other.
    fn land_all_of(&mut self, node: NodeId) {
        let of = self.late.iter().filter(|(_, late)| late.node == node).map(|(id, _)| *id);
        for id in of.collect::<Vec<_>>() {
            self.land(id);
        }
    }

    fn answer_later(&mut self, id: CallId, input: Option<Input<ReplyId>>) {
        let Some(call) = self.calls.get_mut(&id) else {
            return;
        };
        call.progress = Progress::Answered(input);
        let (machine, life, site) = (call.machine, call.life, call.site);
        let delay = self.store_delay();
        self.after(delay, Event::Answer(id));
        self.crash_at(machine, life, site, Moment::BeforeAnswer);
    }

    fn crash_at(&mut self, machine: usize, life: u64, site: Site, moment: Moment) {
        if self.machines[machine].is_up(life) {
            self.crash_point(machine, site, moment);
        }
    }

    pub fn answer(&mut self, id: CallId) {
        let Some(Call { machine, life, site, asked, progress }) = self.calls.remove(&id) else {
            return;
        };
        let Progress::Answered(input) = progress else {
            return;
        };
        if !self.machines[machine].is_up(life) {
            return;
        }
        match input {
            Some(input) => self.put_answer(machine, input, site, asked),
            // The answer concerns only the driver.
            None if self.crash_point(machine, site, Moment::AfterAnswer) => {}
            None if site == Site::Leave => self.left(machine),
            None => {}
        }
    }
}
