//! Checks of the repository as a whole: the dependencies of crates and modules, the form of source files and pages,
//! the links between pages, and traces of the machine on which a file was written.
//!
//! Each check is a pure function from its input to its findings, one line each, so that its own tests can give
//! it a bad example. `tests/workspace.rs` applies all checks to this repository.
//!
//! # Map
//!
//! | module | checks |
//! | --- | --- |
//! | `tree` | nothing: it reads the files that the checks look at |
//! | `graph` | which crates use which, and the dependencies of core |
//! | `modules` | cycles between the modules of a crate |
//! | `maps` | that the root of each crate says what its modules hold |
//! | `sources` | the length of files, the words core may use, where generated code is kept |
//! | `prose` | words that pages and comments avoid |
//! | `reasons` | the pages of error reasons |
//! | `links` | links between Markdown files |
//! | `hygiene` | traces of the machine that a file was written on |

pub mod graph;
pub mod hygiene;
pub mod links;
pub mod maps;
pub mod modules;
pub mod prose;
pub mod reasons;
pub mod sources;
pub mod tree;
