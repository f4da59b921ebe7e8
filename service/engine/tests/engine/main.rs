//! The engine on the model store: once with its driver, and as nodes without I/O in a time that the tests make.

mod driven;
mod fixture;
mod node;
mod quarantine;
