use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;
use recoup_core::id::{ExecutionId, Namespace, TransitionId};
use recoup_core::time::Timestamp;
use sqlx::FromRow;
use uuid::Uuid;

use super::error::Failure;
use super::filtered::Filtered;
use super::value::{self, At};
use super::{PostgresStore, quarantine};
use crate::contract::{
    Due, Executions, Head, History, IndexRow, ListFilter, Listed, Named, NodeId, QuarantineRow,
    Release, Released, Result, StoredTransition, Wanted,
};

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
        let mut connection = self.inner.connections.take().await?;
        // History and index are read in one snapshot, so a history without its index row is one that retention
        // has deleted. Sizes are added up before any data is read: histories that would bring the total above
        // `$2` are left out, except for the first one. The last row of each history is always returned, even if
        // the caller knows it, to show that the execution exists. Feed numbers are taken from all rows.
        let load = sqlx::query!(
            r#"
            select found.execution_id as "execution_id!", found.sequence as "sequence!",
                found.transition_id as "transition_id!", found.format as "format!",
                found.data as "data!", found.checksum as "checksum!",
                greatest(found.highest, quarantine.feed_number) as "feed_number?",
                owner.id as "owner?", quarantine.reason as "reason?", quarantine.detail as "detail?",
                quarantine.at as "at?: At", quarantine.released_at as "released_at?: At",
                quarantine.release_reason as "release_reason?", found.wake_at as "wake_at?: At",
                found.execution_format as "execution_format!"
            from (
                select history.*, execution.owner, execution.wake_at,
                    execution.format as execution_format,
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
            order by found.execution_id, found.sequence"#,
            &ids[..],
            value::limit(bytes),
            &after[..],
        );
        let rows = connection.all(load).await?;
        drop(connection);
        let mut found: HashMap<Uuid, History> = HashMap::with_capacity(wanted.len());
        let mut highest = None;
        for row in rows {
            highest = highest.max(row.feed_number);
            let history = match found.entry(row.execution_id) {
                Entry::Occupied(there) => there.into_mut(),
                Entry::Vacant(place) => {
                    let quarantine = quarantine::found(row.reason, row.detail, row.at);
                    let released = row.released_at.map(|at| Released {
                        at: at.0,
                        reason: row.release_reason.unwrap_or_default(),
                    });
                    place.insert(History {
                        execution: ExecutionId(row.execution_id),
                        owner: row.owner.map(NodeId),
                        wake_at: row.wake_at.map(|at| at.0),
                        format: value::format(row.execution_format)?,
                        transitions: Vec::new(),
                        quarantine: quarantine
                            .map(|quarantine| QuarantineRow { quarantine, released }),
                    })
                }
            };
            // The last row is returned even if the caller knows it.
            if known.get(&row.execution_id).is_some_and(|after| row.sequence <= *after) {
                continue;
            }
            history.transitions.push(StoredTransition {
                sequence: value::unsigned(row.sequence),
                transition_id: TransitionId(row.transition_id),
                format: value::format(row.format)?,
                data: row.data.into(),
                checksum: row.checksum.cast_unsigned(),
            });
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
        let mut connection = self.inner.connections.take().await?;
        let history = sqlx::query!(
            r#"
            select history.sequence as "sequence!", history.transition_id as "transition_id!",
                history.format as "format!", history.data as "data!", history.checksum as "checksum!"
            from execution
            join history on history.execution_id = execution.id
            where execution.id = $1 and history.execution_id = $1 and history.sequence > $2
            order by history.sequence limit $3"#,
            execution.0,
            after,
            value::limit(limit),
        );
        let rows = connection.all(history).await?;
        let transitions = rows.into_iter().map(|row| {
            Ok(StoredTransition {
                sequence: value::unsigned(row.sequence),
                transition_id: TransitionId(row.transition_id),
                format: value::format(row.format)?,
                data: row.data.into(),
                checksum: row.checksum.cast_unsigned(),
            })
        });
        transitions.collect()
    }

    async fn heads(&self, executions: &[ExecutionId]) -> Result<Vec<Head>> {
        let ids = uuids(executions);
        let mut connection = self.inner.connections.take().await?;
        let heads = sqlx::query!(
            r#"
            select execution.id as "id!", head.sequence as "sequence!", execution.state as "state!",
                owner.id as "owner?",
                exists (select from quarantine
                    where execution_id = execution.id and released_at is null) as "quarantined!"
            from unnest($1::uuid[]) with ordinality as asked (id, place)
            join execution on execution.id = asked.id
            cross join lateral (
                select sequence from history where history.execution_id = asked.id
                order by sequence desc limit 1) as head
            left join node as owner on owner.id = execution.owner and owner.closed_at is null
            order by asked.place"#,
            &ids[..],
        );
        let heads = connection.all(heads).await?.into_iter().map(|row| {
            Ok(Head {
                execution: ExecutionId(row.id),
                sequence: value::unsigned(row.sequence),
                state: Named::of(&row.state),
                owner: row.owner.map(NodeId),
                quarantined: row.quarantined,
            })
        });
        heads.collect()
    }

    async fn due(
        &self,
        node: NodeId,
        until: Timestamp,
        after: Option<Due>,
        limit: usize,
    ) -> Result<Vec<Due>> {
        // Sorts before every possible entry.
        let first =
            Due { wake_at: Timestamp::from_micros(i64::MIN), execution: ExecutionId(Uuid::nil()) };
        let after = after.unwrap_or(first);
        let newest = i32::from(self.formats.history);
        let mut connection = self.inner.connections.take().await?;
        let due = sqlx::query!(
            r#"
            select id, wake_at as "wake_at!: At" from execution
            where owner = $1 and wake_at is not null and wake_at <= $2 and (wake_at, id) > ($3, $4)
                and format <= $6
                and not exists (
                    select from quarantine where execution_id = execution.id and released_at is null)
            order by wake_at, id limit $5"#,
            node.0,
            At(until) as _,
            At(after.wake_at) as _,
            after.execution.0,
            value::limit(limit),
            newest,
        );
        let due = connection.all(due).await?.into_iter();
        Ok(due.map(|row| Due { execution: ExecutionId(row.id), wake_at: row.wake_at.0 }).collect())
    }

    async fn list(
        &self,
        filter: &ListFilter,
        before: Option<ExecutionId>,
        limit: usize,
    ) -> Result<Vec<Listed>> {
        let states: Vec<&str> = filter.states.iter().map(|state| state.name()).collect();
        let namespace = filter.namespace.as_ref().map(Namespace::as_str);
        let workflow = filter.workflow.as_ref().map(|workflow| workflow.as_str());

        let mut query = Filtered::new(
            "select id, namespace, workflow, version, key, state, phase, compensation, run,
                error_type, started_at, ended_at, wake_at, format, reason, detail, at
            from execution
            left join quarantine on execution_id = id and released_at is null
            where true",
        );
        if let Some(namespace) = namespace {
            query.and("namespace = ?", namespace);
        }
        if !states.is_empty() {
            query.and("state = any(?)", states);
            if filter.states.iter().all(|state| state.is_failure()) {
                // Repeats the condition of the index `execution_failed`, because the planner uses the index
                // only if it sees that condition.
                query.and_literally("state in ('FAILED', 'TIMED_OUT', 'CANCELLED', 'TERMINATED')");
            }
        }
        if let Some(workflow) = workflow {
            query.and("workflow = ?", workflow);
        }
        if let Some(error_type) = filter.error_type.as_deref() {
            query.and("(error_type = ? or starts_with(error_type, ?::text || '.'))", error_type);
        }
        if let Some(prefix) = filter.key_prefix.as_deref() {
            query.and("starts_with(key, ?)", prefix);
        }
        if let Some(after) = filter.started_after {
            query.and("started_at >= ?", At(after));
        }
        if let Some(until) = filter.started_before {
            query.and("started_at < ?", At(until));
        }
        if filter.quarantined {
            // Makes the query start from the executions in quarantine, which are few.
            query.and_literally(
                "id in (select execution_id from quarantine where released_at is null)",
            );
        }
        if let Some(before) = before {
            query.and("id < ?", before.0);
        }
        let query = query.ending("order by id desc limit ?", value::limit(limit))?;

        let mut connection = self.inner.connections.take().await?;
        let rows = connection.rows(query).await?;
        rows.iter().map(|row| Ok(listed(ListedRow::from_row(row)?)?)).collect()
    }

    async fn indexed(&self, execution: ExecutionId) -> Result<Option<Listed>> {
        let mut connection = self.inner.connections.take().await?;
        let indexed = sqlx::query_as!(
            ListedRow,
            r#"
            select id, namespace, workflow, version, key, state, phase, compensation, run,
                error_type, started_at as "started_at: At", ended_at as "ended_at: At",
                wake_at as "wake_at: At", format, reason as "reason?", detail as "detail?",
                at as "at?: At"
            from execution
            left join quarantine on execution_id = id and released_at is null
            where id = $1"#,
            execution.0,
        );
        Ok(connection.first(indexed).await?.map(listed).transpose()?)
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
        let mut connection = self.inner.connections.take().await?;
        let holder = sqlx::query_scalar!(
            "select execution_id from execution_key where namespace = $1 and key = $2",
            namespace.as_str(),
            key,
        );
        Ok(connection.first(holder).await?.map(ExecutionId))
    }

    async fn started_by(
        &self,
        namespace: &Namespace,
        request_id: &str,
    ) -> Result<Option<(ExecutionId, u64)>> {
        let mut connection = self.inner.connections.take().await?;
        let started = sqlx::query!(
            "select execution_id, digest from start_request
            where namespace = $1 and request_id = $2
                and created_at > clock_timestamp() - interval '1 microsecond' * $3::int8",
            namespace.as_str(),
            request_id,
            value::REQUEST_KEPT_US,
        );
        let started = connection.first(started).await?;
        Ok(started.map(|row| (ExecutionId(row.execution_id), row.digest.cast_unsigned())))
    }
}

