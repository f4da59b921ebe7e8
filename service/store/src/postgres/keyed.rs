//! Starts with keys. They have a transaction of their own, in this order: claim the request id, claim or lock
//! the key, read the holder's state under that lock, take the key, settle the request, and only then write the
//! history of the new execution.

use std::collections::{HashMap, HashSet};

use recoup_core::id::{ExecutionId, TransitionId};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::Inner;
use super::commit::{SENT_MAX, claim_requests, read_places, release_requests, rounds, vanished};
use super::error::{ErrorClass, Failure};
use super::lane::Held;
use super::numbers::Numbers;
use super::rows::Rows;
use super::savepoint::{Attempted, bisect};
use super::session::LaneSession;
use super::transaction::{begin, end};
use crate::contract::{Error, Holder, KeySettled, KeyedStart, Named, NodeId, Transition};
use crate::settle::{self, Found};

const CLAIM_KEYS: &str = "
    insert into execution_key (namespace, key, execution_id)
    select * from unnest($1::text[], $2::text[], $3::uuid[]) as asked (namespace, key, execution_id)
    order by namespace collate \"C\", key collate \"C\"
    on conflict (namespace, key) do nothing
    returning execution_id";
/// Locks the keys, so that no other transaction decides on them until this one has ended.
const LOCK_KEYS: &str = "
    select asked.execution_id, held.execution_id
    from unnest($1::text[], $2::text[], $3::uuid[]) as asked (namespace, key, execution_id)
    join execution_key as held on held.namespace = asked.namespace and held.key = asked.key
    order by held.namespace, held.key
    for update of held";
const HOLDERS: &str = "select id, state, compensation from execution where id = any($1)";
const TAKE_KEYS: &str = "
    update execution_key
    set execution_id = asked.execution_id
    from unnest($1::text[], $2::text[], $3::uuid[]) as asked (namespace, key, execution_id)
    where execution_key.namespace = asked.namespace and execution_key.key = asked.key";
const SETTLE_REQUESTS: &str = "
    update start_request
    set execution_id = asked.execution_id, started = false
    from unnest($1::text[], $2::text[], $3::uuid[], $4::uuid[])
        as asked (namespace, request_id, transition_id, execution_id)
    where start_request.namespace = asked.namespace
        and start_request.request_id = asked.request_id
        and start_request.transition_id = asked.transition_id";

impl Inner {
    pub async fn start_keyed(
        &self,
        held: &mut Held,
        starts: &[KeyedStart],
    ) -> Result<Vec<KeySettled>, Failure> {
        let numbers = Numbers::new(held, starts.iter().map(|start| &start.transition), 0);
        let node = held.lane.node;
        let mut sent = 1;
        loop {
            let outcome = match begin(&mut held.session, node).await {
                Ok(()) => settle_all(&mut held.session, node, starts, &numbers).await,
                Err(failure) => Err(failure),
            };
            match end(&mut held.session, outcome).await {
                Err(failure) if failure.class() == Some(ErrorClass::Again) && sent < SENT_MAX => {
                    sent += 1;
                }
                outcome => return outcome,
            }
        }
    }
}

async fn settle_all(
    session: &mut LaneSession,
    node: NodeId,
    starts: &[KeyedStart],
    numbers: &Numbers,
) -> Result<Vec<KeySettled>, Failure> {
    let mut settled: Vec<Option<KeySettled>> = vec![None; starts.len()];
    let transitions: Vec<Transition> =
        starts.iter().map(|start| start.transition.clone()).collect();
    let all: Vec<usize> = (0..starts.len()).collect();
    let there = read_places(session, &transitions, &all).await?;
    for &at in &all {
        let winner = there.get(&transitions[at].execution.0).map(|id| TransitionId(*id));
        let found = Found { winner, ..Found::default() };
        settled[at] = settle::key_verdict(&starts[at], &found, None);
    }
    // By contract a call contains no key and no request id twice. If it does, the later start waits for the
    // outcome of the earlier one.
    let open: Vec<usize> = all.into_iter().filter(|&at| settled[at].is_none()).collect();
    let mut groups = Vec::new();
    let by_key = rounds(open, |at| Some(place(&starts[at])));
    for group in by_key {
        let request = |at: usize| {
            let request = starts[at].transition.request.as_ref()?;
            Some((request.namespace.as_str(), request.request_id.as_str()))
        };
        groups.extend(rounds(group, request));
    }
    while let Some(group) = groups.pop() {
        session.run("savepoint attempted").await?;
        let attempted = settle_group(session, node, starts, numbers, &group).await;
        match bisect(session, attempted, &group, &mut groups).await? {
            Attempted::Done(outcomes) => {
                for (at, outcome) in outcomes {
                    settled[at] = Some(outcome);
                }
            }
            Attempted::Refused(at, reason) => settled[at] = Some(KeySettled::Refused(reason)),
            Attempted::Split => {}
        }
    }
    Ok(settled.into_iter().map(|outcome| outcome.expect("every group was settled")).collect())
}

/// The namespace and the key of a start.
fn place(start: &KeyedStart) -> (&str, &str) {
    let index = start.transition.index.as_ref();
    (index.map_or("", |index| index.namespace.as_str()), &start.key)
}

