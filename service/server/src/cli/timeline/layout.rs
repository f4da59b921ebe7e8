//! The layout of a timeline: facts become lines, with columns as wide as their widest cell.

use super::model::{Fact, Moment};
use super::words::{attempt_text, title, words};
use crate::cli::text::{Paint, Style, duration};

/// A line before its columns are aligned.
struct Row {
    offset: String,
    symbol: char,
    paint: Paint,
    subject: String,
    attempt: String,
    took: String,
    text: String,
    /// The decision, which an arrow separates from the text.
    decision: String,
}

enum Line {
    Row(Row),
    Section(String),
}

pub fn lines(facts: &[Fact<'_>], style: Style) -> Vec<String> {
    let lines = facts.iter().map(|fact| match fact {
        Fact::Section(section) => Line::Section(title(section)),
        Fact::Moment(moment) => Line::Row(row(moment)),
    });
    align(&lines.collect::<Vec<_>>(), style)
}

fn row(moment: &Moment<'_>) -> Row {
    let words = words(&moment.what);
    Row {
        offset: moment.offset.map(offset).unwrap_or_default(),
        symbol: words.symbol,
        paint: words.paint,
        subject: words.subject,
        attempt: moment.attempt.map(attempt_text).unwrap_or_default(),
        took: moment.took.map(duration).unwrap_or_default(),
        text: words.text,
        decision: words.decision,
    }
}

/// `+1.204s`, or in larger units from a thousand seconds.
fn offset(nanos: i128) -> String {
    if nanos < 1_000 * 1_000_000_000 {
        let millis = (nanos + 500_000) / 1_000_000;
        format!("+{}.{:03}s", millis / 1_000, millis % 1_000)
    } else {
        format!("+{}", duration(nanos))
    }
}

fn align(lines: &[Line], style: Style) -> Vec<String> {
    let rows = || {
        lines.iter().filter_map(|line| match line {
            Line::Row(row) => Some(row),
            Line::Section(_) => None,
        })
    };
    let width = |cell: fn(&Row) -> &String| {
        rows().map(|row| cell(row).chars().count()).max().unwrap_or_default()
    };
    let offset = width(|row| &row.offset);
    let subject = width(|row| &row.subject);
    let attempt = width(|row| &row.attempt);
    let took = width(|row| &row.took);
    let mut aligned = Vec::with_capacity(lines.len());
    for line in lines {
        match line {
            Line::Section(title) if title.is_empty() => aligned.push(String::new()),
            Line::Section(title) => {
                aligned.push(String::new());
                aligned.push(style.paint(Paint::Bold, &format!("  {title}")));
            }
            Line::Row(row) => {
                let head = format!(
                    "  {}  {} {}  {}  {}  ",
                    style.paint(Paint::Dim, &format!("{:>offset$}", row.offset)),
                    style.paint(row.paint, &row.symbol.to_string()),
                    style.paint(row.paint, &format!("{:<subject$}", row.subject)),
                    format_args!("{:<attempt$}", row.attempt),
                    style.paint(Paint::Dim, &format!("{:>took$}", row.took)),
                );
                // Two spaces between columns, and one after the symbol.
                let before = 2 + offset + 2 + 1 + 1 + subject + 2 + attempt + 2 + took + 2;
                for (at, text) in texts(row, before, style).into_iter().enumerate() {
                    let line = match at {
                        0 => format!("{head}{text}"),
                        _ => format!("{:before$}{text}", ""),
                    };
                    aligned.push(line.trim_end().to_owned());
                }
            }
        }
    }
    aligned
}

/// The last column: the text and the decision, on one line if both fit.
fn texts(row: &Row, before: usize, style: Style) -> Vec<String> {
    let decision = match row.decision.is_empty() {
        true => String::new(),
        false => format!("→ {}", row.decision),
    };
    let both = format!("{} {decision}", row.text);
    let fits = style.wrapped(both.trim(), before).len() == 1;
    let dim = |decision: &String| style.paint(Paint::Dim, decision);
    if fits && !row.text.is_empty() && !decision.is_empty() {
        return vec![format!("{} {}", row.text, dim(&decision))];
    }
    let mut texts = Vec::new();
    if !row.text.is_empty() || decision.is_empty() {
        texts.extend(style.wrapped(&row.text, before));
    }
    if !decision.is_empty() {
        texts.extend(style.wrapped(&decision, before).iter().map(dim));
    }
    texts
}
