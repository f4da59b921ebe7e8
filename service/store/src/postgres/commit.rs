//! Commits a batch. The first try assumes that nothing stands in its way and takes one round trip
//! ([`super::at_once`]). If that fails, each transition is settled on its own, in one transaction of several
//! statements.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use recoup_core::id::{ExecutionId, TransitionId};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::at_once::{commit_at_once, going_on};
use super::error::{ErrorClass, Failure};
use super::lane::Held;
use super::numbers::Numbers;
use super::rows::{Events, Reminders, Requests, Rows};
use super::savepoint::{Attempted, bisect};
use super::session::{Call, LaneSession};
use super::transaction::{begin, end};
use super::{Inner, PostgresStore, quarantine};
use crate::contract::{
    Batch, KeySettled, KeyedStart, NodeId, Result, Settled, Transition, Transitions,
};
use crate::settle::{self, Found, TakenRequest};

/// How many times a transaction that meets a deadlock is sent before the error is returned to the caller.
pub(super) const SENT_MAX: usize = 8;

const THERE: &str = "
    select history.execution_id, history.transition_id
    from unnest($1::uuid[], $2::int8[]) as asked (execution_id, sequence)
    join history on history.execution_id = asked.execution_id
        and history.sequence = asked.sequence";
/// Finds executions that retention has deleted, by their index row, which retention deletes first. Where
/// ranges of histories are replaced as a whole, the transitions stay for a while, and the place after the last
/// one looks free.
const GONE: &str = "
    select asked.id from unnest($1::uuid[]) as asked (id)
    where not exists (select from execution where execution.id = asked.id)";
const REQUESTS: &str = "
    select asked.transition_id, request.execution_id, request.digest, request.transition_id,
        request.started
    from unnest($1::text[], $2::text[], $3::uuid[]) as asked (namespace, request_id, transition_id)
    join start_request as request on request.namespace = asked.namespace
        and request.request_id = asked.request_id";
const RELEASE_REQUESTS: &str = "
    delete from start_request
    using unnest($1::text[], $2::text[], $3::uuid[]) as asked (namespace, request_id, transition_id)
    where start_request.namespace = asked.namespace
        and start_request.request_id = asked.request_id
        and start_request.transition_id = asked.transition_id";

#[async_trait]
impl Transitions for PostgresStore {
    async fn commit(&self, node: NodeId, batch: &Batch) -> Result<Vec<Settled>> {
        let mut held = self.inner.hold(node).await?;
        let within = self.inner.options.commit_timeout;
        let outcome = tokio::time::timeout(within, self.inner.commit(&mut held, batch)).await;
        held.done(outcome)
    }

    async fn start_keyed(&self, node: NodeId, starts: &[KeyedStart]) -> Result<Vec<KeySettled>> {
        let mut held = self.inner.hold(node).await?;
        let within = self.inner.options.commit_timeout;
        let outcome = tokio::time::timeout(within, self.inner.start_keyed(&mut held, starts)).await;
        held.done(outcome)
    }
}

impl Inner {
    async fn commit(&self, held: &mut Held, batch: &Batch) -> Result<Vec<Settled>, Failure> {
        let counts = &self.counts;
        let rest = batch.feed.len() + batch.quarantined.len();
        if !batch.quarantined.is_empty() {
            let executions = batch.quarantined.iter().map(|new| new.execution.0);
            held.pass(&executions.collect::<Vec<_>>()).await?;
        }
        let numbers = Numbers::new(held, batch.transitions.iter(), rest);
        let is_sound = batch.transitions.iter().all(|next| settle::flaw(next).is_none());
        for _ in 0..if is_sound { SENT_MAX } else { 0 } {
            match commit_at_once(held, batch, &numbers).await {
                Ok(settled) => {
                    counts.at_once.fetch_add(1, Ordering::Relaxed);
                    if held.after_unknown {
                        counts.written_again.fetch_add(1, Ordering::Relaxed);
                    }
                    return Ok(settled);
                }
                Err(failure) => match failure.class() {
                    // If the lease was lost, the row-by-row try meets the closed lease again and reports it.
                    Some(ErrorClass::Taken | ErrorClass::Data | ErrorClass::Lease) => break,
                    Some(ErrorClass::Again) => {}
                    _ => return Err(failure),
                },
            }
        }
        // The obstacle may be the event of a released quarantine with a number that this lane has not passed
        // yet. Or no check was made so far, because a flawed transition skips the first try.
        held.pass(&going_on(batch)).await?;
        let numbers = Numbers::new(held, batch.transitions.iter(), rest);
        let mut sent = 1;
        loop {
            match settle_one_by_one(held, batch, &numbers).await {
                Err(failure) if failure.class() == Some(ErrorClass::Again) && sent < SENT_MAX => {
                    sent += 1;
                }
                Err(failure) => return Err(failure),
                Ok((settled, found)) => {
                    counts.settled.fetch_add(1, Ordering::Relaxed);
                    counts.found_committed.fetch_add(found, Ordering::Relaxed);
                    return Ok(settled);
                }
            }
        }
    }
}

