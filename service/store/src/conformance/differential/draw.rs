//! Draws random operations. Names come from small pools, so that operations collide. The winners are
//! remembered, so that most of the drawn operations make sense and some narrowly fail to.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use recoup_core::command::TaskId;
use recoup_core::execution::{CompensationState, Phase, State};
use recoup_core::failure_event::FailureKind;
use recoup_core::id::{ExecutionId, Namespace, TransitionId};
use recoup_core::key::{OnEnded, OnRunning};
use recoup_core::quarantine::{Quarantine, QuarantineReason};
use recoup_core::time::Timestamp;
use uuid::Uuid;

use super::operation::{Answer, Op, is_over};
use crate::contract::*;

/// The namespaces in which rows are written.
const NAMESPACES: [&str; 3] = ["default", "team", "team.eu"];
const NAMESPACES_MORE: [&str; 7] = ["default", "team", "team.eu", "a", "b", "c", "d"];
const WORKFLOWS: [&str; 3] = ["order", "refund", "audit"];
const SUBSCRIPTIONS: [&str; 4] = ["alerts", "mirror", "pager", "audit"];
const ERROR_TYPES: [&str; 6] =
    ["", "payment", "payment.card_declined", "payments", "recoup.worker_lost", "a_b%c"];
const QUEUES: [&str; 3] = ["a", "b", "c"];
const TASK_TYPES: [&str; 3] = ["charge", "ship", "refund"];

pub(super) struct Draw {
    random: u64,
    now: Timestamp,
    made: u64,
    /// Operations to run before any new one is drawn. The next one is last.
    next: Vec<Op>,
    nodes: Vec<Life>,
    /// Executions that can continue.
    live: BTreeMap<ExecutionId, Live>,
    /// All other executions that were ever named.
    over: Vec<ExecutionId>,
    /// The failure events of transitions that won.
    events: Vec<String>,
    tasks: Vec<TaskKey>,
    /// The executions that were put into quarantine most recently.
    quarantined: Vec<ExecutionId>,
}

#[derive(Clone, Copy, PartialEq)]
enum Life {
    Runs,
    Expired,
    Closed,
}

struct Live {
    sequence: u64,
    /// The latest transition that won.
    last: Transition,
    /// The start, if the execution was started with a key.
    start: Option<KeyedStart>,
    /// The nodes whose next events for this execution come after all earlier ones: the node that wrote the last
    /// event, and the nodes that have loaded the execution since.
    following: BTreeSet<usize>,
}

impl Draw {
    pub fn new(seed: u64, now: Timestamp) -> Self {
        // The request ids of these calls are used again later.
        let namespaces = NAMESPACES[1..].iter().map(|name| {
            let request_id = format!("{} 0", RegistryOperation::CreateNamespace.as_str());
            let request = RegistryRequest { namespace: "".into(), request_id, digest: 0 };
            Op::CreateNamespace((*name).into(), (*name == "team").then_some(request))
        });
        let nodes = [false, false, true].map(|expired| Op::Join { expired });
        let mut next: Vec<_> = namespaces.chain(nodes).collect();
        next.reverse();
        Self {
            random: seed,
            now,
            made: 0,
            next,
            nodes: vec![],
            live: BTreeMap::new(),
            over: vec![],
            events: vec![],
            tasks: vec![],
            quarantined: vec![],
        }
    }

