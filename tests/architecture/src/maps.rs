//! Checks the maps: the root of each crate lists its modules in a table that says what each of them holds.

use std::collections::BTreeSet;

use crate::tree::File;

/// Modules that the map of their crate leaves out, and lines of a map that name no module.
pub fn incomplete(files: &[File]) -> Vec<String> {
    let is_root =
        |file: &&File| file.path.ends_with("/src/lib.rs") || file.path.ends_with("/src/main.rs");
    let library = |file: &&File| {
        let lib = file.path.replace("/src/main.rs", "/src/lib.rs");
        file.path.ends_with("/src/lib.rs") || !files.iter().any(|other| other.path == lib)
    };
    let mut findings = Vec::new();
    for file in files.iter().filter(is_root).filter(library) {
        let (declared, mapped) = (declared(&file.text), mapped(&file.text));
        let missing = declared.difference(&mapped);
        findings.extend(missing.map(|name| format!("{} has no line of `{name}`", file.path)));
        let stale = mapped.difference(&declared);
        findings.extend(stale.map(|name| format!("{} has no module `{name}`", file.path)));
    }
    findings
}

/// The modules that a crate root declares, without those that exist only for tests.
fn declared(text: &str) -> BTreeSet<&str> {
    let mut lines = Vec::new();
    let mut is_test = false;
    for line in text.lines() {
        let name = line.strip_prefix("pub ").unwrap_or(line).strip_prefix("mod ");
        let name = name.and_then(|name| name.split([';', ' ']).next());
        lines.extend(name.filter(|_| !is_test));
        is_test = line == "#[cfg(test)]";
    }
    lines.into_iter().collect()
}

/// The first cells of the table in the comments of a crate root.
fn mapped(text: &str) -> BTreeSet<&str> {
    let is_row = |line: &&str| line.starts_with("// | `") || line.starts_with("//! | `");
    let lines = text.lines().filter(is_row);
    lines.filter_map(|line| line.split('`').nth(1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        incomplete(&[File::new("a/src/lib.rs", text)])
    }

    #[test]
    fn unlisted_modules_and_rows_without_a_module_are_found() {
        let map = "//! | `a` | letters |\n//! | `b` | more of them |\n\n";
        assert_eq!(found(&format!("{map}mod a;\npub mod b;\n")), [""; 0]);
        assert_eq!(
            found(&format!("{map}mod a;\nmod c;\npub mod d {{\n")),
            [
                "a/src/lib.rs has no line of `c`",
                "a/src/lib.rs has no line of `d`",
                "a/src/lib.rs has no module `b`"
            ]
        );
    }

    #[test]
    fn test_modules_and_other_comments_are_ignored() {
        assert_eq!(found("// | `a` | letters |\nmod a;\n#[cfg(test)]\nmod tests;\n"), [""; 0]);
        assert_eq!(found("//! Uses `b`.\n/// | `c` | of an item |\nfn f() {}\n"), [""; 0]);
    }

    #[test]
    fn main_rs_is_checked_only_if_there_is_no_lib_rs() {
        let binary = File::new("a/src/main.rs", "mod b;");
        assert_eq!(incomplete(std::slice::from_ref(&binary)), ["a/src/main.rs has no line of `b`"]);
        assert_eq!(incomplete(&[binary, File::new("a/src/lib.rs", "")]), [""; 0]);
    }
}
