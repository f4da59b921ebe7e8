use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;
use bytes::Bytes;
use recoup_core::id::{ExecutionId, Namespace, TransitionId};
use recoup_core::time::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::error::Failure;
use super::filtered::Filtered;
use super::value::{self, At};
use super::{PostgresStore, quarantine};
use crate::contract::{
    Due, Error, Executions, Head, History, IndexRow, ListFilter, Listed, NodeId, Release, Result,
    StoredTransition, Wanted,
};

/// One snapshot of both: a history whose index row retention took is gone. Sizes are added up before
/// anything is read: histories with which they exceed `$2` are left out, but for the first. The last row of a
/// history is in the answer even where it is known: it says that the execution is there. Feed numbers count
/// in all rows.
const LOAD: &str = "
    select found.execution_id, found.sequence, found.transition_id, found.format, found.data,
        found.checksum, greatest(found.highest, quarantine.feed_number), owner.id,
        quarantine.reason, quarantine.detail, quarantine.at, quarantine.released_at,
        quarantine.release_reason, found.wake_at, found.execution_format
    from (
        select history.*, execution.owner, execution.wake_at, execution.format as execution_format,
            wanted.after,
            coalesce(sum(octet_length(history.data))
                filter (where history.sequence > wanted.after) over by_id, 0) as bytes,
            dense_rank() over by_id as place,
            max(history.feed_number) over of_id as highest,
            max(history.sequence) over of_id as head
        from unnest($1::uuid[], $3::bigint[]) as wanted (id, after)
        join execution on execution.id = wanted.id
        join history on history.execution_id = execution.id
        where execution.id = any($1) and history.execution_id = any($1)
        window by_id as (order by history.execution_id),
            of_id as (partition by history.execution_id)) as found
    left join node as owner on owner.id = found.owner and owner.closed_at is null
    left join quarantine on quarantine.execution_id = found.execution_id
    where (found.bytes <= $2 or found.place = 1)
        and (found.sequence > found.after or found.sequence = found.head)
    order by found.execution_id, found.sequence";
const HISTORY: &str = "
    select history.execution_id, history.sequence, history.transition_id, history.format,
        history.data, history.checksum
    from execution
    join history on history.execution_id = execution.id
    where execution.id = $1 and history.execution_id = $1 and history.sequence > $2
    order by history.sequence limit $3";
const HEADS: &str = "
    select execution.id, head.sequence, execution.state, owner.id,
        exists (select from quarantine
            where execution_id = execution.id and released_at is null)
    from unnest($1::uuid[]) with ordinality as asked (id, place)
    join execution on execution.id = asked.id
    cross join lateral (
        select sequence from history where history.execution_id = asked.id
        order by sequence desc limit 1) as head
    left join node as owner on owner.id = execution.owner and owner.closed_at is null
    order by asked.place";
const DUE: &str = "
    select id, wake_at from execution
    where owner = $1 and wake_at is not null and wake_at <= $2 and (wake_at, id) > ($3, $4)
        and format <= $6
        and not exists (
            select from quarantine where execution_id = execution.id and released_at is null)
    order by wake_at, id limit $5";
const INDEXED: &str = "
    select id, namespace, workflow, version, key, state, phase, compensation, run, error_type,
        started_at, ended_at, wake_at, format, reason, detail, at
    from execution
    left join quarantine on execution_id = id and released_at is null
    where id = $1";
const KEY_HOLDER: &str = "
    select execution_id from execution_key where namespace = $1 and key = $2";
const STARTED_BY: &str = "
    select execution_id, digest from start_request
    where namespace = $1 and request_id = $2
        and created_at > clock_timestamp() - interval '1 day'";

