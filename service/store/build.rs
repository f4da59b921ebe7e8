//! Compiles the private formats of the store. No `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = ["transition", "definition", "failure", "subscription", "registry", "idle"]
        .map(|file| format!("proto/recoup/store/v1/{file}.proto"));
    let descriptors = protox::compile(files, ["proto"])?;
    // Payloads are slices of the row that was read; maps are ordered, so that bytes are the same
    // wherever they are made.
    prost_build::Config::new().bytes(["."]).btree_map(["."]).compile_fds(descriptors)?;
    Ok(())
}
