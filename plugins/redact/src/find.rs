//! Finding what should not leave the house. Small matchers instead of regular expressions, because a table of those would
//! be larger than all the rest of the component.
//!
//! Prompts are written by strangers, so no matcher looks further than some bytes ahead before it is sure: the time grows with
//! the text and no faster, whatever is in it.
//!
//! They look at bytes. Whatever they match begins and ends at characters: bytes above ASCII count as letters, and are
//! taken in whole runs.

use std::ops::Range;

/// What something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Email,
    Phone,
    ApiKey,
    Iban,
    Word,
}

impl Kind {
    /// Those that are found by their form.
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

/// What is looked for.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) kinds: Vec<Kind>,
    /// Literal words, whatever their case.
    pub(crate) words: Vec<String>,
}

/// Everything that the rules find in a text, in order, without overlaps.
pub(crate) fn find(text: &str, rules: &Rules) -> Vec<(Range<usize>, Kind)> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    // Up to where each kind has been found already.
    let mut done = [0; Kind::ALL.len()];
    let mut in_word = false;
    for (at, byte) in bytes.iter().enumerate() {
        for kind in possible(*byte, in_word) {
            if at < done[*kind as usize] || !rules.kinds.contains(kind) {
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
                done[*kind as usize] = range.end;
                found.push((range, *kind));
            }
        }
        in_word = wordy(*byte);
    }
    for word in &rules.words {
        found.extend(occurrences(bytes, word.as_bytes()).map(|range| (range, Kind::Word)));
    }
    found.sort_by_key(|(range, _)| (range.start, std::cmp::Reverse(range.end)));
    let mut apart: Vec<(Range<usize>, Kind)> = Vec::with_capacity(found.len());
    for (range, kind) in found {
        match apart.last_mut() {
            // Two that overlap are one, so that no rest of the second is left.
            Some((last, _)) if range.start < last.end => last.end = last.end.max(range.end),
            _ => apart.push((range, kind)),
        }
    }
    apart
}

/// What can begin at a byte, or in the case of an address have its `@` there. Nearly all bytes of a prompt are within
/// words, and done with here.
fn possible(byte: u8, in_word: bool) -> &'static [Kind] {
    match byte {
        b'@' => &[Kind::Email],
        b'-' => &[Kind::ApiKey],
        _ if in_word => &[],
        b'+' | b'(' | b'0'..=b'9' => &[Kind::Phone],
        b'a'..=b'z' | b'A'..=b'Z' => &[Kind::ApiKey, Kind::Iban],
        _ => &[],
    }
}

/// Is it part of a word?
fn wordy(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte >= 0x80
}

/// Does a word end or begin at `at`, or nothing wordy touch it on that side?
fn starts(bytes: &[u8], at: usize) -> bool {
    at == 0 || !wordy(bytes[at - 1])
}

fn ends(bytes: &[u8], at: usize) -> bool {
    at >= bytes.len() || !wordy(bytes[at])
}

/// Length of the run of bytes from `at` that are `of` a kind.
fn run(bytes: &[u8], at: usize, of: impl Fn(u8) -> bool) -> usize {
    bytes.iter().skip(at).take_while(|byte| of(**byte)).count()
}