async fn settle_group(
    session: &mut LaneSession,
    node: NodeId,
    starts: &[KeyedStart],
    numbers: &Numbers,
    group: &[usize],
) -> Result<Vec<(usize, KeySettled)>, Failure> {
    let transition = |at: usize| &starts[at].transition;
    let mut settled = Vec::with_capacity(group.len());
    let taken = claim_requests(session, group.iter().map(|at| transition(*at))).await?;
    let mut open = Vec::with_capacity(group.len());
    for &at in group {
        let request = taken.get(&transition(at).transition_id.0).copied();
        let found = Found { request, ..Found::default() };
        match settle::key_verdict(&starts[at], &found, None) {
            Some(verdict) => settled.push((at, verdict)),
            None => open.push(at),
        }
    }
    if open.is_empty() {
        return Ok(settled);
    }
    let holders = hold_keys(session, starts, &open).await?;

    let mut won = Vec::with_capacity(open.len());
    let mut used = Vec::new();
    let mut unused = Vec::new();
    for at in open {
        let holder = holders.get(&transition(at).execution.0);
        match settle::key_verdict(&starts[at], &Found::default(), holder) {
            None => won.push(at),
            Some(verdict) => {
                match verdict {
                    KeySettled::UseExisting { execution } => used.push((at, execution)),
                    _ => unused.push(at),
                }
                settled.push((at, verdict));
            }
        }
    }
    take_keys(session, starts, &won).await?;
    settle_requests(session, starts, &used).await?;
    release_requests(session, unused.iter().map(|at| transition(*at))).await?;

    let rows = Rows::new(node, won.iter().map(|&at| (transition(at), numbers.transitions[at])));
    if !won.is_empty() {
        let (sql, parameters) = rows.history.append();
        if session.query(sql, &parameters).await?.len() < won.len() {
            return Err(Error::Data("the execution exists already".into()).into());
        }
        let calls = rows.companions();
        session.pipeline(&calls).await?;
    }
    settled.extend(won.into_iter().map(|at| (at, KeySettled::Won)));
    Ok(settled)
}

/// Takes the keys that are free, and locks the others. Returns the executions that hold the others, with their
/// states, by the execution that asks.
async fn hold_keys(
    session: &mut LaneSession,
    starts: &[KeyedStart],
    open: &[usize],
) -> Result<HashMap<Uuid, Holder>, Failure> {
    let (namespaces, keys, executions) = keys(starts, open);
    let parameters: [&(dyn ToSql + Sync); 3] = [&namespaces, &keys, &executions];
    let free = session.query(CLAIM_KEYS, &parameters).await?;
    let free: HashSet<Uuid> = free.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    if free.len() == open.len() {
        return Ok(HashMap::new());
    }
    let mut held: HashMap<Uuid, Uuid> = HashMap::new();
    for row in session.query(LOCK_KEYS, &parameters).await? {
        let asking: Uuid = row.try_get(0)?;
        if !free.contains(&asking) {
            held.insert(asking, row.try_get(1)?);
        }
    }
    if free.len() + held.len() < open.len() {
        // Retention deleted a key in between.
        return Err(vanished());
    }
    let ids: Vec<Uuid> = held.values().copied().collect();
    let mut states: HashMap<Uuid, Holder> = HashMap::new();
    for row in session.query(HOLDERS, &[&ids]).await? {
        let id: Uuid = row.try_get(0)?;
        let state = Named::of(row.try_get(1)?);
        let compensation = Named::of(row.try_get(2)?);
        states.insert(id, Holder { execution: ExecutionId(id), state, compensation });
    }
    // A key is free if its execution no longer exists.
    let holders = held
        .into_iter()
        .filter_map(|(asking, holder)| Some((asking, states.get(&holder)?.clone())));
    Ok(holders.collect())
}

/// Points the keys to the new executions. Rows that this transaction has just claimed are written again, which
/// costs little because they are locked already.
async fn take_keys(
    session: &mut LaneSession,
    starts: &[KeyedStart],
    won: &[usize],
) -> Result<(), Failure> {
    if !won.is_empty() {
        let (namespaces, keys, executions) = keys(starts, won);
        session.execute(TAKE_KEYS, &[&namespaces, &keys, &executions]).await?;
    }
    Ok(())
}

async fn settle_requests(
    session: &mut LaneSession,
    starts: &[KeyedStart],
    used: &[(usize, ExecutionId)],
) -> Result<(), Failure> {
    let mut namespaces = Vec::new();
    let mut request_ids = Vec::new();
    let mut transitions = Vec::new();
    let mut executions = Vec::new();
    for (at, execution) in used {
        let transition = &starts[*at].transition;
        if let Some(request) = &transition.request {
            namespaces.push(request.namespace.as_str());
            request_ids.push(request.request_id.as_str());
            transitions.push(transition.transition_id.0);
            executions.push(execution.0);
        }
    }
    if !executions.is_empty() {
        let parameters: [&(dyn ToSql + Sync); 4] =
            [&namespaces, &request_ids, &transitions, &executions];
        session.execute(SETTLE_REQUESTS, &parameters).await?;
    }
    Ok(())
}

fn keys<'a>(starts: &'a [KeyedStart], chosen: &[usize]) -> (Vec<&'a str>, Vec<&'a str>, Vec<Uuid>) {
    let mut columns = (Vec::new(), Vec::new(), Vec::new());
    for at in chosen {
        let (namespace, key) = place(&starts[*at]);
        columns.0.push(namespace);
        columns.1.push(key);
        columns.2.push(starts[*at].transition.execution.0);
    }
    columns
}
