//! Compiles `recoup/v1/*.proto` without a protoc binary: messages, clients and servers, their proto3
//! JSON form, and the descriptor set for server reflection.

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost::Message;
use prost_build::Config;
use protox::prost_reflect::prost_types::{
    DescriptorProto, EnumDescriptorProto, FileDescriptorProto,
};

const PACKAGE: &str = ".recoup.v1";
/// Messages whose JSON form is not that of their fields; written by hand.
const HAND_WRITTEN: &[&str] = &[".recoup.v1.Template"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=recoup");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);

    let files = protox::Compiler::new(["."])?
        .include_imports(true)
        .include_source_info(true)
        .open_files(proto_files(Path::new("recoup/v1"))?)?
        .file_descriptor_set();
    let encoded = files.encode_to_vec();
    fs::write(out.join("recoup.v1.descriptor.bin"), &encoded)?;

    let enums = enums(&files.file);
    let mut json = pbjson_build::Builder::new();
    json.register_descriptors(&encoded)?
        .btree_map(["."])
        .extern_path(".google.protobuf", "::pbjson_types")
        .extern_path(".google.protobuf.Duration", "crate::Duration")
        .exclude(HAND_WRITTEN.iter().copied())
        .exclude(enums.iter().map(|name| format!("{PACKAGE}.{name}")));
    json.build(&[PACKAGE])?;
    fs::write(out.join("recoup.v1.enum.rs"), enum_json(&enums))?;

    let mut config = Config::new();
    config.btree_map(["."]).bytes(["."]);
    tonic_prost_build::configure()
        .compile_well_known_types(true)
        .extern_path(".google.protobuf", "::pbjson_types")
        .extern_path(".google.protobuf.Duration", "crate::Duration")
        .compile_fds_with_config(files, config)?;
    Ok(())
}

fn proto_files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths = fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "proto"));
    paths.sort();
    Ok(paths)
}

/// Names of the package's enums. All stand at the top level, which `enum_json` relies on.
fn enums(files: &[FileDescriptorProto]) -> Vec<String> {
    let ours = files.iter().filter(|file| file.package() == PACKAGE.trim_start_matches('.'));
    let mut names = Vec::new();
    for file in ours {
        assert!(
            file.message_type.iter().all(holds_no_enum),
            "{}: declare enums at the top level",
            file.name()
        );
        names.extend(file.enum_type.iter().map(EnumDescriptorProto::name).map(str::to_owned));
    }
    names
}

fn holds_no_enum(message: &DescriptorProto) -> bool {
    message.enum_type.is_empty() && message.nested_type.iter().all(holds_no_enum)
}

fn enum_json(names: &[String]) -> String {
    let mut code = String::new();
    for name in names {
        writeln!(code, "crate::enumeration::json!({name});").expect("a String takes all writes");
    }
    code
}
