//! How values are shown to people: colours, durations, times, payloads, tables.

use recoup_proto::v1::{self, ExecutionState, Payload, payload::Content};
use recoup_proto::{Duration, Timestamp};

/// The longest text of a payload in a line, in characters.
const PAYLOAD_CHARS_MAX: usize = 300;

/// The longest error message in a line that has other contents too, in characters.
const MESSAGE_CHARS_MAX: usize = 200;

/// Text is not broken into lines that are shorter than this, in characters.
const COLUMN_MIN: usize = 24;

/// The indentation of a line that continues the line before it.
const INDENT: usize = 4;

/// The meaning of a text, which determines its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    Plain,
    Bold,
    Dim,
    Good,
    Warn,
    Bad,
}

/// A piece of a line that stays together if it can.
#[derive(Clone, Debug)]
pub struct Part {
    paint: Paint,
    text: String,
    /// Spaces before it, if it is not the first of its line.
    gap: usize,
}

impl Part {
    pub fn new(paint: Paint, text: impl Into<String>) -> Self {
        Self { paint, text: text.into(), gap: 2 }
    }

    /// A part that a single space separates from the one before.
    pub fn adjacent(paint: Paint, text: impl Into<String>) -> Self {
        Self { gap: 1, ..Self::new(paint, text) }
    }
}

/// Whether colours are used, and how wide lines may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    colours: bool,
    /// In characters. None if the output is not a terminal: then no line is broken.
    width: Option<usize>,
}

impl Style {
    #[cfg(test)]
    pub const PLAIN: Self = Self { colours: false, width: None };

