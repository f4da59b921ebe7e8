//! Checks the pages of the error reasons, `docs/errors/<REASON>.md`. Each value of the enum has one page, and
//! there are no other pages. A page gives the code from the enum's comment, is listed in the index, and names
//! every RPC whose comment names the reason. A test of the API checks that the enum's comment agrees with the
//! code.

use std::collections::BTreeMap;

use crate::tree::File;

const ENUM: &str = "proto/recoup/v1/error_reason.proto";
const PROTO: &str = "proto/recoup/v1/";
const PAGES: &str = "docs/errors/";
const INDEX: &str = "docs/errors/README.md";

/// Pages and entries that are missing, superfluous or out of step.
pub fn undocumented(files: &[File]) -> Vec<String> {
    let text = |path: &str| {
        files.iter().find(|file| file.path == path).map_or("", |file| file.text.as_str())
    };
    let codes = codes(text(ENUM));
    let index = text(INDEX);
    let rpcs: Vec<_> = files
        .iter()
        .filter(|file| file.path.starts_with(PROTO) && file.extension() == "proto")
        .flat_map(|file| rpcs(&file.text))
        .collect();
    let mut findings = Vec::new();
    if codes.is_empty() {
        findings.push(format!("{ENUM} has no reasons"));
    }
    for (reason, code) in &codes {
        let path = format!("{PAGES}{reason}.md");
        let Some(page) = files.iter().find(|file| file.path == path) else {
            findings.push(format!("{path} is missing"));
            continue;
        };
        if page.text.lines().next() != Some(&format!("# {reason}")) {
            findings.push(format!("{path} does not begin with `# {reason}`"));
        }
        if !page.text.lines().any(|line| line == format!("Code: `{code}`")) {
            findings.push(format!("{path} does not say that its code is {code}"));
        }
        if !index.contains(&format!("| [{reason}]({reason}.md) | `{code}` | ")) {
            findings.push(format!("{INDEX} has no line of {reason} with {code}"));
        }
        for (rpc, _) in rpcs.iter().filter(|(_, reasons)| reasons.contains(reason)) {
            if !words(&page.text).any(|word| word == rpc) {
                findings
                    .push(format!("{path} does not name {rpc}, whose comment names the reason"));
            }
        }
    }
    for file in files {
        let name = file.path.strip_prefix(PAGES).and_then(|name| name.strip_suffix(".md"));
        if name.is_some_and(|name| name != "README" && !codes.contains_key(name)) {
            findings.push(format!("{} is of no reason", file.path));
        }
    }
    for (rpc, reasons) in &rpcs {
        let is_none = |reason: &&String| reason.contains('_') && !codes.contains_key(*reason);
        for reason in reasons.iter().filter(is_none) {
            findings.push(format!("the comment of {rpc} names {reason}, which is no reason"));
        }
    }
    findings
}

/// The reasons with their codes: the first word of each value's comment. The value zero is not a reason.
fn codes(text: &str) -> BTreeMap<String, String> {
    let mut codes = BTreeMap::new();
    let mut comment: Vec<&str> = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(part) = line.strip_prefix("//") {
            comment.push(part.trim());
            continue;
        }
        let comment = std::mem::take(&mut comment);
        let value = line.strip_prefix("ERROR_REASON_").and_then(|rest| rest.split_once(" = "));
        if let Some((reason, number)) = value
            && number != "0;"
        {
            let code = comment.first().and_then(|first| first.split(':').next());
            codes.insert(reason.to_owned(), code.unwrap_or_default().to_owned());
        }
    }
    codes
}

/// The RPCs of a file, each with the reasons that its comment lists after `Errors`.
fn rpcs(text: &str) -> Vec<(String, Vec<String>)> {
    let mut rpcs = Vec::new();
    let mut comment = String::new();
    for line in text.lines().map(str::trim) {
        if let Some(part) = line.strip_prefix("//") {
            comment.push_str(part);
            continue;
        }
        let comment = std::mem::take(&mut comment);
        if let Some(name) = line.strip_prefix("rpc ").and_then(|rest| rest.split('(').next()) {
            let listed = comment.split_once(" Errors").map_or("", |(_, listed)| listed);
            let is_name = |word: &&str| {
                word.len() > 3 && word.chars().all(|c| c.is_ascii_uppercase() || c == '_')
            };
            let reasons = words(listed).filter(is_name).map(str::to_owned).collect();
            rpcs.push((name.to_owned(), reasons));
        }
    }
    rpcs
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    const REASONS: &str = "enum ErrorReason {\n  // None.\n  ERROR_REASON_UNSPECIFIED = 0;\n  \
        // NOT_FOUND: no such\n  // thing.\n  ERROR_REASON_THING_NOT_FOUND = 1;\n}\n";
    const SERVICE: &str = "service S {\n  // Reads a thing. Errors:\n  // THING_NOT_FOUND.\n  \
        rpc GetThing(A) returns (B);\n  // Lists things.\n  rpc ListThings(A) returns (B);\n}\n";
    const PAGE: &str = "# THING_NOT_FOUND\n\nCode: `NOT_FOUND`\n\nGiven by GetThing.\n";
    const LINES: &str = "| [THING_NOT_FOUND](THING_NOT_FOUND.md) | `NOT_FOUND` | no such thing |\n";

    fn check(page: &str, lines: &str, more: &[File]) -> Vec<String> {
        let mut files = vec![
            File::new(ENUM, REASONS),
            File::new("proto/recoup/v1/s.proto", SERVICE),
            File::new("docs/errors/THING_NOT_FOUND.md", page),
            File::new(INDEX, lines),
        ];
        files.extend_from_slice(more);
        undocumented(&files)
    }

    #[test]
    fn pages_that_match_the_protocol_pass() {
        assert_eq!(check(PAGE, LINES, &[]), [""; 0]);
    }

    #[test]
    fn every_mismatch_with_the_protocol_is_found() {
        let path = "docs/errors/THING_NOT_FOUND.md";
        let other = PAGE.replace("`NOT_FOUND`", "`ABORTED`");
        let wanted = format!("{path} does not say that its code is NOT_FOUND");
        assert_eq!(check(&other, LINES, &[]), [wanted]);
        let wanted = format!("{path} does not begin with `# THING_NOT_FOUND`");
        assert_eq!(check(&PAGE.replace("# T", "# A T"), LINES, &[]), [wanted]);
        let wanted = format!("{path} does not name GetThing, whose comment names the reason");
        assert_eq!(check(&PAGE.replace("GetThing", "GetThings"), LINES, &[]), [wanted]);
        let wanted = format!("{INDEX} has no line of THING_NOT_FOUND with NOT_FOUND");
        assert_eq!(check(PAGE, "", &[]), [wanted]);
        let stray = File::new("docs/errors/GONE.md", "# GONE\n");
        assert_eq!(check(PAGE, LINES, &[stray]), ["docs/errors/GONE.md is of no reason"]);
        let service = File::new(
            "proto/recoup/v1/t.proto",
            "// Does. Errors: NO_SUCH_REASON.\nrpc Do(A) returns (B);\n",
        );
        let wanted = "the comment of Do names NO_SUCH_REASON, which is no reason";
        assert_eq!(check(PAGE, LINES, &[service]), [wanted]);
    }

    #[test]
    fn a_reason_without_a_page_is_found() {
        let files = [File::new(ENUM, REASONS), File::new(INDEX, LINES)];
        assert_eq!(undocumented(&files), ["docs/errors/THING_NOT_FOUND.md is missing"]);
        assert_eq!(undocumented(&[]), [format!("{ENUM} has no reasons")]);
    }
}