    pub fn op(&mut self) -> Op {
        if let Some(op) = self.next.pop() {
            return op;
        }
        if self.nodes.iter().filter(|life| **life == Life::Runs).count() < 2 {
            return Op::Join { expired: false };
        }
        match self.below(100) {
            0 => Op::Join { expired: self.one_in(2) },
            1 => Op::Renew(self.node()),
            2 => Op::Leave(self.node()),
            3..=5 => Op::Adopt(self.node()),
            6..=35 => self.commit(),
            36..=45 => self.keyed(),
            46..=49 => Op::Load(self.node(), self.executions()),
            50..=52 => Op::Heads(self.executions()),
            53..=54 => {
                let wake = |number: i64| Timestamp::from_micros(WAKE.as_micros() + number);
                let until = wake(self.number(self.made + 1));
                let after = self.one_in(2).then(|| self.execution()).flatten();
                let wake_at = wake(self.number(self.made + 1));
                let after = after.map(|execution| Due { wake_at, execution });
                Op::Due(self.node(), until, after, self.limit())
            }
            55 => self.list(),
            56 => self.release(),
            57 => self.quarantine(),
            58 if self.one_in(3) => {
                let last = self.quarantined.last().copied();
                Op::Indexed(last.filter(|_| self.one_in(2)).unwrap_or_else(|| self.known()))
            }
            58 => self.release(),
            59 => Op::KeyHolder(self.namespace(), self.key()),
            60 => Op::StartedBy(self.namespace(), self.request_id()),
            61..=64 => self.overflow(),
            65..=67 => {
                let idle = (0..1 + self.below(2)).map(|_| self.idle()).collect();
                Op::Claim(self.node(), idle, self.limit())
            }
            68 => Op::PublishIdle(self.node(), (0..self.below(3)).map(|_| self.idle()).collect()),
            69 => Op::Withdraw((0..self.below(4)).filter_map(|_| self.task()).collect()),
            70 => Op::OverflowDepth,
            71..=74 => Op::ReadFeed(self.limit()),
            75 => Op::FeedStart(20 + self.limit()),
            76 if self.one_in(4) => Op::FeedEnd,
            76..=77 => Op::Failure(self.old_event().unwrap_or_default()),
            78..=79 => self.list_failures(),
            80 => {
                let name = self.pick(&NAMESPACES_MORE).into();
                let request = self.registry_request(RegistryOperation::CreateNamespace);
                let of_none = |request| RegistryRequest { namespace: "".into(), ..request };
                Op::CreateNamespace(name, request.map(of_none))
            }
            81 => Op::Namespace(self.pick(&NAMESPACES_MORE).into()),
            82 => {
                let after = self.one_in(2).then(|| self.pick(&NAMESPACES_MORE).into());
                Op::ListNamespaces(after, self.limit())
            }
            83..=84 => self.register(),
            85 => Op::Workflow(self.namespace(), self.workflow(), self.version()),
            86 => {
                let after = self.one_in(2).then(|| self.workflow());
                Op::ListWorkflows(self.namespace(), after, self.limit())
            }
            87 if self.one_in(2) => {
                Op::ListVersions(self.namespace(), self.workflow(), self.version(), self.limit())
            }
            87..=88 => {
                let (of, name, number) = (self.namespace(), self.workflow(), self.version());
                let request = self.registry_request(RegistryOperation::RetireWorkflow);
                Op::Retire(of, name, number, request)
            }
            89..=90 => {
                let (of, name, byte) = (self.namespace(), self.subscription(), self.byte());
                let request = self.registry_request(RegistryOperation::CreateSubscription);
                Op::CreateSubscription(of, name, byte, request)
            }
            91 => {
                let (of, name) = (self.namespace(), self.subscription());
                match self.registry_request(RegistryOperation::CreateSubscription) {
                    Some(request) => Op::AcceptSubscription(of, name, request),
                    None => Op::Subscription(of, name),
                }
            }
            92 => Op::Subscription(self.namespace(), self.subscription()),
            93 => {
                let after = self.one_in(2).then(|| self.subscription());
                Op::ListSubscriptions(self.namespace(), after, self.limit())
            }
            94..=95 => Op::UpdateSubscription(self.namespace(), self.subscription(), self.byte()),
            96..=97 => {
                let (of, name) = (self.namespace(), self.subscription());
                let request = self.registry_request(RegistryOperation::DeleteSubscription);
                Op::DeleteSubscription(of, name, request)
            }
            _ => Op::Expire(1 + self.limit()),
        }
    }

