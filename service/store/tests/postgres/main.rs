//! The store on a real Postgres server.

mod conformance;
