//! What messages quote of a client's texts.

/// Bytes of a client's text that a message quotes.
const MAX_EXCERPT: usize = 200;

/// Returns what a client called its body.
pub(super) fn content_type(given: Option<&str>) -> String {
    given.map_or_else(|| "none".to_owned(), |given| format!("`{}`", excerpt(given)))
}

/// Returns the beginning of a text that a client sent, with control characters and others that are
/// not visible escaped.
pub(super) fn excerpt(text: &str) -> String {
    let end = text.floor_char_boundary(MAX_EXCERPT);
    let rest = if end < text.len() { "…" } else { "" };
    format!("{}{rest}", text[..end].escape_debug())
}