    /// Updates what later operations may build on.
    pub fn learn(&mut self, op: &Op, answer: &Answer) {
        match op {
            Op::Join { expired } => {
                self.nodes.push(if *expired { Life::Expired } else { Life::Runs });
            }
            Op::Renew(node) if self.nodes[*node] == Life::Expired => {
                self.nodes[*node] = Life::Runs;
            }
            Op::Leave(node) => self.nodes[*node] = Life::Closed,
            Op::Adopt(node) if self.nodes[*node] != Life::Closed => {
                for (other, life) in self.nodes.iter_mut().enumerate() {
                    if other != *node && *life == Life::Expired {
                        *life = Life::Closed;
                    }
                }
            }
            Op::Commit(node, batch, _) => {
                for i in &answer.won {
                    self.won(*node, &batch.transitions[*i], None);
                }
            }
            Op::Keyed(node, starts, _) => {
                for i in &answer.won {
                    self.won(*node, &starts[*i].transition, Some(&starts[*i]));
                }
            }
            Op::Load(node, ids) => {
                for id in ids {
                    if let Some(live) = self.live.get_mut(id) {
                        live.following.insert(*node);
                    }
                }
            }
            Op::Overflow(_, tasks) => self.tasks.extend(tasks.iter().map(OverflowTask::key)),
            _ => {}
        }
    }

    fn won(&mut self, node: usize, transition: &Transition, start: Option<&KeyedStart>) {
        self.events.extend(transition.feed.iter().map(|event| event.id.clone()));
        let id = transition.execution;
        if transition.index.as_ref().is_some_and(is_over) {
            self.live.remove(&id);
            self.over.push(id);
            return;
        }
        let before = self.live.remove(&id);
        let (start_before, following) = before.map(|live| (live.start, live.following)).unzip();
        let start = start.cloned().or(start_before.flatten());
        let following = match following {
            Some(following) if transition.feed.is_empty() => following,
            _ => BTreeSet::from([node]),
        };
        let (sequence, last) = (transition.sequence, transition.clone());
        self.live.insert(id, Live { sequence, last, start, following });
    }

    /// Returns the operation, or first a load. The node must load each execution for which it writes events and
    /// whose last events another node wrote. Real nodes do so, and without it no store promises an order
    /// between the two on the feed. See [`Executions::load`].
    fn loaded(&mut self, node: usize, writes: &[ExecutionId], op: Op) -> Op {
        let follows = |live: &Live| live.following.contains(&node);
        let behind = |id: &&ExecutionId| self.live.get(*id).is_some_and(|live| !follows(live));
        let behind: Vec<_> = writes.iter().filter(behind).copied().collect();
        if behind.is_empty() {
            return op;
        }
        self.next.push(op);
        Op::Load(node, behind)
    }

