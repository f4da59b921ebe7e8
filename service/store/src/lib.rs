//! Where Recoup keeps what it must not lose. A store stores: rules live in `recoup-core`.
//!
//! [`contract`] says what every store promises; [`memory`], [`sqlite`] and [`postgres`] keep it, held
//! to it by one conformance suite and compared with each other on random operations. [`mod@format`] is
//! how events become bytes that outlive binaries.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod contract;
pub mod cursor;
pub mod format;
pub mod memory;
pub mod postgres;
mod schema;
pub mod sqlite;
mod waiting;

pub use contract::*;
pub use waiting::until_available;
