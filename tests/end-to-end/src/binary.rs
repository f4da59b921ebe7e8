//! Finds `recoup` and the examples of the Rust SDK next to the test's own executable, and builds them if they
//! are missing or older than their sources.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

/// The files and folders that the binary is built from.
const SOURCES: [&str; 5] = ["Cargo.lock", "proto", "service", "sdks/rust", "examples"];

/// The binary under test: `$RECOUP_TEST_BINARY` or, if that is not set, the one in the target folder that holds
/// this test.
pub(crate) fn recoup() -> &'static Path {
    static RECOUP: OnceLock<PathBuf> = OnceLock::new();
    RECOUP.get_or_init(|| {
        if let Some(chosen) = std::env::var_os("RECOUP_TEST_BINARY") {
            return chosen.into();
        }
        let path = profile_folder().join("recoup");
        if is_old(&path, &SOURCES) {
            build(&["--package", "recoup-server", "--bin", "recoup"]);
        }
        assert!(path.is_file(), "{} was not built", path.display());
        path
    })
}

/// The path in `$RECOUP_TEST_OLDER_BINARY`: a server that reads and writes older formats than the binary under
/// test.
///
/// # Panics
/// If the variable is not set, or does not name a file.
pub(crate) fn older_recoup() -> PathBuf {
    let older = std::env::var_os("RECOUP_TEST_OLDER_BINARY");
    let older =
        PathBuf::from(older.expect("RECOUP_TEST_OLDER_BINARY is set, as in tests/steps/70-kill"));
    assert!(older.is_file(), "{} is not a file", older.display());
    older
}

/// The path of an example of the Rust SDK, which is built first if necessary.
pub(crate) fn sdk_example(name: &str) -> PathBuf {
    // The tests of one file ask at the same time. Without the lock, each of them would start a build of its
    // own.
    static BUILDING: Mutex<()> = Mutex::new(());
    let _building = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let path = profile_folder().join("examples").join(name);
    if is_old(&path, &["Cargo.lock", "proto", "sdks/rust", "examples"]) {
        build(&["--package", "recoup-sdk", "--example", name]);
    }
    assert!(path.is_file(), "{} was not built", path.display());
    path
}

/// Whether `path` is missing, or older than one of its sources.
fn is_old(path: &Path, sources: &[&str]) -> bool {
    let built = path.metadata().and_then(|data| data.modified()).ok();
    let sources = sources.iter().filter_map(|source| newest(&repository().join(source)));
    built.is_none_or(|built| sources.max().is_some_and(|newest| newest > built))
}

/// The folder for the files that tests leave: logs, databases, and the records of workers.
pub(crate) fn scratch() -> PathBuf {
    let target =
        profile_folder().parent().map(Path::to_path_buf).expect("it is in a target folder");
    let folder = target.join("tmp").join("end-to-end");
    std::fs::create_dir_all(&folder).expect("the target folder can be written to");
    folder
}

/// The path of this crate's worker, which cargo builds together with the tests.
pub(crate) fn load_worker() -> PathBuf {
    profile_folder().join("load-worker")
}

fn profile_folder() -> PathBuf {
    let own = std::env::current_exe().expect("the system knows what it runs");
    let found = own.ancestors().find(|folder| folder.join("deps").is_dir());
    found.expect("cargo puts tests beside a folder `deps`").to_path_buf()
}

fn repository() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.ancestors().nth(2).expect("this crate is two folders below the root")
}

fn build(what: &[&str]) {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(repository()).arg("build").args(what);
    if profile_folder().ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.status().expect("cargo can be started");
    assert!(status.success(), "{what:?} does not build");
}

/// The time at which the most recently changed file below `path` was modified.
fn newest(path: &Path) -> Option<SystemTime> {
    if !path.is_dir() {
        return path.metadata().ok()?.modified().ok();
    }
    // Tests are not part of the binary, so changing one requires no build.
    let entries = std::fs::read_dir(path).ok()?.flatten();
    let parts = entries.filter(|entry| entry.file_name() != "tests");
    parts.filter_map(|entry| newest(&entry.path())).max()
}
