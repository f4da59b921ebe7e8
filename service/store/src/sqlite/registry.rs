use async_trait::async_trait;
use recoup_core::time::Timestamp;
use rusqlite::{Connection, Params, Row, params};

use super::error::Failure;
use super::writer::Write;
use super::{SqliteStore, value};
use crate::contract::{
    Error, REQUEST_KEPT, Registry, RegistryAnswer, RegistryOperation, RegistryRequest, Result,
};
use crate::format;

#[async_trait]
impl Registry for SqliteStore {
    async fn now(&self) -> Result<Timestamp> {
        Ok(self.time())
    }

    async fn answered(
        &self,
        operation: RegistryOperation,
        request: &RegistryRequest,
    ) -> Result<Option<RegistryAnswer>> {
        let (request, now) = (request.clone(), self.time());
        self.read(move |connection| answered(connection, now, operation, &request)).await
    }
}

impl SqliteStore {
    /// Runs a mutation, or returns the answer that an earlier call with the same request got.
    pub(super) async fn once(
        &self,
        operation: RegistryOperation,
        request: Option<&RegistryRequest>,
        mut mutate: impl FnMut(&mut Write<'_>) -> Result<RegistryAnswer, Failure> + Send + 'static,
    ) -> Result<RegistryAnswer> {
        const KEEP: &str = "
            insert into registry_request (namespace, request_id, operation, digest, format, answer,
                created_at)
            values (?1, ?2, ?3, ?4, ?5, ?6, ?7)
            on conflict do update set operation = excluded.operation, digest = excluded.digest,
                format = excluded.format, answer = excluded.answer,
                created_at = excluded.created_at";
        let request = request.cloned();
        self.write(move |write| {
            let Some(request) = &request else { return mutate(write) };
            if let Some(answer) = answered(write.connection(), write.now, operation, request)? {
                return Ok(answer);
            }
            let answer = mutate(write)?;
            let RegistryRequest { namespace, request_id, digest } = request;
            let encoded = format::encode_registry_answer(&answer);
            let row = params![
                namespace.as_str(),
                request_id,
                operation.as_str(),
                digest.cast_signed(),
                encoded.format,
                &encoded.data[..],
                write.now.as_micros(),
            ];
            write.execute(KEEP, row)?;
            Ok(answer)
        })
        .await
    }
}

fn answered(
    connection: &Connection,
    now: Timestamp,
    operation: RegistryOperation,
    request: &RegistryRequest,
) -> Result<Option<RegistryAnswer>, Failure> {
    const ANSWERED: &str = "
        select operation, digest, format, answer from registry_request
        where namespace = ?1 and request_id = ?2 and created_at > ?3";
    let RegistryRequest { namespace, request_id, digest } = request;
    let since = (now - REQUEST_KEPT).as_micros();
    let mut statement = connection.prepare_cached(ANSWERED)?;
    let mut rows = statement.query(params![namespace.as_str(), request_id, since])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    if value::text(row, 0)? != operation.as_str() || row.get::<_, i64>(1)? != digest.cast_signed() {
        return Err(Error::RequestIdReused.into());
    }
    let answer = format::decode_registry_answer(value::format(row, 2)?, &value::bytes(row, 3)?);
    Ok(Some(answer.map_err(|error| Error::Incompatible(error.to_string()))?))
}

pub(super) fn one<T>(
    connection: &Connection,
    sql: &str,
    parameters: impl Params,
    read: fn(&Row<'_>) -> Result<T, Failure>,
) -> Result<Option<T>, Failure> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(parameters)?;
    rows.next()?.map(read).transpose()
}

pub(super) fn many<T>(
    connection: &Connection,
    sql: &str,
    parameters: impl Params,
    read: fn(&Row<'_>) -> Result<T, Failure>,
) -> Result<Vec<T>, Failure> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(parameters)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(read(row)?);
    }
    Ok(found)
}
