//! The files of the repository, as the checks see them.

use std::io;
use std::path::Path;

/// Folders that hold what tools make, wherever they are.
const SKIPPED: &[&str] = &[".git", ".tests", "__pycache__", "node_modules", "target"];

/// One text file.
#[derive(Clone, Debug)]
pub struct File {
    /// From the root of the repository, with `/` between the folders.
    pub path: String,
    pub text: String,
}

impl File {
    pub fn new(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned() }
    }

    /// What follows the last dot of the name; empty if it has none.
    pub fn extension(&self) -> &str {
        let name = self.path.rsplit('/').next().unwrap_or(&self.path);
        name.rsplit_once('.').map_or("", |(_, extension)| extension)
    }

    /// Whether it stands below a folder for generated code.
    pub fn is_generated(&self) -> bool {
        let mut folders = self.path.split('/').rev().skip(1);
        folders.any(|folder| folder == "gen" || folder == "generated")
    }
}

/// Every text file below `root` in the order of the paths, without the folders of tools. Files that
/// are not UTF-8 are left out.
///
/// # Errors
///
/// When a folder or a file cannot be read.
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
    fn the_extension_is_that_of_the_name() {
        assert_eq!(File::new("a.b/run", "").extension(), "");
        assert_eq!(File::new("a/b.tar.gz", "").extension(), "gz");
    }

    #[test]
    fn generated_is_what_a_folder_says() {
        assert!(File::new("sdks/python/gen/a/b.py", "").is_generated());
        assert!(File::new("generated/b.rs", "").is_generated());
        assert!(!File::new("proto/gen.rs", "").is_generated());
        assert!(!File::new("proto/generator/b.rs", "").is_generated());
    }

    #[test]
    fn this_crate_finds_itself_and_nothing_built() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let files = read(here).expect("the sources of this test can be read");
        assert!(files.iter().any(|file| file.path == "src/tree.rs"));
        assert!(files.is_sorted_by(|a, b| a.path < b.path));
    }
}
