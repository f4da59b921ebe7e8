//! Starts with an execution key: one call of the store decides by the key whether each becomes an
//! execution.

use std::collections::BTreeSet;
use std::sync::Arc;

use recoup_core::command::Command;
use recoup_store::{Error, KeySettled, KeyedStart, NodeId};

use super::flight::Flight;
use super::io::{Output, Refusal};
use super::{Node, Timer};

impl<R> Node<R> {
    pub(super) fn start_keyed_ready(&mut self) {
        let Some(node) = self.node_id() else {
            return;
        };
        if self.keyed_batch.is_some() || self.keyed.is_empty() {
            return;
        }
        let (mut starts, mut entries) = (Vec::new(), Vec::new());
        let (mut bytes, mut events) = (0, 0);
        // At most one a key and request id in a call; the others wait for the next.
        let mut taken = BTreeSet::new();
        let mut later = Vec::new();
        while starts.len() < self.options.batch_transitions_max
            && bytes < self.options.batch_bytes_max
            && events < self.options.batch_events_max
            && let Some(id) = self.keyed.pop_front()
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
                bytes += transition.bytes() + entry.parsed;
                events += entry.events;
                let (on_running, on_ended) = policies;
                starts.push(KeyedStart { transition, key, on_running, on_ended });
                entries.push(entry);
            }
        }
        self.keyed.extend(later);
        if starts.is_empty() {
            return;
        }
        let starts = Arc::new(starts);
        self.effects.push(Output::StartKeyed(node, starts.clone()));
        self.keyed_batch = Some(Flight::new(starts, entries, self.monotonic));
    }

    pub(super) fn keyed_started(
        &mut self,
        node: NodeId,
        settled: recoup_store::Result<Vec<KeySettled>>,
    ) {
        let (is_past, now) = (self.node_id() != Some(node), self.monotonic);
        let Some(flight) = &mut self.keyed_batch else {
            return;
        };
        let settled = match settled {
            Ok(settled) => settled,
            Err(Error::LeaseLost) => {
                flight.rest();
                return if is_past { self.start_keyed_again() } else { self.lose_life() };
            }
            Err(error) => {
                let pause = flight.failed(self.options.commit_retry);
                tracing::warn!(%error, ?pause, "starts with keys are sent again");
                return self.set_timer(pause, Timer::StartKeyed);
            }
        };
        let (_, entries, is_all) = flight.succeeded(now);
        if is_all {
            self.keyed_batch = None;
        }
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
                KeySettled::Refused(reason) => self.refused(entry, reason),
            }
        }
        self.start_keyed_again();
    }

    pub(super) fn start_keyed_again(&mut self) {
        let Some(node) = self.node_id() else {
            return;
        };
        if let Some(starts) = self.keyed_batch.as_mut().and_then(Flight::again) {
            self.effects.push(Output::StartKeyed(node, starts));
        }
    }
}
