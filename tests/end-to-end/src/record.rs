//! The records that workers keep: one line for each task begun and for each result that was answered.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use recoup_proto::v1::Task;

/// Identifies the attempt that a line is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attempt {
    pub execution: String,
    pub step: String,
    pub compensation: bool,
    pub number: u32,
}

/// One line of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The worker began a task. The idempotency key is the one under which the task must take effect once.
    Begun { attempt: Attempt, idempotency_key: String },
    /// The server acknowledged a success. The mark is unique to this task and is part of its output.
    Completed { attempt: Attempt, mark: String },
    /// The server acknowledged an error.
    Failed { attempt: Attempt, error_type: String },
    /// The server refused a result.
    Refused { attempt: Attempt, reason: String },
}

impl Attempt {
    pub fn of(task: &Task) -> Self {
        Self {
            execution: task.execution_id.clone(),
            step: task.step_path.clone(),
            compensation: task.compensation.is_some(),
            number: task.attempt,
        }
    }
}

impl Entry {
    fn line(&self) -> String {
        let (word, attempt, rest) = match self {
            Self::Begun { attempt, idempotency_key } => ("begun", attempt, idempotency_key),
            Self::Completed { attempt, mark } => ("completed", attempt, mark),
            Self::Failed { attempt, error_type } => ("failed", attempt, error_type),
            Self::Refused { attempt, reason } => ("refused", attempt, reason),
        };
        let Attempt { execution, step, compensation, number } = attempt;
        format!("{word} {execution} {step} {compensation} {number} {rest}\n")
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let word = words.next()?;
        let attempt = Attempt {
            execution: words.next()?.to_owned(),
            step: words.next()?.to_owned(),
            compensation: words.next()?.parse().ok()?,
            number: words.next()?.parse().ok()?,
        };
        let rest = words.next()?.to_owned();
        Some(match word {
            "begun" => Self::Begun { attempt, idempotency_key: rest },
            "completed" => Self::Completed { attempt, mark: rest },
            "failed" => Self::Failed { attempt, error_type: rest },
            "refused" => Self::Refused { attempt, reason: rest },
            _ => return None,
        })
    }
}

/// A worker's record file. A line that was written survives the end of the process; it need not survive more
/// than that.
#[derive(Debug)]
pub struct Writer(File);

impl Writer {
    /// # Panics
    ///
    /// If the file cannot be opened.
    pub fn open(path: &Path) -> Self {
        let opened = File::options().create(true).append(true).open(path);
        Self(opened.expect("the test made the folder"))
    }

    /// # Panics
    ///
    /// If the line cannot be written. Without a record of what the worker did, the test proves nothing.
    pub fn write(&mut self, entry: &Entry) {
        self.0.write_all(entry.line().as_bytes()).expect("the disk is not full");
    }
}

/// Reads a worker's record.
///
/// # Panics
///
/// If the file holds anything other than complete lines.
pub fn read(path: &Path) -> Vec<Entry> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let parse = |line| Entry::parse(line).unwrap_or_else(|| panic!("no line of ours: {line}"));
    text.lines().map(parse).collect()
}
