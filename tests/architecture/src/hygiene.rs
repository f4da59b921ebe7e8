//! Traces of the machine on which a file was written: its folders, and package sources that only this machine
//! can reach.

use crate::tree::File;

/// Top-level folders that exist on one person's machine and mean nothing to other readers.
const PRIVATE_FOLDERS: &[&str] = &["root", "work", "Users"];

/// Settings that point a package client at another registry.
const REDIRECTIONS: &[&str] = &[
    "replace-with",
    "--index-url",
    "--extra-index-url",
    "--registry=",
    "PIP_INDEX_URL",
    "NPM_CONFIG_REGISTRY",
    "npm_config_registry",
    "GOPROXY=",
];

/// Files that hold such settings.
const CLIENT_SETTINGS: &[&str] = &[".npmrc", ".yarnrc", "pip.conf", ".cargo/config.toml"];

/// The sources from which lock files may take a package.
const PUBLIC_SOURCES: &[&str] =
    &["registry+https://github.com/rust-lang/crates.io-index", "https://registry.npmjs.org/"];

/// This file is exempt, because it has to name what it looks for.
const THIS_FILE: &str = "tests/architecture/src/hygiene.rs";

/// Absolute paths into folders that belong to one person or one machine.
pub fn private_paths(files: &[File]) -> Vec<String> {
    let mut findings = Vec::new();
    for (file, number, line) in lines(files) {
        if let Some(path) = private_path(line) {
            findings.push(format!("{}:{number} names {path}", file.path));
        }
    }
    findings
}

/// Package sources other than the public ones, in lock files, settings and commands.
pub fn private_registries(files: &[File]) -> Vec<String> {
    let mut findings = Vec::new();
    for file in files {
        if CLIENT_SETTINGS.iter().any(|end| file.path.ends_with(end))
            && file.text.contains("registry")
        {
            findings.push(format!("{} sets a registry", file.path));
        }
    }
    for (file, number, line) in lines(files) {
        for setting in REDIRECTIONS.iter().filter(|setting| line.contains(**setting)) {
            findings.push(format!("{}:{number} has {setting}", file.path));
        }
        if let Some(source) = locked_source(file, line)
            && !PUBLIC_SOURCES.iter().any(|public| source.starts_with(public))
        {
            findings.push(format!("{}:{number} takes a package from {source}", file.path));
        }
    }
    findings
}

fn lines(files: &[File]) -> impl Iterator<Item = (&File, usize, &str)> {
    let files = files.iter().filter(|file| file.path != THIS_FILE);
    files.flat_map(|file| file.text.lines().enumerate().map(move |(at, line)| (file, at + 1, line)))
}

/// The first private path in a line: a slash that begins a path, one of the private folders, and something
/// after it.
fn private_path(line: &str) -> Option<&str> {
    line.match_indices('/').map(|(at, _)| at).find_map(|at| {
        let before = line[..at].chars().next_back();
        // After a name, a dot or another slash, this slash is in the middle of a path or an address.
        if before.is_some_and(|before| before.is_alphanumeric() || "._-~/)}>".contains(before)) {
            return None;
        }
        let end = line[at..].find(|c: char| c.is_whitespace() || "\"'`)<>,;:".contains(c));
        let path = &line[at..end.map_or(line.len(), |end| at + end)];
        let mut folders = path[1..].split('/');
        let (top, next) = (folders.next()?, folders.next()?);
        let private = PRIVATE_FOLDERS.contains(&top)
            || top == "home" && next.starts_with(|c: char| c.is_ascii_lowercase());
        private.then_some(path)
    })
}

/// The source that a line of a lock file gives for a package.
fn locked_source<'a>(file: &File, line: &'a str) -> Option<&'a str> {
    let key = match file.path.rsplit('/').next()? {
        "Cargo.lock" => "source = \"",
        "package-lock.json" => "\"resolved\": \"",
        _ => return None,
    };
    line.trim_start().strip_prefix(key)?.split('"').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(path: &str, text: &str) -> [File; 1] {
        [File::new(path, text)]
    }

    #[test]
    fn machine_specific_paths_are_found() {
        for (text, path) in [
            ("cd /work/main && make", "/work/main"),
            ("open(\"/root/.cargo/config\")", "/root/.cargo/config"),
            ("see `/home/anna/notes.md`", "/home/anna/notes.md"),
            ("root=/Users/anna", "/Users/anna"),
        ] {
            assert_eq!(private_paths(&one("a.md", text)), [format!("a.md:1 names {path}")]);
        }
    }

    #[test]
    fn other_paths_are_accepted() {
        for text in [
            "/var/lib/recoup and /tmp/work/x",
            "https://example.com/work/item and ../work/item and ./root/x",
            "the /root of all; a work/life balance",
            "$HOME/work/x ~/work/x ${dir}/work/x",
        ] {
            assert_eq!(private_paths(&one("a.md", text)), [""; 0], "{text}");
        }
    }

    #[test]
    fn private_sources_in_lock_files_are_found() {
        let public = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";
        assert_eq!(private_registries(&one("Cargo.lock", public)), [""; 0]);
        let private = "source = \"registry+https://mirror.example/index\"";
        assert_eq!(
            private_registries(&one("Cargo.lock", private)),
            ["Cargo.lock:1 takes a package from registry+https://mirror.example/index"]
        );
        let private = "  \"resolved\": \"https://mirror.example/a.tgz\",";
        assert_eq!(
            private_registries(&one("tests/buf/package-lock.json", private)),
            ["tests/buf/package-lock.json:1 takes a package from https://mirror.example/a.tgz"]
        );
    }

    #[test]
    fn registry_settings_are_found() {
        for setting in REDIRECTIONS {
            assert_eq!(
                private_registries(&one("tests/x", &format!("run {setting} y"))),
                [format!("tests/x:1 has {setting}")]
            );
        }
        for path in CLIENT_SETTINGS {
            let findings = private_registries(&one(path, "registry = somewhere"));
            assert_eq!(findings, [format!("{path} sets a registry")]);
        }
    }
}
