//! The checks of this crate, applied to this repository.

use std::path::{Path, PathBuf};
use std::process::Command;

use recoup_architecture::graph::{self, Metadata};
use recoup_architecture::tree::{self, File};
use recoup_architecture::{hygiene, links, maps, modules, prose, reasons, sources};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// `--locked` keeps the test from changing the lock file that it examines. Where every crate has been
/// downloaded, as after any build, cargo needs no network for this.
fn metadata() -> Metadata {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(root())
        .output()
        .expect("cargo, which built this test, can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json = String::from_utf8(output.stdout).expect("cargo's JSON is UTF-8");
    Metadata::parse(&json).expect("cargo metadata has the form of version 1")
}

fn files() -> Vec<File> {
    let files = tree::read(&root()).expect("the repository can be read");
    assert!(files.iter().any(|file| file.path == "service/core/src/lib.rs"), "not the repository");
    files
}

#[track_caller]
fn none(findings: Vec<String>) {
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

#[test]
fn crates_use_each_other_only_as_the_arrows_allow() {
    none(graph::wrong_arrows(&metadata()));
}

#[test]
fn core_has_only_the_listed_dependencies() {
    none(graph::unexpected_core_uses(&metadata()));
}

#[test]
fn core_has_no_forbidden_transitive_dependency() {
    none(graph::forbidden_behind_core(&metadata()));
}

#[test]
fn core_sources_use_no_clock_thread_or_async_task() {
    none(sources::impure_core(&files()));
}

#[test]
fn no_source_file_is_too_long() {
    none(sources::too_long(&files()));
}

#[test]
fn modules_have_no_cycles() {
    none(modules::cycles(&files()));
}

#[test]
fn every_crate_root_documents_its_modules() {
    none(maps::incomplete(&files()));
}

#[test]
fn generated_code_is_only_in_gen_folders() {
    none(sources::stray_generated(&files()));
}

#[test]
fn no_file_names_a_machine_specific_path() {
    none(hygiene::private_paths(&files()));
}

#[test]
fn no_file_uses_a_private_registry() {
    none(hygiene::private_registries(&files()));
}

#[test]
fn links_have_existing_targets() {
    none(links::broken(&files()));
}

#[test]
fn pages_and_comments_avoid_the_listed_words() {
    none(prose::avoided(&files()));
}

#[test]
fn every_error_reason_has_its_page() {
    none(reasons::undocumented(&files()));
}
