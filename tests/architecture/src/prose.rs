//! Words that pages and comments avoid, because they leave out who does something, or stand for many things at once.
//! CONTRIBUTING says how to write; a word list keeps out only what a list can.

use crate::tree::File;

/// A word or a phrase, and what to write instead.
const AVOIDED: &[(&str, &str)] = &[
    ("whoever", "name the actor: the caller, the worker, the operator"),
    ("he", "name the actor, or write `it` or `they`"),
    ("him", "name the actor, or write `it` or `them`"),
    ("his", "name the actor, or write `its` or `their`"),
    ("told of", "informed about, or say who learns of it"),
    ("mend", "fix"),
    ("mends", "fixes"),
    ("mended", "fixed"),
    ("mending", "fixing"),
    ("so often", "how often, or how many times"),
    ("nobody says", "say what is missing"),
    ("go on behind", "continue after"),
    ("goes on behind", "continues after"),
    ("go on with", "continue"),
    ("goes on with", "continues"),
];

/// Where pages and comments use such a word. Code and what is quoted as code are not looked at, nor are the words
/// between quotation marks.
pub fn avoided(files: &[File]) -> Vec<String> {
    let mut findings = Vec::new();
    for file in files {
        for (number, line) in prose(file) {
            for (word, instead) in AVOIDED {
                if has(&line, word) {
                    findings.push(format!("{}:{number} says \"{word}\": {instead}", file.path));
                }
            }
        }
    }
    findings
}

/// The lines of a page or of comments, with their numbers, in lower case and without what is quoted.
fn prose(file: &File) -> Vec<(usize, String)> {
    let plain = |(number, line): (usize, &str)| (number, without_quoted(line));
    let sign = match file.extension() {
        "md" => return outside_code(&file.text).map(plain).collect(),
        "rs" | "proto" => "//",
        "sql" => "--",
        "py" | "service" | "sh" | "toml" | "yaml" | "" => "#",
        _ => return Vec::new(),
    };
    let lines = file.text.lines().enumerate().map(|(index, line)| (index + 1, line));
    lines.filter(|(_, line)| line.trim_start().starts_with(sign)).map(plain).collect()
}

/// The lines of a Markdown text, with their numbers, without fenced code.
pub fn outside_code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fence: Option<&str> = None;
    text.lines().enumerate().filter_map(move |(at, line)| {
        let start = line.trim_start();
        let mark = ["```", "~~~"].into_iter().find(|mark| start.starts_with(mark));
        match (fence, mark) {
            (None, Some(mark)) => fence = Some(mark),
            (Some(open), Some(mark)) if open == mark => fence = None,
            (None, None) => return Some((at + 1, line)),
            _ => {}
        }
        None
    })
}

/// A line without the parts between backticks.
pub fn without_code(line: &str) -> String {
    if line.matches('`').count() % 2 == 1 {
        return line.to_owned();
    }
    line.split('`').step_by(2).collect::<Vec<_>>().join("``")
}

/// Leaves out what stands between backticks or quotation marks, where both are on the line.
fn without_quoted(line: &str) -> String {
    let mut text = without_code(line).to_lowercase();
    while let Some((before, rest)) = text.split_once('"')
        && let Some((_, after)) = rest.split_once('"')
    {
        text = format!("{before} {after}");
    }
    text
}

/// Whether a text has a word, or several in a row, that no other letter touches.
fn has(text: &str, word: &str) -> bool {
    let is_part =
        |letter: Option<char>| letter.is_some_and(|one| one.is_alphanumeric() || one == '_');
    text.match_indices(word).any(|(at, _)| {
        !is_part(text[..at].chars().next_back()) && !is_part(text[at + word.len()..].chars().next())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn avoided_words_in_a_page_are_found_outside_code() {
        let page = "Whoever reads it\nis told of it.\n```\nwhoever\n```\nThe `whoever` of the other shelf.\n";
        let findings = avoided(&[File::new("docs/page.md", page)]);
        let places: Vec<_> = findings.iter().map(|finding| finding.split(':').nth(1)).collect();
        assert_eq!(places, [Some("1 says \"whoever\""), Some("2 says \"told of\"")]);
    }

    #[test]
    fn avoided_words_in_code_are_found_only_in_comments() {
        let code = "// He mended it.\nlet he = \"he\";\n/// She fixed the other.\n";
        let findings = avoided(&[File::new("src/lib.rs", code)]);
        assert_eq!(findings.len(), 2, "{findings:?}");
        assert!(findings.iter().all(|finding| finding.starts_with("src/lib.rs:1 ")));
    }

    #[test]
    fn avoided_words_in_scripts_and_sql_are_found_only_in_comments() {
        for (path, sign) in [("a.sql", "--"), ("a.py", "#"), ("a.yaml", "#"), ("tests/run", "#")] {
            let text = format!("select he;\n    {sign} He mended it.\n");
            let findings = avoided(&[File::new(path, &text)]);
            assert_eq!(findings.len(), 2, "{findings:?}");
            let comment = format!("{path}:2 ");
            assert!(findings.iter().all(|finding| finding.starts_with(&comment)), "{findings:?}");
        }
    }
}
