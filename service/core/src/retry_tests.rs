//! Tests of the retry decision; one row a rule of the list.
