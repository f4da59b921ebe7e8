//! The engine on the model store: with its driver, and as nodes without I/O in time that the tests control.

mod driven;
mod fixture;
mod node;
mod quarantine;