    fn commit(&mut self) -> Op {
        let (mut again, mut transitions): (Vec<Transition>, Vec<Transition>) = (vec![], vec![]);
        let mut requests = Vec::new();
        for _ in 0..1 + self.below(6) {
            let id = self.execution();
            let named = again.iter().chain(&transitions).any(|other| Some(other.execution) == id);
            match (id, self.below(10)) {
                (Some(id), 0) if !named => again.push(self.live[&id].last.clone()),
                (Some(id), 1) if !named => {
                    // The place of this transition is taken.
                    let sequence = 1 + self.below(self.live[&id].sequence);
                    let index = Some(self.index());
                    let lost = Transition { index, ..self.transition(id, sequence) };
                    transitions.push(lost);
                }
                (Some(id), 2..=6) if !named => {
                    let sequence = self.live[&id].sequence + 1;
                    let mut next = self.transition(id, sequence);
                    next.index = self.one_in(2).then(|| self.index());
                    if self.one_in(12) {
                        self.spoil(&mut next);
                    }
                    transitions.push(next);
                }
                _ => {
                    let id = self.fresh();
                    let index = Some(self.index());
                    let mut start = Transition { index, ..self.transition(id, 1) };
                    if self.one_in(3) {
                        let request = self.request();
                        if !requests.contains(&request.request_id) {
                            requests.push(request.request_id.clone());
                            start.request = Some(request);
                        }
                    } else if self.one_in(12) {
                        self.spoil(&mut start);
                    } else if self.one_in(12) {
                        start.index = None;
                    }
                    transitions.push(start);
                }
            }
        }
        let count = again.len();
        again.extend(transitions);
        let mut feed: Vec<_> = (0..self.below(3)).map(|_| self.event(None)).collect();
        if self.one_in(6)
            && let Some(id) = self.old_event()
        {
            feed.push(FeedRow { id, ..self.event(None) });
        }
        let writes = again[count..].iter().filter(|transition| !transition.feed.is_empty());
        let writes: Vec<_> = writes.map(|transition| transition.execution).collect();
        let mut reminders = Vec::new();
        if self.one_in(3)
            && let Some(execution) = self.execution()
            && again.iter().all(|other| other.execution != execution)
        {
            reminders.push(Reminder { execution, wake_at: self.index().wake_at });
        }
        let batch = Batch { transitions: again, feed, reminders, ..Batch::default() };
        let node = self.node();
        self.loaded(node, &writes, Op::Commit(node, batch, count))
    }

    /// Adds an event whose id is, or was, on the feed.
    fn spoil(&mut self, transition: &mut Transition) {
        if let Some(id) = self.old_event() {
            let event = self.event(Some(transition.execution));
            transition.feed.push(FeedRow { id, ..event });
        }
    }

    fn keyed(&mut self) -> Op {
        let started: Vec<_> = self.live.values().filter_map(|live| live.start.clone()).collect();
        let again = !started.is_empty() && self.one_in(4);
        let mut starts = if again { vec![self.pick(&started)] } else { vec![] };
        let count = starts.len();
        for _ in 0..1 + self.below(3) {
            let id = self.fresh();
            let key = self.key();
            let index = IndexRow { key: Some(key.clone()), ..self.index() };
            let request = self.one_in(3).then(|| self.request());
            let mut transition =
                Transition { index: Some(index), request, ..self.transition(id, 1) };
            if transition.request.is_none() && self.one_in(8) {
                self.spoil(&mut transition);
            }
            let on_running = self.pick(&[OnRunning::Reject, OnRunning::UseExisting]);
            let on_ended = self.pick(&[
                OnEnded::Allow,
                OnEnded::AllowAfterFailure,
                OnEnded::Reject,
                OnEnded::UseExisting,
            ]);
            let request_id = |start: &KeyedStart| {
                start.transition.request.as_ref().map(|request| request.request_id.clone())
            };
            let start = KeyedStart { transition, key, on_running, on_ended };
            // By contract a call has each key and each request id only once.
            let clashes = starts.iter().any(|other| {
                other.key == start.key
                    || (request_id(other).is_some() && request_id(other) == request_id(&start))
            });
            if !clashes {
                starts.push(start);
            }
        }
        Op::Keyed(self.node(), starts, count)
    }

    fn transition(&mut self, execution: ExecutionId, sequence: u64) -> Transition {
        let feed = (0..self.below(3)).map(|_| self.event(Some(execution))).collect();
        let overflow_done = self.one_in(4).then(|| self.task()).flatten();
        let number = self.next_number();
        Transition {
            execution,
            sequence,
            transition_id: TransitionId(Uuid::from_u64_pair(self.random, number)),
            // Formats that only newer nodes read are not drawn.
            format: if self.one_in(40) { 2 } else { 1 },
            data: Bytes::from(vec![self.byte(); 1 + usize::from(self.byte())]),
            index: None,
            request: None,
            feed,
            overflow_done: overflow_done.into_iter().collect(),
            may_be_gone: true,
        }
    }

