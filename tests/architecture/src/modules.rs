//! Finds cycles between the modules of a crate. Files that use each other cannot be read one after the other.
//!
//! A file uses the modules that its paths name, through `crate`, `self`, `super` or a module that it declares.
//! Declaring a module (`mod`) and re-exporting names (`pub use`) do not count as use: a file that only does
//! that is a map. A re-exported name counts as belonging to the module that defines it. Tests may use whatever
//! they test.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::iter::Peekable;

use proc_macro2::{Delimiter, TokenStream, TokenTree, token_stream::IntoIter};

use crate::tree::File;

/// A module of a crate, by its path. The empty path is the root.
type Module = Vec<String>;

/// The cycles between the modules of each crate, each with the shortest path around it, starting at its first
/// module.
pub fn cycles(files: &[File]) -> Vec<String> {
    let mut findings = Vec::new();
    for (folder, sources) in crates(files) {
        let uses = uses(&folder, &sources);
        let mut seen: BTreeSet<&Module> = BTreeSet::new();
        for module in uses.keys() {
            let way = way_round(&uses, module).filter(|_| !seen.contains(module));
            let Some(way) = way else { continue };
            let names: Vec<_> = way.iter().map(|module| name(module)).collect();
            findings.push(format!("{folder}: {} is a cycle", names.join(" → ")));
            seen.extend(way);
        }
    }
    findings
}

fn name(module: &Module) -> String {
    if module.is_empty() { "(root)".to_owned() } else { module.join("::") }
}

/// The files of each crate, by its folder. Tests, and binaries beside a library, are left out.
fn crates(files: &[File]) -> BTreeMap<String, Vec<&File>> {
    let roots = files.iter().filter_map(|file| {
        let folder = file.path.strip_suffix("/src/lib.rs");
        folder.or_else(|| file.path.strip_suffix("/src/main.rs"))
    });
    let mut crates: BTreeMap<String, Vec<&File>> =
        roots.map(|folder| (folder.to_owned(), Vec::new())).collect();
    for (folder, sources) in &mut crates {
        let prefix = format!("{folder}/src/");
        let is_source = |file: &&File| {
            let path = file.path.strip_prefix(&prefix).unwrap_or_default();
            path.ends_with(".rs")
                && !file.is_generated()
                && !path.starts_with("bin/")
                && !is_test(path)
        };
        sources.extend(files.iter().filter(is_source));
    }
    crates
}

fn is_test(path: &str) -> bool {
    let stem = path.trim_end_matches(".rs");
    stem.split('/').any(|part| part == "tests" || part.ends_with("_tests"))
}

fn module(folder: &str, file: &File) -> Module {
    let path = file.path.strip_prefix(folder).unwrap_or(&file.path);
    let stem = path.trim_start_matches("/src/").trim_end_matches(".rs");
    let mut module: Module = stem.split('/').map(str::to_owned).collect();
    let last = module.last().map(String::as_str);
    if last == Some("mod") || (module.len() == 1 && matches!(last, Some("lib" | "main"))) {
        module.pop();
    }
    module
}

/// The modules that each module of a crate uses.
fn uses(folder: &str, sources: &[&File]) -> BTreeMap<Module, BTreeSet<Module>> {
    let mut found = BTreeMap::new();
    for file in sources {
        let own = module(folder, file);
        let mut paths = Paths { own: own.clone(), ..Paths::default() };
        let tokens = file.text.parse::<TokenStream>();
        let tokens = tokens.unwrap_or_else(|error| panic!("{} is not Rust: {error}", file.path));
        paths.declare(&tokens);
        paths.walk(tokens, 0);
        // A crate with a library and a binary has two roots, which are treated as one.
        let entry: &mut Paths = found.entry(own).or_default();
        entry.used.extend(paths.used);
        entry.handed_on.extend(paths.handed_on);
    }
    let owner = |path: &Module| owner(&found, path);
    let used = found.iter().map(|(own, paths)| {
        let used = paths.used.iter().map(owner).filter(|module| module != own);
        (own.clone(), used.collect())
    });
    used.collect()
}

