//! The rows that a set of transitions writes, stored as one array per column, so that one statement takes any
//! number of rows. Rows are sorted by key, here and again in SQL, so that two writers that meet take the same
//! locks in the same order.

use std::sync::LazyLock;

use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::session::{Call, Parameters};
use super::value::{self, At};
use crate::contract::{FeedRow, NewQuarantine, NodeId, Reminder, TaskKey, Transition};

const INSERT_REQUEST: &str = "
    insert into start_request (namespace, request_id, execution_id, digest, transition_id)
    select * from unnest($1::text[], $2::text[], $3::uuid[], $4::int8[], $5::uuid[])
        as request (namespace, request_id, execution_id, digest, transition_id)
    order by namespace collate \"C\", request_id collate \"C\"";
/// The same, but keeps the ids that another request settled within the time `$6` for which request ids are
/// kept, and returns what it wrote.
const CLAIM_REQUEST: &str = "
    insert into start_request as there (namespace, request_id, execution_id, digest, transition_id)
    select * from unnest($1::text[], $2::text[], $3::uuid[], $4::int8[], $5::uuid[])
        as request (namespace, request_id, execution_id, digest, transition_id)
    order by namespace collate \"C\", request_id collate \"C\"
    on conflict (namespace, request_id) do update
        set execution_id = excluded.execution_id, digest = excluded.digest,
            transition_id = excluded.transition_id, started = excluded.started,
            created_at = excluded.created_at
        where there.created_at <= clock_timestamp() - interval '1 microsecond' * $6::int8
    returning transition_id";
const INSERT_HISTORY: &str = "
    insert into history (execution_id, sequence, transition_id, format, data, feed_number, checksum)
    select *
    from unnest($1::uuid[], $2::int8[], $3::uuid[], $4::int4[], $5::bytea[], $6::int8[], $7::int4[])
        as appended (execution_id, sequence, transition_id, format, data, feed_number, checksum)
    order by execution_id, sequence";
/// The same, but keeps existing rows, and returns what it wrote.
static APPEND_HISTORY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "{INSERT_HISTORY} on conflict (execution_id, sequence) do nothing returning transition_id"
    )
});
const INSERT_EXECUTION: &str = "
    insert into execution (id, namespace, workflow, version, key, state, phase, compensation, run,
        active, error_type, started_at, ended_at, wake_at, format, owner)
    select started.*, $16::int8
    from unnest($1::uuid[], $2::text[], $3::text[], $4::int8[], $5::text[], $6::text[], $7::text[],
        $8::text[], $9::int8[], $10::bool[], $11::text[], $12::timestamptz[], $13::timestamptz[],
        $14::timestamptz[], $15::int4[]) as started (id)
    order by id";
const UPDATE_EXECUTION: &str = "
    update execution
    set namespace = changed.namespace, workflow = changed.workflow, version = changed.version,
        key = changed.key, state = changed.state, phase = changed.phase,
        compensation = changed.compensation, run = changed.run, active = changed.active,
        error_type = changed.error_type, started_at = changed.started_at,
        ended_at = changed.ended_at, wake_at = changed.wake_at, format = changed.format,
        owner = $16::int8
    from unnest($1::uuid[], $2::text[], $3::text[], $4::int8[], $5::text[], $6::text[], $7::text[],
        $8::text[], $9::int8[], $10::bool[], $11::text[], $12::timestamptz[], $13::timestamptz[],
        $14::timestamptz[], $15::int4[]) as changed (id, namespace, workflow, version, key, state, phase,
        compensation, run, active, error_type, started_at, ended_at, wake_at, format)
    where execution.id = changed.id";
const REMIND: &str = "
    update execution set wake_at = asked.wake_at
    from unnest($1::uuid[], $2::timestamptz[]) as asked (id, wake_at)
    where execution.id = asked.id and execution.owner = $3::int8";
