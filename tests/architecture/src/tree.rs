//! Reads the files of the repository for the checks.

use std::io;
use std::path::Path;

/// Folders that hold the output of tools. They are skipped wherever they are.
const SKIPPED: &[&str] = &[".git", ".tests", ".venv", "__pycache__", "node_modules", "target"];

/// One text file.
#[derive(Clone, Debug)]
pub struct File {
    /// The path from the root of the repository, with `/` between folders.
    pub path: String,
    pub text: String,
}

impl File {
    pub fn new(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned() }
    }

    /// The part of the name after its last dot. Empty if there is no dot.
    pub fn extension(&self) -> &str {
        let name = self.path.rsplit('/').next().unwrap_or(&self.path);
        name.rsplit_once('.').map_or("", |(_, extension)| extension)
    }

    /// Whether the file is in a folder for generated code, at any depth.
    pub fn is_generated(&self) -> bool {
        let mut folders = self.path.split('/').rev().skip(1);
        folders.any(|folder| folder == "gen" || folder == "generated")
    }
}

/// Reads every text file below `root`, ordered by path. The folders of tools and files that are not UTF-8 are
/// left out.
///
/// # Errors
///
/// If a folder or a file cannot be read.
pub fn read(root: &Path) -> io::Result<Vec<File>> {
    let mut files = Vec::new();
    visit(root, "", &mut files)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn visit(folder: &Path, prefix: &str, files: &mut Vec<File>) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type()?;
        if kind.is_dir() && !SKIPPED.contains(&name.as_str()) {
            visit(&entry.path(), &format!("{prefix}{name}/"), files)?;
        } else if kind.is_file()
            && let Ok(text) = String::from_utf8(std::fs::read(entry.path())?)
        {
            files.push(File { path: format!("{prefix}{name}"), text });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extension_is_taken_from_the_file_name() {
        assert_eq!(File::new("a.b/run", "").extension(), "");
        assert_eq!(File::new("a/b.tar.gz", "").extension(), "gz");
    }

    #[test]
    fn only_files_in_a_folder_for_generated_code_are_generated() {
        assert!(File::new("sdks/python/gen/a/b.py", "").is_generated());
        assert!(File::new("generated/b.rs", "").is_generated());
        assert!(!File::new("proto/gen.rs", "").is_generated());
        assert!(!File::new("proto/generator/b.rs", "").is_generated());
    }

    #[test]
    fn reading_this_crate_finds_its_sources_sorted_by_path() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let files = read(here).expect("the sources of this test can be read");
        assert!(files.iter().any(|file| file.path == "src/tree.rs"));
        assert!(files.is_sorted_by(|a, b| a.path < b.path));
    }
}
