//! Reads of whole histories, and of the index.

use async_trait::async_trait;
use recoup_core::id::{ExecutionId, Namespace, TransitionId};
use recoup_core::time::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter};

use super::error::Failure;
use super::{SqliteStore, quarantine, value};
use crate::contract::{
    Due, Executions, Head, History, IndexRow, ListFilter, Listed, NodeId, REQUEST_KEPT, Release,
    Result, StoredTransition, Wanted,
};

const HISTORY: &str = "
    select sequence, transition_id, format, data, checksum from history
    where execution_id = ?1 and sequence > ?2 order by sequence limit ?3";
const OWNER: &str = "
    select node.id from execution join node on node.id = execution.owner
    where execution.id = ?1 and node.closed_at is null";
const STANDING: &str = "select wake_at, format from execution where id = ?1";
const HEAD: &str = "
    select execution.state, (select max(sequence) from history where execution_id = execution.id),
        exists (select 1 from quarantine where execution_id = ?1 and released_at is null)
    from execution where id = ?1";
const INDEX: &str = "id, namespace, workflow, version, key, state, phase, compensation, run,
    error_type, started_at, ended_at, wake_at, format, reason, detail, at";
const INDEXED: &str = "execution
    left join quarantine on execution_id = id and released_at is null";

#[async_trait]
impl Executions for SqliteStore {
    /// Feed numbers grow across all lanes, so a node that loads executions need not remember theirs.
    async fn load_within(
        &self,
        _node: NodeId,
        wanted: &[Wanted],
        bytes: usize,
    ) -> Result<Vec<History>> {
        let wanted = wanted.to_vec();
        self.read(move |connection| {
            let mut histories = Vec::with_capacity(wanted.len());
            let mut read = 0_usize;
            for Wanted { execution, after } in wanted {
                read = read.saturating_add(bytes_of(connection, execution, after)?);
                if !histories.is_empty() && read > bytes {
                    break;
                }
                let transitions = transitions(connection, execution, after, usize::MAX)?;
                if !transitions.is_empty() || after > 0 && exists(connection, execution)? {
                    let owner = owner(connection, execution)?;
                    let quarantine = quarantine::of(connection, execution)?;
                    let (wake_at, format) = standing(connection, execution)?;
                    histories.push(History {
                        execution,
                        owner,
                        wake_at,
                        format,
                        transitions,
                        quarantine,
                    });
                }
            }
            Ok(histories)
        })
        .await
    }

    async fn history(
        &self,
        execution: ExecutionId,
        after: u64,
        limit: usize,
    ) -> Result<Vec<StoredTransition>> {
        self.read(move |connection| transitions(connection, execution, after, limit)).await
    }

    async fn heads(&self, executions: &[ExecutionId]) -> Result<Vec<Head>> {
        let executions = executions.to_vec();
        self.read(move |connection| {
            let mut heads = Vec::with_capacity(executions.len());
            let mut statement = connection.prepare_cached(HEAD)?;
            for execution in executions {
                let mut rows = statement.query([execution.0.as_bytes()])?;
                if let Some(row) = rows.next()? {
                    let (state, sequence) = (value::named(row, 0)?, value::sequence(row, 1)?);
                    let quarantined = row.get(2)?;
                    let owner = owner(connection, execution)?;
                    heads.push(Head { execution, sequence, state, owner, quarantined });
                }
            }
            Ok(heads)
        })
        .await
    }