const INSERT_FEED: &str = "
    insert into feed (number, id, namespace, kind, workflow, error_type, execution_id, fingerprint,
        at, format, data, lane)
    select event.*, $12::int8
    from unnest($1::int8[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::uuid[],
        $8::text[], $9::timestamptz[], $10::int4[], $11::bytea[]) as event (number)
    order by number";
/// The same, but keeps events that exist already.
static OFFER_FEED: LazyLock<String> =
    LazyLock::new(|| format!("{INSERT_FEED} on conflict (id) do nothing"));
/// Writes quarantines for executions that have none in force, and the events of the quarantines that it wrote.
const OFFER_QUARANTINE: &str = "
    with asked as (
        select *
        from unnest($13::uuid[], $14::text[], $15::text[], $16::timestamptz[], $1::int8[],
            $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::uuid[], $8::text[],
            $9::timestamptz[], $10::int4[], $11::bytea[])
            as asked (execution, reason, detail, since, number, id, namespace, kind, workflow,
                error_type, execution_id, fingerprint, at, format, data)),
    written as (
        insert into quarantine as there (execution_id, reason, detail, at, feed_number)
        select execution, reason, detail, since, number
        from asked
        where exists (select from execution where execution.id = asked.execution)
        order by execution
        on conflict (execution_id) do update
            set reason = excluded.reason, detail = excluded.detail, at = excluded.at,
                feed_number = greatest(there.feed_number, excluded.feed_number),
                released_at = null
            where there.released_at is not null and there.at < excluded.at
        returning there.execution_id as execution)
    insert into feed (number, id, namespace, kind, workflow, error_type, execution_id, fingerprint,
        at, format, data, lane)
    select asked.number, asked.id, asked.namespace, asked.kind, asked.workflow, asked.error_type,
        asked.execution_id, asked.fingerprint, asked.at, asked.format, asked.data, $12::int8
    from asked join written using (execution)
    order by asked.number
    on conflict (id) do nothing";
const DELETE_OVERFLOW: &str = "
    delete from overflow_task
    using unnest($1::uuid[], $2::text[], $3::int8[]) as void (execution_id, path, attempt)
    where overflow_task.execution_id = void.execution_id and overflow_task.path = void.path
        and overflow_task.attempt = void.attempt";

/// The inserts of transitions, in the fixed order of tables.
pub(super) const INSERTS: [&str; 5] =
    [INSERT_REQUEST, INSERT_HISTORY, INSERT_EXECUTION, UPDATE_EXECUTION, INSERT_FEED];
/// The place of histories in that order.
const HISTORY: usize = 1;

/// Everything that some transitions of one node write.
#[derive(Default)]
pub(super) struct Rows<'a> {
    pub requests: Requests<'a>,
    pub history: Histories<'a>,
    started: Indexes<'a>,
    changed: Indexes<'a>,
    pub feed: Events<'a>,
    pub done: Tasks<'a>,
}

impl<'a> Rows<'a> {
    /// Each transition comes with the number of its first event.
    pub fn new(node: NodeId, transitions: impl IntoIterator<Item = (&'a Transition, i64)>) -> Self {
        let mut transitions: Vec<_> = transitions.into_iter().collect();
        transitions.sort_by_key(|(transition, _)| (transition.execution, transition.sequence));
        let mut rows = Self::default();
        (rows.started.owner, rows.changed.owner, rows.feed.lane) = (node.0, node.0, node.0);
        for (transition, first) in &transitions {
            rows.push(transition, *first);
        }
        // Events are sorted by their own numbers.
        transitions.sort_by_key(|(_, first)| *first);
        for (transition, first) in transitions {
            for (number, event) in (first..).zip(&transition.feed) {
                rows.feed.push(number, event);
            }
        }
        rows
    }

    fn push(&mut self, transition: &'a Transition, first: i64) {
        let execution = transition.execution.0;
        self.requests.push(transition);
        let events = value::limit(transition.feed.len());
        self.history.push(transition, (events > 0).then(|| first + events - 1));
        if transition.index.is_some() {
            let indexes =
                if transition.sequence == 1 { &mut self.started } else { &mut self.changed };
            indexes.push(execution, transition);
        }
        for task in &transition.overflow_done {
            self.done.push(task);
        }
    }

    /// The places in [`INSERTS`] for which there are rows, with their parameters.
    pub fn inserts(&self) -> impl Iterator<Item = (usize, Parameters<'_>)> {
        let parts = [
            (!self.requests.transition.is_empty()).then(|| self.requests.parameters()),
            (!self.history.execution.is_empty()).then(|| self.history.parameters()),
            (!self.started.id.is_empty()).then(|| self.started.parameters()),
            (!self.changed.id.is_empty()).then(|| self.changed.parameters()),
            (!self.feed.number.is_empty()).then(|| self.feed.parameters()),
        ];
        let parts = parts.into_iter().enumerate();
        parts.filter_map(|(insert, parameters)| Some((insert, parameters?)))
    }

    /// Writes everything. A row that exists already is an error.
    pub fn insert(&self) -> Vec<Call<'_>> {
        let inserts = self.inserts().map(|(insert, parameters)| (INSERTS[insert], parameters));
        inserts.chain(self.delete()).collect()
    }

