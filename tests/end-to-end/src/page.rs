//! Pages of the documentation.

/// The fenced code blocks of a page that are in one language.
pub fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let open = format!("```{language}\n");
    let parts = page.split(open.as_str()).skip(1);
    parts.filter_map(|part| part.split("```").next()).collect()
}
