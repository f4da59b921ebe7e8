//! What a worker declares when it polls or opens a stream: its session, queues and task types, and the
//! tasks that it holds.

use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use recoup_core::command::TaskId;
use recoup_core::id::Namespace;
use recoup_core::limits::{QUEUE_BYTES_MAX, TASK_TYPE_BYTES_MAX};
use recoup_core::plan::QUEUE;
use recoup_engine::token;
use recoup_proto as proto;
use recoup_proto::v1::{self, TaskCancellationReason as Reason};
use recoup_store::QueueName;

use crate::convert::{text, time};
use crate::status::{Error, Result};

/// The most queues of one session.
const QUEUES_MAX: usize = 100;
/// The most task types of one session.
const TASK_TYPES_MAX: usize = 1_000;
/// The most tokens that a session may declare as held, and the most credit that it may have.
pub const HELD_MAX: usize = 10_000;
/// The range of a session's time to live.
const SESSION_TTL: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(600);

/// Reads a time to live in the form of the protocol.
pub fn ttl(given: Option<proto::Duration>, field: &str, default: Duration) -> Result<Duration> {
    time::duration_between(given, field, default, SESSION_TTL)
}

pub fn queue(namespace: &Namespace, name: String, field: &str) -> Result<QueueName> {
    let name = if name.is_empty() { QUEUE.to_owned() } else { name };
    let queue = text::optional(name, field, QUEUE_BYTES_MAX)?;
    Ok(QueueName { namespace: namespace.clone(), queue })
}

pub fn queues(namespace: &Namespace, names: Vec<String>, field: &str) -> Result<Vec<QueueName>> {
    if names.len() > QUEUES_MAX {
        return Err(Error::invalid(
            field,
            format!("must name at most {QUEUES_MAX} queues, not {}", names.len()),
        ));
    }
    let names = if names.is_empty() { vec![QUEUE.to_owned()] } else { names };
    let mut queues = Vec::with_capacity(names.len());
    for (index, name) in names.into_iter().enumerate() {
        let queue = queue(namespace, name, &format!("{field}[{index}]"))?;
        if !queues.contains(&queue) {
            queues.push(queue);
        }
    }
    Ok(queues)
}

pub fn task_types(types: Vec<String>, field: &str) -> Result<Vec<String>> {
    if types.len() > TASK_TYPES_MAX {
        return Err(Error::invalid(
            field,
            format!("must name at most {TASK_TYPES_MAX} types, not {}", types.len()),
        ));
    }
    let types = types.into_iter().enumerate();
    types
        .map(|(index, own)| text::required(own, &format!("{field}[{index}]"), TASK_TYPE_BYTES_MAX))
        .collect()
}

/// Decodes the tokens that a worker holds. Returns the tasks, and the tokens that do not identify a task.
pub fn held(tokens: &[Bytes], field: &str) -> Result<(Vec<TaskId>, Vec<Bytes>)> {
    if tokens.len() > HELD_MAX {
        return Err(Error::invalid(
            field,
            format!("must list at most {HELD_MAX} tokens, not {}", tokens.len()),
        ));
    }
    let mut tasks = Vec::with_capacity(tokens.len());
    let mut garbage = Vec::new();
    for own in tokens {
        match token::decode(own) {
            Ok(task) => tasks.push(task),
            Err(_) => garbage.push(own.clone()),
        }
    }
    Ok((tasks, garbage))
}

/// Tells a worker that a token which it declared as held does not belong to an open attempt.
pub fn closed(token: Bytes) -> v1::TaskCancellation {
    v1::TaskCancellation { task_token: token, reason: Reason::AttemptClosed.into() }
}
