//! A client that sends a request and then reads nothing: not the answer, not a ping, not one byte from its
//! socket. It is written by hand because every HTTP/2 library keeps reading in the background.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::raw::{
    DATA, END_HEADERS, END_STREAM, HEADERS, INITIAL_WINDOW, PREFACE, SETTINGS, WINDOW_UPDATE,
    frame, headers, message, setting,
};

/// The largest flow-control window that HTTP/2 allows.
const WINDOW_MAX: u32 = (1 << 31) - 1;

/// One call, on a connection of its own.
#[derive(Debug)]
pub struct Silent(TcpStream);

impl Silent {
    /// Sends a gRPC request, opens the flow-control windows as far as possible, and reads nothing.
    ///
    /// # Panics
    ///
    /// If the request cannot be sent.
    pub fn call(server: SocketAddr, path: &str, encoded: &[u8]) -> Self {
        Self::send(server, path, encoded, 0)
    }

    /// As [`Self::call`], for a unary call: also ends the request, without which the server does not act on it.
    ///
    /// # Panics
    ///
    /// If the request cannot be sent.
    pub fn unary_call(server: SocketAddr, path: &str, encoded: &[u8]) -> Self {
        Self::send(server, path, encoded, END_STREAM)
    }

    fn send(server: SocketAddr, path: &str, encoded: &[u8], flags: u8) -> Self {
        let mut bytes = PREFACE.to_vec();
        frame(&mut bytes, SETTINGS, 0, 0, &setting(INITIAL_WINDOW, WINDOW_MAX));
        // A connection starts with a window of 65,535 bytes.
        frame(&mut bytes, WINDOW_UPDATE, 0, 0, &(WINDOW_MAX - 65_535).to_be_bytes());
        frame(&mut bytes, HEADERS, END_HEADERS, 1, &headers(&server.to_string(), path));
        frame(&mut bytes, DATA, flags, 1, &message(encoded));
        let mut socket = TcpStream::connect(server).expect("the server listens");
        socket.write_all(&bytes).expect("the server reads");
        Self(socket)
    }

    /// Whether the server closes the connection within this time. Bytes that the server had sent before are
    /// read only here, and discarded.
    pub fn was_cut(mut self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let mut bytes = vec![0; 1 << 16];
        let pause = Some(Duration::from_millis(200));
        self.0.set_read_timeout(pause).expect("it is longer than nothing");
        while Instant::now() < deadline {
            match self.0.read(&mut bytes) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => return true,
            }
        }
        false
    }
}