/// The module that defines what a path names.
fn owner(found: &BTreeMap<Module, Paths>, path: &Module) -> Module {
    let mut path = path.clone();
    // A name is re-exported a few times at most. Code in which re-exports form a cycle does not compile.
    for _ in 0..16 {
        let length = (0..=path.len()).rev().find(|length| found.contains_key(&path[..*length]));
        let length = length.unwrap_or_default();
        let (module, rest) = path.split_at(length);
        let Some((name, rest)) = rest.split_first() else { break };
        let Some(target) = found.get(module).and_then(|paths| paths.handed_on.get(name)) else {
            break;
        };
        path = target.iter().chain(rest).cloned().collect();
    }
    let length = (0..=path.len()).rev().find(|length| found.contains_key(&path[..*length]));
    path.truncate(length.unwrap_or_default());
    path
}

/// The shortest path from a module through the modules that it uses back to itself.
fn way_round<'a>(
    uses: &'a BTreeMap<Module, BTreeSet<Module>>,
    start: &'a Module,
) -> Option<Vec<&'a Module>> {
    let mut before: BTreeMap<&Module, &Module> = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(module) = queue.pop_front() {
        for next in &uses[module] {
            if next == start {
                let mut way = vec![start, module];
                while let Some(module) = before.get(way[way.len() - 1]) {
                    way.push(module);
                }
                way.reverse();
                if module == start {
                    way.remove(0);
                }
                return Some(way);
            }
            if !before.contains_key(next) {
                before.insert(next, module);
                queue.push_back(next);
            }
        }
    }
    None
}

/// The names and paths that one file declares, uses and re-exports.
#[derive(Default)]
struct Paths {
    own: Module,
    /// The modules that the file declares.
    declared: BTreeSet<String>,
    used: BTreeSet<Module>,
    /// The names that the file re-exports, and the paths that they stand for.
    handed_on: BTreeMap<String, Module>,
}

type Tokens = Peekable<IntoIter>;

impl Paths {
    fn declare(&mut self, tokens: &TokenStream) {
        let mut tokens = tokens.clone().into_iter().peekable();
        while let Some(token) = tokens.next() {
            if is_ident(&token, "mod")
                && let Some(TokenTree::Ident(name)) = tokens.next()
                && matches!(tokens.next(), Some(TokenTree::Punct(end)) if end.as_char() == ';')
            {
                self.declared.insert(name.to_string());
            }
        }
    }

    /// Collects the paths in `tokens`. `depth` is the number of inline modules around them.
    fn walk(&mut self, tokens: TokenStream, depth: usize) {
        let mut tokens = tokens.into_iter().peekable();
        let (mut is_public, mut follows_path) = (false, false);
        while let Some(token) = tokens.next() {
            let after_path = std::mem::take(&mut follows_path);
            match token {
                TokenTree::Punct(mark) if mark.as_char() == '#' => {
                    if is_for_tests(&mut tokens) {
                        skip_item(&mut tokens);
                    }
                }
                TokenTree::Punct(mark) => {
                    // After `::` or `.` comes the middle of a path, or a field.
                    follows_path = mark.as_char() == '.' || mark.as_char() == ':';
                    if mark.as_char() == ':' && !is_double(&tokens) && !after_path {
                        follows_path = false;
                    }
                    is_public = false;
                }
                TokenTree::Ident(word) if word == "pub" => {
                    is_public = true;
                    if matches!(tokens.peek(), Some(TokenTree::Group(_))) {
                        tokens.next();
                    }
                }
                TokenTree::Ident(word) if word == "use" => {
                    let mut tree = Vec::new();
                    branches(&mut tokens, &mut Vec::new(), &mut tree);
                    for path in tree {
                        self.import(path, is_public, depth);
                    }
                    is_public = false;
                }
                TokenTree::Ident(word) if word == "mod" => {
                    let _ = tokens.next();
                    if let Some(TokenTree::Group(group)) = tokens.peek() {
                        let body = group.stream();
                        tokens.next();
                        self.walk(body, depth + 1);
                    }
                    is_public = false;
                }
                TokenTree::Ident(word) => {
                    is_public = false;
                    if after_path || !starts_with_colons(&tokens) {
                        continue;
                    }
                    let mut path = vec![word.to_string()];
                    while starts_with_colons(&tokens) {
                        tokens.next();
                        tokens.next();
                        match tokens.peek() {
                            Some(TokenTree::Ident(next)) => path.push(next.to_string()),
                            _ => break,
                        }
                        tokens.next();
                    }
                    if let Some(path) = self.resolve(path, depth) {
                        self.used.insert(path);
                    }
                }
                TokenTree::Group(group) => {
                    is_public = false;
                    self.walk(group.stream(), depth);
                }
                TokenTree::Literal(_) => is_public = false,
            }
        }
    }