/// `local@domain.tld`, found at its `@`.
fn email(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    if bytes[at] != b'@' {
        return None;
    }
    let local = |byte: u8| wordy(byte) || b"._%+-'".contains(&byte);
    let mut start = at - bytes[..at].iter().rev().take_while(|byte| local(**byte)).count();
    start += run(&bytes[..at], start, |byte| b".'-".contains(&byte));
    let domain = at + 1;
    let mut end = domain + run(bytes, domain, |byte| wordy(byte) || b".-".contains(&byte));
    // From the longest domain down to one that ends like a domain does.
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

/// A telephone number: international (`+49 30 1234567`), national (`030 1234567`), with the area in brackets
/// (`(555) 123-4567`), or in the North American form `555-123-4567`.
fn phone(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    /// The international numbering plan has no longer ones.
    const MOST_DIGITS: usize = 15;
    if !starts(bytes, at) {
        return None;
    }
    let (fewest, separators): (usize, &[u8]) = match bytes[at] {
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
        let group = run(bytes, next, |byte| byte.is_ascii_digit());
        if group == 0 {
            break;
        }
        groups.push(group);
        digits += group;
        if digits > MOST_DIGITS {
            return None;
        }
        end = next + group;
        let gap = run(bytes, end, |byte| separators.contains(&byte));
        // Brackets stand beside a blank; more than two separators are none.
        if gap == 0 || gap > 2 {
            break;
        }
        next = end + gap;
    }
    // Days of the calendar have eight digits, and an hour may follow.
    let date = matches!(groups[..], [2, 2, 4, ..]);
    (digits >= fewest && !date && ends(bytes, end)).then_some(at..end)
}

fn north_american(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    let number = bytes.get(at..at + 12)?;
    let form = number.iter().enumerate().all(|(place, byte)| match place {
        3 | 7 => b"-. ".contains(byte),
        _ => byte.is_ascii_digit(),
    });
    (form && number[3] == number[7] && ends(bytes, at + 12)).then_some(at..at + 12)
}

/// How keys of well-known services begin.
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

/// A key of a well-known service, a token of the form `eyJ….….…`, or a private key in PEM.
fn api_key(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    const FEWEST: usize = 16;
    const WINDOW: usize = 128;
    let rest = &bytes[at..];
    if rest.starts_with(b"-----BEGIN ") {
        return private_key(bytes, at);
    }
    if !starts(bytes, at) {
        return None;
    }
    let prefix = KEY_PREFIXES.iter().find(|prefix| rest.starts_with(prefix))?.len();
    let dots = &rest[..prefix] == b"eyJ";
    let key =
        |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte) || dots && byte == b'.';
    let head = run(&bytes[..bytes.len().min(at + prefix + WINDOW)], at + prefix, key);
    // Words with hyphens begin like keys too, but have no digits.
    let sure = head >= FEWEST && rest[prefix..prefix + head].iter().any(u8::is_ascii_digit);
    sure.then(|| at..at + prefix + run(bytes, at + prefix, key))
}

/// From the first line of a private key to the end of its last line, or of the text.
fn private_key(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    const LONGEST_LINE: usize = 64;
    let rest = &bytes[at..];
    let position =
        |needle: &[u8], text: &[u8]| text.windows(needle.len()).position(|window| window == needle);
    let first = position(b"PRIVATE KEY-----", &rest[..rest.len().min(LONGEST_LINE)])?;
    let last = position(b"-----END ", &rest[first..]).and_then(|end| {
        let end = first + end;
        Some(end + position(b"KEY-----", &rest[end..])? + b"KEY-----".len())
    });
    Some(at..at + last.unwrap_or(rest.len()))
}

/// An international bank account number whose check digits are right, in groups or not.
fn iban(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    const LENGTHS: (usize, usize) = (15, 34);
    let head = bytes.get(at..at + 4)?;
    let begins =
        head[..2].iter().all(u8::is_ascii_alphabetic) && head[2..].iter().all(u8::is_ascii_digit);
    if !begins || !starts(bytes, at) {
        return None;
    }
    let mut account: Vec<u8> = Vec::with_capacity(LENGTHS.1);
    let (mut next, mut best) = (at, None);
    while account.len() < LENGTHS.1 {
        match bytes.get(next) {
            Some(byte) if byte.is_ascii_alphanumeric() => account.push(byte.to_ascii_uppercase()),
            Some(b' ') if bytes.get(next + 1).is_some_and(u8::is_ascii_alphanumeric) => {}
            _ => break,
        }
        next += 1;
        if account.len() >= LENGTHS.0
            && bytes[next - 1] != b' '
            && ends(bytes, next)
            && checks(&account)
        {
            best = Some(at..next);
        }
    }
    best
}

/// ISO 7064: with the first four characters at the end and letters as numbers from 10, the rest by 97 is 1.
fn checks(account: &[u8]) -> bool {
    let rotated = account[4..].iter().chain(&account[..4]);
    let rest = rotated.fold(0u32, |rest, byte| match byte {
        b'0'..=b'9' => (rest * 10 + u32::from(byte - b'0')) % 97,
        letter => (rest * 100 + u32::from(letter - b'A') + 10) % 97,
    });
    rest == 1
}

