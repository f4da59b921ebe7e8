//! What workers write down: a line per task begun and per result that was acknowledged.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use recoup_proto::v1::Task;

/// Which attempt of what a line is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attempt {
    pub execution: String,
    pub step: String,
    pub compensation: bool,
    pub number: u32,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A task was begun, with the key under which it takes effect once.
    Begun { attempt: Attempt, idempotency_key: String },
    /// A success was acknowledged. The mark was made for this task alone and is part of its output.
    Completed { attempt: Attempt, mark: String },
    /// An error was acknowledged.
    Failed { attempt: Attempt, error_type: String },
    /// A result was refused.
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

/// The file of one worker. A line that was written survives the process, and that is all it must.
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
    /// If it cannot be written: a worker that cannot write down what it does proves nothing.
    pub fn write(&mut self, entry: &Entry) {
        self.0.write_all(entry.line().as_bytes()).expect("the disk is not full");
    }
}

/// Reads a worker's file.
///
/// # Panics
///
/// If it holds anything but whole lines.
pub fn read(path: &Path) -> Vec<Entry> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let parse = |line| Entry::parse(line).unwrap_or_else(|| panic!("no line of ours: {line}"));
    text.lines().map(parse).collect()
}
