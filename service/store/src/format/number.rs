//! The numbers of the formats. Each kind of row counts its own formats from 1, so that a new event does not
//! make definitions unreadable to a server that has not been updated yet.

/// The first format of every kind of row.
pub const FIRST: u16 = 1;

/// A kind of row whose bytes have a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    History,
    Definition,
    FailureEvent,
    Subscription,
    RegistryAnswer,
}

impl Row {
    pub const ALL: [Self; 5] = [
        Self::History,
        Self::Definition,
        Self::FailureEvent,
        Self::Subscription,
        Self::RegistryAnswer,
    ];

    /// The newest format that this binary reads. It reads all formats from [`FIRST`] to this one.
    pub const fn newest(self) -> u16 {
        if cfg!(feature = "first-formats") {
            return FIRST;
        }
        match self {
            Self::History => 3,
            Self::Definition => 2,
            Self::FailureEvent => 2,
            Self::Subscription => 2,
            Self::RegistryAnswer => 1,
        }
    }

    /// The name of the folder that holds the descriptor sets, and the prefix of the columns in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::History => "history",
            Self::Definition => "definition",
            Self::FailureEvent => "failure_event",
            Self::Subscription => "subscription",
            Self::RegistryAnswer => "registry_answer",
        }
    }
}

/// A row needs a format that the store may not hold yet ([`StoreFormats`](crate::StoreFormats)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this needs format {needed} of {} rows, but the store may only hold formats up to {writable}: \
     run `recoup admin finalize` once every server is up to date",
    .row.name()
)]
pub struct NotFinalized {
    pub row: Row,
    pub needed: u16,
    pub writable: u16,
}

/// The columns that hold one format for each kind of row, in the order of [`Row::ALL`].
pub(crate) const COLUMNS: &str = "history_format, definition_format, failure_event_format, \
    subscription_format, registry_answer_format";

/// One format for each kind of row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Formats {
    pub history: u16,
    pub definition: u16,
    pub failure_event: u16,
    pub subscription: u16,
    pub registry_answer: u16,
}

impl Formats {
    /// The first format of each kind. A store holds these until an operator allows more.
    pub const FIRST: Self = Self {
        history: FIRST,
        definition: FIRST,
        failure_event: FIRST,
        subscription: FIRST,
        registry_answer: FIRST,
    };

    /// The newest format of each kind that this binary reads.
    pub const NEWEST: Self = Self {
        history: Row::History.newest(),
        definition: Row::Definition.newest(),
        failure_event: Row::FailureEvent.newest(),
        subscription: Row::Subscription.newest(),
        registry_answer: Row::RegistryAnswer.newest(),
    };

    pub const fn of(self, row: Row) -> u16 {
        match row {
            Row::History => self.history,
            Row::Definition => self.definition,
            Row::FailureEvent => self.failure_event,
            Row::Subscription => self.subscription,
            Row::RegistryAnswer => self.registry_answer,
        }
    }

    /// The same formats, with another one for one kind of row.
    #[must_use]
    pub const fn with(mut self, row: Row, format: u16) -> Self {
        match row {
            Row::History => self.history = format,
            Row::Definition => self.definition = format,
            Row::FailureEvent => self.failure_event = format,
            Row::Subscription => self.subscription = format,
            Row::RegistryAnswer => self.registry_answer = format,
        }
        self
    }

    /// Whether a row of a format may be written if these are the highest formats allowed.
    ///
    /// # Errors
    /// [`NotFinalized`] if it may not.
    pub const fn permit(self, row: Row, needed: u16) -> Result<(), NotFinalized> {
        let writable = self.of(row);
        match needed <= writable {
            true => Ok(()),
            false => Err(NotFinalized { row, needed, writable }),
        }
    }

    /// The numbers, in the order of [`Row::ALL`].
    pub fn numbers(self) -> [u16; Row::ALL.len()] {
        Row::ALL.map(|row| self.of(row))
    }

    /// The inverse of [`Self::numbers`].
    pub fn from_numbers(numbers: [u16; Row::ALL.len()]) -> Self {
        let each = Row::ALL.into_iter().zip(numbers);
        each.fold(Self::FIRST, |formats, (row, number)| formats.with(row, number))
    }

    /// The lower of two formats, for each kind of row.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Row::ALL
            .into_iter()
            .fold(self, |lowest, row| lowest.with(row, lowest.of(row).min(other.of(row))))
    }

    /// The higher of two formats, for each kind of row.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Row::ALL
            .into_iter()
            .fold(self, |highest, row| highest.with(row, highest.of(row).max(other.of(row))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_in_the_order_of_rows() {
        let names = Row::ALL.map(|row| format!("{}_format", row.name()));
        assert_eq!(COLUMNS.split(", ").collect::<Vec<_>>(), names);
        let formats = Formats::from_numbers([1, 2, 3, 4, 5]);
        assert_eq!(formats.numbers(), [1, 2, 3, 4, 5]);
        assert_eq!(formats.of(Row::FailureEvent), 3);
    }
}
