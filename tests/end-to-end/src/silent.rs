//! A client that asks and then never reads: not the answer, not a ping, not one byte from its socket.
//! Written by hand, for every HTTP/2 library reads on behind its user's back.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const END_HEADERS: u8 = 4;
/// The setting of the window of new streams, and the largest window that there is.
const INITIAL_WINDOW: u16 = 4;
const WINDOW_MAX: u32 = (1 << 31) - 1;

/// One call on a connection of its own.
#[derive(Debug)]
pub struct Silent(TcpStream);

impl Silent {
    /// Sends a gRPC request, allows an endless answer, and reads nothing.
    ///
    /// # Panics
    ///
    /// If the server does not take it.
    pub fn call(server: SocketAddr, path: &str, message: &[u8]) -> Self {
        let mut bytes = PREFACE.to_vec();
        let mut setting = INITIAL_WINDOW.to_be_bytes().to_vec();
        setting.extend(WINDOW_MAX.to_be_bytes());
        frame(&mut bytes, SETTINGS, 0, 0, &setting);
        // The connection has a window of 65,535 bytes from the start.
        frame(&mut bytes, WINDOW_UPDATE, 0, 0, &(WINDOW_MAX - 65_535).to_be_bytes());
        frame(&mut bytes, HEADERS, END_HEADERS, 1, &headers(&server.to_string(), path));
        let mut body = vec![0];
        body.extend((message.len() as u32).to_be_bytes());
        body.extend(message);
        frame(&mut bytes, DATA, 0, 1, &body);
        let mut socket = TcpStream::connect(server).expect("the server listens");
        socket.write_all(&bytes).expect("the server reads");
        Self(socket)
    }

    /// Whether the server has closed the connection after some time. What it had sent before is read
    /// only now, and thrown away.
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

fn frame(bytes: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    bytes.extend(&(payload.len() as u32).to_be_bytes()[1..]);
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
}

/// In HPACK, without its tables of what came before and without its Huffman code.
fn headers(authority: &str, path: &str) -> Vec<u8> {
    // `:method: POST` and `:scheme: http` are 3 and 6 of the static table.
    let mut bytes = vec![0x83, 0x86];
    for (name, value) in [
        (":path", path),
        (":authority", authority),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        bytes.push(0);
        for text in [name, value] {
            bytes.push(u8::try_from(text.len()).expect("short enough for one byte"));
            assert!(text.len() < 127, "longer texts need a longer length");
            bytes.extend(text.as_bytes());
        }
    }
    bytes
}
