//! The public API `recoup.v1`: messages, clients and servers generated from `proto/recoup/v1`, their
//! JSON form, and the reader of definition files.
//!
//! Every message implements serde's traits in the proto3 JSON mapping. Three things read more than
//! that mapping asks for, because people write them in definition files: durations (`1h30m`), enum
//! values (`IGNORE` for `ON_ERROR_IGNORE`) and templates (any plain JSON value).
//!
//! # Map
//!
//! | module | holds |
//! | --- | --- |
//! | `v1` | the generated messages, clients and servers |
//! | `source` | definition files into messages, with line, column and field path, and back |
//! | `duration` | durations in JSON and YAML |
//! | `enumeration` | enums in JSON and YAML |
//! | `template` | templates in JSON and YAML |

mod duration;
mod enumeration;
pub mod source;
mod template;
#[cfg(test)]
mod tests;

pub use duration::{Duration, DurationError};
pub use pbjson_types::Timestamp;

/// Package `recoup.v1`.
#[expect(
    clippy::allow_attributes_without_reason,
    clippy::large_enum_variant,
    reason = "generated code"
)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/recoup.v1.rs"));
    include!(concat!(env!("OUT_DIR"), "/recoup.v1.serde.rs"));
    include!(concat!(env!("OUT_DIR"), "/recoup.v1.enum.rs"));
}

/// The encoded `google.protobuf.FileDescriptorSet` of `recoup.v1` and what it imports, comments
/// included: for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/recoup.v1.descriptor.bin"));