    async fn due(
        &self,
        node: NodeId,
        until: Timestamp,
        after: Option<Due>,
        limit: usize,
    ) -> Result<Vec<Due>> {
        const DUE: &str = "
            select id, wake_at from execution
            where owner = ?1 and wake_at is not null and wake_at <= ?2 and format <= ?6
                and (wake_at, id) > (?3, ?4)
                and not exists (
                    select 1 from quarantine where execution_id = execution.id and released_at is null)
            order by wake_at, id limit ?5";
        // No id is empty, so every id sorts after this one.
        let (wake_at, id) = after.map_or((i64::MIN, Vec::new()), |after| {
            (after.wake_at.as_micros(), after.execution.0.as_bytes().to_vec())
        });
        let newest = self.formats.history;
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(DUE)?;
            let (until, limit) = (until.as_micros(), value::limit(limit));
            let wanted = params![node.0, until, wake_at, id, limit, newest];
            let mut rows = statement.query(wanted)?;
            let mut due = Vec::new();
            while let Some(row) = rows.next()? {
                due.push(Due { execution: value::execution(row, 0)?, wake_at: value::at(row, 1)? });
            }
            Ok(due)
        })
        .await
    }

    async fn list(
        &self,
        filter: &ListFilter,
        before: Option<ExecutionId>,
        limit: usize,
    ) -> Result<Vec<Listed>> {
        let (sql, parameters) = listing(filter, before, limit);
        self.read(move |connection| {
            let mut statement = connection.prepare(&sql)?;
            let mut rows = statement.query(params_from_iter(parameters))?;
            let mut listed = Vec::new();
            while let Some(row) = rows.next()? {
                listed.push(self::listed(row)?);
            }
            Ok(listed)
        })
        .await
    }

    async fn indexed(&self, execution: ExecutionId) -> Result<Option<Listed>> {
        let sql = format!("select {INDEX} from {INDEXED} where id = ?1");
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query([execution.0.as_bytes()])?;
            rows.next()?.map(listed).transpose()
        })
        .await
    }

    async fn release_quarantine(
        &self,
        node: NodeId,
        execution: ExecutionId,
        release: &Release,
    ) -> Result<()> {
        let release = release.clone();
        self.write(move |write| {
            write.live(node)?;
            quarantine::release(write, node, execution, &release)
        })
        .await
    }

    async fn key_holder(&self, namespace: &Namespace, key: &str) -> Result<Option<ExecutionId>> {
        const HOLDER: &str =
            "select execution_id from execution_key where namespace = ?1 and key = ?2";
        let (namespace, key) = (namespace.clone(), key.to_owned());
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(HOLDER)?;
            let mut rows = statement.query(params![namespace.as_str(), key])?;
            rows.next()?.map(|row| value::execution(row, 0)).transpose()
        })
        .await
    }

    async fn started_by(
        &self,
        namespace: &Namespace,
        request_id: &str,
    ) -> Result<Option<(ExecutionId, u64)>> {
        const STARTED: &str = "
            select execution_id, digest from start_request
            where namespace = ?1 and request_id = ?2 and created_at > ?3";
        let (namespace, request_id) = (namespace.clone(), request_id.to_owned());
        let kept_since = self.time() - REQUEST_KEPT;
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(STARTED)?;
            let wanted = params![namespace.as_str(), request_id, kept_since.as_micros()];
            let mut rows = statement.query(wanted)?;
            let Some(row) = rows.next()? else { return Ok(None) };
            let digest: i64 = row.get(1)?;
            Ok(Some((value::execution(row, 0)?, digest.cast_unsigned())))
        })
        .await
    }
}

fn transitions(
    connection: &Connection,
    execution: ExecutionId,
    after: u64,
    limit: usize,
) -> Result<Vec<StoredTransition>, Failure> {
    let mut statement = connection.prepare_cached(HISTORY)?;
    let (after, limit) = (value::signed(after), value::limit(limit));
    let mut rows = statement.query(params![execution.0.as_bytes(), after, limit])?;
    let mut transitions = Vec::new();
    while let Some(row) = rows.next()? {
        transitions.push(StoredTransition {
            sequence: value::sequence(row, 0)?,
            transition_id: TransitionId(value::uuid(row, 1)?),
            format: value::format(row, 2)?,
            data: value::bytes(row, 3)?,
            checksum: value::count(row, 4)?,
        });
    }
    Ok(transitions)
}

/// The size of the data. SQLite does not read the data for this, because the length of a value is stored before
/// it.
fn bytes_of(connection: &Connection, execution: ExecutionId, after: u64) -> Result<usize, Failure> {
    const BYTES: &str = "
        select coalesce(sum(length(data)), 0) from history
        where execution_id = ?1 and sequence > ?2";
    let mut statement = connection.prepare_cached(BYTES)?;
    let of = params![execution.0.as_bytes(), value::signed(after)];
    let bytes: i64 = statement.query_row(of, |row| row.get(0))?;
    Ok(usize::try_from(bytes).unwrap_or(usize::MAX))
}

/// Whether any row of the history exists.
fn exists(connection: &Connection, execution: ExecutionId) -> Result<bool, Failure> {
    const EXISTS: &str = "select exists (select 1 from history where execution_id = ?1)";
    let mut statement = connection.prepare_cached(EXISTS)?;
    Ok(statement.query_row([execution.0.as_bytes()], |row| row.get(0))?)
}

