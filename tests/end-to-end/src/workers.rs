//! Worker processes that a test kills and starts again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::binary;
use crate::order::TASK_TYPES;
use crate::process::Process;
use crate::record::{self, Entry};
use crate::worker::Transport;

/// A number of workers of the order workflow.
#[derive(Debug)]
pub struct Workers {
    folder: PathBuf,
    urls: Vec<String>,
    running: Vec<(Process, String)>,
    kills: usize,
}

impl Workers {
    /// Starts `count` workers. They differ in the server that they prefer and in the types of tasks that they
    /// take, so that with two servers each order needs workers at both. Of four workers, two take their tasks
    /// by unary calls.
    pub fn start(folder: &Path, urls: &[String], count: usize) -> Self {
        let (folder, urls) = (folder.to_path_buf(), urls.to_vec());
        let mut workers = Self { folder, urls, running: Vec::new(), kills: 0 };
        for number in 0..count {
            let session = Uuid::new_v4().to_string();
            let process = workers.spawn(number, &session);
            workers.running.push((process, session));
        }
        workers
    }

    /// Kills the next worker in turn, and starts it again. In the first round through all workers the new
    /// process resumes the old session and reports that it holds no tasks. In the next round it opens a new
    /// session, and the tasks of the old one stay assigned until that session expires. The rounds then
    /// alternate.
    pub fn kill_next(&mut self) {
        let number = self.kills % self.running.len();
        let keeps_session = (self.kills / self.running.len()).is_multiple_of(2);
        self.kills += 1;
        let (process, session) = &mut self.running[number];
        assert!(process.is_alive(), "a worker ended by itself:\n{}", process.log());
        process.kill();
        let session = if keeps_session { session.clone() } else { Uuid::new_v4().to_string() };
        let process = self.spawn(number, &session);
        self.running[number] = (process, session);
    }

    /// The record of each worker, by name.
    pub fn records(&self) -> BTreeMap<String, Vec<Entry>> {
        let all = 0..self.running.len();
        all.map(|number| (name(number), record::read(&self.record(number)))).collect()
    }

    fn spawn(&self, number: usize, session: &str) -> Process {
        let mut arguments = vec![name(number), session.to_owned()];
        arguments.push(self.record(number).display().to_string());
        arguments.push(transport(number).name().to_owned());
        arguments.push(TASK_TYPES[number % TASK_TYPES.len()].join(","));
        let count = self.urls.len();
        arguments.extend((0..count).map(|turn| self.urls[(number + turn) % count].clone()));
        let log = self.folder.join(format!("{}.log", name(number)));
        Process::start(&binary::load_worker(), &arguments, &log)
    }

    fn record(&self, number: usize) -> PathBuf {
        self.folder.join(format!("{}.record", name(number)))
    }
}

fn name(number: usize) -> String {
    format!("{}-{number}", transport(number).name())
}

fn transport(number: usize) -> Transport {
    if number % 4 < 2 { Transport::Stream } else { Transport::Unary }
}
