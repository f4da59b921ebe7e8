//! Reads definition files.