    fn import(&mut self, path: (Vec<String>, String), is_public: bool, depth: usize) {
        let (path, alias) = path;
        let Some(path) = self.resolve(path, depth) else { return };
        if is_public && depth == 0 {
            self.handed_on.insert(alias, path);
        } else {
            self.used.insert(path);
        }
    }

    /// The path from the crate root. None if it leads to another crate or stays in this file.
    fn resolve(&self, path: Vec<String>, depth: usize) -> Option<Module> {
        let mut own = self.own.clone();
        let mut parts = path.into_iter().peekable();
        let mut inner = depth;
        match parts.peek()?.as_str() {
            "crate" => {
                parts.next();
                own.clear();
            }
            "self" | "super" => {
                while let Some(part) = parts.next_if(|part| part == "self" || part == "super") {
                    if part == "super" {
                        match inner {
                            0 => drop(own.pop()),
                            _ => inner -= 1,
                        }
                    }
                }
            }
            first if depth == 0 && self.declared.contains(first) => {}
            _ => return None,
        }
        own.extend(parts.filter(|part| part != "self"));
        Some(own)
    }
}

/// The paths of a `use` tree, each with the name that it introduces. `*` introduces none.
fn branches(tokens: &mut Tokens, stem: &mut Vec<String>, found: &mut Vec<(Vec<String>, String)>) {
    let length = stem.len();
    let mut is_open = false;
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Ident(word) if word == "as" => {
                let alias = tokens.next().map(|alias| alias.to_string()).unwrap_or_default();
                found.push((stem.clone(), alias));
                is_open = false;
            }
            TokenTree::Ident(word) => {
                stem.push(word.to_string());
                is_open = true;
            }
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                branches(&mut group.stream().into_iter().peekable(), stem, found);
                is_open = false;
            }
            TokenTree::Punct(mark) if mark.as_char() == '*' => {
                found.push((stem.clone(), "*".to_owned()));
                is_open = false;
            }
            TokenTree::Punct(mark) if mark.as_char() == ',' || mark.as_char() == ';' => {
                close(stem, length, &mut is_open, found);
                if mark.as_char() == ';' {
                    return;
                }
            }
            _ => {}
        }
    }
    close(stem, length, &mut is_open, found);
}

fn close(
    stem: &mut Vec<String>,
    length: usize,
    is_open: &mut bool,
    found: &mut Vec<(Vec<String>, String)>,
) {
    if std::mem::take(is_open) {
        let named = stem.iter().rev().find(|part| *part != "self");
        found.push((stem.clone(), named.cloned().unwrap_or_default()));
    }
    stem.truncate(length);
}

fn is_ident(token: &TokenTree, word: &str) -> bool {
    matches!(token, TokenTree::Ident(ident) if ident == word)
}

/// Whether the next token is the second colon of `::`.
fn is_double(tokens: &Tokens) -> bool {
    matches!(tokens.clone().next(), Some(TokenTree::Punct(mark)) if mark.as_char() == ':')
}

fn starts_with_colons(tokens: &Tokens) -> bool {
    let mut ahead = tokens.clone();
    let mut is_colon =
        || matches!(ahead.next(), Some(TokenTree::Punct(mark)) if mark.as_char() == ':');
    is_colon() && is_colon()
}

/// Consumes an attribute. Returns true if it is `#[cfg(test)]`.
fn is_for_tests(tokens: &mut Tokens) -> bool {
    let is_group = |token: &TokenTree| matches!(token, TokenTree::Group(_));
    // `#![…]` applies to the whole file.
    tokens.next_if(|token| matches!(token, TokenTree::Punct(mark) if mark.as_char() == '!'));
    let attribute = tokens.next_if(is_group).map(|token| token.to_string().replace(' ', ""));
    attribute.as_deref() == Some("[cfg(test)]")
}

