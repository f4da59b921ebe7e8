//! Clients that send nothing, an incomplete preface or too much, or that open too many connections. The server
//! keeps serving all other clients.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::Duration;

use recoup_end_to_end::connect;
use recoup_end_to_end::raw::{
    DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, INITIAL_WINDOW, MAX_CONCURRENT_STREAMS,
    MAX_HEADER_LIST_SIZE, PREFACE, Raw, SETTINGS, WINDOW_UPDATE, frame, headers, message, settings,
};
use recoup_end_to_end::server::{Folder, Server};
use recoup_proto::v1;
use tonic::transport::Channel;

/// How long the tests wait before they fail.
const PATIENCE: Duration = Duration::from_secs(30);

async fn list(channel: &Channel) -> Result<(), tonic::Status> {
    let request = v1::ListNamespacesRequest::default();
    connect::namespaces(channel.clone()).list_namespaces(request).await.map(drop)
}

/// Waits until the server serves a new client.
async fn until_served(server: &Server) {
    let serving = async {
        // Each attempt uses a connection of its own, because a refused connection is not retried.
        while list(&connect::channel(&server.url())).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, serving).await.expect("a new client is served");
}

/// Waits until the log contains a line.
async fn until_logged(server: &Server, line: &str) {
    let waiting = async {
        while !server.process.log().contains(line) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let logged = tokio::time::timeout(PATIENCE, waiting).await;
    logged.unwrap_or_else(|_| panic!("`{line}` is not in\n{}", server.process.log()));
}

#[tokio::test]
async fn silent_connections_do_not_lock_out_other_clients() {
    let folder = Folder::new("silent-connections");
    let settings = ["--preface-timeout", "2s", "--connections-per-peer-max", "1000"];
    let mut server = Server::embedded_with_files(folder.path(), 256, &settings);
    let early = connect::channel(&server.url());
    list(&early).await.expect("the first client is served");
    let mut silent: Vec<Raw> = (0..300).map(|_| Raw::connect(server.address())).collect();
    until_logged(&server, "too many are open").await;
    list(&early).await.expect("an earlier client is still served");
    for (number, connection) in silent.iter_mut().enumerate() {
        if number % 2 == 0 {
            // Half a preface counts as none. Sending it may fail: the server has refused some connections
            // already.
            let _ = connection.send(&PREFACE[..12]);
        }
    }
    for connection in &mut silent {
        connection.until_closed(PATIENCE);
    }
    until_logged(&server, "they sent no HTTP/2 preface in time").await;
    until_served(&server).await;
    assert!(server.process.is_alive());
    // The limit on connections has left enough file descriptors for the store.
    let log = server.process.log();
    assert!(!log.contains("cannot be accepted"), "{log}");
}

#[tokio::test]
async fn an_idle_connection_stays_open_and_one_without_a_preface_is_closed() {
    let folder = Folder::new("half-preface");
    let server = Server::embedded_with(folder.path(), &["--preface-timeout", "300ms"]);
    let mut idle = Raw::connect(server.address());
    idle.greet();
    // The server sends its settings, the acknowledgement of ours, and the window of the connection.
    let frames = (0..3).map(|_| idle.next(PATIENCE).expect("the server greets").kind);
    let mut frames: Vec<u8> = frames.collect();
    frames.sort_unstable();
    assert_eq!(frames, [SETTINGS, SETTINGS, WINDOW_UPDATE]);
    let mut half = Raw::connect(server.address());
    half.send(&PREFACE[..PREFACE.len() - 1]).expect("the server reads");
    half.until_closed(PATIENCE);
    // This connection is older than the one that was closed.
    assert!(idle.is_quiet(), "the idle connection was closed");
}

#[tokio::test]
async fn a_connection_over_the_limit_is_closed_at_once() {
    let folder = Folder::new("full");
    let limits = ["--connections-max", "3", "--connections-per-peer-max", "3"];
    let server = Server::embedded_with(folder.path(), &limits);
    let mut open: Vec<Raw> = (0..3).map(|_| Raw::connect(server.address())).collect();
    open.iter_mut().for_each(Raw::greet);
    let mut refused = Raw::connect(server.address());
    refused.until_closed(PATIENCE);
    until_logged(&server, "too many are open").await;
    for connection in &mut open {
        assert!(connection.next(PATIENCE).is_some(), "a connection within the limit was closed");
    }
    drop(open.pop());
    until_served(&server).await;
}

#[tokio::test]
async fn the_connection_limit_per_peer_leaves_room_for_other_peers() {
    let folder = Folder::new("per-peer");
    let limits = ["--connections-max", "10", "--connections-per-peer-max", "2"];
    let server = Server::embedded_with(folder.path(), &limits);
    let _held = [Raw::connect(server.address()), Raw::connect(server.address())];
    let mut refused = Raw::connect(server.address());
    refused.until_closed(PATIENCE);
    until_logged(&server, "their peers have too many open").await;
    let other = IpAddr::from(Ipv4Addr::new(127, 0, 0, 2));
    let mut other = Raw::connect_from(other, server.address()).await;
    other.greet();
    assert_eq!(other.next(PATIENCE).map(|frame| frame.kind), Some(SETTINGS));
}

#[tokio::test]
async fn without_file_descriptors_the_server_logs_it_and_accepts_again_later() {
    let folder = Folder::new("no-files");
    let server = Server::embedded(folder.path());
    until_served(&server).await;
    let process = server.process.id();
    let open = std::fs::read_dir(format!("/proc/{process}/fd"))
        .expect("the server is our own process")
        .count();
    // The limit is lowered while the server runs, so its limit on connections does not follow.
    let arguments = [format!("--pid={process}"), format!("--nofile={}:", open + 4)];
    let status = Command::new("prlimit").args(arguments).status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "prlimit failed; it is part of util-linux"
    );
    let connections: Vec<Raw> = (0..20).map(|_| Raw::connect(server.address())).collect();
    until_logged(&server, "connections cannot be accepted").await;
    drop(connections);
    until_served(&server).await;
}

