//! A statement that is put together from the conditions of a filter: only what is asked for stands in
//! it, so that it can go by an index.

use tokio_postgres::types::ToSql;

pub(super) struct Filtered<'a> {
    sql: String,
    parameters: Vec<&'a (dyn ToSql + Sync)>,
}

impl<'a> Filtered<'a> {
    /// `sql` ends in a `where` clause.
    pub fn new(sql: &str) -> Self {
        Self { sql: sql.into(), parameters: Vec::new() }
    }

    /// Every `?` in the condition stands for the parameter.
    pub fn and(&mut self, condition: &str, parameter: &'a (dyn ToSql + Sync)) {
        self.parameters.push(parameter);
        self.and_literally(&condition.replace('?', &format!("${}", self.parameters.len())));
    }

    pub fn and_literally(&mut self, condition: &str) {
        self.sql.push_str(" and ");
        self.sql.push_str(condition);
    }

    /// Rows below a pair, in the order of pairs.
    pub fn and_below(
        &mut self,
        columns: [&str; 2],
        first: &'a (dyn ToSql + Sync),
        second: &'a (dyn ToSql + Sync),
    ) {
        self.parameters.extend([first, second]);
        let [a, b] = columns;
        let second = self.parameters.len();
        self.and_literally(&format!("({a}, {b}) < (${}, ${second})", second - 1));
    }

    pub fn ending(
        mut self,
        clause: &str,
        parameter: &'a (dyn ToSql + Sync),
    ) -> (String, Vec<&'a (dyn ToSql + Sync)>) {
        self.parameters.push(parameter);
        self.sql.push(' ');
        self.sql.push_str(&clause.replace('?', &format!("${}", self.parameters.len())));
        (self.sql, self.parameters)
    }
}
