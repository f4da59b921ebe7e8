//! The store on a real Postgres server.

mod conformance;
mod cut;
mod feed;
mod opening;
mod ranges;
mod requests;
mod waiting;