#[test]
fn the_http2_settings_announce_the_limits_of_a_connection() {
    let folder = Folder::new("settings");
    let server = Server::embedded(folder.path());
    let mut connection = Raw::connect(server.address());
    connection.greet();
    let greeting = connection.next(PATIENCE).expect("the server greets");
    let settings = settings(&greeting.payload);
    for setting in
        [(MAX_CONCURRENT_STREAMS, 1000), (INITIAL_WINDOW, 1 << 20), (MAX_HEADER_LIST_SIZE, 16384)]
    {
        assert!(settings.contains(&setting), "{setting:?} is not in {settings:?}");
    }
}

/// A client that makes the server reset stream after stream (CVE-2025-8671) keeps it busy without ever being
/// served.
#[test]
fn a_client_that_keeps_breaking_streams_is_disconnected() {
    let folder = Folder::new("broken-streams");
    let server = Server::embedded(folder.path());
    let mut connection = Raw::connect(server.address());
    connection.greet();
    let path = "/recoup.v1.NamespaceService/ListNamespaces";
    let block = headers(&server.address().to_string(), path);
    for number in 0..2000 {
        let stream = 2 * number + 1;
        let mut bytes = Vec::new();
        frame(&mut bytes, HEADERS, END_HEADERS, stream, &block);
        // A window that overflows is an error of the stream only, not of the connection.
        frame(&mut bytes, WINDOW_UPDATE, 0, stream, &(u32::MAX >> 1).to_be_bytes());
        if connection.send(&bytes).is_err() {
            break;
        }
    }
    let mut kinds = Vec::new();
    // The reset of the connection may arrive before the GOAWAY frame that gives the reason.
    while let Some(frame) = connection.next(PATIENCE) {
        kinds.push(frame.kind);
        if frame.kind == GOAWAY {
            const ENHANCE_YOUR_CALM: u8 = 11;
            assert_eq!(frame.payload[7], ENHANCE_YOUR_CALM, "{frame:?}");
        }
    }
    println!("{} frames before the end", kinds.len());
}

#[tokio::test]
async fn headers_over_16_kib_are_rejected() {
    let folder = Folder::new("headers");
    let server = Server::embedded(folder.path());
    let mut namespaces = connect::namespaces(connect::channel(&server.url()));
    for (bytes, fits) in [(15 << 10, true), (17 << 10, false)] {
        let mut request = tonic::Request::new(v1::ListNamespacesRequest::default());
        let value = "x".repeat(bytes).parse().expect("it is ASCII");
        request.metadata_mut().insert("padding", value);
        let answer = namespaces.list_namespaces(request).await;
        assert_eq!(answer.is_ok(), fits, "{bytes} bytes: {answer:?}");
    }
}

/// Frames that the server has not read yet occupy more memory than their bytes (RUSTSEC-2026-0258), so the
/// transport ends a connection on which some two thousand of them wait. The server reads fast enough for a
/// worker that sends many small messages. A worker that sends faster than the server reads loses its
/// connection, and other clients are unaffected.
#[tokio::test]
async fn a_thousand_tiny_frames_are_accepted_and_a_flood_harms_no_other_client() {
    let folder = Folder::new("tiny-frames");
    let mut server = Server::embedded(folder.path());
    let early = connect::channel(&server.url());
    list(&early).await.expect("it is served");
    for (frames, is_taken) in [(1_000, true), (500_000, false)] {
        let mut connection = Raw::connect(server.address());
        connection.greet();
        let path = "/recoup.v1.WorkerService/StreamTasks";
        let mut bytes = Vec::new();
        let block = headers(&server.address().to_string(), path);
        frame(&mut bytes, HEADERS, END_HEADERS, 1, &block);
        // `open { session_id: "s" }`, one byte per frame.
        for byte in message(&[0x0a, 0x03, 0x22, 0x01, b's']) {
            frame(&mut bytes, DATA, 0, 1, &[byte]);
        }
        // Heartbeats: empty messages.
        for _ in 0..frames {
            frame(&mut bytes, DATA, 0, 1, &message(&[]));
        }
        frame(&mut bytes, DATA, END_STREAM, 1, &[]);
        let sent = connection.send(&bytes);
        let (mut is_open, mut has_ended) = (false, false);
        while !has_ended && let Some(frame) = connection.next(PATIENCE) {
            assert!(!is_taken || frame.kind != GOAWAY, "{frame:?}");
            is_open |= frame.kind == DATA;
            has_ended = frame.kind == HEADERS && frame.flags & END_STREAM != 0;
        }
        assert!(!is_taken || (is_open && has_ended), "{frames} frames: {sent:?}");
    }
    list(&early).await.expect("it is served as before");
    assert!(server.process.is_alive());
}
