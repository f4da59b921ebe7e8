//! Finds the expressions in the strings of a template.

use super::problem::Problem;

/// A part of a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    Text(&'a str),
    /// The text between `${` and its closing `}`.
    Expression(&'a str),
}

impl<'a> Piece<'a> {
    pub(super) fn text(&self) -> &'a str {
        match self {
            Self::Text(text) | Self::Expression(text) => text,
        }
    }
}

/// Splits a string at its expressions; `$${` becomes the text `${`.
pub(super) fn split(text: &str) -> Result<Vec<Piece<'_>>, Problem> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            // Drop one `$` of `$${`.
            pieces.push(Piece::Text(&rest[..at - 1]));
            pieces.push(Piece::Text(&rest[at..at + 2]));
            rest = &rest[at + 2..];
            continue;
        }
        if at > 0 {
            pieces.push(Piece::Text(&rest[..at]));
        }
        let inside = &rest[at + 2..];
        let end = end(inside).ok_or(Problem::Unterminated)?;
        pieces.push(Piece::Expression(&inside[..end]));
        rest = &inside[end + 1..];
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest));
    }
    Ok(pieces)
}

/// The index of the brace that closes an expression. Braces of maps and braces within CEL strings and
/// comments are skipped. None if the expression has no end.
fn end(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut depth = 0_usize;
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'{' => depth += 1,
            b'}' if depth == 0 => return Some(at),
            b'}' => depth -= 1,
            b'/' if bytes[at..].starts_with(b"//") => {
                at += bytes[at..].iter().position(|byte| *byte == b'\n')?;
            }
            b'"' | b'\'' => {
                at = string_end(bytes, at)?;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    None
}

/// The index after the string literal that opens at `open`; none if the literal has no end.
pub(super) fn string_end(bytes: &[u8], open: usize) -> Option<usize> {
    let quote = bytes[open];
    let triple = [quote; 3];
    let delimiter = if bytes[open..].starts_with(&triple) { &triple[..] } else { &triple[..1] };
    let raw = is_raw(bytes, open);
    let mut at = open + delimiter.len();
    while at < bytes.len() {
        if bytes[at] == b'\\' && !raw {
            at += 2;
        } else if bytes[at..].starts_with(delimiter) {
            return Some(at + delimiter.len());
        } else {
            at += 1;
        }
    }
    None
}

/// Whether the string literal is raw: its quote follows an `r`, alone or together with the `b` of bytes.
fn is_raw(bytes: &[u8], open: usize) -> bool {
    let start =
        bytes[..open].iter().rposition(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_');
    let prefix = &bytes[start.map_or(0, |start| start + 1)..open];
    prefix.len() <= 2
        && prefix.iter().any(|byte| byte.eq_ignore_ascii_case(&b'r'))
        && prefix.iter().all(|byte| b"rRbB".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expression_ends_at_its_matching_brace() {
        use Piece::{Expression as E, Text as T};
        for (text, pieces) in [
            ("", vec![]),
            ("plain $ {}", vec![T("plain $ {}")]),
            ("${a}", vec![E("a")]),
            ("x ${a} y ${b}", vec![T("x "), E("a"), T(" y "), E("b")]),
            ("${a}${b}", vec![E("a"), E("b")]),
            ("$${a}", vec![T(""), T("${"), T("a}")]),
            ("$$${a}", vec![T("$"), T("${"), T("a}")]),
            ("${{'a': {'b': 1}}}", vec![E("{'a': {'b': 1}}")]),
            ("${'}'}", vec![E("'}'")]),
            (r"${'\'}'}", vec![E(r"'\'}'")]),
            (r#"${"}" + '"}'}"#, vec![E(r#""}" + '"}'"#)]),
            (r"${r'\'} b", vec![E(r"r'\'"), T(" b")]),
            (r"${br'\'}", vec![E(r"br'\'")]),
            ("${'''}'}'''}", vec![E("'''}'}'''")]),
            ("${a // }\n}", vec![E("a // }\n")]),
        ] {
            assert_eq!(split(text), Ok(pieces), "{text}");
        }
        for text in ["${", "${a", "${'}", "${ {} ", "${a // }"] {
            assert_eq!(split(text), Err(Problem::Unterminated), "{text}");
        }
    }
}
