//! A worker of the order workflow as a process of its own, to be killed.
//!
//! `load-worker NAME SESSION FILE URL…` writes what it does to FILE and serves the first URL that
//! answers, until it is killed.

use std::path::PathBuf;

use recoup_end_to_end::worker::{Options, run};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().expect("usage: load-worker NAME SESSION FILE URL…");
    let (name, session, record) = (next(), next(), PathBuf::from(next()));
    let urls: Vec<String> = arguments.collect();
    assert!(!urls.is_empty(), "usage: load-worker NAME SESSION FILE URL…");
    run(Options { name, session, record, urls }).await;
}