#[async_trait]
impl Executions for PostgresStore {
    async fn load_within(
        &self,
        node: NodeId,
        wanted: &[Wanted],
        bytes: usize,
    ) -> Result<Vec<History>> {
        let known: BTreeMap<_, _> = wanted
            .iter()
            .map(|one| (one.execution.0, i64::try_from(one.after).unwrap_or(i64::MAX)))
            .collect();
        let (ids, after): (Vec<_>, Vec<_>) = known.iter().map(|(id, after)| (*id, *after)).unzip();
        let mut session = self.inner.pool.take().await?;
        let rows = session.query(LOAD, &[&ids, &value::limit(bytes), &after]).await?;
        drop(session);
        let mut found: HashMap<Uuid, History> = HashMap::with_capacity(wanted.len());
        let mut highest = None;
        for row in rows {
            let id = row.try_get(0)?;
            let owner: Option<i64> = row.try_get(7)?;
            highest = highest.max(row.try_get::<_, Option<i64>>(6)?);
            let history = match found.entry(id) {
                Entry::Occupied(there) => there.into_mut(),
                Entry::Vacant(place) => place.insert(History {
                    execution: ExecutionId(id),
                    owner: owner.map(NodeId),
                    wake_at: row.try_get::<_, Option<At>>(13)?.map(|at| at.0),
                    format: value::format(row.try_get(14)?)?,
                    transitions: Vec::new(),
                    quarantine: quarantine::row(&row, 8)?,
                }),
            };
            // The last one of all may be known.
            let sequence: i64 = row.try_get(1)?;
            if known.get(&id).is_none_or(|after| sequence > *after) {
                history.transitions.push(stored(&row)?);
            }
        }
        if let Some(highest) = highest {
            self.inner.lane(node).pass(highest);
        }
        Ok(wanted.iter().filter_map(|one| found.remove(&one.execution.0)).collect())
    }

    async fn history(
        &self,
        execution: ExecutionId,
        after: u64,
        limit: usize,
    ) -> Result<Vec<StoredTransition>> {
        let after = i64::try_from(after).unwrap_or(i64::MAX);
        let mut session = self.inner.pool.take().await?;
        let rows = session.query(HISTORY, &[&execution.0, &after, &value::limit(limit)]).await?;
        drop(session);
        let transitions: Vec<_> = rows.iter().map(stored).collect::<Result<_, Failure>>()?;
        Ok(transitions)
    }

    async fn heads(&self, executions: &[ExecutionId]) -> Result<Vec<Head>> {
        let mut session = self.inner.pool.take().await?;
        let rows = session.query(HEADS, &[&uuids(executions)]).await?;
        rows.iter().map(|row| Ok(head(row)?)).collect()
    }

    async fn due(
        &self,
        node: NodeId,
        until: Timestamp,
        after: Option<Due>,
        limit: usize,
    ) -> Result<Vec<Due>> {
        // Before all that there can be.
        let first =
            Due { wake_at: Timestamp::from_micros(i64::MIN), execution: ExecutionId(Uuid::nil()) };
        let after = after.unwrap_or(first);
        let newest = i32::from(self.formats.history);
        let wanted: [&(dyn ToSql + Sync); 6] = [
            &node.0,
            &At(until),
            &At(after.wake_at),
            &after.execution.0,
            &value::limit(limit),
            &newest,
        ];
        let mut session = self.inner.pool.take().await?;
        let rows = session.query(DUE, &wanted).await?;
        let due = rows.iter().map(|row| {
            let wake_at = row.try_get::<_, At>(1)?.0;
            Ok(Due { execution: ExecutionId(row.try_get(0)?), wake_at })
        });
        due.collect::<Result<_, Failure>>().map_err(Error::from)
    }

    async fn list(
        &self,
        filter: &ListFilter,
        before: Option<ExecutionId>,
        limit: usize,
    ) -> Result<Vec<Listed>> {
        let states: Vec<&str> = filter.states.iter().map(|s| value::state_name(*s)).collect();
        let limit = value::limit(limit);
        let namespace = filter.namespace.as_ref().map(Namespace::as_str);
        let workflow = filter.workflow.as_ref().map(|workflow| workflow.as_str());
        let (after, until) = (filter.started_after.map(At), filter.started_before.map(At));
        let before = before.map(|before| before.0);

        let mut query = Filtered::new(
            "select id, namespace, workflow, version, key, state, phase, compensation, run,
                error_type, started_at, ended_at, wake_at, format, reason, detail, at
            from execution
            left join quarantine on execution_id = id and released_at is null
            where true",
        );
        if let Some(namespace) = &namespace {
            query.and("namespace = ?", namespace);
        }
        if !states.is_empty() {
            query.and("state = any(?)", &states);
            if filter.states.iter().all(|state| state.is_failure()) {
                // Words of the index `execution_failed`, which the planner needs to see.
                query.and_literally("state in ('FAILED', 'TIMED_OUT', 'CANCELLED', 'TERMINATED')");
            }
        }
        if let Some(workflow) = &workflow {
            query.and("workflow = ?", workflow);
        }
        if let Some(error_type) = &filter.error_type {
            query.and("(error_type = ? or starts_with(error_type, ?::text || '.'))", error_type);
        }
        if let Some(prefix) = &filter.key_prefix {
            query.and("starts_with(key, ?)", prefix);
        }
        if let Some(after) = &after {
            query.and("started_at >= ?", after);
        }
        if let Some(until) = &until {
            query.and("started_at < ?", until);
        }
        if filter.quarantined {
            // So that it goes by the few that there are.
            query.and_literally(
                "id in (select execution_id from quarantine where released_at is null)",
            );
        }
        if let Some(before) = &before {
            query.and("id < ?", before);
        }
        let (sql, parameters) = query.ending("order by id desc limit ?", &limit);

        let mut session = self.inner.pool.take().await?;
        let rows = session.query(sql, &parameters).await?;
        rows.iter().map(|row| Ok(listed(row)?)).collect()
    }

