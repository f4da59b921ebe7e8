//! Limits for everything that could grow, and the cleaning of text. Exceeding a limit is reported as an
//! error; nothing is cut off silently.

use std::borrow::Cow;

/// Bytes of one payload: data, content type and metadata.
pub const PAYLOAD_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Bytes of one workflow definition.
pub const DEFINITION_BYTES_MAX: usize = 1024 * 1024;
/// Steps of a definition, those of `finally` included.
pub const STEPS_MAX: usize = 1_000;
/// How deep the blocks of a definition may nest.
pub const NESTING_MAX: usize = 20;
/// Attempts of an execution that are open at a time. At this number no further branch or item begins until one
/// of them has ended.
pub const ATTEMPTS_OPEN_MAX: usize = 1_000;
/// Items of one `for_each`.
pub const ITEMS_MAX: usize = 10_000;
/// Bytes of the key of an item, as it is written in a path.
pub const ITEM_KEY_BYTES_MAX: usize = 64;
/// Events of a run. At this number no further step begins, no step is retried and no attempt is handed over
/// a second time, and the run fails. Events that end a run are exempt.
pub const HISTORY_EVENTS_MAX: usize = 50_000;
/// Events of a run including its cleanup. At this number compensations and steps of `finally` are no longer
/// retried, neither by their policies nor by an operator.
pub const HISTORY_EVENTS_CLEANUP_MAX: usize = 2 * HISTORY_EVENTS_MAX;
/// Events of one transition. A decision that needs more stops near this number and continues in the next
/// transition.
pub const TRANSITION_EVENTS_MAX: usize = 1_000;
/// Bytes of the events of one transition. A decision stops near this number in the same way.
pub const TRANSITION_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Compensations that one event may list.
pub const COMPENSATIONS_LISTED_MAX: usize = 1_000;
/// Bytes of one error, including all its causes.
pub const ERROR_BYTES_MAX: usize = 64 * 1024;
/// How deep causes may nest, counting the outermost error.
pub const CAUSE_DEPTH_MAX: usize = 20;
/// Errors of other branches that one error lists.
pub const SUPPRESSED_MAX: usize = 10;
/// Bytes of the message of such an error.
pub const SUPPRESSED_MESSAGE_BYTES_MAX: usize = 1_024;
/// Bytes of one CEL expression.
pub const CEL_SOURCE_BYTES_MAX: usize = 4 * 1024;
/// Bytes of JSON that the expressions of one condition or template may read: four payloads of the maximum
/// size. A decision that has parsed this many bytes stops and continues in the next transition.
pub const EXPRESSION_READ_BYTES_MAX: usize = 4 * PAYLOAD_BYTES_MAX;
/// How deep comprehensions (`all`, `exists`, `exists_one`, `map`, `filter`) may nest.
pub const CEL_COMPREHENSIONS_MAX: usize = 3;
/// How deep an expression may nest. Parsing and evaluation are recursive, and one level of evaluation takes
/// up to 20 KiB of stack in builds without optimisation.
pub const CEL_DEPTH_MAX: usize = 32;
/// Bytes of an execution key.
pub const KEY_BYTES_MAX: usize = 255;
/// Bytes of a request id.
pub const REQUEST_ID_BYTES_MAX: usize = 128;
/// Bytes of the name of a workflow.
pub const NAME_BYTES_MAX: usize = 128;
/// Bytes of a namespace.
pub const NAMESPACE_BYTES_MAX: usize = 128;
/// Bytes of a step id.
pub const STEP_ID_BYTES_MAX: usize = 64;
/// Bytes of the path of a step or of a compensation. The path of the compensation of a step at the deepest
/// place, with a branch at each level and all ids as long as possible, takes 2,695.
pub const STEP_PATH_BYTES_MAX: usize = 3_000;
/// Bytes of a task type.
pub const TASK_TYPE_BYTES_MAX: usize = 128;
/// Bytes of the name of a queue.
pub const QUEUE_BYTES_MAX: usize = 128;
/// Bytes of a description or of a reason that a caller gives.
pub const DESCRIPTION_BYTES_MAX: usize = 4 * 1024;
/// Bytes of an error type or of a pattern that matches error types.
pub const ERROR_TYPE_BYTES_MAX: usize = 255;
/// Patterns in one list of error types.
pub const ERROR_TYPES_MAX: usize = 100;
/// Rules in one retry policy.
pub const RETRY_RULES_MAX: usize = 50;
/// Priorities range from minus this value to this value.
pub const PRIORITY_MAX: i32 = 100;

/// Replaces every NUL in a text with U+FFFD, because stores reject NUL in text.
pub fn clean(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { text.replace('\0', "\u{fffd}").into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::StepPath;
    use crate::path::Segment;

    #[test]
    fn longest_path_of_a_definition_is_within_its_limit() {
        let id = "a".repeat(STEP_ID_BYTES_MAX);
        let key = |depth| (depth < NESTING_MAX).then(|| id.as_str().into());
        let segments = (0..=NESTING_MAX).map(|depth| Segment { step: &id, key: key(depth) });
        let path = StepPath::of_segments(segments).compensation();
        assert!(path.as_str().len() <= STEP_PATH_BYTES_MAX, "{}", path.as_str().len());
    }

    #[test]
    fn clean_replaces_nul_and_copies_only_text_that_has_one() {
        assert!(matches!(clean("ünchanged"), Cow::Borrowed("ünchanged")));
        assert_eq!(clean("a\0b\0"), "a\u{fffd}b\u{fffd}");
    }
}
