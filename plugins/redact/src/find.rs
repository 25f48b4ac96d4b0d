//! Matchers for sensitive content. Hand-written instead of regular expressions, because the tables
//! of those would be larger than the rest of the component.
//!
//! Prompts are untrusted, so each matcher has a bounded lookahead until it is certain: the time is
//! linear in the length of the text for any input.
//!
//! Matchers work on bytes. Matches begin and end at character boundaries: non-ASCII bytes count as
//! letters and are matched in whole runs.

use std::ops::Range;

/// The kind of a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Email,
    Phone,
    ApiKey,
    Iban,
    Word,
}

impl Kind {
    /// Kinds that are detected by their format.
    pub(crate) const PATTERNS: [Self; 4] = [Self::Email, Self::Phone, Self::ApiKey, Self::Iban];
    pub(crate) const ALL: [Self; 5] =
        [Self::Email, Self::Phone, Self::ApiKey, Self::Iban, Self::Word];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::Phone => "phone",
            Self::ApiKey => "api-key",
            Self::Iban => "iban",
            Self::Word => "word",
        }
    }
}

/// What to search for.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) kinds: Vec<Kind>,
    /// Literal words and phrases; case-insensitive.
    pub(crate) words: Vec<String>,
}

/// Returns all matches in a text, in order and without overlaps.
pub(crate) fn find(text: &str, rules: &Rules) -> Vec<(Range<usize>, Kind)> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    // End of the last match of each kind, before which no other match of that kind can begin.
    let mut last_end = [0; Kind::ALL.len()];
    let mut in_word = false;
    for (at, byte) in bytes.iter().enumerate() {
        for kind in kinds_starting_at(*byte, in_word) {
            if at < last_end[*kind as usize] || !rules.kinds.contains(kind) {
                continue;
            }
            let matched = match kind {
                Kind::Email => email(bytes, at),
                Kind::Phone => phone(bytes, at),
                Kind::ApiKey => api_key(bytes, at),
                Kind::Iban => iban(bytes, at),
                Kind::Word => None,
            };
            if let Some(range) = matched {
                last_end[*kind as usize] = range.end;
                found.push((range, *kind));
            }
        }
        in_word = is_word_byte(*byte);
    }
    for word in &rules.words {
        found.extend(occurrences(bytes, word.as_bytes()).map(|range| (range, Kind::Word)));
    }
    found.sort_by_key(|(range, _)| (range.start, std::cmp::Reverse(range.end)));
    let mut merged: Vec<(Range<usize>, Kind)> = Vec::with_capacity(found.len());
    for (range, kind) in found {
        match merged.last_mut() {
            // Overlapping matches are merged, so that no part of the second one remains.
            Some((last, _)) if range.start < last.end => last.end = last.end.max(range.end),
            _ => merged.push((range, kind)),
        }
    }
    merged
}

/// Returns the kinds whose match can begin at a byte (for an email address: whose `@` is at the
/// byte). Most bytes of a prompt are inside words and rejected here, which keeps the scan fast.
fn kinds_starting_at(byte: u8, in_word: bool) -> &'static [Kind] {
    match byte {
        b'@' => &[Kind::Email],
        b'-' => &[Kind::ApiKey],
        _ if in_word => &[],
        b'+' | b'(' | b'0'..=b'9' => &[Kind::Phone],
        b'a'..=b'z' | b'A'..=b'Z' => &[Kind::ApiKey, Kind::Iban],
        _ => &[],
    }
}

/// Returns true if a byte is part of a word.
fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte >= 0x80
}

/// Returns true if no word byte precedes `at`.
fn starts_at_boundary(bytes: &[u8], at: usize) -> bool {
    at == 0 || !is_word_byte(bytes[at - 1])
}

/// Returns true if no word byte is at `at`.
fn ends_at_boundary(bytes: &[u8], at: usize) -> bool {
    at >= bytes.len() || !is_word_byte(bytes[at])
}

/// Returns the length of the run of bytes from `at` that match `predicate`.
fn run_length(bytes: &[u8], at: usize, predicate: impl Fn(u8) -> bool) -> usize {
    bytes.iter().skip(at).take_while(|byte| predicate(**byte)).count()
}

/// Matches `local@domain.tld` at its `@`.
fn email(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    if bytes[at] != b'@' {
        return None;
    }
    let local = |byte: u8| is_word_byte(byte) || b"._%+-'".contains(&byte);
    let mut start = at - bytes[..at].iter().rev().take_while(|byte| local(**byte)).count();
    start += run_length(&bytes[..at], start, |byte| b".'-".contains(&byte));
    let domain = at + 1;
    let mut end =
        domain + run_length(bytes, domain, |byte| is_word_byte(byte) || b".-".contains(&byte));
    // Shorten the domain until its last label can be a top-level domain.
    while start < at && end > domain {
        let label = bytes[domain..end].iter().rev().take_while(|byte| **byte != b'.').count();
        let dot = end - label;
        if dot <= domain + 1 {
            return None;
        }
        let last = &bytes[dot..end];
        if last.len() >= 2 && last.iter().all(|byte| byte.is_ascii_alphabetic() || *byte >= 0x80) {
            return Some(start..end);
        }
        end = dot - 1;
    }
    None
}