/// All places of a word. Where it begins or ends with a letter or digit, no other may stand beside it.
fn occurrences<'a>(bytes: &'a [u8], word: &'a [u8]) -> impl Iterator<Item = Range<usize>> + 'a {
    let touches = |byte: Option<&u8>| byte.is_some_and(|byte| wordy(*byte));
    let (first, last) = (touches(word.first()), touches(word.last()));
    let here = move |at: &usize| {
        let end = at + word.len();
        bytes[*at..end].eq_ignore_ascii_case(word)
            && (!first || starts(bytes, *at))
            && (!last || ends(bytes, end))
    };
    let places = (bytes.len() + 1).saturating_sub(word.len());
    (0..places).filter(here).map(move |at| at..at + word.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules(words: &[&str]) -> Rules {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        Rules { kinds: Kind::PATTERNS.to_vec(), words }
    }

    /// What is found of one kind.
    fn found(text: &str, kind: Kind) -> Vec<&str> {
        let rules = Rules { kinds: vec![kind], words: Vec::new() };
        find(text, &rules).into_iter().map(|(range, _)| &text[range]).collect()
    }

    #[test]
    fn addresses() {
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
            assert_eq!(found(text, Kind::Email), expected, "{text}");
        }
    }

    #[test]
    fn telephone_numbers() {
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
            assert_eq!(found(text, Kind::Phone), expected, "{text}");
        }
    }

    #[test]
    fn keys() {
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
            assert_eq!(found(&text, Kind::ApiKey), expected, "{text}");
        }
    }

    #[test]
    fn bank_accounts() {
        for (text, expected) in [
            ("DE89370400440532013000", vec!["DE89370400440532013000"]),
            ("DE89 3704 0044 0532 0130 00 is mine", vec!["DE89 3704 0044 0532 0130 00"]),
            ("gb29 nwbk 6016 1331 9268 19", vec!["gb29 nwbk 6016 1331 9268 19"]),
            ("DE88370400440532013000", vec![]),
            ("XDE89370400440532013000", vec![]),
            ("DE89370400440532013000X", vec![]),
        ] {
            assert_eq!(found(text, Kind::Iban), expected, "{text}");
        }
    }

    #[test]
    fn words_in_any_case_but_not_within_others() {
        let places = |text: &str, word: &str| find(text, &rules(&[word])).len();
        assert_eq!(places("Falcon, FALCON and falcons", "falcon"), 2);
        assert_eq!(places("Projekt Zürich", "projekt zürich"), 1);
        assert_eq!(places("C++ and c++", "C++"), 2);
        assert_eq!(places("über", "ber"), 0, "a letter stands before it");
        assert_eq!(places("", "falcon"), 0);
    }

    #[test]
    fn what_overlaps_is_one() {
        let text = "mail falcon@x.org";
        assert_eq!(find(text, &rules(&["falcon", "mail falcon"])), [(0..17, Kind::Word)]);
    }

    #[test]
    fn hostile_texts_take_no_longer_than_others() {
        // With matchers that look ahead for ever each of these would take hours.
        for part in
            ["-----BEGIN ", "0 ", "sk-", "eyJ.", "(1) ", "a@1.", "@", "DE89 ", "+1-", "555-"]
        {
            let text = part.repeat(1_000_000 / part.len());
            assert!(find(&text, &rules(&["a@1", "0 0"])).len() <= text.len());
        }
    }

    proptest! {
        #[test]
        fn anything_can_be_searched(text in r"[a-zA-Z0-9äß€@+()./ \-_']{0,200}|.{0,100}", word in ".{1,3}") {
            let found = find(&text, &rules(&[&word]));
            let mut last = 0;
            for (range, _) in found {
                prop_assert!(range.start >= last && range.start < range.end);
                prop_assert!(text.get(range.clone()).is_some(), "{:?} of {:?}", range, text);
                last = range.end;
            }
        }

        #[test]
        fn secrets_are_found_wherever_they_stand(before in "[a-zä ,;]{0,40}", after in "[a-zä ,;]{0,40}") {
            let rules = rules(&["Falcon"]);
            for secret in ["jane@example.org", "+49 30 1234567", "sk-0123456789abcdefgh", "DE89370400440532013000", "falcon"] {
                let text = format!("{before} {secret} {after}");
                let place = before.len() + 1..before.len() + 1 + secret.len();
                let covered = find(&text, &rules).iter().any(|(range, _)| range.start <= place.start && range.end >= place.end);
                prop_assert!(covered, "{}", text);
            }
        }
    }
}
