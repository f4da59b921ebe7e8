//! The services on a real engine and the in-memory store, called through gRPC on a port of this machine.

mod answers;
mod bad_input;
mod clients;
mod compensations;
mod executions;
mod failures;
mod feed;
mod formats;
mod items;
mod parallel;
mod quarantine;
mod requests;
mod server;
mod sessions;
mod subscriptions;
mod workers;
