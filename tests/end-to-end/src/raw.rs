//! HTTP/2 frames written by hand, for what no library would send: half a preface, silence, streams that break
//! the protocol.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
/// Ids of HTTP/2 settings.
pub const MAX_CONCURRENT_STREAMS: u16 = 3;
pub const INITIAL_WINDOW: u16 = 4;
pub const MAX_HEADER_LIST_SIZE: u16 = 6;

/// A frame that was received.
#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// A connection that sends only what the test tells it to send.
#[derive(Debug)]
pub struct Raw(pub TcpStream);

impl Raw {
    /// # Panics
    ///
    /// If no server listens there.
    pub fn connect(server: SocketAddr) -> Self {
        Self(TcpStream::connect(server).expect("the server listens"))
    }

    /// Connects from a given address of this machine.
    ///
    /// # Panics
    ///
    /// If no server listens there, or the source is not an address of this machine.
    pub async fn connect_from(source: IpAddr, server: SocketAddr) -> Self {
        let socket = tokio::net::TcpSocket::new_v4().expect("there are sockets");
        socket.bind(SocketAddr::new(source, 0)).expect("the address is ours");
        let stream = socket.connect(server).await.expect("the server listens");
        let stream = stream.into_std().expect("it is a socket");
        stream.set_nonblocking(false).expect("it is a socket");
        Self(stream)
    }

    /// Sends bytes. Returns an error if the peer has closed the connection.
    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all(bytes)
    }

    /// Sends the preface and empty settings.
    ///
    /// # Panics
    ///
    /// If they cannot be sent.
    pub fn greet(&mut self) {
        let mut bytes = PREFACE.to_vec();
        frame(&mut bytes, SETTINGS, 0, 0, &[]);
        self.send(&bytes).expect("the server reads");
    }

    /// Reads the next frame. None if the server has closed the connection.
    ///
    /// # Panics
    ///
    /// If neither a frame nor the end of the connection comes within that time.
    pub fn next(&mut self, within: Duration) -> Option<Frame> {
        let mut head = [0; 9];
        if !self.fill(&mut head, within) {
            return None;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        if !self.fill(&mut payload, within) {
            return None;
        }
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// Reads until the server closes the connection.
    ///
    /// # Panics
    ///
    /// If the server does not close it within that time.
    pub fn until_closed(&mut self, within: Duration) {
        let mut byte = [0; 1];
        while self.fill(&mut byte, within) {}
    }

    /// Whether the peer has neither closed the connection nor sent anything.
    pub fn is_quiet(&mut self) -> bool {
        self.0.set_nonblocking(true).expect("it is a socket");
        let peeked = self.0.peek(&mut [0; 1]);
        self.0.set_nonblocking(false).expect("it is a socket");
        peeked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    fn fill(&mut self, buffer: &mut [u8], within: Duration) -> bool {
        self.0.set_read_timeout(Some(within)).expect("it is longer than nothing");
        match self.0.read_exact(buffer) {
            Ok(()) => true,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("the server neither answers nor closes the connection")
            }
            Err(_) => false,
        }
    }
}

/// Appends a frame to `bytes`.
///
/// # Panics
///
/// If the payload does not fit into a frame.
pub fn frame(bytes: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    assert!(payload.len() < 1 << 24, "a frame has 24 bits for its length");
    bytes.extend(&(payload.len() as u32).to_be_bytes()[1..]);
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
}

/// The headers of a gRPC call in HPACK, using neither the dynamic table nor the Huffman code.
///
/// # Panics
///
/// If a value is too long for a length of one byte.
pub fn headers(authority: &str, path: &str) -> Vec<u8> {
    // `:method: POST` and `:scheme: http` have the indices 3 and 6 in the static table.
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

/// Encodes a message as it stands in the body of a gRPC call.
pub fn message(encoded: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend((encoded.len() as u32).to_be_bytes());
    bytes.extend(encoded);
    bytes
}

/// Encodes a setting as it stands in the payload of a SETTINGS frame.
pub fn setting(id: u16, value: u32) -> Vec<u8> {
    [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

/// The settings in the payload of a SETTINGS frame, as pairs of id and value.
pub fn settings(payload: &[u8]) -> Vec<(u16, u32)> {
    let setting = |bytes: &[u8]| {
        let id = u16::from_be_bytes([bytes[0], bytes[1]]);
        (id, u32::from_be_bytes([bytes[2], bytes[3], bytes[4], bytes[5]]))
    };
    payload.chunks_exact(6).map(setting).collect()
}