    fn index(&mut self) -> IndexRow {
        let state = match self.below(3) {
            0 => self.pick(&State::ALL),
            _ => State::Running,
        };
        let old = self.one_in(2);
        let compensation = match state {
            _ if !self.one_in(3) => CompensationState::None,
            State::Failed if !old => {
                self.pick(&[CompensationState::Parked, CompensationState::Running])
            }
            _ => CompensationState::Done,
        };
        let ended_at = state.is_ended().then_some(if old { LONG_AGO } else { self.now });
        let number = self.next_number();
        let wake_at = Timestamp::from_micros(WAKE.as_micros() + i64::try_from(number).unwrap_or(0));
        let error_type = self.pick(&ERROR_TYPES);
        IndexRow {
            format: 1,
            namespace: self.namespace(),
            workflow: self.workflow().into(),
            version: 1 + u32::from(self.byte()),
            key: None,
            state: state.into(),
            phase: self
                .pick(&[Phase::Steps, Phase::Compensation, Phase::OnFailure, Phase::Finally])
                .into(),
            compensation: compensation.into(),
            run: 1 + u32::from(self.byte()),
            error_type: (!error_type.is_empty()).then(|| error_type.into()),
            started_at: self.moment(),
            ended_at,
            wake_at: self.one_in(3).then_some(wake_at),
        }
    }

    fn event(&mut self, execution: Option<ExecutionId>) -> FeedRow {
        let number = self.next_number();
        let kinds = [FailureKind::AttemptFailed, FailureKind::StepFailed, FailureKind::WorkerLost];
        FeedRow {
            id: format!("event {number}"),
            namespace: self.namespace(),
            kind: self.pick(&kinds).into(),
            workflow: self.workflow().into(),
            error_type: self.pick(&ERROR_TYPES).into(),
            execution,
            fingerprint: format!("fingerprint {}", self.below(5)),
            at: if self.one_in(6) { LONG_AGO } else { self.now },
            format: u16::from(self.byte()),
            data: Bytes::from(vec![self.byte(); usize::from(self.byte())]),
        }
    }

    /// Usually an execution that exists.
    fn known(&mut self) -> ExecutionId {
        self.execution().unwrap_or_else(|| self.fresh())
    }

    fn quarantine(&mut self) -> Op {
        let node = self.node();
        let mut quarantined: Vec<NewQuarantine> = Vec::new();
        for _ in 0..1 + self.below(3) {
            let execution = if self.one_in(10) { self.fresh() } else { self.known() };
            // Now and then earlier than the previous quarantine.
            let number = if self.one_in(8) { 0 } else { self.next_number() };
            let number = i64::try_from(number).unwrap_or(0);
            let mut event = self.event(Some(execution));
            if self.one_in(8)
                && let Some(id) = self.old_event()
            {
                event.id = id;
            }
            let reason = self.pick(&QuarantineReason::ALL);
            let at = Timestamp::from_micros(WAKE.as_micros() + number);
            let quarantine = Quarantine::new(reason, &format!("found {number}"), at);
            if quarantined.iter().all(|other| other.execution != execution) {
                quarantined.push(NewQuarantine { execution, quarantine, event });
                self.quarantined.push(execution);
            }
        }
        let old = self.quarantined.len().saturating_sub(3);
        self.quarantined.drain(..old);
        Op::Quarantine(node, quarantined)
    }

    fn release(&mut self) -> Op {
        let request = (!self.one_in(4)).then(|| (String::from("release"), self.below(2)));
        let release = Release { reason: format!("fixed {}", self.below(9)), request };
        let id = match self.quarantined.clone() {
            last if !last.is_empty() && !self.one_in(4) => self.pick(&last),
            _ => self.known(),
        };
        Op::ReleaseQuarantine(self.node(), id, release)
    }

