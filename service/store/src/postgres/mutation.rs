//! Mutations of the registry: a transaction of its own each, of which the request id, if there is one,
//! is the first row. Whoever comes with the same id waits there for the outcome of the one before; so
//! nobody waits for a request id who holds anything else.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::commit::COMMIT;
use super::error::Failure;
use super::pool::Pooled;
use super::session::{Call, Session};
use super::{PostgresStore, value};
use crate::contract::{Error, RegistryAnswer, RegistryOperation, RegistryRequest, Result};
use crate::format;

/// Leaves what others settled within the day.
const CLAIM: &str = "
    insert into registry_request as there (namespace, request_id, operation, digest, format, answer)
    values ($1, $2, $3, $4, 0, '')
    on conflict (namespace, request_id) do update
        set operation = excluded.operation, digest = excluded.digest, format = excluded.format,
            answer = excluded.answer, created_at = excluded.created_at
        where there.created_at <= clock_timestamp() - interval '1 day'
    returning created_at";
const KEEP: &str = "
    update registry_request set format = $3, answer = $4 where namespace = $1 and request_id = $2";
const ANSWERED: &str = "
    select operation, digest, format, answer from registry_request
    where namespace = $1 and request_id = $2
        and created_at > clock_timestamp() - interval '1 day'";

/// An open transaction. Dropping it rolls back, and closes its connection.
pub(super) struct Mutation<'a> {
    session: Pooled<'a>,
    request: Option<&'a RegistryRequest>,
    commit_timeout: Duration,
}

pub(super) enum Begun<'a> {
    /// The request was answered before, with this.
    Answered(RegistryAnswer),
    Open(Box<Mutation<'a>>),
}

impl PostgresStore {
    pub(super) async fn mutate<'a>(
        &'a self,
        operation: RegistryOperation,
        request: Option<&'a RegistryRequest>,
    ) -> Result<Begun<'a>> {
        let mut session = self.inner.pool.take().await?;
        session.begin().await?;
        let commit_timeout = self.inner.options.commit_timeout;
        let Some(asked) = request else {
            return Ok(Begun::Open(Box::new(Mutation { session, request, commit_timeout })));
        };
        let digest = asked.digest.cast_signed();
        let row: [&(dyn ToSql + Sync); 4] =
            [&asked.namespace.as_str(), &asked.request_id, &operation.as_str(), &digest];
        if !session.query(CLAIM, &row).await?.is_empty() {
            return Ok(Begun::Open(Box::new(Mutation { session, request, commit_timeout })));
        }
        let answer = answered(&mut session, operation, asked).await;
        session.rolled_back().await;
        match answer? {
            Some(answer) => Ok(Begun::Answered(answer)),
            // Its day was over in between.
            None => Err(Error::Unavailable("the request id has just expired".into())),
        }
    }
}

/// What the request settled, by whoever committed it.
pub(super) async fn answered(
    session: &mut Session,
    operation: RegistryOperation,
    request: &RegistryRequest,
) -> Result<Option<RegistryAnswer>> {
    let RegistryRequest { namespace, request_id, digest } = request;
    let rows = session.query(ANSWERED, &[&namespace.as_str(), request_id]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let (found, format, answer) = read(row)?;
    if found != (operation.as_str(), digest.cast_signed()) {
        return Err(Error::RequestIdReused);
    }
    let answer = format::decode_registry_answer(format, &answer.to_vec().into());
    Ok(Some(answer.map_err(|error| Error::Incompatible(error.to_string()))?))
}

type Kept<'a> = ((&'a str, i64), u16, &'a [u8]);

fn read(row: &Row) -> Result<Kept<'_>, Failure> {
    let digest: i64 = row.try_get(1)?;
    Ok(((row.try_get(0)?, digest), value::format(row.try_get(2)?)?, row.try_get(3)?))
}

impl Mutation<'_> {
    /// Commits, with the answer beside its request id. [`Error::OutcomeUnknown`] if no answer comes:
    /// with the same request, it is found out by doing it again.
    pub async fn done(mut self, answer: RegistryAnswer) -> Result<RegistryAnswer> {
        let encoded = format::encode_registry_answer(&answer);
        let (format, encoded) = (i32::from(encoded.format), &encoded.data[..]);
        let mut calls: Vec<Call<'_>> = Vec::with_capacity(2);
        let place = self.request.map(|request| (request.namespace.as_str(), &request.request_id));
        if let Some((namespace, request_id)) = &place {
            calls.push((KEEP, vec![namespace, *request_id, &format, &encoded]));
        }
        calls.push((COMMIT, vec![]));
        let committed = tokio::time::timeout(self.commit_timeout, self.session.pipeline(&calls));
        let committed = committed.await;
        drop(calls);
        match committed {
            Ok(Ok(_)) => {
                self.session.ended();
                Ok(answer)
            }
            Ok(Err(Failure::Lost(reason))) => Err(Error::OutcomeUnknown(reason)),
            Ok(Err(failure)) => Err(failure.into()),
            Err(_) => Err(Error::OutcomeUnknown("no answer in time".into())),
        }
    }

    /// Rolls back: the request id is free.
    pub async fn refused<T>(self, error: Error) -> Result<T> {
        self.session.rolled_back().await;
        Err(error)
    }
}

impl Deref for Mutation<'_> {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl DerefMut for Mutation<'_> {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.session
    }
}
