//! Compiles the private formats of the store. No `protoc` is needed.

use std::collections::BTreeSet;
use std::path::PathBuf;

use prost::Message;
use prost_types::FileDescriptorSet;

/// The kinds of rows, each with the file of its message and the message.
const ROWS: [(&str, &str, &str); 5] = [
    ("history", "transition", "Transition"),
    ("definition", "definition", "Workflow"),
    ("failure_event", "failure", "FailureEvent"),
    ("subscription", "subscription", "Subscription"),
    ("registry_answer", "registry", "RegistryAnswer"),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let path = |file: &str| format!("proto/recoup/store/v1/{file}.proto");
    let files = ROWS.map(|(_, file, _)| path(file)).into_iter().chain([path("idle")]);
    let descriptors = protox::compile(files, ["proto"])?;
    // Payloads are slices of the row that was read; maps are ordered, so that bytes are the same
    // wherever they are made.
    prost_build::Config::new().bytes(["."]).btree_map(["."]).compile_fds(descriptors)?;

    // What a test compares with the descriptor sets in `formats`.
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    for (row, file, message) in ROWS {
        let mut descriptors = protox::compile([path(file)], ["proto"])?;
        prune(&mut descriptors, message);
        std::fs::write(out.join(format!("{row}.binpb")), descriptors.encode_to_vec())?;
    }
    Ok(())
}

/// Leaves only what a row with this message can hold, so that a change of anything else does not look like
/// one of its format. Comments change no format either.
fn prune(descriptors: &mut FileDescriptorSet, message: &str) {
    let full_name = |name: &str| format!(".recoup.store.v1.{name}");
    let messages = || descriptors.file.iter().flat_map(|file| &file.message_type);
    let mut reached = BTreeSet::new();
    let mut next = vec![full_name(message)];
    while let Some(name) = next.pop() {
        let found = messages().find(|message| full_name(message.name()) == name);
        if reached.insert(name) {
            // Entries of maps are nested.
            let fields = found.into_iter().flat_map(|message| {
                message.field.iter().chain(message.nested_type.iter().flat_map(|own| &own.field))
            });
            next.extend(fields.filter_map(|field| field.type_name.clone()));
        }
    }
    for file in &mut descriptors.file {
        file.source_code_info = None;
        file.message_type.retain(|message| reached.contains(&full_name(message.name())));
        file.enum_type.retain(|values| reached.contains(&full_name(values.name())));
    }
}
