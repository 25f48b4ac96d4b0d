//! The lines of a bundle in its sources, for the locations that the SDK reports.
//!
//! A source map has the position of each token. A stack needs lines only, so the bundle gets a
//! table with a line of the sources for each of its own.

use serde::Deserialize;

use crate::error::BuildError;

/// Bits of a digit of a base 64 VLQ that belong to the number; the next one says that more follow.
const DIGIT_BITS: u32 = 5;
/// Maximum digits of a number, which has 32 bits.
const MAX_DIGITS: u32 = 7;

#[derive(Deserialize)]
struct SourceMap {
    sources: Vec<String>,
    mappings: String,
}

/// Returns a JavaScript statement that defines the table for a bundle with this file name. `map` is
/// its source map.
///
/// # Errors
/// Returns an error if the source map is invalid.
pub(crate) fn line_table(file: &str, map: &str) -> Result<String, BuildError> {
    let invalid = |why: String| BuildError::Component(format!("invalid source map: {why}"));
    let map: SourceMap = serde_json::from_str(map).map_err(|error| invalid(error.to_string()))?;
    let lines =
        line_pairs(&map.mappings).ok_or_else(|| invalid("cannot decode mappings".to_owned()))?;
    // Sources are relative to the folder of the bundle, which is a folder of the policy.
    let sources: Vec<&str> =
        map.sources.iter().map(|source| source.trim_start_matches("../")).collect();
    let table = serde_json::json!({ "file": file, "sources": sources, "lines": lines });
    Ok(format!("\nglobalThis.pointsmanSourceLines = {table};\n"))
}

/// Returns, for each line of the bundle, the index of a source and the line in it, from 1; or 0 and
/// 0 for a line without a source.
fn line_pairs(mappings: &str) -> Option<Vec<i64>> {
    let (mut source, mut line) = (0, 0);
    let mut pairs = Vec::new();
    for segments in mappings.split(';') {
        let mut first = None;
        for segment in segments.split(',').filter(|segment| !segment.is_empty()) {
            let fields = decode(segment)?;
            // One field: generated code without a source.
            if let [_, source_delta, line_delta, ..] = fields[..] {
                source += source_delta;
                line += line_delta;
                first.get_or_insert((source, line + 1));
            }
        }
        let (source, line) = first.unwrap_or((0, 0));
        pairs.extend([source, line]);
    }
    Some(pairs)
}

/// Decodes a segment: numbers in base 64, five bits a digit, the lowest first, with the sign in the
/// lowest bit.
fn decode(segment: &str) -> Option<Vec<i64>> {
    let mut numbers = Vec::new();
    let (mut value, mut digits) = (0, 0);
    for letter in segment.bytes() {
        let digit = i64::from(match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        });
        if digits == MAX_DIGITS {
            return None;
        }
        value |= (digit & 0x1f) << (DIGIT_BITS * digits);
        digits += 1;
        if digit & 0x20 == 0 {
            numbers.push(if value & 1 == 0 { value >> 1 } else { -(value >> 1) });
            (value, digits) = (0, 0);
        }
    }
    (digits == 0).then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_decoded() {
        assert_eq!(decode("AAgBC"), Some(vec![0, 0, 16, 1]));
        assert_eq!(decode("D2H"), Some(vec![-1, 123]));
        for invalid in ["g", "A!", "ggggggggA"] {
            assert_eq!(decode(invalid), None, "{invalid}");
        }
    }

    #[test]
    fn each_line_has_the_line_of_its_first_token() {
        // A line without a source; source 1, line 3; the same one, then line 5; source 0, line 2.
        let map = r#"{"sources":["../a.ts","../src/b.ts"],"mappings":";ACEA;AAAA,EAEA;ADHA"}"#;
        let table = line_table("bundle.js", map).unwrap();
        let (name, json) = table.trim().split_once(" = ").unwrap();
        let table: serde_json::Value = serde_json::from_str(json.trim_end_matches(';')).unwrap();
        assert_eq!(name, "globalThis.pointsmanSourceLines");
        assert_eq!(table["lines"], serde_json::json!([0, 0, 1, 3, 1, 3, 0, 2]));
        assert_eq!(table["sources"], serde_json::json!(["a.ts", "src/b.ts"]));
        assert!(line_table("x", "{}").is_err());
        assert!(line_table("x", r#"{"sources":[],"mappings":"?"}"#).is_err());
    }
}
