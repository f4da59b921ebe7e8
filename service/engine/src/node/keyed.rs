//! Starts with an execution key. In a call of its own, the store decides by the key whether each start
//! becomes an execution.

use std::collections::BTreeSet;

use recoup_core::command::Command;
use recoup_store::{KeySettled, KeyedStart, NodeId};

use super::batch::Fill;
use super::committer::Answered;
use super::io::{Output, Refusal};
use super::{Node, Timer};

impl<R> Node<R> {
    pub(super) fn start_keyed_ready(&mut self) {
        let Some(node) = self.node_id() else {
            return;
        };
        if !self.committer.may_start_keyed() {
            return;
        }
        let (mut starts, mut entries) = (Vec::new(), Vec::new());
        let mut fill = Fill::new(&self.options);
        // A call contains each key and each request id at most once. Further starts with the same ones wait
        // for the next call.
        let mut taken = BTreeSet::new();
        let mut later = Vec::new();
        while fill.may_decide(starts.len())
            && let Some(id) = self.committer.next_keyed()
        {
            let Some(slot) = self.slots.get(id) else {
                continue;
            };
            let policies = slot.key_policies;
            let names = slot.inbox.front().and_then(|pending| match &pending.command {
                Command::StartExecution(start) => {
                    let request = pending.request.as_ref().map(|request| request.id.clone());
                    Some((start.namespace.clone(), start.key.clone()?, request))
                }
                _ => None,
            });
            let Some((namespace, key, request)) = names else {
                continue;
            };
            let request = request.map(|request| (namespace.clone(), None, Some(request)));
            let name = (namespace, Some(key.clone()), None);
            if taken.contains(&name) || request.as_ref().is_some_and(|name| taken.contains(name)) {
                later.push(id);
                continue;
            }
            taken.insert(name);
            taken.extend(request);
            if let Some((entry, transition)) = self.decide(id) {
                fill.add_decision(&entry, &transition);
                let (on_running, on_ended) = policies;
                starts.push(KeyedStart { transition, key, on_running, on_ended });
                entries.push(entry);
            }
        }
        later.into_iter().for_each(|id| self.committer.wants_key(id));
        if let Some(starts) = self.committer.send_keyed(starts, entries, self.monotonic) {
            self.effects.push(Output::StartKeyed(node, starts));
        }
    }

    pub(super) fn keyed_started(
        &mut self,
        node: NodeId,
        settled: recoup_store::Result<Vec<KeySettled>>,
    ) {
        let (is_past, now) = (self.node_id() != Some(node), self.monotonic);
        let retry = self.options.commit_retry;
        let (entries, settled) = match self.committer.keyed_answered(settled, now, retry) {
            Answered::Nothing => return,
            Answered::LeaseLost if is_past => return self.start_keyed_again(),
            Answered::LeaseLost => return self.lose_life(),
            Answered::Again(error, pause) => {
                tracing::warn!(%error, ?pause, "starts with keys are sent again");
                return self.set_timer(pause, Timer::StartKeyed);
            }
            Answered::Settled { entries, settled, .. } => (entries, settled),
        };
        for (entry, settled) in entries.into_iter().zip(settled) {
            match settled {
                KeySettled::Won => self.won(entry),
                KeySettled::RequestTaken { execution, digest, started } => {
                    self.request_taken(entry, execution, digest, started);
                }
                KeySettled::UseExisting { execution } => {
                    self.slots.remove(entry.id);
                    for (pending, _) in entry.decided {
                        if let Some(reply) = pending.reply {
                            self.use_existing(execution, pending.until, reply, false);
                        }
                    }
                }
                KeySettled::Rejected { execution, state } => {
                    self.slots.remove(entry.id);
                    for (pending, _) in entry.decided {
                        if let Some(reply) = pending.reply {
                            self.reply(reply, Err(Refusal::KeyHeld { execution, state }));
                        }
                    }
                }
                KeySettled::TooNew { execution } => {
                    self.slots.remove(entry.id);
                    let reason = format!(
                        "execution {execution} holds the key, in a state that only a newer server knows"
                    );
                    for (pending, _) in entry.decided {
                        if let Some(reply) = pending.reply {
                            self.reply(reply, Err(Refusal::TooNew(reason.clone())));
                        }
                    }
                }
                KeySettled::Refused(reason) => self.refused(entry, reason),
            }
        }
        self.start_keyed_again();
    }

    pub(super) fn start_keyed_again(&mut self) {
        let Some(node) = self.node_id() else {
            return;
        };
        if let Some(starts) = self.committer.keyed_again() {
            self.effects.push(Output::StartKeyed(node, starts));
        }
    }
}
