//! Builds a statement from the conditions of a filter. The statement contains only the conditions that the
//! filter sets, so that the planner can use an index.

use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{Arguments, AssertSqlSafe, Encode, Postgres, Type};

use super::error::Failure;

pub(super) struct Filtered {
    sql: String,
    parameters: PgArguments,
    /// The error for the first parameter that could not be encoded.
    flaw: Option<sqlx::Error>,
}

impl Filtered {
    /// `sql` must end in a `where` clause.
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

    /// Selects the rows that sort below a pair of values.
    pub fn and_below(&mut self, columns: [&str; 2], below: (i64, i64)) {
        let [a, b] = columns;
        let (first, second) = (self.push(below.0), self.push(below.1));
        self.and_literally(&format!("({a}, {b}) < ({first}, {second})"));
    }

    /// Finishes the statement. Its text contains no input of callers: that is passed in parameters.
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

    /// Adds a parameter and returns its placeholder.
    fn push<'q>(&mut self, parameter: impl Encode<'q, Postgres> + Type<Postgres>) -> String {
        if let Err(error) = self.parameters.add(parameter) {
            self.flaw.get_or_insert(sqlx::Error::Encode(error));
        }
        format!("${}", self.parameters.len())
    }
}
