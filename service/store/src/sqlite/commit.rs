//! Appending transitions to histories.
//!
//! An ordinary transition takes two or three inserts, each of which reports whether its place was free. If one
//! was not, everything that the transition wrote is undone, and the checks are made one by one, in the order in
//! which the contract wants the answers.

use async_trait::async_trait;
use recoup_core::id::{ExecutionId, TransitionId};
use rusqlite::{OptionalExtension, params};

use super::error::Failure;
use super::writer::Write;
use super::{SqliteStore, quarantine, value};
use crate::contract::{
    Batch, FeedRow, Holder, IndexRow, KeySettled, KeyedStart, NewQuarantine, NodeId, REQUEST_KEPT,
    Reminder, Result, Settled, StartRequest, Transition, Transitions,
};
use crate::settle::{self, Found, TakenRequest};

/// Uses plain values instead of a select. With a select, SQLite would first put the row into a temporary table,
/// and would keep a copy of each page that it changes, in case there is more than one row.
const APPEND: &str = "
    insert into history (execution_id, sequence, transition_id, format, data, checksum)
    values (?1, ?2, ?3, ?4, ?5, ?6) on conflict do nothing";
const IS_TAKEN: &str = "select 1 from history where execution_id = ?1 and sequence = ?2";
const TAKE_REQUEST: &str = "
    insert into start_request (namespace, request_id, execution_id, digest, started, created_at)
    values (?1, ?2, ?3, ?4, ?5, ?6) on conflict do nothing";
/// The usual update. It does not touch indexes that contain none of these columns.
const UPDATE_INDEX: &str = "
    update execution set state = ?6, phase = ?7, compensation = ?8, run = ?9, active = ?10,
        error_type = ?11, ended_at = ?13, wake_at = ?14, owner = ?15, format = ?16
    where id = ?1 and namespace = ?2 and workflow = ?3 and version = ?4 and key is ?5
        and started_at = ?12";
/// The usual insert for a start.
const ADD_INDEX: &str = "
    insert into execution (id, namespace, workflow, version, key, state, phase, compensation, run,
        active, error_type, started_at, ended_at, wake_at, owner, format)
    values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)
    on conflict do nothing";
const WRITE_INDEX: &str = "
    insert into execution (id, namespace, workflow, version, key, state, phase, compensation, run,
        active, error_type, started_at, ended_at, wake_at, owner, format)
    values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)
    on conflict (id) do update set namespace = ?2, workflow = ?3, version = ?4, key = ?5,
        state = ?6, phase = ?7, compensation = ?8, run = ?9, active = ?10, error_type = ?11,
        started_at = ?12, ended_at = ?13, wake_at = ?14, owner = ?15, format = ?16";
const REMIND: &str = "update execution set wake_at = ?2 where id = ?1 and owner = ?3";
/// All statements that an ordinary commit runs for each transition.
#[cfg(test)]
pub(super) const ORDINARY: [&str; 5] = [APPEND, IS_TAKEN, TAKE_REQUEST, UPDATE_INDEX, ADD_INDEX];
const ADD_EVENT: &str = "
    insert into feed (number, lane, id, namespace, kind, workflow, error_type, execution_id,
        fingerprint, at, format, data)
    values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)";

#[async_trait]
impl Transitions for SqliteStore {
    async fn commit(&self, node: NodeId, batch: &Batch) -> Result<Vec<Settled>> {
        let batch = batch.clone();
        self.write(move |write| {
            write.live(node)?;
            let quarantined = quarantine::is_any(write)?;
            let mut append = Append { write, node };
            let mut settled = Vec::with_capacity(batch.transitions.len());
            for transition in &batch.transitions {
                settled.push(append.settle(transition, quarantined)?);
            }
            for row in &batch.feed {
                append.offer(row)?;
            }
            for new in &batch.quarantined {
                append.quarantine(new)?;
            }
            for Reminder { execution, wake_at } in &batch.reminders {
                let wake_at = wake_at.map(|at| at.as_micros());
                write.execute(REMIND, params![execution.0.as_bytes(), wake_at, node.0])?;
            }
            Ok(settled)
        })
        .await
    }

    async fn start_keyed(&self, node: NodeId, starts: &[KeyedStart]) -> Result<Vec<KeySettled>> {
        let starts = starts.to_vec();
        self.write(move |write| {
            write.live(node)?;
            let mut append = Append { write, node };
            starts.iter().map(|start| append.settle_keyed(start)).collect()
        })
        .await
    }
}

/// The writes of one node in one transaction.
struct Append<'a, 'c> {
    write: &'a mut Write<'c>,
    node: NodeId,
}

impl Append<'_, '_> {
    /// `quarantined` says whether any execution is in quarantine.
    fn settle(&mut self, transition: &Transition, quarantined: bool) -> Result<Settled, Failure> {
        let quarantined = quarantined && quarantine::is_in_force(self.write, transition.execution)?;
        if !quarantined && self.settle_at_once(transition)? {
            return Ok(Settled::Won);
        }
        let gone = transition.sequence > 1 && !self.is_there(transition.execution)?;
        let found = Found { quarantined, gone, ..self.found(transition)? };
        if let Some(settled) = settle::verdict(transition, &found) {
            return Ok(settled);
        }
        let node = self.node;
        let written = self.write.guarded(|write| Append { write, node }.write_all(transition))?;
        Ok(written.map_or_else(Settled::Refused, |()| Settled::Won))
    }