/// Matches a telephone number: international (`+49 30 1234567`), national (`030 1234567`), with the
/// area code in parentheses (`(555) 123-4567`), or North American (`555-123-4567`).
fn phone(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    /// Maximum length in the international numbering plan (E.164).
    const MAX_DIGITS: usize = 15;
    if !starts_at_boundary(bytes, at) {
        return None;
    }
    let (min_digits, separators): (usize, &[u8]) = match bytes[at] {
        b'+' => (8, b" -.()/"),
        b'0' => (9, b" -()/"),
        b'(' => (10, b" -.)"),
        b'2'..=b'9' => return north_american(bytes, at),
        _ => return None,
    };
    let mut groups: Vec<usize> = Vec::new();
    let (mut digits, mut end) = (0, at);
    let mut next = at + usize::from(bytes[at] != b'0');
    loop {
        let group = run_length(bytes, next, |byte| byte.is_ascii_digit());
        if group == 0 {
            break;
        }
        groups.push(group);
        digits += group;
        if digits > MAX_DIGITS {
            return None;
        }
        end = next + group;
        let gap = run_length(bytes, end, |byte| separators.contains(&byte));
        // A parenthesis and a space are two separators; more do not occur within a number.
        if gap == 0 || gap > 2 {
            break;
        }
        next = end + gap;
    }
    // Dates such as 01-02-2024 have eight digits, and a time may follow.
    let is_date = matches!(groups[..], [2, 2, 4, ..]);
    (digits >= min_digits && !is_date && ends_at_boundary(bytes, end)).then_some(at..end)
}

/// Matches `555-123-4567`, with `-`, `.` or a space.
fn north_american(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    let number = bytes.get(at..at + 12)?;
    let has_format = number.iter().enumerate().all(|(index, byte)| match index {
        3 | 7 => b"-. ".contains(byte),
        _ => byte.is_ascii_digit(),
    });
    (has_format && number[3] == number[7] && ends_at_boundary(bytes, at + 12))
        .then_some(at..at + 12)
}

/// Prefixes of the API keys of well-known services.
const KEY_PREFIXES: [&[u8]; 22] = [
    b"sk-",
    b"sk_live_",
    b"rk_live_",
    b"pk_live_",
    b"ghp_",
    b"gho_",
    b"ghu_",
    b"ghs_",
    b"ghr_",
    b"github_pat_",
    b"glpat-",
    b"xoxb-",
    b"xoxp-",
    b"xoxa-",
    b"xapp-",
    b"AKIA",
    b"ASIA",
    b"AIza",
    b"hf_",
    b"npm_",
    b"pypi-",
    b"eyJ",
];

/// Matches an API key of a well-known service, a JSON Web Token (`eyJ….….…`), or a PEM private key.
fn api_key(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    const MIN_BYTES: usize = 16;
    const MAX_LOOKAHEAD: usize = 128;
    let rest = &bytes[at..];
    if rest.starts_with(b"-----BEGIN ") {
        return private_key(bytes, at);
    }
    if !starts_at_boundary(bytes, at) {
        return None;
    }
    let prefix = KEY_PREFIXES.iter().find(|prefix| rest.starts_with(prefix))?.len();
    let is_jwt = &rest[..prefix] == b"eyJ";
    let key =
        |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte) || is_jwt && byte == b'.';
    let head = run_length(&bytes[..bytes.len().min(at + prefix + MAX_LOOKAHEAD)], at + prefix, key);
    // Hyphenated words can have the prefix of a key, but have no digits.
    let is_key = head >= MIN_BYTES && rest[prefix..prefix + head].iter().any(u8::is_ascii_digit);
    is_key.then(|| at..at + prefix + run_length(bytes, at + prefix, key))
}

/// Matches a PEM private key up to its last line, or to the end of the text if that is missing.
fn private_key(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    const MAX_LINE_BYTES: usize = 64;
    let rest = &bytes[at..];
    let position =
        |needle: &[u8], text: &[u8]| text.windows(needle.len()).position(|window| window == needle);
    let first = position(b"PRIVATE KEY-----", &rest[..rest.len().min(MAX_LINE_BYTES)])?;
    let last = position(b"-----END ", &rest[first..]).and_then(|end| {
        let end = first + end;
        Some(end + position(b"KEY-----", &rest[end..])? + b"KEY-----".len())
    });
    Some(at..at + last.unwrap_or(rest.len()))
}