/// Returns the verdicts, and how many of the transitions were committed already.
async fn settle_one_by_one(
    held: &mut Held,
    batch: &Batch,
    numbers: &Numbers,
) -> Result<(Vec<Settled>, u64), Failure> {
    let node = held.lane.node;
    let opened = begin(&mut held.session, node).await;
    let outcome = match opened {
        Ok(()) => settle_all(&mut held.session, node, batch, numbers).await,
        Err(failure) => Err(failure),
    };
    end(&mut held.session, outcome).await
}

async fn settle_all(
    session: &mut LaneSession,
    node: NodeId,
    batch: &Batch,
    numbers: &Numbers,
) -> Result<(Vec<Settled>, u64), Failure> {
    let mut found = vec![Found::default(); batch.transitions.len()];
    let all: Vec<usize> = (0..batch.transitions.len()).collect();
    let there = read_places(session, &batch.transitions, &all).await?;
    for &at in &all {
        found[at].winner =
            there.get(&batch.transitions[at].execution.0).map(|id| TransitionId(*id));
    }
    let free = |at: &usize| found[*at].winner.is_none();
    let open: Vec<usize> = all.iter().copied().filter(free).collect();
    let quarantined = quarantine::in_force(session, &batch.transitions, &open).await?;
    let gone = gone(session, batch, &open).await?;
    for at in open {
        let execution = batch.transitions[at].execution.0;
        found[at].quarantined = quarantined.contains(&execution);
        found[at].gone = gone.contains(&execution);
    }
    let verdicts = batch.transitions.iter().zip(&found);
    let mut settled: Vec<Option<Settled>> =
        verdicts.map(|(transition, found)| settle::verdict(transition, found)).collect();
    let committed = settled.iter().filter(|verdict| **verdict == Some(Settled::Won)).count() as u64;
    let open = all.into_iter().filter(|&at| settled[at].is_none()).collect::<Vec<_>>();
    let request = |at: usize| {
        let request = batch.transitions[at].request.as_ref()?;
        Some((request.namespace.as_str(), request.request_id.as_str()))
    };
    let mut groups = rounds(open, request);
    while let Some(group) = groups.pop() {
        session.run("savepoint attempted").await?;
        let attempted = settle_group(session, node, batch, numbers, &group).await;
        match bisect(session, attempted, &group, &mut groups).await? {
            Attempted::Done(outcomes) => {
                for (at, outcome) in outcomes {
                    settled[at] = Some(outcome);
                }
            }
            Attempted::Refused(at, reason) => settled[at] = Some(Settled::Refused(reason)),
            Attempted::Split => {}
        }
    }
    offer_feed(session, node, batch, numbers).await?;
    quarantine::offer(session, node, batch, numbers).await?;
    let reminders = Reminders::new(node, &batch.reminders);
    if let Some((sql, parameters)) = reminders.update() {
        session.query(sql, &parameters).await?;
    }
    let settled = settled.into_iter().map(|outcome| outcome.expect("every group was settled"));
    Ok((settled.collect(), committed))
}