    /// Looks for the obstacles to a start, and to any other transition whose execution exists and is not in
    /// quarantine.
    fn found(&self, transition: &Transition) -> Result<Found, Failure> {
        let Transition { execution, sequence, .. } = *transition;
        let mut event = None;
        for row in &transition.feed {
            if self.is_event(&row.id)? {
                event = Some(row.id.clone());
                break;
            }
        }
        Ok(Found {
            winner: self.place(execution, sequence)?,
            request: self.taken(transition)?,
            gap: sequence > 1 && self.place(execution, sequence - 1)?.is_none(),
            event,
            ..Found::default()
        })
    }

    /// Writes an ordinary transition. If the transition is not an ordinary one, writes nothing and returns
    /// false.
    fn settle_at_once(&mut self, transition: &Transition) -> Result<bool, Failure> {
        let ordinary = transition.feed.is_empty()
            && settle::flaw(transition).is_none()
            && i64::try_from(transition.sequence).is_ok();
        if !ordinary {
            return Ok(false);
        }
        let written = self.write.guarded(|write| {
            let append = Append { write, node: self.node };
            if let Some(request) = &transition.request
                && !append.take_request(request, transition.execution, true)?
            {
                return Ok(false);
            }
            if !append.append(transition)? {
                if let Some(request) = &transition.request {
                    append.release_request(request)?;
                }
                return Ok(false);
            }
            append.index_and_overflow(transition)?;
            Ok(true)
        })?;
        // If a constraint refused the write, the slow path will be refused again and report the reason.
        Ok(written.unwrap_or(false))
    }

    fn settle_keyed(&mut self, start: &KeyedStart) -> Result<KeySettled, Failure> {
        const TAKE: &str = "
            insert or replace into execution_key (namespace, key, execution_id) values (?1, ?2, ?3)";
        let KeyedStart { transition, key, .. } = start;
        let index = transition.index.as_ref();
        let holder = match index {
            Some(index) => self.holder(index, key)?,
            None => None,
        };
        let found = self.found(transition)?;
        if let Some(settled) = settle::key_verdict(start, &found, holder.as_ref()) {
            if let (KeySettled::UseExisting { execution }, Some(request)) =
                (&settled, &transition.request)
            {
                self.put_request(request, *execution, false)?;
            }
            return Ok(settled);
        }
        let node = self.node;
        let written = self.write.guarded(|write| {
            if let Some(index) = index {
                let holder = transition.execution.0.as_bytes();
                write.execute(TAKE, params![index.namespace.as_str(), key, holder])?;
            }
            Append { write, node }.write_all(transition)
        })?;
        Ok(written.map_or_else(KeySettled::Refused, |()| KeySettled::Won))
    }

    /// The execution that holds the key, and its state.
    fn holder(&self, index: &IndexRow, key: &str) -> Result<Option<Holder>, Failure> {
        const HOLDER: &str = "
            select execution.id, execution.state, execution.compensation
            from execution_key join execution on execution.id = execution_key.execution_id
            where execution_key.namespace = ?1 and execution_key.key = ?2";
        let mut statement = self.write.prepare(HOLDER)?;
        let mut rows = statement.query(params![index.namespace.as_str(), key])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let (state, compensation) = (value::named(row, 1)?, value::named(row, 2)?);
        Ok(Some(Holder { execution: value::execution(row, 0)?, state, compensation }))
    }

    fn write_all(&mut self, transition: &Transition) -> Result<(), Failure> {
        self.append(transition)?;
        if let Some(request) = &transition.request {
            self.put_request(request, transition.execution, true)?;
        }
        self.index_and_overflow(transition)?;
        for row in &transition.feed {
            self.event(row)?;
        }
        Ok(())
    }

    /// Returns false if the place is taken, or if the place before it is free.
    fn append(&self, transition: &Transition) -> Result<bool, Failure> {
        let Transition { execution, sequence, transition_id, format, data, .. } = transition;
        let (execution, transition_id) = (execution.0.as_bytes(), transition_id.0.as_bytes());
        let sequence = value::signed(*sequence);
        if sequence > 1
            && !self.write.prepare(IS_TAKEN)?.exists(params![execution, sequence - 1])?
        {
            return Ok(false);
        }
        let row =
            params![execution, sequence, transition_id, format, &data[..], transition.checksum()];
        Ok(self.write.execute(APPEND, row)? == 1)
    }

    fn index_and_overflow(&self, transition: &Transition) -> Result<(), Failure> {
        if let Some(index) = &transition.index {
            self.index(transition, index)?;
        }
        for task in &transition.overflow_done {
            super::overflow::remove(self.write, task)?;
        }
        Ok(())
    }

