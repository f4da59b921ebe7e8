//! The node without I/O, on the model store, in time that the tests control.

mod blocks;
mod claims;
mod clock;
mod commits;
mod keys;
mod notices;
mod offers;
mod owners;
mod parts;
mod patience;
mod quarantine;
mod reads;
mod room;
mod rounds;
mod sessions;
mod sleepers;
