//! How values of the contract are represented in columns.

use std::time::Duration;

use bytes::{BufMut, BytesMut};
use recoup_core::time::Timestamp;
use sqlx::encode::IsNull as SqlxIsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueRef};
use sqlx::{Decode, Encode, Postgres};
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

use crate::contract::{Error, REQUEST_KEPT, RETENTION_DEFAULT, Result};
use crate::format::Formats;

/// Microseconds from 1970 to 2000, the year from which Postgres counts.
const EPOCH_US: i64 = 946_684_800_000_000;
/// The earliest time that a `timestamptz` can hold: 4714 BC, in microseconds since 2000.
const FIRST_US: i64 = -211_813_488_000_000_000;

/// A time as `timestamptz`: exact, and readable in SQL. Times before 4714 BC are stored as the start of that
/// range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At(pub Timestamp);

impl ToSql for At {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.put_i64(self.wire());
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TIMESTAMPTZ
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for At {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self::of_wire(i64::from_be_bytes(raw.try_into()?)))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TIMESTAMPTZ
    }
}

impl At {
    /// The value that is sent: microseconds since 2000.
    fn wire(self) -> i64 {
        self.0.as_micros().saturating_sub(EPOCH_US).max(FIRST_US)
    }

    fn of_wire(micros: i64) -> Self {
        Self(Timestamp::from_micros(micros.saturating_add(EPOCH_US)))
    }
}

impl sqlx::Type<Postgres> for At {
    fn type_info() -> PgTypeInfo {
        // timestamptz
        PgTypeInfo::with_oid(Oid(1184))
    }
}

impl PgHasArrayType for At {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(1185))
    }
}

impl Encode<'_, Postgres> for At {
    fn encode_by_ref(&self, out: &mut PgArgumentBuffer) -> Result<SqlxIsNull, BoxDynError> {
        Encode::<Postgres>::encode_by_ref(&self.wire(), out)
    }
}

impl Decode<'_, Postgres> for At {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        Ok(Self::of_wire(i64::from_be_bytes(value.as_bytes()?.try_into()?)))
    }
}

/// The duration in whole microseconds, at most about 292,000 years.
pub(super) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// [`REQUEST_KEPT`] for statements.
pub(super) const REQUEST_KEPT_US: i64 = micros_of(REQUEST_KEPT);
/// [`RETENTION_DEFAULT`] for statements.
pub(super) const RETENTION_DEFAULT_US: i64 = micros_of(RETENTION_DEFAULT);

const fn micros_of(whole: Duration) -> i64 {
    whole.as_secs().cast_signed() * 1_000_000
}

/// For a time to live or the length of a lease, which is added to a time. It is limited to a century.
pub(super) fn ttl_us(duration: Duration) -> i64 {
    const CENTURY_US: i64 = 100 * 366 * 24 * 3600 * 1_000_000;
    micros(duration).min(CENTURY_US)
}

pub(super) fn limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// Counters and sequences are never negative.
pub(super) fn unsigned(number: i64) -> u64 {
    number.max(0).unsigned_abs()
}

/// A constraint limits the column to 16 bits.
pub(super) fn format(format: i32) -> Result<u16> {
    u16::try_from(format).map_err(|_| Error::Incompatible(format!("format {format}")))
}

/// A constraint limits the column to 32 bits.
pub(super) fn count(count: i64) -> Result<u32> {
    u32::try_from(count).map_err(|_| Error::Incompatible(format!("count {count}")))
}

/// Reads the columns named in [`COLUMNS`](crate::format::COLUMNS), in that order.
pub(super) fn formats(columns: &[i32]) -> Result<Formats> {
    let mut numbers = Formats::FIRST.numbers();
    for (column, number) in columns.iter().zip(&mut numbers) {
        *number = format(*column)?;
    }
    Ok(Formats::from_numbers(numbers))
}
