//! Links between the Markdown files of the repository: the linked file exists, and so does the heading.

use std::collections::{BTreeMap, BTreeSet};

use crate::prose::{outside_code, without_code};
use crate::tree::File;

/// Links that lead nowhere. Addresses outside the repository are skipped, because checking them would need a
/// network.
pub fn broken(files: &[File]) -> Vec<String> {
    let mut places: BTreeMap<&str, Option<&File>> = BTreeMap::new();
    for file in files {
        places.insert(&file.path, Some(file));
        for (end, _) in file.path.match_indices('/') {
            places.insert(&file.path[..end], None);
        }
    }
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.extension() == "md") {
        for (number, target) in targets(&file.text) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (path, heading) = target.split_once('#').unwrap_or((&target, ""));
            let path =
                if path.is_empty() { Some(file.path.clone()) } else { join(&file.path, path) };
            let found = path.as_deref().and_then(|path| match path {
                "" => Some(&None),
                path => places.get(path),
            });
            let exists = match found {
                None => false,
                Some(_) if heading.is_empty() => true,
                Some(Some(to)) if to.extension() == "md" => headings(&to.text).contains(heading),
                // In a file that is not Markdown the fragment is a line number or the like, and is not checked.
                Some(_) => true,
            };
            if !exists {
                findings.push(format!("{}:{number} links to {target}", file.path));
            }
        }
    }
    findings
}

/// The path to which `target` leads from the file `from`. None if it leaves the repository.
fn join(from: &str, target: &str) -> Option<String> {
    let mut folders: Vec<&str> = if target.starts_with('/') {
        Vec::new()
    } else {
        let folder = from.rsplit_once('/').map_or("", |(folder, _)| folder);
        folder.split('/').filter(|folder| !folder.is_empty()).collect()
    };
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                folders.pop()?;
            }
            part => folders.push(part),
        }
    }
    Some(folders.join("/"))
}

/// The targets of the links in a text, each with its line number. Two forms count: `[text](target)` and
/// `[name]: target`.
fn targets(text: &str) -> Vec<(usize, String)> {
    let mut targets = Vec::new();
    for (number, line) in outside_code(text) {
        let line = without_code(line);
        for (at, mark) in line.match_indices("](") {
            let rest = &line[at + mark.len()..];
            let end = rest.find(|c: char| c == ')' || c.is_whitespace()).unwrap_or(rest.len());
            targets.push((number, rest[..end].trim_matches(['<', '>']).to_owned()));
        }
        if line.starts_with('[')
            && let Some((_, rest)) = line.split_once("]: ")
        {
            targets
                .extend(rest.split_whitespace().next().map(|target| (number, target.to_owned())));
        }
    }
    targets
}

/// The anchors of a file's headings, in the form that code hosts generate.
fn headings(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    for (_, line) in outside_code(text) {
        let title = line.trim_start_matches('#');
        if title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let anchor: String = title
            .trim()
            .to_lowercase()
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect();
        let again = (1..).map(|n| format!("{anchor}-{n}"));
        let free =
            std::iter::once(anchor.clone()).chain(again).find(|name| !anchors.contains(name));
        anchors.extend(free);
    }
    anchors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(readme: &str) -> Vec<String> {
        broken(&[
            File::new("README.md", readme),
            File::new(
                "docs/errors.md",
                "# Errors\n\n## What `retry` does, and why\n\n## Twice\n## Twice\n",
            ),
            File::new(
                "docs/deep/page.md",
                "[up](../errors.md) [top](../../README.md) [root](/docs)",
            ),
            File::new("tests/run", ""),
        ])
    }

    #[test]
    fn good_links_pass() {
        let readme = "# Hello there\n[a](docs/errors.md) [b](docs/errors.md#what-retry-does-and-why)\n\
            [c](tests/run) [d](docs/) [e](#hello-there) [f](https://example.com/x) \
            [g](./docs/errors.md \"title\") [h](docs/errors.md#twice-1)\n[i]: docs/deep/page.md\n";
        assert_eq!(check(readme), [""; 0]);
    }

    #[test]
    fn broken_links_are_found() {
        for target in [
            "docs/missing.md",
            "errors.md",
            "../outside.md",
            "docs/errors.md#nothing",
            "docs/errors.md#twice-2",
            "#nothing",
        ] {
            let wanted = [format!("README.md:2 links to {target}")];
            assert_eq!(check(&format!("text\n[a]({target})")), wanted);
            assert_eq!(check(&format!("text\n[a]: {target}")), wanted);
        }
    }

    #[test]
    fn links_in_code_are_ignored() {
        assert_eq!(check("`[a](missing.md)`\n\n```sh\n[a](missing.md)\n```\n"), [""; 0]);
        assert_eq!(check("```\n```\n[a](missing.md)\n").len(), 1);
    }
}