/// Matches an IBAN with valid check digits, with or without spaces.
fn iban(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    const MIN_LENGTH: usize = 15;
    const MAX_LENGTH: usize = 34;
    let head = bytes.get(at..at + 4)?;
    let has_prefix =
        head[..2].iter().all(u8::is_ascii_alphabetic) && head[2..].iter().all(u8::is_ascii_digit);
    if !has_prefix || !starts_at_boundary(bytes, at) {
        return None;
    }
    // The check digits are valid (ISO 7064) if the number without the head, followed by the head,
    // has the remainder 1. The remainder grows with the number, so each end costs a few steps.
    let (mut length, mut remainder) = (0, 0);
    let (mut next, mut best) = (at, None);
    while length < MAX_LENGTH {
        match bytes.get(next) {
            Some(byte) if byte.is_ascii_alphanumeric() => {
                if length >= head.len() {
                    remainder = append_to_remainder(remainder, *byte);
                }
                length += 1;
            }
            Some(b' ') if bytes.get(next + 1).is_some_and(u8::is_ascii_alphanumeric) => {}
            _ => break,
        }
        next += 1;
        if length >= MIN_LENGTH
            && bytes[next - 1] != b' '
            && ends_at_boundary(bytes, next)
            && head.iter().fold(remainder, |all, byte| append_to_remainder(all, *byte)) == 1
        {
            best = Some(at..next);
        }
    }
    best
}

/// Returns the remainder modulo 97 of a number after a digit, or a letter that is read as a number
/// from 10, is appended to it.
fn append_to_remainder(remainder: u32, byte: u8) -> u32 {
    match byte.to_ascii_uppercase() {
        digit @ b'0'..=b'9' => (remainder * 10 + u32::from(digit - b'0')) % 97,
        letter => (remainder * 100 + u32::from(letter.saturating_sub(b'A')) + 10) % 97,
    }
}

