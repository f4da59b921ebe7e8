//! Mutations of the registry. Each is a transaction of its own. If it carries a request id, that row is written
//! first, and another call with the same id waits there for the outcome of the first call. So a transaction
//! that waits for a request id holds no other lock.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use super::connection::Connection;
use super::error::Failure;
use super::{PostgresStore, value};
use crate::contract::{Error, RegistryAnswer, RegistryOperation, RegistryRequest, Result};
use crate::format;

/// An open transaction. Dropping it rolls back and closes its connection.
pub(super) struct Mutation<'a> {
    connection: Connection,
    request: Option<&'a RegistryRequest>,
    commit_timeout: Duration,
}

pub(super) enum Begun<'a> {
    /// The request was answered before, with this answer.
    Answered(RegistryAnswer),
    Open(Box<Mutation<'a>>),
}

impl PostgresStore {
    pub(super) async fn mutate<'a>(
        &'a self,
        operation: RegistryOperation,
        request: Option<&'a RegistryRequest>,
    ) -> Result<Begun<'a>> {
        let mut connection = self.inner.connections.take().await?;
        connection.begin().await?;
        let commit_timeout = self.inner.options.commit_timeout;
        let Some(asked) = request else {
            return Ok(Begun::Open(Box::new(Mutation { connection, request, commit_timeout })));
        };
        // Claims the id unless another request settled it within the last day.
        let claim = sqlx::query_scalar!(
            r#"
            insert into registry_request as there
                (namespace, request_id, operation, digest, format, answer)
            values ($1, $2, $3, $4, 0, '')
            on conflict (namespace, request_id) do update
                set operation = excluded.operation, digest = excluded.digest,
                    format = excluded.format, answer = excluded.answer,
                    created_at = excluded.created_at
                where there.created_at
                    <= clock_timestamp() - interval '1 microsecond' * $5::int8
            returning true as "claimed!""#,
            asked.namespace.as_str(),
            asked.request_id,
            operation.as_str(),
            asked.digest.cast_signed(),
            value::REQUEST_KEPT_US,
        );
        if connection.first(claim).await?.is_some() {
            return Ok(Begun::Open(Box::new(Mutation { connection, request, commit_timeout })));
        }
        let answer = answered(&mut connection, operation, asked).await;
        connection.rolled_back().await;
        match answer? {
            Some(answer) => Ok(Begun::Answered(answer)),
            // The day for which the id is kept ended between the two statements.
            None => Err(Error::Unavailable("the request id has just expired".into())),
        }
    }
}

/// The answer that the request got before, whichever node committed it.
pub(super) async fn answered(
    connection: &mut Connection,
    operation: RegistryOperation,
    request: &RegistryRequest,
) -> Result<Option<RegistryAnswer>> {
    let RegistryRequest { namespace, request_id, digest } = request;
    let answer = sqlx::query!(
        "select operation, digest, format, answer from registry_request
        where namespace = $1 and request_id = $2
            and created_at > clock_timestamp() - interval '1 microsecond' * $3::int8",
        namespace.as_str(),
        request_id,
        value::REQUEST_KEPT_US,
    );
    let Some(row) = connection.first(answer).await? else { return Ok(None) };
    if (row.operation.as_str(), row.digest) != (operation.as_str(), digest.cast_signed()) {
        return Err(Error::RequestIdReused);
    }
    let answer = format::decode_registry_answer(value::format(row.format)?, &row.answer.into());
    Ok(Some(answer.map_err(|error| Error::Incompatible(error.to_string()))?))
}

impl Mutation<'_> {
    /// Commits the mutation, with its answer stored beside the request id. [`Error::OutcomeUnknown`] if no
    /// answer arrives: the caller finds out the outcome by sending the same request again.
    pub async fn done(mut self, answer: RegistryAnswer) -> Result<RegistryAnswer> {
        let committed = tokio::time::timeout(self.commit_timeout, self.commit(&answer)).await;
        match committed {
            Ok(Ok(())) => Ok(answer),
            Ok(Err(Failure::Lost(reason))) => Err(Error::OutcomeUnknown(reason)),
            Ok(Err(failure)) => Err(failure.into()),
            Err(_) => Err(Error::OutcomeUnknown("no answer in time".into())),
        }
    }

    async fn commit(&mut self, answer: &RegistryAnswer) -> Result<(), Failure> {
        if let Some(request) = self.request {
            let encoded = format::encode_registry_answer(answer);
            let keep = sqlx::query!(
                "update registry_request set format = $3, answer = $4
                where namespace = $1 and request_id = $2",
                request.namespace.as_str(),
                request.request_id,
                i32::from(encoded.format),
                &encoded.data[..],
            );
            self.connection.execute(keep).await?;
        }
        self.connection.commit().await
    }

    /// Rolls back, which frees the request id.
    pub async fn refused<T>(self, error: Error) -> Result<T> {
        self.connection.rolled_back().await;
        Err(error)
    }
}

impl Deref for Mutation<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl DerefMut for Mutation<'_> {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }
}
