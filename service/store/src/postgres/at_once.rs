//! Commits a batch on the assumption that nothing stands in its way.
//!
//! Most batches only add rows and update index rows. Such a batch is sent as one statement, which is a
//! transaction of its own: the database answers once instead of six times, and takes one snapshot. The inserts
//! are parts of a `with`, each of which runs to completion. They do not see each other's rows and do not need
//! to. If the fence or a part fails, the whole statement is rolled back.
//!
//! A batch that deletes overflow rows is sent as a transaction of several statements instead, because a delete
//! must see the rows that another writer has added meanwhile. So is a batch with quarantines or reminders,
//! because such batches are rare.

use std::sync::LazyLock;

use uuid::Uuid;

use super::error::Failure;
use super::lane::Held;
use super::numbers::Numbers;
use super::rows::{INSERTS, Quarantines, Reminders, Rows};
use super::session::{Call, Parameters};
use super::transaction::{BEGIN, COMMIT};
use crate::contract::{Batch, Settled};

/// Like [`super::transaction::FENCE`], but also fails if one of these executions is in quarantine, if one was and
/// our numbers are not greater than the number of its quarantine event, or if one of the executions that may be
/// gone is gone. Which of these it was is found out later, row by row. The check reads a table that is usually
/// empty.
const FENCE: &str = "
    select 1 / count(*)
    from (select from node where id = $1 and closed_at is null for key share) as held
    where not exists (
        select from quarantine
        where execution_id = any($2) and (released_at is null or feed_number >= $3))
    and not exists (
        select from unnest($4::uuid[]) as asked (id)
        where not exists (select from execution where execution.id = asked.id))";
const FENCE_PARAMETERS: usize = 4;

/// One statement for each subset of [`INSERTS`], which writes that subset and checks the fence. Bit n of the index
/// of a statement says whether it includes the nth insert.
static STATEMENTS: LazyLock<Vec<String>> =
    LazyLock::new(|| (0..1 << INSERTS.len()).map(statement).collect());

fn statement(chosen: usize) -> String {
    let mut before = FENCE_PARAMETERS;
    let mut parts = Vec::new();
    for (place, insert) in INSERTS.iter().enumerate().filter(|(place, _)| chosen >> place & 1 == 1)
    {
        let (sql, parameters) = behind(insert, before);
        before += parameters;
        parts.push(format!("part{place} as ({sql})"));
    }
    // Postgres runs the parts from the last to the first. Reversed here, they lock rows in the order of `INSERTS`,
    // as a batch of several statements does.
    parts.reverse();
    match parts.is_empty() {
        true => FENCE.to_owned(),
        false => format!("with {}{FENCE}", parts.join(",")),
    }
}

/// Shifts the parameters of a statement by the number of `others` that come before them. Also returns how many
/// parameters it has.
fn behind(sql: &str, others: usize) -> (String, usize) {
    let mut parts = sql.split('$');
    let mut text = parts.next().unwrap_or_default().to_owned();
    let mut highest = 0;
    for part in parts {
        let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        let number: usize = part[..end].parse().expect("a parameter has a number");
        highest = highest.max(number);
        text.push_str(&format!("${}{}", number + others, &part[end..]));
    }
    (text, highest)
}

pub(super) async fn commit_at_once(
    held: &mut Held,
    batch: &Batch,
    numbers: &Numbers,
) -> Result<Vec<Settled>, Failure> {
    let node = held.lane.node;
    let transitions = batch.transitions.iter().zip(numbers.transitions.iter().copied());
    let mut rows = Rows::new(node, transitions);
    for (number, event) in (numbers.rest..).zip(&batch.feed) {
        rows.feed.push(number, event);
    }
    let quarantined = batch.quarantined.iter().enumerate();
    let quarantined = quarantined.map(|(at, new)| (new, numbers.quarantine(batch, at)));
    let quarantines = Quarantines::new(node, quarantined);
    let reminders = Reminders::new(node, &batch.reminders);
    let (going_on, may_be_gone) = (going_on(batch), may_be_gone(batch));
    let first = numbers.transitions.first().unwrap_or(&numbers.rest);
    let asked: Parameters<'_> = vec![&node.0, &going_on, first, &may_be_gone];
    let is_plain = rows.only_inserts() && quarantines.is_empty() && batch.reminders.is_empty();
    let calls: Vec<Call<'_>> = if is_plain {
        let (mut chosen, mut parameters) = (0, asked);
        for (place, own) in rows.inserts() {
            chosen |= 1 << place;
            parameters.extend(own);
        }
        vec![(&STATEMENTS[chosen], parameters)]
    } else {
        let mut calls = vec![(BEGIN, vec![]), (FENCE, asked)];
        calls.extend(rows.insert());
        if !quarantines.is_empty() {
            calls.push(quarantines.offer());
        }
        calls.extend(reminders.update());
        calls.push((COMMIT, vec![]));
        calls
    };
    held.session.pipeline(&calls).await?;
    Ok(vec![Settled::Won; batch.transitions.len()])
}

/// The executions of the batch that retention may have deleted.
fn may_be_gone(batch: &Batch) -> Vec<Uuid> {
    let transitions = batch.transitions.iter();
    let old = transitions.filter(|transition| transition.sequence > 1 && transition.may_be_gone);
    old.map(|transition| transition.execution.0).collect()
}

/// The executions that may be in quarantine. An execution cannot be put there before it exists, so starts are
/// left out.
pub(super) fn going_on(batch: &Batch) -> Vec<Uuid> {
    let going_on = batch.transitions.iter().filter(|transition| transition.sequence > 1);
    going_on.map(|transition| transition.execution.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_numbered_after_those_of_other_statements() {
        assert_eq!(behind("select $1::int8[], $12", 0), ("select $1::int8[], $12".into(), 12));
        assert_eq!(behind("select $1::int8[], $12", 4), ("select $5::int8[], $16".into(), 12));
    }
}
