//! The generated messages of `recoup.store.v1`.

#![allow(
    clippy::doc_markdown,
    clippy::large_enum_variant,
    clippy::enum_variant_names,
    reason = "generated code"
)]

include!(concat!(env!("OUT_DIR"), "/recoup.store.v1.rs"));