    async fn indexed(&self, execution: ExecutionId) -> Result<Option<Listed>> {
        let mut session = self.inner.pool.take().await?;
        let rows = session.query(INDEXED, &[&execution.0]).await?;
        rows.first().map(|row| Ok(listed(row)?)).transpose()
    }

    async fn release_quarantine(
        &self,
        node: NodeId,
        execution: ExecutionId,
        release: &Release,
    ) -> Result<()> {
        self.release(node, execution, release).await
    }

    async fn key_holder(&self, namespace: &Namespace, key: &str) -> Result<Option<ExecutionId>> {
        let mut session = self.inner.pool.take().await?;
        let rows = session.query(KEY_HOLDER, &[&namespace.as_str(), &key]).await?;
        rows.first().map(|row| Ok(ExecutionId(row.try_get(0)?))).transpose()
    }

    async fn started_by(
        &self,
        namespace: &Namespace,
        request_id: &str,
    ) -> Result<Option<(ExecutionId, u64)>> {
        let mut session = self.inner.pool.take().await?;
        let rows = session.query(STARTED_BY, &[&namespace.as_str(), &request_id]).await?;
        let started = rows.first().map(|row| {
            let digest: i64 = row.try_get(1)?;
            Ok((ExecutionId(row.try_get(0)?), digest.cast_unsigned()))
        });
        started.transpose()
    }
}

fn uuids(executions: &[ExecutionId]) -> Vec<Uuid> {
    executions.iter().map(|execution| execution.0).collect()
}

fn stored(row: &Row) -> Result<StoredTransition, Failure> {
    let format: i32 = row.try_get(3)?;
    Ok(StoredTransition {
        sequence: value::unsigned(row.try_get(1)?),
        transition_id: TransitionId(row.try_get(2)?),
        format: value::format(format)?,
        data: Bytes::copy_from_slice(row.try_get(4)?),
        checksum: row.try_get::<_, i32>(5)?.cast_unsigned(),
    })
}

fn head(row: &Row) -> Result<Head, Failure> {
    Ok(Head {
        execution: ExecutionId(row.try_get(0)?),
        sequence: value::unsigned(row.try_get(1)?),
        state: value::state(row.try_get(2)?)?,
        owner: row.try_get::<_, Option<i64>>(3)?.map(NodeId),
        quarantined: row.try_get(4)?,
    })
}

fn listed(row: &Row) -> Result<Listed, Failure> {
    let time = |at: usize| -> Result<Option<Timestamp>, Failure> {
        Ok(row.try_get::<_, Option<At>>(at)?.map(|at| at.0))
    };
    let text = |at: usize| -> Result<&str, Failure> { Ok(row.try_get(at)?) };
    let index = IndexRow {
        namespace: text(1)?.into(),
        workflow: text(2)?.into(),
        version: value::count(row.try_get(3)?)?,
        key: row.try_get(4)?,
        state: value::state(text(5)?)?,
        phase: value::phase(text(6)?)?,
        compensation: value::compensation(text(7)?)?,
        run: value::count(row.try_get(8)?)?,
        error_type: row.try_get(9)?,
        started_at: row.try_get::<_, At>(10)?.0,
        ended_at: time(11)?,
        wake_at: time(12)?,
        format: value::format(row.try_get(13)?)?,
    };
    let quarantine = quarantine::found(row, 14)?;
    Ok(Listed { execution: ExecutionId(row.try_get(0)?), index, quarantine })
}