fn owner(connection: &Connection, execution: ExecutionId) -> Result<Option<NodeId>, Failure> {
    let mut statement = connection.prepare_cached(OWNER)?;
    let owner = statement.query_row([execution.0.as_bytes()], |row| row.get(0).map(NodeId));
    Ok(owner.optional()?)
}

/// The reminder and the format of an execution.
fn standing(
    connection: &Connection,
    execution: ExecutionId,
) -> Result<(Option<Timestamp>, u16), Failure> {
    let mut statement = connection.prepare_cached(STANDING)?;
    let mut rows = statement.query([execution.0.as_bytes()])?;
    match rows.next()? {
        Some(row) => Ok((value::optional_at(row, 0)?, value::format(row, 1)?)),
        None => Ok((None, 0)),
    }
}

fn listed(row: &Row<'_>) -> Result<Listed, Failure> {
    let (execution, index) = (value::execution(row, 0)?, index(row)?);
    Ok(Listed { execution, index, quarantine: quarantine::found(row, 14)? })
}

fn index(row: &Row<'_>) -> Result<IndexRow, Failure> {
    Ok(IndexRow {
        namespace: value::text(row, 1)?.into(),
        workflow: value::text(row, 2)?.into(),
        version: value::count(row, 3)?,
        key: value::optional_text(row, 4)?,
        state: value::named(row, 5)?,
        phase: value::named(row, 6)?,
        compensation: value::named(row, 7)?,
        run: value::count(row, 8)?,
        error_type: value::optional_text(row, 9)?,
        started_at: value::at(row, 10)?,
        ended_at: value::optional_at(row, 11)?,
        wake_at: value::optional_at(row, 12)?,
        format: value::format(row, 13)?,
    })
}

/// Builds the statement for a filter. It contains only the conditions that the filter sets, so that SQLite can
/// use an index.
fn listing(filter: &ListFilter, before: Option<ExecutionId>, limit: usize) -> (String, Vec<Value>) {
    let mut sql = format!("select {INDEX} from {INDEXED} where true");
    let mut parameters = Vec::new();
    let mut and = |condition: &str, values: Vec<Value>| {
        sql.push_str(" and ");
        sql.push_str(condition);
        parameters.extend(values);
    };
    if let Some(namespace) = &filter.namespace {
        and("namespace = ?", vec![namespace.to_string().into()]);
    }
    if !filter.states.is_empty() {
        let names = filter.states.iter().map(|state| state.name().to_owned().into());
        let names: Vec<_> = names.collect();
        and(&format!("state in ({})", vec!["?"; names.len()].join(", ")), names);
        if filter.states.iter().all(|state| state.is_failure()) {
            // Repeats the condition of the index of failures, so that SQLite can use it.
            and(
                "(state = 'FAILED' or state = 'TIMED_OUT' or state = 'CANCELLED' or state = 'TERMINATED')",
                vec![],
            );
        }
    }
    if let Some(workflow) = &filter.workflow {
        and("workflow = ?", vec![workflow.to_string().into()]);
    }
    // Compares bytes, because text functions stop at a NUL, and patterns give some characters a special
    // meaning.
    const BEGINS: &str = "substr(cast(COLUMN as blob), 1, ?) = ?";
    let begins = |column: &str| BEGINS.replace("COLUMN", column);
    let prefix =
        |text: &str| vec![value::limit(text.len()).into(), text.as_bytes().to_vec().into()];
    if let Some(error_type) = &filter.error_type {
        let mut values = vec![error_type.clone().into()];
        values.extend(prefix(&format!("{error_type}.")));
        and(&format!("(error_type = ? or {})", begins("error_type")), values);
    }
    if let Some(key) = &filter.key_prefix {
        and(&format!("key is not null and {}", begins("key")), prefix(key));
    }
    if let Some(after) = filter.started_after {
        and("started_at >= ?", vec![after.as_micros().into()]);
    }
    if let Some(before) = filter.started_before {
        and("started_at < ?", vec![before.as_micros().into()]);
    }
    if filter.quarantined {
        // Makes the query start from the executions in quarantine, which are few.
        and("id in (select execution_id from quarantine where released_at is null)", vec![]);
    }
    if let Some(before) = before {
        and("id < ?", vec![before.0.as_bytes().to_vec().into()]);
    }
    sql.push_str(" order by id desc limit ?");
    parameters.push(value::limit(limit).into());
    (sql, parameters)
}