/// The executions that one of these transitions continues, but that no longer exist.
async fn gone(
    session: &mut LaneSession,
    batch: &Batch,
    open: &[usize],
) -> Result<Vec<Uuid>, Failure> {
    let transitions = open.iter().map(|&at| &batch.transitions[at]);
    let going_on = transitions.filter(|transition| transition.sequence > 1);
    let going_on: Vec<Uuid> = going_on.map(|transition| transition.execution.0).collect();
    if going_on.is_empty() {
        return Ok(Vec::new());
    }
    let rows = session.query(GONE, &[&going_on]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Splits transitions into groups in which no identity occurs twice. The first group is at the end, so that it
/// is popped first. Of several transitions with one identity, each sees the outcome of those before it.
pub(super) fn rounds<K: std::hash::Hash + Eq>(
    open: impl IntoIterator<Item = usize>,
    identity: impl Fn(usize) -> Option<K>,
) -> Vec<Vec<usize>> {
    let mut seen: HashMap<K, usize> = HashMap::new();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for at in open {
        let round = identity(at).map_or(0, |identity| {
            let next = seen.entry(identity).or_insert(0);
            *next += 1;
            *next - 1
        });
        groups.resize_with(groups.len().max(round + 1), Vec::new);
        groups[round].push(at);
    }
    groups.reverse();
    groups
}

async fn settle_group(
    session: &mut LaneSession,
    node: NodeId,
    batch: &Batch,
    numbers: &Numbers,
    group: &[usize],
) -> Result<Vec<(usize, Settled)>, Failure> {
    let transition = |at: usize| &batch.transitions[at];
    let mut settled = Vec::with_capacity(group.len());
    let taken = claim_requests(session, group.iter().map(|at| transition(*at))).await?;
    let mut open = Vec::with_capacity(group.len());
    for &at in group {
        let request = taken.get(&transition(at).transition_id.0).copied();
        let found = Found { request, ..Found::default() };
        match settle::verdict(transition(at), &found) {
            Some(verdict) => settled.push((at, verdict)),
            None => open.push(at),
        }
    }
    if open.is_empty() {
        return Ok(settled);
    }
    let rows = |chosen: &[usize]| {
        Rows::new(node, chosen.iter().map(|&at| (transition(at), numbers.transitions[at])))
    };
    let won = returned(session, rows(&open).history.append()).await?;
    let (won, lost): (Vec<usize>, Vec<usize>) =
        open.into_iter().partition(|at| won.contains(&transition(*at).transition_id.0));
    if !lost.is_empty() {
        let there = read_places(session, &batch.transitions, &lost).await?;
        for &at in &lost {
            let winner = there.get(&transition(at).execution.0).ok_or_else(vanished)?;
            let found = Found { winner: Some(TransitionId(*winner)), ..Found::default() };
            settled.extend(settle::verdict(transition(at), &found).map(|verdict| (at, verdict)));
        }
        // Deletes the claimed request rows of the losers, because these transitions are not written.
        release_requests(session, lost.iter().map(|at| transition(*at))).await?;
    }
    let written = rows(&won);
    let calls = written.companions();
    session.pipeline(&calls).await?;
    settled.extend(won.into_iter().map(|at| (at, Settled::Won)));
    Ok(settled)
}

/// Writes the events that belong to no execution. An event that the store refuses is dropped, because no caller
/// waits for a verdict on it.
async fn offer_feed(
    session: &mut LaneSession,
    node: NodeId,
    batch: &Batch,
    numbers: &Numbers,
) -> Result<(), Failure> {
    let all: Vec<usize> = (0..batch.feed.len()).collect();
    let mut groups = if all.is_empty() { vec![] } else { vec![all] };
    while let Some(group) = groups.pop() {
        let mut events = Events::of(node);
        for &at in &group {
            events.push(numbers.rest + super::value::limit(at), &batch.feed[at]);
        }
        session.run("savepoint attempted").await?;
        let (sql, parameters) = events.offer();
        let attempted = session.query(sql, &parameters).await;
        if let Attempted::Refused(at, reason) =
            bisect(session, attempted, &group, &mut groups).await?
        {
            tracing::warn!(event = batch.feed[at].id, reason, "a failure event was refused");
        }
    }
    Ok(())
}

/// Returns the transition that is at the place of each chosen one. Free places are left out.
pub(super) async fn read_places(
    session: &mut LaneSession,
    transitions: &[Transition],
    chosen: &[usize],
) -> Result<HashMap<Uuid, Uuid>, Failure> {
    let executions: Vec<Uuid> = chosen.iter().map(|at| transitions[*at].execution.0).collect();
    let sequences: Vec<i64> =
        chosen.iter().map(|at| transitions[*at].sequence.cast_signed()).collect();
    let rows = session.query(THERE, &[&executions, &sequences]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// Claims the request ids of the transitions that carry one. Returns the earlier use of each id that was taken
/// already, by transition.
pub(super) async fn claim_requests<'a>(
    session: &mut LaneSession,
    transitions: impl Iterator<Item = &'a Transition>,
) -> Result<HashMap<Uuid, TakenRequest>, Failure> {
    let mut asked = Requests::default();
    transitions.for_each(|transition| asked.push(transition));
    if asked.transition.is_empty() {
        return Ok(HashMap::new());
    }
    let claimed = returned(session, asked.claim()).await?;
    if claimed.len() == asked.transition.len() {
        return Ok(HashMap::new());
    }
    let parameters: [&(dyn ToSql + Sync); 3] =
        [&asked.namespace, &asked.request_id, &asked.transition];
    let mut taken = HashMap::new();
    for row in session.query(REQUESTS, &parameters).await? {
        let asked: Uuid = row.try_get(0)?;
        let digest: i64 = row.try_get(2)?;
        if !claimed.contains(&asked) {
            let by: Uuid = row.try_get(3)?;
            let there = TakenRequest {
                execution: ExecutionId(row.try_get(1)?),
                digest: digest.cast_unsigned(),
                started: row.try_get(4)?,
                repeated: by == asked,
            };
            taken.insert(asked, there);
        }
    }
    if claimed.len() + taken.len() < asked.transition.len() {
        return Err(vanished());
    }
    Ok(taken)
}

pub(super) async fn release_requests<'a>(
    session: &mut LaneSession,
    transitions: impl Iterator<Item = &'a Transition>,
) -> Result<(), Failure> {
    let mut asked = Requests::default();
    transitions.for_each(|transition| asked.push(transition));
    if !asked.transition.is_empty() {
        let parameters: [&(dyn ToSql + Sync); 3] =
            [&asked.namespace, &asked.request_id, &asked.transition];
        session.execute(RELEASE_REQUESTS, &parameters).await?;
    }
    Ok(())
}

/// The ids that a statement returned.
pub(super) async fn returned(
    session: &mut LaneSession,
    (sql, parameters): Call<'_>,
) -> Result<HashSet<Uuid>, Failure> {
    let rows = session.query(sql, &parameters).await?;
    Ok(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?)
}

/// A row stood in the way and was deleted before it could be read. The next try will find the place free.
pub(super) fn vanished() -> Failure {
    Failure::Again
}