/// Consumes the rest of an item, up to its semicolon or body.
fn skip_item(tokens: &mut Tokens) {
    for token in tokens {
        match token {
            TokenTree::Punct(mark) if mark.as_char() == ';' => return,
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => return,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(sources: &[(&str, &str)]) -> Vec<String> {
        let files = sources.iter().map(|(path, text)| File::new(&format!("a/src/{path}"), text));
        cycles(&files.collect::<Vec<_>>())
    }

    #[test]
    fn two_modules_that_use_each_other_are_found_whatever_the_syntax() {
        for (first, second) in [
            ("use crate::b::B;", "use crate::a::A;"),
            ("use super::b;", "fn f() { super::a::f() }"),
            ("use crate::{b::{self, C}};", "impl crate::a::T for X {}"),
            ("use crate::b as other;", "macro_rules! m { () => { $crate::a::f() } }"),
            ("fn f(x: crate::b::B) {}", "mod inner { use super::super::a::A; }"),
            ("pub(crate) fn f() { crate::b::f() }", "type T = Vec<crate::a::A>;"),
        ] {
            let sources = [("lib.rs", "mod a;\nmod b;"), ("a.rs", first), ("b.rs", second)];
            assert_eq!(found(&sources), ["a: a → b → a is a cycle"], "{first} {second}");
        }
    }

    #[test]
    fn a_cycle_through_the_root_or_a_parent_is_found() {
        let sources =
            [("lib.rs", "mod a;\nuse a::A;\npub const MAX: u8 = 1;"), ("a.rs", "use crate::MAX;")];
        assert_eq!(found(&sources), ["a: (root) → a → (root) is a cycle"]);
        let sources = [
            ("main.rs", "mod a;\nfn main() { a::run() }"),
            ("a/mod.rs", "mod b;\nfn f() { b::f() }"),
            ("a/b.rs", "use super::*;"),
        ];
        assert_eq!(found(&sources), ["a: a → a::b → a is a cycle"]);
    }

    #[test]
    fn a_reexported_name_belongs_to_the_module_that_defines_it() {
        let sources = [
            ("lib.rs", "mod a;\nmod b;\npub use a::{A, inner::C as D};"),
            ("a/mod.rs", "pub mod inner;\nuse crate::b::B;\npub struct A;"),
            ("a/inner.rs", "pub struct C;"),
            ("b.rs", "use crate::D;"),
        ];
        assert_eq!(found(&sources), [""; 0]);
        let mut sources = sources;
        sources[3].1 = "use crate::A;";
        assert_eq!(found(&sources), ["a: a → b → a is a cycle"]);
    }

    #[test]
    fn test_code_and_paths_into_other_crates_are_not_uses() {
        let sources = [
            ("lib.rs", "mod a;\nmod b;\npub use b::B;\n#[cfg(test)]\nmod c;"),
            ("a.rs", "//! [`crate::b`]\nuse crate::b::B;\nconst T: &str = \"crate::a\";"),
            (
                "b.rs",
                "use b::other;\nuse std::a::A;\nfn f(a: A) { a.a::<u8>(); x::a::f() }\n\
                 #[cfg(test)]\nmod tests { use crate::a::A; }\n#[cfg(test)]\nuse crate::a::A;",
            ),
            ("b/tests.rs", "use crate::a::A;"),
            ("b_tests/mod.rs", "use crate::a::A;"),
        ];
        assert_eq!(found(&sources), [""; 0]);
    }

    #[test]
    fn a_cycle_is_reported_once_and_without_the_modules_that_it_only_uses() {
        let sources = [
            ("lib.rs", "mod a;\nmod b;\nmod c;"),
            ("a.rs", "use crate::b::B;"),
            ("b.rs", "use crate::a::A;\nuse crate::c::C;"),
            ("c.rs", ""),
        ];
        assert_eq!(found(&sources), ["a: a → b → a is a cycle"]);
    }
}