    /// Writes everything that comes after the history.
    pub fn companions(&self) -> Vec<Call<'_>> {
        let inserts = self.inserts().filter(|(insert, _)| *insert > HISTORY);
        let inserts = inserts.map(|(insert, parameters)| (INSERTS[insert], parameters));
        inserts.chain(self.delete()).collect()
    }

    /// Deletes the overflow rows that have become void.
    fn delete(&self) -> Option<Call<'_>> {
        (!self.done.execution.is_empty()).then(|| (DELETE_OVERFLOW, self.done.parameters()))
    }

    /// Whether the transitions only add rows and change the index.
    pub fn only_inserts(&self) -> bool {
        self.done.execution.is_empty()
    }
}

#[derive(Default)]
pub(super) struct Requests<'a> {
    pub namespace: Vec<&'a str>,
    pub request_id: Vec<&'a str>,
    execution: Vec<Uuid>,
    digest: Vec<i64>,
    pub transition: Vec<Uuid>,
}

impl<'a> Requests<'a> {
    pub fn push(&mut self, transition: &'a Transition) {
        if let Some(request) = &transition.request {
            self.namespace.push(request.namespace.as_str());
            self.request_id.push(&request.request_id);
            self.execution.push(transition.execution.0);
            self.digest.push(request.digest.cast_signed());
            self.transition.push(transition.transition_id.0);
        }
    }

    fn parameters(&self) -> Vec<&(dyn ToSql + Sync)> {
        vec![&self.namespace, &self.request_id, &self.execution, &self.digest, &self.transition]
    }

    /// Claims the ids that are free, and returns the transitions for which it did.
    pub fn claim(&self) -> Call<'_> {
        let mut parameters = self.parameters();
        parameters.push(&value::REQUEST_KEPT_US);
        (CLAIM_REQUEST, parameters)
    }
}

#[derive(Default)]
pub(super) struct Histories<'a> {
    pub execution: Vec<Uuid>,
    pub sequence: Vec<i64>,
    transition: Vec<Uuid>,
    format: Vec<i32>,
    data: Vec<&'a [u8]>,
    feed_number: Vec<Option<i64>>,
    checksum: Vec<i32>,
}

impl<'a> Histories<'a> {
    fn push(&mut self, transition: &'a Transition, feed_number: Option<i64>) {
        self.execution.push(transition.execution.0);
        self.sequence.push(transition.sequence.cast_signed());
        self.transition.push(transition.transition_id.0);
        self.format.push(transition.format.into());
        self.data.push(&transition.data);
        self.feed_number.push(feed_number);
        self.checksum.push(transition.checksum().cast_signed());
    }

    fn parameters(&self) -> Vec<&(dyn ToSql + Sync)> {
        vec![
            &self.execution,
            &self.sequence,
            &self.transition,
            &self.format,
            &self.data,
            &self.feed_number,
            &self.checksum,
        ]
    }

    /// Writes the transitions whose place is free, and returns their ids.
    pub fn append(&self) -> Call<'_> {
        (APPEND_HISTORY.as_str(), self.parameters())
    }
}

#[derive(Default)]
struct Indexes<'a> {
    id: Vec<Uuid>,
    namespace: Vec<&'a str>,
    workflow: Vec<&'a str>,
    version: Vec<i64>,
    key: Vec<Option<&'a str>>,
    state: Vec<&'a str>,
    phase: Vec<&'a str>,
    compensation: Vec<&'a str>,
    run: Vec<i64>,
    active: Vec<bool>,
    error_type: Vec<Option<&'a str>>,
    started_at: Vec<At>,
    ended_at: Vec<Option<At>>,
    wake_at: Vec<Option<At>>,
    format: Vec<i32>,
    owner: i64,
}

impl<'a> Indexes<'a> {
    fn push(&mut self, execution: Uuid, transition: &'a Transition) {
        let Some(row) = &transition.index else { return };
        self.id.push(execution);
        self.namespace.push(row.namespace.as_str());
        self.workflow.push(row.workflow.as_str());
        self.version.push(row.version.into());
        self.key.push(row.key.as_deref());
        self.state.push(row.state.name());
        self.phase.push(row.phase.name());
        self.compensation.push(row.compensation.name());
        self.run.push(row.run.into());
        self.active.push(row.is_active());
        self.error_type.push(row.error_type.as_deref());
        self.started_at.push(At(row.started_at));
        self.ended_at.push(row.ended_at.map(At));
        self.wake_at.push(row.wake_at.map(At));
        self.format.push(row.format.into());
    }

