//! An accepted connection. It must send the HTTP/2 preface in time: hyper waits for the preface without a
//! limit (hyperium/hyper#4172), and pings a silent peer only after it has come.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use recoup_api::Unread;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tonic::transport::server::Connected;

use crate::gate::Slot;

/// The length of `PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n`. h2 checks the bytes themselves.
const PREFACE_BYTES: usize = 24;

pub struct Connection {
    socket: TcpStream,
    /// `None` once the preface is complete.
    preface: Option<Preface>,
    slot: Slot,
    unread: Unread,
}

struct Preface {
    missing: usize,
    deadline: Pin<Box<Sleep>>,
}

impl Connection {
    pub fn new(socket: TcpStream, slot: Slot, preface_timeout: Duration) -> Self {
        let deadline = Box::pin(tokio::time::sleep(preface_timeout));
        let preface = Some(Preface { missing: PREFACE_BYTES, deadline });
        Self { socket, preface, slot, unread: Unread::default() }
    }
}

impl Connected for Connection {
    type ConnectInfo = Unread;

    fn connect_info(&self) -> Unread {
        self.unread.clone()
    }
}

impl AsyncRead for Connection {
    /// Fails with `TimedOut` if the preface is not complete in time. hyper then drops the connection.
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let connection = &mut *self;
        let filled = buffer.filled().len();
        let polled = Pin::new(&mut connection.socket).poll_read(context, buffer);
        let Some(preface) = &mut connection.preface else {
            return polled;
        };
        if polled.is_pending() {
            ready!(preface.deadline.as_mut().poll(context));
            connection.slot.log_silence();
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        preface.missing = preface.missing.saturating_sub(buffer.filled().len() - filled);
        if preface.missing == 0 {
            connection.preface = None;
        }
        polled
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}
