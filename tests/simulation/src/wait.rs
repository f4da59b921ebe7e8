//! Polls futures of the model store, which are ready at the first poll.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

pub fn ready<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("the store in memory never waits"),
    }
}
