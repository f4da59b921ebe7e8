//! A worker of the order workflow that runs as a separate process, so that tests can kill it.
//!
//! `load-worker NAME SESSION FILE TRANSPORT TYPES URL…` takes tasks of TYPES (separated by commas) from the
//! first URL that answers, over `stream` or `unary` calls, until it is killed. It records what it does in FILE.

use std::path::PathBuf;

use recoup_end_to_end::worker::{Options, Transport, run};

const USAGE: &str = "usage: load-worker NAME SESSION FILE TRANSPORT TYPES URL…";

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().expect(USAGE);
    let (name, session, record) = (next(), next(), PathBuf::from(next()));
    let transport = Transport::of_name(&next()).expect(USAGE);
    let task_types = next().split(',').map(str::to_owned).collect();
    let urls: Vec<String> = arguments.collect();
    assert!(!urls.is_empty(), "{USAGE}");
    run(Options { name, session, record, transport, task_types, urls }).await;
}