fn uuids(executions: &[ExecutionId]) -> Vec<Uuid> {
    executions.iter().map(|execution| execution.0).collect()
}

/// The columns of an execution in a list.
#[derive(FromRow)]
struct ListedRow {
    id: Uuid,
    namespace: String,
    workflow: String,
    version: i64,
    key: Option<String>,
    state: String,
    phase: String,
    compensation: String,
    run: i64,
    error_type: Option<String>,
    started_at: At,
    ended_at: Option<At>,
    wake_at: Option<At>,
    format: i32,
    reason: Option<String>,
    detail: Option<String>,
    at: Option<At>,
}

fn listed(row: ListedRow) -> Result<Listed, Failure> {
    let index = IndexRow {
        namespace: row.namespace.as_str().into(),
        workflow: row.workflow.as_str().into(),
        version: value::count(row.version)?,
        key: row.key,
        state: Named::of(&row.state),
        phase: Named::of(&row.phase),
        compensation: Named::of(&row.compensation),
        run: value::count(row.run)?,
        error_type: row.error_type,
        started_at: row.started_at.0,
        ended_at: row.ended_at.map(|at| at.0),
        wake_at: row.wake_at.map(|at| at.0),
        format: value::format(row.format)?,
    };
    let quarantine = quarantine::found(row.reason, row.detail, row.at);
    Ok(Listed { execution: ExecutionId(row.id), index, quarantine })
}