/// Returns all occurrences of a word. If the word begins or ends with a letter or digit, the match
/// has to begin or end at a word boundary.
fn occurrences<'a>(bytes: &'a [u8], word: &'a [u8]) -> impl Iterator<Item = Range<usize>> + 'a {
    let is_word = |byte: Option<&u8>| byte.is_some_and(|byte| is_word_byte(*byte));
    let (first, last) = (is_word(word.first()), is_word(word.last()));
    let matches = move |at: &usize| {
        let end = at + word.len();
        bytes[*at..end].eq_ignore_ascii_case(word)
            && (!first || starts_at_boundary(bytes, *at))
            && (!last || ends_at_boundary(bytes, end))
    };
    let positions = (bytes.len() + 1).saturating_sub(word.len());
    (0..positions).filter(matches).map(move |at| at..at + word.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules(words: &[&str]) -> Rules {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        Rules { kinds: Kind::PATTERNS.to_vec(), words }
    }

    /// Returns the matches of one kind.
    fn matches(text: &str, kind: Kind) -> Vec<&str> {
        let rules = Rules { kinds: vec![kind], words: Vec::new() };
        find(text, &rules).into_iter().map(|(range, _)| &text[range]).collect()
    }

    #[test]
    fn finds_email_addresses() {
        for (text, expected) in [
            ("write to jane.doe+x@mail.example.org.", vec!["jane.doe+x@mail.example.org"]),
            ("<a@b.de>, c@d.com", vec!["a@b.de", "c@d.com"]),
            ("jürgen@bücher.example", vec!["jürgen@bücher.example"]),
            ("x@10.0.0.1", vec![]),
            ("a@b.com.5", vec!["a@b.com"]),
            ("@home, me@ there, a@b, a@.com", vec![]),
            ("'o'neil@x.ie'", vec!["o'neil@x.ie"]),
            ("a@b.co@c.de", vec!["a@b.co@c.de"]),
        ] {
            assert_eq!(matches(text, Kind::Email), expected, "{text}");
        }
    }

    #[test]
    fn finds_phone_numbers() {
        for (text, expected) in [
            ("call +49 30 1234567 now", vec!["+49 30 1234567"]),
            ("call +49 (0)30/1234-567.", vec!["+49 (0)30/1234-567"]),
            ("030 12345678", vec!["030 12345678"]),
            ("01 23 45 67 89", vec!["01 23 45 67 89"]),
            ("(555) 123-4567", vec!["(555) 123-4567"]),
            ("555-123-4567, 555.123.4567", vec!["555-123-4567", "555.123.4567"]),
            ("2026-11-21 10:32, 01-02-2024 10:30, 01.02.2024", vec![]),
            ("order 4711-123-4567", vec![]),
            ("v0.12.345, 0.123456789, +5, x0301234567", vec![]),
            ("1234567890123", vec![]),
            ("+1234567890123456", vec![]),
        ] {
            assert_eq!(matches(text, Kind::Phone), expected, "{text}");
        }
    }

    #[test]
    fn finds_api_keys() {
        let token = "ghp_0123456789abcdefghij";
        let pem = "-----BEGIN EC PRIVATE KEY-----\nMHcC\n-----END EC PRIVATE KEY-----";
        for (text, expected) in [
            (format!("use {token}, please"), vec![token]),
            ("sk-proj-abcdefgh12345678".to_owned(), vec!["sk-proj-abcdefgh12345678"]),
            ("AKIAIOSFODNN7EXAMPLE".to_owned(), vec!["AKIAIOSFODNN7EXAMPLE"]),
            ("eyJhbGciOi1.eyJzdWIi.c2ln".to_owned(), vec!["eyJhbGciOi1.eyJzdWIi.c2ln"]),
            (format!("a {pem} b"), vec![pem]),
            (pem[..40].to_owned(), vec![&pem[..40]]),
            ("sk-learn-is-a-library-for-python".to_owned(), vec![]),
            ("risk-0123456789abcdefghij".to_owned(), vec![]),
            ("sk-short1".to_owned(), vec![]),
            ("-----BEGIN CERTIFICATE-----".to_owned(), vec![]),
        ] {
            assert_eq!(matches(&text, Kind::ApiKey), expected, "{text}");
        }
    }

    #[test]
    fn finds_ibans() {
        for (text, expected) in [
            ("DE89370400440532013000", vec!["DE89370400440532013000"]),
            ("DE89 3704 0044 0532 0130 00 is mine", vec!["DE89 3704 0044 0532 0130 00"]),
            ("gb29 nwbk 6016 1331 9268 19", vec!["gb29 nwbk 6016 1331 9268 19"]),
            ("DE88370400440532013000", vec![]),
            ("XDE89370400440532013000", vec![]),
            ("DE89370400440532013000X", vec![]),
        ] {
            assert_eq!(matches(text, Kind::Iban), expected, "{text}");
        }
    }

    #[test]
    fn finds_words_case_insensitively_at_word_boundaries() {
        let count = |text: &str, word: &str| find(text, &rules(&[word])).len();
        assert_eq!(count("Falcon, FALCON and falcons", "falcon"), 2);
        assert_eq!(count("Projekt Zürich", "projekt zürich"), 1);
        assert_eq!(count("C++ and c++", "C++"), 2);
        assert_eq!(count("über", "ber"), 0, "preceded by a letter");
        assert_eq!(count("", "falcon"), 0);
    }

    #[test]
    fn overlapping_matches_are_merged() {
        let text = "mail falcon@x.org";
        assert_eq!(find(text, &rules(&["falcon", "mail falcon"])), [(0..17, Kind::Word)]);
    }

    #[test]
    fn hostile_texts_are_scanned_in_linear_time() {
        // With unbounded lookahead each of these would take hours.
        for part in
            ["-----BEGIN ", "0 ", "sk-", "eyJ.", "(1) ", "a@1.", "@", "DE89 ", "+1-", "555-"]
        {
            let text = part.repeat(1_000_000 / part.len());
            assert!(find(&text, &rules(&["a@1", "0 0"])).len() <= text.len());
        }
    }

    proptest! {
        #[test]
        fn matches_of_any_text_are_ordered_and_on_char_boundaries(
            text in r"[a-zA-Z0-9äß€@+()./ \-_']{0,200}|.{0,100}",
            word in ".{1,3}",
        ) {
            let found = find(&text, &rules(&[&word]));
            let mut last = 0;
            for (range, _) in found {
                prop_assert!(range.start >= last && range.start < range.end);
                prop_assert!(text.get(range.clone()).is_some(), "{:?} of {:?}", range, text);
                last = range.end;
            }
        }

        #[test]
        fn secrets_are_found_at_any_position(
            before in "[a-zä ,;]{0,40}",
            after in "[a-zä ,;]{0,40}",
        ) {
            let rules = rules(&["Falcon"]);
            for secret in [
                "jane@example.org",
                "+49 30 1234567",
                "sk-0123456789abcdefgh",
                "DE89370400440532013000",
                "falcon",
            ] {
                let text = format!("{before} {secret} {after}");
                let start = before.len() + 1;
                let end = start + secret.len();
                let found = find(&text, &rules);
                let is_covered =
                    found.iter().any(|(range, _)| range.start <= start && range.end >= end);
                prop_assert!(is_covered, "{}", text);
            }
        }
    }
}
