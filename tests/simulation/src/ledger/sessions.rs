//! The sessions of workers, and the messages that really came from them.
//!
//! All times here are on the own clock of the machine that decided: a session's time to live is measured by
//! that clock alone, whatever happens to database time in the meantime.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use recoup_core::command::TaskId;
use recoup_core::time::Timestamp;
use recoup_engine::node::io::{Input, WorkerKey};
use recoup_store::NodeId;

use crate::machines::ReplyId;

/// A process of a node: a machine, and which of its lives.
pub type Process = (usize, u64);

/// Steps are forgotten after this time, because no decision refers to an older one.
const KEPT: Duration = Duration::from_secs(60);
/// The rounding error of a time to live.
const ROUNDING: Duration = Duration::from_micros(5);

#[derive(Default)]
pub struct Sessions {
    ttl: BTreeMap<String, Duration>,
    links: BTreeMap<WorkerKey, (Process, String)>,
    /// Connections that a node no longer knows. Messages that still arrive on them keep no session alive.
    ended: BTreeSet<WorkerKey>,
    /// The database time at which each process believed its steps to happen. Several steps have the same time
    /// while the time that the process goes by stands still.
    steps: BTreeMap<Process, BTreeMap<Timestamp, Vec<Duration>>>,
    at: BTreeMap<(Process, String), ObservedSession>,
    /// The process that each life belongs to.
    pub process_of: BTreeMap<NodeId, Process>,
}

/// A session at one process. It lives and ends on each process separately.
#[derive(Default)]
struct ObservedSession {
    attached: Vec<Duration>,
    /// When messages on streams and polls arrived. A unary call about a task renews the session as well,
    /// unless the attempt was closed: then the node no longer knows which session held it.
    heard: Vec<Duration>,
    /// The tasks that it was handed or has listed, and since when.
    held: BTreeMap<TaskId, Duration>,
    /// The polls that waited, and until when. Their worker counts as present during that time.
    polls: BTreeMap<WorkerKey, (Duration, Option<Duration>)>,
    /// When the node reported the session as lost.
    lost: Vec<Timestamp>,
}

impl Sessions {
    pub fn begin(&mut self, session: String, ttl: Duration) {
        self.ttl.insert(session, ttl);
    }

    pub fn of(&self, link: WorkerKey) -> Option<String> {
        self.links.get(&link).map(|(_, session)| session.clone())
    }

    fn session(&mut self, process: Process, session: &str) -> &mut ObservedSession {
        self.at.entry((process, session.to_owned())).or_default()
    }

    /// A node has handed a task over.
    pub fn handed(&mut self, link: WorkerKey, task: &TaskId, own: Duration) {
        if let Some((process, session)) = self.links.get(&link).cloned() {
            self.session(process, &session).held.entry(task.clone()).or_insert(own);
        }
    }

    /// A node has finished with a connection.
    pub fn link_ends(&mut self, link: WorkerKey, own: Duration) {
        self.ended.insert(link);
        if let Some((process, session)) = self.links.get(&link).cloned()
            && let Some((_, until)) = self.session(process, &session).polls.get_mut(&link)
        {
            until.get_or_insert(own);
        }
    }

    /// A message has arrived, whether or not the node has read it yet.
    pub fn heard(&mut self, process: Process, own: Duration, input: &Input<ReplyId>) {
        match input {
            Input::Attach { worker, offer } => {
                let Some(session) = &offer.session else {
                    return;
                };
                self.links.insert(*worker, (process, session.key.id.clone()));
                let session = self.session(process, &session.key.id);
                session.attached.push(own);
                session.heard.push(own);
                if offer.once {
                    session.polls.insert(*worker, (own, None));
                }
                if let Some(held) = &offer.held {
                    for task in held {
                        session.held.entry(task.clone()).or_insert(own);
                    }
                }
            }
            Input::Touch { session } => self.session(process, &session.id).heard.push(own),
            Input::Detach { worker } => self.link_ends(*worker, own),
            Input::Credit { worker, .. } => {
                if let Some((process, session)) = self.links.get(worker).cloned()
                    && !self.ended.contains(worker)
                {
                    self.session(process, &session).heard.push(own);
                }
            }
            _ => {}
        }
    }

    /// A process has taken a step, at the time that it believed it to be.
    pub fn step(&mut self, process: Process, own: Duration, says: Timestamp) {
        let steps = self.steps.entry(process).or_default();
        // A node's time never goes back.
        let says = steps.last_key_value().map_or(says, |(last, _)| says.max(*last));
        steps.entry(says).or_default().push(own);
        while let Some(first) = steps.first_entry()
            && first.get().last().is_some_and(|last| own > *last + KEPT)
        {
            first.remove();
        }
    }

    /// A process has reported a session as lost.
    pub fn lost(&mut self, process: Process, session: &str, at: Timestamp) {
        self.session(process, session).lost.push(at);
    }

    /// Whether a process reported a session as lost while it held a task.
    pub fn lost_with(
        &self,
        process: Process,
        session: &str,
        task: &TaskId,
        until: Timestamp,
    ) -> bool {
        let Some(known) = self.at.get(&(process, session.to_owned())) else {
            return false;
        };
        let Some(since) = known.held.get(task) else {
            return false;
        };
        let steps = self.steps.get(&process);
        known.lost.iter().any(|at| {
            let own = steps.and_then(|steps| steps.get(at)?.last());
            *at <= until && own.is_some_and(|own| since <= own)
        })
    }

    /// The reason why a session cannot have been lost when a process reported it.
    pub fn objection(&self, process: Process, session: &str, at: Timestamp) -> Option<String> {
        let steps = self.steps.get(&process).and_then(|steps| steps.get(&at));
        let steps = steps.into_iter().flatten();
        let mut objections = steps.map(|own| self.objection_then(process, session, at, *own));
        let Some(first) = objections.next() else {
            return Some("it did nothing at that time".into());
        };
        first.filter(|_| objections.all(|other| other.is_some()))
    }

    fn objection_then(
        &self,
        process: Process,
        session: &str,
        at: Timestamp,
        own: Duration,
    ) -> Option<String> {
        let (Some(known), Some(ttl)) =
            (self.at.get(&(process, session.to_owned())), self.ttl.get(session))
        else {
            return Some("it never heard of it".into());
        };
        let Some(last) = known.heard.iter().rev().find(|heard| **heard <= own) else {
            return Some("it had not heard of it yet".into());
        };
        if own - *last + ROUNDING < *ttl {
            return Some(format!("it sent something {:?} before", own - *last));
        }
        let polls = known.polls.values().find(|(since, until)| {
            *since <= own && until.is_none_or(|until| until <= own && own - until + ROUNDING < *ttl)
        });
        if let Some(poll) = polls {
            return Some(format!("a poll of it waited {poll:?}"));
        }
        let before = known.lost.iter().rev().find(|lost| **lost < at);
        let before = before.and_then(|lost| self.steps.get(&process)?.get(lost)?.first().copied());
        if let Some(before) = before
            && !known.attached.iter().any(|attached| (before..=own).contains(attached))
        {
            return Some("it had been lost already".into());
        }
        if !known.held.values().any(|since| *since <= own) {
            return Some("it held nothing".into());
        }
        None
    }
}
