//! What clients do. They start executions, wait, cancel, terminate and resolve parked compensations. If they get no
//! answer, they repeat the request with the same request id, to any node. The subscriber reads the failure feed.

use std::time::Duration;

use recoup_core::command::{Command, RequestId, StartExecution};
use recoup_core::execution::{CompensationState, CompensationStepState, TraceContext};
use recoup_core::id::{ExecutionId, Namespace};
use recoup_core::key::{OnEnded, OnRunning};
use recoup_core::payload::Payload;
use recoup_engine::node::io::{Answer, Input, Refusal, StartSpec};
use recoup_store::format::NotFinalized;
use recoup_store::{Cursor, Feed, Nodes, PageLimit};

use crate::catalog::NAMESPACE;
use crate::clients::{Op, OpId, Recorded, Wake, Wish};
use crate::events::{Event, Stage};
use crate::machines::{Asker, ReplyId, Request};
use crate::trace::short;
use crate::wait::ready;
use crate::world::World;

const TRIES_MAX: u32 = 40;

impl World<'_> {
    pub fn begin_clients(&mut self) {
        let phase = u64::try_from(self.profile.phase.as_millis()).unwrap_or(0);
        for _ in 0..self.profile.starts {
            let workflow = self.random.index(self.catalog.plans.len());
            let key = (self.random.below(3) == 0).then(|| format!("key-{}", self.random.below(3)));
            let on_running = *self.random.pick(&[OnRunning::Reject, OnRunning::UseExisting]);
            let on_ended = *self.random.pick(&[
                OnEnded::Allow,
                OnEnded::AllowAfterFailure,
                OnEnded::Reject,
                OnEnded::UseExisting,
            ]);
            let waits = self.random.below(3) == 0;
            let wait = waits.then(|| self.random.millis(500, 6_000));
            let wish = Wish::Start { workflow, key, on_running, on_ended, wait };
            let has_request = self.random.below(5) > 0;
            let after = self.random.millis(0, phase * 3 / 4);
            self.wish(wish, has_request, after);
        }
        self.after(Duration::from_secs(2), Event::Client(Wake::Operator));
    }

    fn wish(&mut self, wish: Wish, has_request: bool, after: Duration) {
        let id = self.id();
        let name = has_request.then(|| format!("request-{id}"));
        self.wish_as(id, wish.clone(), name.clone(), after);
        let Some(name) = name else {
            return;
        };
        if self.random.below(5) == 0 {
            let later = after + self.random.millis(500, 9_000);
            self.after(later, Event::Client(Wake::Repeat(id)));
        }
        if self.random.below(5) == 0
            && let Some(other) = self.other_than(&wish)
        {
            let (id, later) = (self.id(), after + self.random.millis(0, 6_000));
            self.wish_as(id, other, Some(name), later);
        }
    }

    fn wish_as(&mut self, number: OpId, wish: Wish, request: Option<String>, after: Duration) {
        let request = request.map(|id| RequestId { id, digest: number });
        self.clients.ops.insert(number, Op { number, wish, request, done: false, tries: 0 });
        self.after(after, Event::Client(Wake::Ask(number)));
    }

    /// A different request that a careless client sends under the same request id.
    fn other_than(&mut self, wish: &Wish) -> Option<Wish> {
        Some(match wish.clone() {
            Wish::Start { workflow, key, on_running, on_ended, wait } => {
                let workflow = (workflow + 1) % self.catalog.plans.len();
                let key = if self.random.below(2) == 0 { key } else { None };
                Wish::Start { workflow, key, on_running, on_ended, wait }
            }
            Wish::Cancel(id) | Wish::RetryCompensation(id, _) => Wish::Terminate(id),
            Wish::Terminate(id) => Wish::Cancel(id),
            Wish::SkipCompensation(id, step) => Wish::RetryCompensation(id, Some(step)),
            Wish::Await(..) | Wish::Get(_) => return None,
        })
    }

    pub fn heal_clients(&mut self) {
        let known: Vec<_> = self.ledger.histories.keys().copied().collect();
        for id in known {
            let wait = self.random.millis(5_000, 30_000);
            self.wish(Wish::Await(id, wait), false, Duration::from_millis(500));
        }
    }

    pub fn client(&mut self, wake: Wake) {
        match wake {
            Wake::Ask(op) => self.send_wish(op),
            Wake::Again(id, tries) => {
                let again = self.clients.ops.get(&id);
                if again.is_some_and(|op| !op.done && op.tries == tries) {
                    self.send_wish(id);
                }
            }
            Wake::Repeat(id) => {
                let machine = self.random.index(self.machines.len());
                self.note(format_args!("op {id} asks machine {machine} once more"));
                self.send(machine, None, Request::Client(id));
            }
            Wake::Operator => self.operate(),
        }
    }

    fn send_wish(&mut self, id: OpId) {
        let Some(op) = self.clients.ops.get_mut(&id) else {
            return;
        };
        op.tries += 1;
        let tries = op.tries;
        let safe = op.request.is_some() || !matches!(op.wish, Wish::Start { .. });
        if (tries > 1 && !safe) || tries > TRIES_MAX {
            // A repeated request might start a second execution. Clients that cannot accept that give a request id.
            op.done = true;
            return;
        }
        let patience = match &op.wish {
            Wish::Start { wait, .. } => wait.unwrap_or_default(),
            Wish::Await(_, wait) => *wait,
            _ => Duration::ZERO,
        };
        let text = format!("{:?}", op.wish);
        let machine = self.random.index(self.machines.len());
        self.note(format_args!("op {id} try {tries} asks machine {machine}: {text}"));
        self.send(machine, None, Request::Client(id));
        let doubled = self.profile.doubled;
        if safe && self.random.permille(doubled) {
            let machine = self.random.index(self.machines.len());
            self.send(machine, None, Request::Client(id));
        }
        let healing = if self.is_faulty() { 0 } else { 20_000 };
        let after = patience + self.random.millis(1_500 + healing, 4_000 + healing);
        self.after(after, Event::Client(Wake::Again(id, tries)));
    }

    /// Sends a request that may be lost or delayed.
    pub fn send(&mut self, machine: usize, life: Option<u64>, request: Request) {
        let lost = self.profile.lost;
        if self.random.permille(lost) {
            return self.note(format_args!("lost on the way to machine {machine}"));
        }
        let delay = self.network_delay();
        self.after(delay, Event::Deliver { machine, life, request });
    }

    pub fn network_delay(&mut self) -> Duration {
        let late = self.profile.late;
        if self.random.permille(late) {
            return self.random.millis(100, 3_000);
        }
        Duration::from_micros(self.random.between(100, 5_000))
    }

    /// Turns a request into an input, as the API does: every copy of a start gets an execution id of its own.
    pub fn client_input(&mut self, machine: usize, id: OpId) -> Option<Input<ReplyId>> {
        let op = self.clients.ops.get(&id)?.clone();
        let recorded = self.recorded(&op);
        let reply = self.ask(Asker::Client(id, recorded));
        let (input, reason) = (op.input(), op.reason());
        let request = op.request;
        let submit = |execution, command| Input::Submit { execution, command, request, reply };
        let now = self.store_time(machine);
        Some(match op.wish {
            Wish::Start { workflow, key, on_running, on_ended, wait } => {
                let start = StartExecution {
                    id: self.new_execution_id(),
                    namespace: Namespace::from(NAMESPACE),
                    key,
                    input: Payload::json(input),
                    timeout: None,
                    trace: TraceContext::default(),
                };
                let plan = self.catalog.plans[workflow].clone();
                let until = wait.map(|wait| now + wait);
                let request = self.clients.ops.get(&id).and_then(|op| op.request.clone());
                let spec = StartSpec { start, plan, on_running, on_ended, request, until };
                Input::Start { spec: Box::new(spec), reply }
            }
            Wish::Await(execution, wait) => Input::Await { execution, until: now + wait, reply },
            Wish::Get(execution) => Input::Get { execution, reply },
            Wish::Cancel(execution) => submit(execution, Command::CancelExecution { reason }),
            Wish::Terminate(execution) => {
                submit(execution, Command::TerminateExecution { reason, unstarted: Vec::new() })
            }
            Wish::RetryCompensation(execution, step) => {
                submit(execution, Command::RetryCompensation { step, reason })
            }
            Wish::SkipCompensation(execution, step) => {
                submit(execution, Command::SkipCompensation { step, reason })
            }
        })
    }

    /// Checks the answer of a node, whether or not the answer will arrive.
    pub fn client_answered(
        &mut self,
        machine: usize,
        id: OpId,
        recorded: Option<Recorded>,
        answer: Result<Answer, Refusal>,
    ) {
        let Some(op) = self.clients.ops.get(&id).cloned() else {
            return;
        };
        let answer = self.after_look_at_formats(answer);
        let text = match &answer {
            Ok(Answer::Done { outcome, is_own }) => {
                let id = short(&outcome.execution);
                format!("{id} {:?} #{} own {is_own}", outcome.state, outcome.sequence)
            }
            Ok(Answer::Recorded { sequence, .. }) => format!("recorded #{sequence}"),
            Ok(Answer::Snapshot(snapshot)) => format!("snapshot #{}", snapshot.state.sequence),
            Ok(Answer::Beat { .. }) => "beat".to_owned(),
            Ok(Answer::Released) => "released".to_owned(),
            Err(refusal) => refusal.to_string(),
        };
        self.note(format_args!("machine {machine} answers op {id}: {text}"));
        self.check_client_answer(machine, &op, &answer);
        self.check_request(&op, recorded, &answer);
        let lost = self.profile.lost;
        if self.random.permille(lost) {
            return;
        }
        let retry = matches!(
            answer,
            Err(Refusal::Overloaded { .. }
                | Refusal::Unavailable(_)
                | Refusal::OutcomeUnknown
                | Refusal::Stopping)
        );
        if retry {
            let after = self.random.millis(50, 400);
            let tries = self.clients.ops.get(&id).map_or(0, |op| op.tries);
            return self.after(after, Event::Client(Wake::Again(id, tries)));
        }
        let Some(op) = self.clients.ops.get_mut(&id) else {
            return;
        };
        if std::mem::replace(&mut op.done, true) {
            return;
        }
        let starts = matches!(op.wish, Wish::Start { .. });
        if let (true, Ok(Answer::Done { outcome, .. })) = (starts, &answer) {
            self.follow_up(outcome.execution);
        }
    }

    /// What `Engine::start` makes of the refusal of a node that does not know yet which formats the store
    /// may hold.
    fn after_look_at_formats(&self, answer: Result<Answer, Refusal>) -> Result<Answer, Refusal> {
        match answer {
            Err(Refusal::NotFinalized(refused)) if self.permits(&refused) => {
                Err(Refusal::Unavailable(String::new()))
            }
            answer => answer,
        }
    }

    pub fn permits(&self, refused: &NotFinalized) -> bool {
        let formats = ready(self.store.formats()).expect("the model answers");
        formats.writable.permit(refused.row, refused.needed).is_ok()
    }

    /// The further requests of clients about an execution that they have started.
    fn follow_up(&mut self, id: ExecutionId) {
        if self.stage != Stage::Faults {
            return;
        }
        match self.random.below(12) {
            0..=3 => {
                let (wait, after) =
                    (self.random.millis(1_000, 8_000), self.random.millis(0, 2_000));
                self.wish(Wish::Await(id, wait), false, after);
            }
            4 | 5 => {
                let after = self.random.millis(0, 2_500);
                let has_request = self.random.below(2) == 0;
                self.wish(Wish::Cancel(id), has_request, after);
            }
            6 => {
                let after = self.random.millis(0, 2_500);
                let has_request = self.random.below(2) == 0;
                self.wish(Wish::Terminate(id), has_request, after);
            }
            7 => {
                let after = self.random.millis(0, 1_500);
                self.wish(Wish::Get(id), false, after);
            }
            _ => {}
        }
    }

    /// An operator looks for parked compensations.
    fn operate(&mut self) {
        let mut wishes = Vec::new();
        let histories = self.ledger.histories.iter();
        let parked = histories.filter_map(|(id, rows)| {
            let state = &rows.last()?.state;
            (state.compensation == CompensationState::Parked).then_some((*id, state))
        });
        for (id, state) in parked {
            let steps = state.compensations().iter();
            let step =
                steps.filter(|one| matches!(one.state, CompensationStepState::Parked { .. }));
            if let Some(step) = step.map(|one| one.step.clone()).next() {
                wishes.push((id, step));
            }
        }
        for (id, step) in wishes {
            let wish = match self.random.below(6) {
                0 => Wish::RetryCompensation(id, None),
                1 => Wish::RetryCompensation(id, Some(step)),
                2 => Wish::SkipCompensation(id, step),
                _ => continue,
            };
            let has_request = self.random.below(2) == 0;
            self.wish(wish, has_request, Duration::ZERO);
        }
        if self.stage != Stage::Settling {
            self.after(Duration::from_secs(3), Event::Client(Wake::Operator));
        }
    }

    /// The subscriber reads the next events of the feed.
    pub fn read_feed(&mut self) {
        let limit = self.random.index(6) + 1;
        // Between its polls it keeps the cursor as text, as clients do.
        let text = self.subscriber.cursor.encode();
        let limit = PageLimit::events(limit);
        let page =
            Cursor::decode(&text).and_then(|cursor| ready(self.store.read_feed(&cursor, limit)));
        match page {
            Ok(page) => {
                if let Some(gap) = page.gap {
                    self.violate("the feed skips nothing", format!("a gap of {gap}"));
                }
                for event in &page.events {
                    let id = event.row.id.clone();
                    self.note(format_args!("the subscriber gets {id}"));
                }
                self.subscriber.got.extend(page.events);
                self.subscriber.cursor = page.cursor;
            }
            Err(error) => self.violate("the feed can be read", error.to_string()),
        }
        let pause = match self.random.below(10) {
            0 => self.random.millis(100, 1_000),
            _ => Duration::from_micros(self.random.between(1_000, 40_000)),
        };
        self.after(pause, Event::Read);
    }
}