    fn list(&mut self) -> Op {
        let filter = ListFilter {
            namespace: self.one_in(4).then(|| self.namespace()),
            states: (0..self.below(3)).map(|_| self.pick(&State::ALL)).collect(),
            workflow: self.one_in(4).then(|| self.workflow().into()),
            error_type: self.one_in(4).then(|| self.pick(&ERROR_TYPES[1..]).into()),
            key_prefix: self.one_in(6).then(|| "key ".into()),
            started_after: self.one_in(4).then(|| self.moment()),
            started_before: self.one_in(4).then(|| self.moment()),
            quarantined: self.one_in(6),
        };
        let before = if self.one_in(3) { self.execution() } else { None };
        Op::List(filter, before, 1 + self.limit())
    }

    fn list_failures(&mut self) -> Op {
        let patterns = ["*", "*", "default", "team", "team.*"];
        let types = ["*", "payment", "payment.*", "recoup", "payments"];
        let kinds = [FailureKind::AttemptFailed, FailureKind::StepFailed];
        Op::ListFailures(FailureFilter {
            namespace: self.pick(&patterns).into(),
            workflows: (0..self.below(2)).map(|_| self.workflow().into()).collect(),
            kinds: (0..self.below(2)).map(|_| self.pick(&kinds)).collect(),
            error_types: (0..self.below(3)).map(|_| self.pick(&types).into()).collect(),
            execution: if self.one_in(4) { self.execution() } else { None },
        })
    }

    fn idle(&mut self) -> IdleCredit {
        let queues = (0..1 + self.below(3)).map(|_| self.queue()).collect();
        let task_types = (0..self.below(3)).map(|_| self.pick(&TASK_TYPES).into()).collect();
        IdleCredit { queues, task_types, credit: u32::try_from(self.below(6)).unwrap_or(1) }
    }

    fn overflow(&mut self) -> Op {
        let node = self.node();
        let tasks = (0..1 + self.below(4)).map(|_| {
            let number = self.next_number();
            let execution = self.execution().unwrap_or_else(|| self.fresh());
            let path = format!("step{}", self.below(3)).as_str().into();
            let attempt = 1 + u32::from(self.byte() % 2);
            let later = self.one_in(5);
            OverflowTask {
                task: TaskId { execution, run: 1, path, attempt, sequence: number },
                queue: self.queue(),
                task_type: self.pick(&TASK_TYPES).into(),
                priority: i32::from(self.byte() % 5) - 2,
                // No two tasks are equally old, because a store may choose between equals.
                available_at: if later {
                    self.now + Duration::from_secs(24 * 3600)
                } else {
                    Timestamp::from_micros(i64::try_from(number).unwrap_or(0))
                },
            }
        });
        Op::Overflow(node, tasks.collect())
    }

    fn register(&mut self) -> Op {
        let definition = self.pick(&["one", "two", "three"]);
        let mut digest = [0; 32];
        digest[..definition.len()].copy_from_slice(definition.as_bytes());
        let nowhere = self.one_in(6);
        let new = NewVersion {
            namespace: if nowhere { "nowhere".into() } else { self.namespace() },
            name: self.workflow().into(),
            digest,
            format: 1,
            definition: Bytes::from_static(definition.as_bytes()),
        };
        let request = self.registry_request(RegistryOperation::RegisterWorkflow);
        let without = nowhere && self.one_in(2);
        Op::Register(new, request.filter(|_| !without))
    }

    /// Usually a node that is running.
    fn node(&mut self) -> usize {
        let any = self.one_in(8);
        let nodes = self.nodes.iter().enumerate();
        let nodes = nodes.filter(|(_, life)| any || **life != Life::Closed);
        let nodes: Vec<_> = nodes.map(|(node, _)| node).collect();
        self.pick(&nodes)
    }

    /// An execution that can continue.
    fn execution(&mut self) -> Option<ExecutionId> {
        let ids: Vec<_> = self.live.keys().copied().collect();
        (!ids.is_empty()).then(|| self.pick(&ids))
    }

