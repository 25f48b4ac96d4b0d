//! Limits of the structure of a request body. They bound the memory that a body takes beside its
//! own bytes, and are far above what clients send.

use crate::bad_request::BadRequest;
use crate::scan;

/// Maximum number of messages, parts of messages, items, and texts or token arrays of a prompt.
pub(crate) const MAX_ITEMS: usize = 100_000;
/// Maximum number of members that all objects of a body have together.
pub(crate) const MAX_MEMBERS: usize = 500_000;
/// Maximum depth of arrays and objects within each other. Parsers of engines allow 200 (jiter, as
/// in vLLM) to 1,000 levels (Python).
pub(crate) const MAX_NESTING: usize = 128;

/// Checks the structure of a body before it is parsed. Whether it is valid JSON is for the parser.
///
/// # Errors
/// If the body exceeds a limit.
pub(crate) fn check(json: &[u8]) -> Result<(), BadRequest> {
    let (mut depth, mut members) = (0_usize, 0_usize);
    let mut at = 0;
    while let Some(byte) = json.get(at) {
        at += 1;
        match byte {
            b'"' => at = scan::string_end(json, at - 1),
            b'{' | b'[' => {
                depth += 1;
                if depth > MAX_NESTING {
                    return Err(BadRequest::TooDeep { max: MAX_NESTING });
                }
            }
            // Saturates, because the body may not be valid.
            b'}' | b']' => depth = depth.saturating_sub(1),
            b':' => {
                members += 1;
                if members > MAX_MEMBERS {
                    return Err(BadRequest::TooMany {
                        what: "members of objects",
                        max: MAX_MEMBERS,
                    });
                }
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structure_is_counted_outside_of_strings() {
        let nested = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let members = |count| format!("{{{}}}", vec!["\"\":0"; count].join(","));
        let text = format!(r#"{{"a":"\"{}{}"}}"#, ":".repeat(MAX_MEMBERS), "[".repeat(200));
        for (json, is_valid) in [
            (nested(MAX_NESTING), true),
            (nested(MAX_NESTING + 1), false),
            ("[]".repeat(MAX_NESTING + 1), true),
            (members(MAX_MEMBERS), true),
            (members(MAX_MEMBERS + 1), false),
            (text, true),
            ("\"".to_owned(), true),
            ("\"\\".to_owned(), true),
            ("]]]".to_owned(), true),
        ] {
            assert_eq!(check(json.as_bytes()).is_ok(), is_valid, "{:.40}", json);
        }
    }
}