    fn index(&self, transition: &Transition, index: &IndexRow) -> Result<(), Failure> {
        let row = params![
            transition.execution.0.as_bytes(),
            index.namespace.as_str(),
            index.workflow.as_str(),
            index.version,
            index.key,
            index.state.name(),
            index.phase.name(),
            index.compensation.name(),
            index.run,
            index.is_active(),
            index.error_type,
            index.started_at.as_micros(),
            index.ended_at.map(|at| at.as_micros()),
            index.wake_at.map(|at| at.as_micros()),
            self.node.0,
            index.format,
        ];
        let usual = if transition.sequence == 1 { ADD_INDEX } else { UPDATE_INDEX };
        if self.write.execute(usual, row)? == 0 {
            self.write.execute(WRITE_INDEX, row)?;
        }
        Ok(())
    }

    /// Writes a quarantine. One that the store refuses is dropped, because no caller waits for a verdict on it.
    fn quarantine(&mut self, new: &NewQuarantine) -> Result<(), Failure> {
        let node = self.node;
        let written = self.write.guarded(|write| {
            if quarantine::write(write, new)? {
                Append { write, node }.offer(&new.event)?;
            }
            Ok(())
        })?;
        if let Err(reason) = written {
            tracing::error!(execution = %new.execution, reason, "a quarantine was refused");
        }
        Ok(())
    }

    /// Writes an event unless one with its id exists.
    fn offer(&mut self, row: &FeedRow) -> Result<(), Failure> {
        if !self.is_event(&row.id)? {
            self.event(row)?;
        }
        Ok(())
    }

    fn event(&mut self, row: &FeedRow) -> Result<(), Failure> {
        let number = self.write.feed_number();
        let row = params![
            number,
            self.node.0,
            row.id,
            row.namespace.as_str(),
            row.kind.name(),
            row.workflow,
            row.error_type,
            row.execution.as_ref().map(|execution| execution.0.as_bytes()),
            row.fingerprint,
            row.at.as_micros(),
            row.format,
            &row.data[..],
        ];
        self.write.execute(ADD_EVENT, row)?;
        Ok(())
    }

    fn is_event(&self, id: &str) -> Result<bool, Failure> {
        Ok(self.write.prepare("select 1 from feed where id = ?1")?.exists([id])?)
    }

    fn is_there(&self, execution: ExecutionId) -> Result<bool, Failure> {
        const THERE: &str = "select 1 from execution where id = ?1";
        Ok(self.write.prepare(THERE)?.exists([execution.0.as_bytes()])?)
    }

    fn place(
        &self,
        execution: ExecutionId,
        sequence: u64,
    ) -> Result<Option<TransitionId>, Failure> {
        const AT: &str =
            "select transition_id from history where execution_id = ?1 and sequence = ?2";
        // No row has a sequence that does not fit into the column.
        let Ok(sequence) = i64::try_from(sequence) else { return Ok(None) };
        let mut statement = self.write.prepare(AT)?;
        let found =
            statement.query_row(params![execution.0.as_bytes(), sequence], |row| row.get(0));
        let found: Option<[u8; 16]> = found.optional()?;
        Ok(found.map(|id| TransitionId(uuid::Uuid::from_bytes(id))))
    }

    fn taken(&self, transition: &Transition) -> Result<Option<TakenRequest>, Failure> {
        const TAKEN: &str = "
            select execution_id, digest, created_at, started from start_request
            where namespace = ?1 and request_id = ?2";
        let Some(request) = &transition.request else { return Ok(None) };
        let mut statement = self.write.prepare(TAKEN)?;
        let mut rows = statement.query(params![request.namespace.as_str(), request.request_id])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        if value::at(row, 2)? + REQUEST_KEPT <= self.write.now {
            return Ok(None);
        }
        let digest: i64 = row.get(1)?;
        let (execution, started) = (value::execution(row, 0)?, row.get(3)?);
        let digest = digest.cast_unsigned();
        Ok(Some(TakenRequest { execution, digest, started, repeated: false }))
    }

    /// Returns false if the id is taken, even if that was more than a day ago.
    fn take_request(
        &self,
        request: &StartRequest,
        execution: ExecutionId,
        started: bool,
    ) -> Result<bool, Failure> {
        let StartRequest { namespace, request_id, digest } = request;
        let (execution, digest) = (execution.0.as_bytes(), digest.cast_signed());
        let now = self.write.now.as_micros();
        let row = params![namespace.as_str(), request_id, execution, digest, started, now];
        Ok(self.write.execute(TAKE_REQUEST, row)? == 1)
    }

    fn release_request(&self, request: &StartRequest) -> Result<(), Failure> {
        const RELEASE: &str = "delete from start_request where namespace = ?1 and request_id = ?2";
        self.write.execute(RELEASE, params![request.namespace.as_str(), request.request_id])?;
        Ok(())
    }

    /// Writes a request where at most an expired one can be in its place. That row is deleted first, so that
    /// the new row comes last in the order of ids, which retention relies on.
    fn put_request(
        &self,
        request: &StartRequest,
        execution: ExecutionId,
        started: bool,
    ) -> Result<(), Failure> {
        if !self.take_request(request, execution, started)? {
            self.release_request(request)?;
            self.take_request(request, execution, started)?;
        }
        Ok(())
    }
}