    fn executions(&mut self) -> Vec<ExecutionId> {
        let mut ids: Vec<_> = (0..self.below(4)).filter_map(|_| self.execution()).collect();
        if !self.over.is_empty() {
            let over = self.over.clone();
            ids.push(self.pick(&over));
        }
        ids.sort();
        ids.dedup();
        ids
    }

    fn fresh(&mut self) -> ExecutionId {
        // Ids are not in the order in which they are created.
        let number = self.next_number();
        super::super::world::execution_id(self.now, (splitmix(&mut self.random) << 32) | number)
    }

    fn old_event(&mut self) -> Option<String> {
        let events = self.events.len();
        let index = self.below(u64::try_from(events).unwrap_or(0).max(1));
        self.events.get(usize::try_from(index).unwrap_or(0)).cloned()
    }

    fn task(&mut self) -> Option<TaskKey> {
        let tasks = self.tasks.len();
        let index = self.below(u64::try_from(tasks).unwrap_or(0).max(1));
        self.tasks.get(usize::try_from(index).unwrap_or(0)).cloned()
    }

    fn request(&mut self) -> StartRequest {
        StartRequest {
            namespace: self.namespace(),
            request_id: self.request_id(),
            digest: splitmix(&mut self.random),
        }
    }

    /// Request ids come from a small pool so that they are used again, mostly by the same operation with the
    /// same body.
    fn registry_request(&mut self, operation: RegistryOperation) -> Option<RegistryRequest> {
        if self.one_in(3) {
            return None;
        }
        let other = self.one_in(6);
        let of = if other { self.pick(&RegistryOperation::ALL) } else { operation };
        // Numbers are few, so that ids collide. Some are new, because all ids of the small pool are used up at
        // some point, some of them by another operation.
        let number = if self.one_in(4) { 3 + self.next_number() } else { self.below(3) };
        let request_id = format!("{} {number}", of.as_str());
        let digest = u64::from(self.one_in(3));
        Some(RegistryRequest { namespace: self.namespace(), request_id, digest })
    }

    fn request_id(&mut self) -> String {
        format!("request {}", self.below(30))
    }

    fn key(&mut self) -> String {
        format!("key {}", self.below(12))
    }

    fn namespace(&mut self) -> Namespace {
        self.pick(&NAMESPACES).into()
    }

    fn workflow(&mut self) -> &'static str {
        self.pick(&WORKFLOWS)
    }

    fn subscription(&mut self) -> &'static str {
        self.pick(&SUBSCRIPTIONS)
    }

    fn queue(&mut self) -> QueueName {
        QueueName { namespace: self.namespace(), queue: self.pick(&QUEUES).into() }
    }

    fn version(&mut self) -> Option<u32> {
        self.one_in(2).then(|| 1 + u32::from(self.byte() % 6))
    }

    /// One of a few times, so that limits are hit exactly.
    fn moment(&mut self) -> Timestamp {
        self.now + Duration::from_secs(self.below(10))
    }

    fn limit(&mut self) -> usize {
        self.pick(&[1, 2, 5, 20, 1000])
    }

    fn byte(&mut self) -> u8 {
        splitmix(&mut self.random).to_le_bytes()[0]
    }

    fn number(&mut self, below: u64) -> i64 {
        i64::try_from(self.below(below)).unwrap_or(0)
    }

    fn next_number(&mut self) -> u64 {
        self.made += 1;
        self.made
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        let count = u64::try_from(from.len()).unwrap_or(1);
        from[usize::try_from(self.below(count)).unwrap_or(0)].clone()
    }

    fn below(&mut self, limit: u64) -> u64 {
        splitmix(&mut self.random) % limit
    }
}

const LONG_AGO: Timestamp = Timestamp::from_micros(1000);
/// The range of `wake_at` starts here.
const WAKE: Timestamp = Timestamp::from_micros(4_000_000_000_000_000);

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