    fn parameters(&self) -> Vec<&(dyn ToSql + Sync)> {
        vec![
            &self.id,
            &self.namespace,
            &self.workflow,
            &self.version,
            &self.key,
            &self.state,
            &self.phase,
            &self.compensation,
            &self.run,
            &self.active,
            &self.error_type,
            &self.started_at,
            &self.ended_at,
            &self.wake_at,
            &self.format,
            &self.owner,
        ]
    }
}

#[derive(Default)]
pub(super) struct Events<'a> {
    number: Vec<i64>,
    id: Vec<&'a str>,
    namespace: Vec<&'a str>,
    kind: Vec<&'a str>,
    workflow: Vec<&'a str>,
    error_type: Vec<&'a str>,
    execution: Vec<Option<Uuid>>,
    fingerprint: Vec<&'a str>,
    at: Vec<At>,
    format: Vec<i32>,
    data: Vec<&'a [u8]>,
    lane: i64,
}

impl<'a> Events<'a> {
    pub fn of(node: NodeId) -> Self {
        Self { lane: node.0, ..Self::default() }
    }

    pub fn push(&mut self, number: i64, row: &'a FeedRow) {
        self.number.push(number);
        self.id.push(&row.id);
        self.namespace.push(row.namespace.as_str());
        self.kind.push(row.kind.name());
        self.workflow.push(&row.workflow);
        self.error_type.push(&row.error_type);
        self.execution.push(row.execution.map(|execution| execution.0));
        self.fingerprint.push(&row.fingerprint);
        self.at.push(At(row.at));
        self.format.push(row.format.into());
        self.data.push(&row.data);
    }

    fn parameters(&self) -> Vec<&(dyn ToSql + Sync)> {
        vec![
            &self.number,
            &self.id,
            &self.namespace,
            &self.kind,
            &self.workflow,
            &self.error_type,
            &self.execution,
            &self.fingerprint,
            &self.at,
            &self.format,
            &self.data,
            &self.lane,
        ]
    }

    /// Writes the events whose id is new.
    pub fn offer(&self) -> Call<'_> {
        (OFFER_FEED.as_str(), self.parameters())
    }
}

#[derive(Default)]
pub(super) struct Quarantines<'a> {
    execution: Vec<Uuid>,
    reason: Vec<&'static str>,
    detail: Vec<&'a str>,
    at: Vec<At>,
    events: Events<'a>,
}

impl<'a> Quarantines<'a> {
    /// Each quarantine comes with the number of its event.
    pub fn new(
        node: NodeId,
        quarantined: impl IntoIterator<Item = (&'a NewQuarantine, i64)>,
    ) -> Self {
        let mut all = Self { events: Events::of(node), ..Self::default() };
        for (new, number) in quarantined {
            all.execution.push(new.execution.0);
            all.reason.push(new.quarantine.reason.name());
            all.detail.push(&new.quarantine.detail);
            all.at.push(At(new.quarantine.at));
            all.events.push(number, &new.event);
        }
        all
    }

    pub fn is_empty(&self) -> bool {
        self.execution.is_empty()
    }

    pub fn offer(&self) -> Call<'_> {
        let mut parameters = self.events.parameters();
        let mine: [&(dyn ToSql + Sync); 4] =
            [&self.execution, &self.reason, &self.detail, &self.at];
        parameters.extend(mine);
        (OFFER_QUARANTINE, parameters)
    }
}

pub(super) struct Reminders {
    execution: Vec<Uuid>,
    wake_at: Vec<Option<At>>,
    owner: i64,
}

impl Reminders {
    pub fn new(node: NodeId, reminders: &[Reminder]) -> Self {
        let execution = reminders.iter().map(|reminder| reminder.execution.0).collect();
        let wake_at = reminders.iter().map(|reminder| reminder.wake_at.map(At)).collect();
        Self { execution, wake_at, owner: node.0 }
    }

    pub fn update(&self) -> Option<Call<'_>> {
        let parameters: Vec<&(dyn ToSql + Sync)> =
            vec![&self.execution, &self.wake_at, &self.owner];
        (!self.execution.is_empty()).then_some((REMIND, parameters))
    }
}

#[derive(Default)]
pub(super) struct Tasks<'a> {
    execution: Vec<Uuid>,
    path: Vec<&'a str>,
    attempt: Vec<i64>,
}

impl<'a> Tasks<'a> {
    pub fn push(&mut self, task: &'a TaskKey) {
        self.execution.push(task.execution.0);
        self.path.push(task.path.as_str());
        self.attempt.push(task.attempt.into());
    }

    fn parameters(&self) -> Vec<&(dyn ToSql + Sync)> {
        vec![&self.execution, &self.path, &self.attempt]
    }
}
