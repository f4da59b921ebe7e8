//! A statement that is put together from the conditions of a filter: only what is asked for stands in
//! it, so that it can go by an index.

use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{Arguments, AssertSqlSafe, Encode, Postgres, Type};

use super::error::Failure;

pub(super) struct Filtered {
    sql: String,
    parameters: PgArguments,
    /// The first parameter that could not be written.
    flaw: Option<sqlx::Error>,
}

impl Filtered {
    /// `sql` ends in a `where` clause.
    pub fn new(sql: &str) -> Self {
        Self { sql: sql.into(), parameters: PgArguments::default(), flaw: None }
    }

    /// Every `?` in the condition stands for the parameter.
    pub fn and<'q>(
        &mut self,
        condition: &str,
        parameter: impl Encode<'q, Postgres> + Type<Postgres>,
    ) {
        let place = self.push(parameter);
        self.and_literally(&condition.replace('?', &place));
    }

    pub fn and_literally(&mut self, condition: &str) {
        self.sql.push_str(" and ");
        self.sql.push_str(condition);
    }

    /// Rows below a pair, in the order of pairs.
    pub fn and_below(&mut self, columns: [&str; 2], below: (i64, i64)) {
        let [a, b] = columns;
        let (first, second) = (self.push(below.0), self.push(below.1));
        self.and_literally(&format!("({a}, {b}) < ({first}, {second})"));
    }

    /// The text has no words of callers in it: those are parameters.
    pub fn ending(
        mut self,
        clause: &str,
        limit: i64,
    ) -> Result<Query<'static, Postgres, PgArguments>, Failure> {
        let place = self.push(limit);
        self.sql.push(' ');
        self.sql.push_str(&clause.replace('?', &place));
        match self.flaw {
            Some(error) => Err(error.into()),
            None => Ok(sqlx::query_with(AssertSqlSafe(self.sql), self.parameters)),
        }
    }

    /// Where the parameter stands.
    fn push<'q>(&mut self, parameter: impl Encode<'q, Postgres> + Type<Postgres>) -> String {
        if let Err(error) = self.parameters.add(parameter) {
            self.flaw.get_or_insert(sqlx::Error::Encode(error));
        }
        format!("${}", self.parameters.len())
    }
}
