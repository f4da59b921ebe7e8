//! Converts between the messages of `recoup.v1` and the types of core, one file per subject.

mod block;
pub mod decision;
pub mod definition;
pub mod enumeration;
pub mod error;
pub mod event;
pub mod execution;
pub mod failure;
pub mod inline;
mod loops;
mod parallel;
pub mod path;
pub mod payload;
mod reader;
pub mod retry;
pub mod task;
pub mod text;
pub mod time;

/// Defines a function that converts an enum of core to one of the protocol whose variants have the same
/// names.
macro_rules! to_proto {
    ($name:ident: $core:ty => $proto:ty: $($variant:ident)+) => {
        pub fn $name(value: $core) -> $proto {
            match value {
                $(<$core>::$variant => <$proto>::$variant,)+
            }
        }
    };
}
pub(crate) use to_proto;

/// Defines the opposite conversion. A value without such a variant, such as the unspecified one, gives
/// `None`.
macro_rules! from_proto {
    ($name:ident: $proto:ty => $core:ty: $($variant:ident)+) => {
        pub fn $name(value: $proto) -> Option<$core> {
            match value {
                $(<$proto>::$variant => Some(<$core>::$variant),)+
                #[allow(unreachable_patterns, reason = "where both have an unspecified value")]
                _ => None,
            }
        }
    };
}
pub(crate) use from_proto;
