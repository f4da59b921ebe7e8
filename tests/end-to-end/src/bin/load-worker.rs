//! A worker of the order workflow as a process of its own, to be killed.
//!
//! `load-worker NAME SESSION FILE TRANSPORT URL…` writes what it does to FILE and serves the first URL that
//! answers, by `stream` or by `unary` calls, until it is killed.

use std::path::PathBuf;

use recoup_end_to_end::worker::{Options, Transport, run};

const USAGE: &str = "usage: load-worker NAME SESSION FILE TRANSPORT URL…";

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().expect(USAGE);
    let (name, session, record) = (next(), next(), PathBuf::from(next()));
    let transport = Transport::of_name(&next()).expect(USAGE);
    let urls: Vec<String> = arguments.collect();
    assert!(!urls.is_empty(), "{USAGE}");
    run(Options { name, session, record, transport, urls }).await;
}