    /// Uses colours on a terminal, unless NO_COLOR is set and not empty.
    pub fn detect(is_terminal: bool) -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let size = is_terminal.then(|| rustix::termios::tcgetwinsize(std::io::stdout()));
        let width = size.and_then(Result::ok).map(|size| usize::from(size.ws_col));
        // A terminal that does not know its size says 0.
        Self { colours: !refused && is_terminal, width: width.filter(|width| *width > 0) }
    }

    #[cfg(test)]
    pub fn with_width(self, width: usize) -> Self {
        Self { width: Some(width), ..self }
    }

    /// The text in lines that fit into a column which begins after `before` characters. One line if the width is
    /// unknown, or if too little of it is left. A word that is longer than a line is not broken.
    pub fn wrapped(self, text: &str, before: usize) -> Vec<String> {
        let Some(room) = self.after(before).width.filter(|room| *room >= COLUMN_MIN) else {
            return vec![text.to_owned()];
        };
        let mut lines = Vec::new();
        let mut line = String::new();
        for word in text.split(' ') {
            let long = line.chars().count() + 1 + word.chars().count() > room;
            if long && !line.is_empty() {
                lines.push(std::mem::take(&mut line));
            } else if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(line);
        lines
    }

    /// The same style for lines that are printed after `columns` other characters.
    pub fn after(self, columns: usize) -> Self {
        Self { width: self.width.map(|width| width.saturating_sub(columns)), ..self }
    }

    /// Whether that many characters fit into a line.
    pub fn fits(self, chars: usize) -> bool {
        self.width.is_none_or(|width| chars <= width)
    }

    /// The parts in one line if they fit. Otherwise lines end between parts, and the lines after the first are
    /// indented. A part is broken only if it is longer than a line.
    pub fn flow(self, parts: &[Part]) -> Vec<String> {
        let mut lines = vec![String::new()];
        let mut used = 0;
        for part in parts.iter().filter(|part| !part.text.is_empty()) {
            let gap = if used == 0 { 0 } else { part.gap };
            let chars = part.text.chars().count();
            if used == 0 || self.fits(used + gap + chars) {
                let line = lines.last_mut().expect("there is always a line");
                line.push_str(&" ".repeat(gap));
                line.push_str(&self.paint(part.paint, &part.text));
                used += gap + chars;
                continue;
            }
            for text in self.wrapped(&part.text, INDENT) {
                used = INDENT + text.chars().count();
                lines.push(format!("{:INDENT$}{}", "", self.paint(part.paint, &text)));
            }
        }
        lines
    }

    pub fn has_colours(self) -> bool {
        self.colours
    }

    pub fn heading(self, text: &str) -> String {
        self.paint(Paint::Bold, text)
    }

    pub fn paint(self, paint: Paint, text: &str) -> String {
        let code = match paint {
            _ if !self.colours || text.is_empty() => return text.to_owned(),
            Paint::Plain => return text.to_owned(),
            Paint::Bold => "1",
            Paint::Dim => "2",
            Paint::Good => "32",
            Paint::Warn => "33",
            Paint::Bad => "31",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

/// Nanoseconds since 1970.
pub fn timestamp_nanos(time: &Timestamp) -> i128 {
    i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos)
}

pub fn nanos_between(from: &Timestamp, to: &Timestamp) -> i128 {
    timestamp_nanos(to) - timestamp_nanos(from)
}

pub fn proto_nanos(duration: &Duration) -> i128 {
    i128::from(duration.seconds) * 1_000_000_000 + i128::from(duration.nanos)
}

/// `850us`, `12ms`, `2.1s`, `1m05s`, `3h07m`, `2d04h`.
///
/// Rounded to the precision that is shown, so 59.96 s are shown as a minute.
pub fn duration(nanos: i128) -> String {
    const MICRO: i128 = 1_000;
    const MILLI: i128 = 1_000 * MICRO;
    const SECOND: i128 = 1_000 * MILLI;
    const MINUTE: i128 = 60 * SECOND;
    const HOUR: i128 = 60 * MINUTE;
    let rounded = |unit: i128| (nanos + unit / 2) / unit;
    let (micros, millis, tenths) = (rounded(MICRO), rounded(MILLI), rounded(SECOND / 10));
    let (seconds, minutes, hours) = (rounded(SECOND), rounded(MINUTE), rounded(HOUR));
    if nanos <= 0 {
        "0ms".to_owned()
    } else if micros < 1_000 {
        format!("{micros}us")
    } else if millis < 1_000 {
        format!("{millis}ms")
    } else if tenths < 600 {
        format!("{}.{}s", tenths / 10, tenths % 10)
    } else if seconds < 3_600 {
        format!("{}m{:02}s", seconds / 60, seconds % 60)
    } else if minutes < 1_440 {
        format!("{}h{:02}m", minutes / 60, minutes % 60)
    } else {
        format!("{}d{:02}h", hours / 24, hours % 24)
    }
}

/// `2026-11-21T04:46:32.123Z`
pub fn timestamp(time: &Timestamp) -> String {
    let millis = Timestamp { seconds: time.seconds, nanos: time.nanos / 1_000_000 * 1_000_000 };
    let written = serde_json::to_value(millis).ok();
    let written = written.as_ref().and_then(|value| value.as_str()).unwrap_or("?");
    written.replace("+00:00", "Z")
}

/// The name of a state, such as `RUNNING`: without the prefix that the protocol's enum adds.
pub fn state_name(state: ExecutionState) -> String {
    state.as_str_name().trim_start_matches("EXECUTION_STATE_").to_owned()
}

/// The content of a payload in one line, cut with an ellipsis.
pub fn payload_text(payload: Option<&Payload>) -> String {
    let text = match payload.and_then(|payload| payload.content.as_ref()) {
        Some(Content::Json(json)) => one_line(json),
        Some(Content::Data(data)) => match std::str::from_utf8(data) {
            Ok(text) => one_line(text),
            Err(_) => format!("{} bytes", data.len()),
        },
        Some(Content::Reference(reference)) => {
            let (bytes, id) = (reference.size_bytes, &reference.payload_id);
            format!("{bytes} bytes, too large for the answer; read them with ReadPayload: {id}")
        }
        None => "null".to_owned(),
    };
    shortened(text, PAYLOAD_CHARS_MAX)
}

fn shortened(text: String, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text;
    }
    text.chars().take(chars_max).chain(['…']).collect()
}

/// Replaces control characters: text from elsewhere must not move the cursor of a terminal or start a new
/// line.
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// An error such as `payment.card_declined: no (caused by bank.refused: code 51)`. Long messages are cut
/// with an ellipsis.
pub fn error_line(error: Option<&v1::Error>) -> String {
    error_text(error, MESSAGE_CHARS_MAX)
}

/// Like [`error_line`], but with whole messages.
pub fn whole_error_line(error: Option<&v1::Error>) -> String {
    error_text(error, usize::MAX)
}

fn error_text(error: Option<&v1::Error>, chars_max: usize) -> String {
    let Some(error) = error else { return String::new() };
    let mut line = one_line(&error.r#type);
    if line.is_empty() {
        line.push_str("unknown");
    }
    if !error.message.is_empty() {
        line.push_str(": ");
        line.push_str(&shortened(one_line(&error.message), chars_max));
    }
    if let Some(cause) = &error.cause {
        line.push_str(&format!(" (caused by {})", error_text(Some(cause), chars_max)));
    }
    if !error.suppressed.is_empty() {
        let others = error.suppressed.iter();
        let others =
            others.map(|other| format!("{} in {}", one_line(&other.r#type), other.step_path));
        line.push_str(&format!(" (besides {})", others.collect::<Vec<_>>().join(", ")));
    }
    if error.abridged {
        line.push_str(" (abridged; see the history for all of it)");
    }
    line
}

/// Rows below a heading, in aligned columns. If a row is wider than the terminal, it takes two lines: the columns that
/// do not fit follow in the second one.
pub fn table(head: &[&str], rows: &[Vec<String>], style: Style) -> Vec<String> {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(String::as_str);
        cells.chain([head[column]]).map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let ends = widths.iter().scan(0, |end, width| {
        *end += width + 2;
        Some(*end - 2)
    });
    let fitting = ends.take_while(|end| style.fits(*end)).count().max(1);
    let line = |cells: &mut dyn Iterator<Item = (&str, usize)>| {
        let padded = cells.map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let lines = |cells: &mut dyn Iterator<Item = &str>| {
        let mut cells = cells.zip(widths.iter().copied());
        let first = line(&mut cells.by_ref().take(fitting));
        let second = line(&mut cells);
        let second = (!second.is_empty()).then(|| format!("{:INDENT$}{second}", ""));
        [Some(first), second].into_iter().flatten().collect::<Vec<_>>()
    };
    let head = lines(&mut head.iter().copied());
    let rows = rows.iter().flat_map(|row| lines(&mut row.iter().map(String::as_str)));
    head.iter().map(|line| style.heading(line)).chain(rows).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_printed_in_short_form() {
        const SECOND: i128 = 1_000_000_000;
        for (nanos, expected) in [
            (-5, "0ms"),
            (0, "0ms"),
            (850_000, "850us"),
            (12_345_678, "12ms"),
            (SECOND, "1.0s"),
            (2_149_000_000, "2.1s"),
            (2_498_000_000, "2.5s"),
            (999_700, "1ms"),
            (999_600_000, "1.0s"),
            (59_949_000_000, "59.9s"),
            (59_950_000_000, "1m00s"),
            (65 * SECOND, "1m05s"),
            (3_599_500_000_000, "1h00m"),
            (11_220 * SECOND, "3h07m"),
            (86_399 * SECOND, "1d00h"),
            (187_200 * SECOND, "2d04h"),
        ] {
            assert_eq!(duration(nanos), expected);
        }
    }

    #[test]
    fn errors_and_payloads_are_shortened_to_one_line() {
        let error = v1::Error {
            r#type: "a.b".to_owned(),
            message: "one\ntwo\u{1b}[31m".to_owned(),
            cause: Some(Box::new(v1::Error { r#type: "c".to_owned(), ..Default::default() })),
            ..Default::default()
        };
        assert_eq!(error_line(Some(&error)), "a.b: one two [31m (caused by c)");
        let wordy = v1::Error { message: "x".repeat(4_000), ..error };
        let short = "a.b: ".len() + MESSAGE_CHARS_MAX + "… (caused by c)".chars().count();
        assert_eq!(error_line(Some(&wordy)).chars().count(), short);
        assert!(whole_error_line(Some(&wordy)).contains(&wordy.message));
        let long =
            Payload { content: Some(Content::Json("x".repeat(1_000))), ..Payload::default() };
        assert_eq!(payload_text(Some(&long)).chars().count(), PAYLOAD_CHARS_MAX + 1);
    }

    #[test]
    fn table_columns_are_aligned() {
        let rows = [vec!["é".to_owned(), "x".to_owned()], vec!["long".to_owned(), String::new()]];
        let lines = table(&["A", "B"], &rows, Style::PLAIN);
        assert_eq!(lines, ["A     B", "é     x", "long"]);
    }

    #[test]
    fn table_wider_than_the_terminal_takes_two_lines_per_row() {
        let rows = [
            vec!["one".to_owned(), "2".to_owned(), "three".to_owned()],
            vec!["x".to_owned(), String::new(), String::new()],
        ];
        let lines = table(&["A", "B", "C"], &rows, Style::PLAIN.with_width(8));
        assert_eq!(lines, ["A    B", "    C", "one  2", "    three", "x"]);
        let lines = table(&["A", "B", "C"], &rows, Style::PLAIN.with_width(13));
        assert_eq!(lines, ["A    B  C", "one  2  three", "x"]);
    }

    #[test]
    fn parts_that_do_not_fit_begin_an_indented_line() {
        let parts = [
            Part::new(Paint::Plain, "one two"),
            Part::new(Paint::Plain, ""),
            Part::new(Paint::Plain, "three"),
            Part::adjacent(Paint::Dim, "→ a part that is longer than the whole line"),
        ];
        let unbroken = Style::PLAIN.flow(&parts);
        assert_eq!(unbroken, ["one two  three → a part that is longer than the whole line"]);
        let broken = Style::PLAIN.with_width(30).flow(&parts);
        let expected = ["one two  three", "    → a part that is longer", "    than the whole line"];
        assert_eq!(broken, expected);
    }

    #[test]
    fn times_are_printed_in_utc_with_milliseconds() {
        let time = Timestamp { seconds: 1_790_000_000, nanos: 123_456_789 };
        assert_eq!(timestamp(&time), "2026-09-21T14:13:20.123Z");
    }
}
