//! The store on a real Postgres server.

mod conformance;
mod cut;
mod damage;
mod feed;
mod opening;
mod order;
mod pooler;
mod ranges;
mod requests;
mod servers;
mod waiting;
