//! Task tokens: the identity of a task as opaque bytes, which any node can decode.

use recoup_core::command::TaskId;
use recoup_core::id::{ExecutionId, StepPath};
use recoup_core::limits::STEP_PATH_BYTES_MAX;
use uuid::Uuid;

const VERSION: u8 = 1;
const FIXED: usize = 1 + 16 + 4 + 4 + 8;

/// The bytes are not a task token of this service.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the task token is malformed")]
pub struct Malformed;

pub fn encode(task: &TaskId) -> Vec<u8> {
    let path = task.path.as_str();
    let mut token = Vec::with_capacity(FIXED + path.len());
    token.push(VERSION);
    token.extend_from_slice(task.execution.0.as_bytes());
    token.extend_from_slice(&task.run.to_be_bytes());
    token.extend_from_slice(&task.attempt.to_be_bytes());
    token.extend_from_slice(&task.sequence.to_be_bytes());
    token.extend_from_slice(path.as_bytes());
    token
}

pub fn decode(token: &[u8]) -> Result<TaskId, Malformed> {
    let (fixed, path) = token.split_at_checked(FIXED).ok_or(Malformed)?;
    let path = std::str::from_utf8(path).map_err(|_| Malformed)?;
    if fixed[0] != VERSION || path.is_empty() || path.len() > STEP_PATH_BYTES_MAX {
        return Err(Malformed);
    }
    let u32_at =
        |at: usize| u32::from_be_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
    let execution = Uuid::from_slice(&fixed[1..17]).map_err(|_| Malformed)?;
    let sequence = (u64::from(u32_at(25)) << 32) | u64::from(u32_at(29));
    Ok(TaskId {
        execution: ExecutionId(execution),
        run: u32_at(17),
        path: StepPath::from(path),
        attempt: u32_at(21),
        sequence,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_decodes_to_its_task_and_other_bytes_are_malformed() {
        let task = TaskId {
            execution: ExecutionId(Uuid::from_u128(7)),
            run: 2,
            path: StepPath::from("charge/compensate"),
            attempt: 3,
            sequence: u64::MAX - 1,
        };
        let token = encode(&task);
        assert_eq!(decode(&token), Ok(task.clone()));
        let longest = TaskId { path: "a".repeat(STEP_PATH_BYTES_MAX).into(), ..task.clone() };
        let encoded = encode(&longest);
        assert!(encoded.len() <= 4_096, "the protocol promises so");
        assert_eq!(decode(&encoded), Ok(longest));
        assert_eq!(decode(&[&encoded[..], b"a"].concat()), Err(Malformed));
        for cut in 0..=FIXED {
            assert_eq!(decode(&token[..cut]), Err(Malformed));
        }
        assert_eq!(decode(&[0xff; 64]), Err(Malformed));
    }
}
