//! The list of failures, and what is quoted of logs.

use super::*;

const PAGE: &str = include_str!("../../../../docs/operations.md");

#[test]
fn documentation_lists_all_failures() {
    let mut table = "| code | cause | what to do |\n|---|---|---|\n".to_owned();
    for FailureKind { code, cause, fix, .. } in FAILURES {
        table.push_str(&format!("| `{code}` | {cause} | {fix} |\n"));
    }
    // The blank line after the table proves that the page has no further rows.
    let is_there = PAGE.contains(&format!("\n{table}\n"));
    assert!(is_there, "docs/operations.md needs this table:\n{table}");
}

#[test]
fn codes_are_unique_and_texts_are_lower_case() {
    let mut codes: Vec<&str> = FAILURES.iter().map(|kind| kind.code).collect();
    codes.sort_unstable();
    codes.dedup();
    assert_eq!(codes.len(), FAILURES.len());
    for kind in FAILURES {
        for text in kind.signs.iter().chain(kind.hints) {
            assert_eq!(*text, text.to_lowercase(), "{}", kind.code);
        }
        assert!(!kind.fix.is_empty() && !kind.cause.is_empty(), "{}", kind.code);
    }
    assert_eq!(FailureKind::with_code("engine_ended").code, "engine_ended");
    assert_eq!(FailureKind::with_code("?").code, "engine_ended");
}

#[test]
fn parts_of_a_pattern_have_to_follow_each_other() {
    for (line, pattern, expected) in [
        ("open /dev/kfd: permission denied", "/dev/kfd…denied", true),
        ("denied: /dev/kfd", "/dev/kfd…denied", false),
        ("/dev/kfd", "/dev/kfd…denied", false),
        ("abc", "b", true),
        ("", "b", false),
    ] {
        assert_eq!(contains(line, pattern), expected, "{line}");
    }
}

#[test]
fn quotations_have_no_secrets_and_are_short() {
    for (line, expected) in [
        ("token hf_AbCdEfGhIjKlMnOpQrSt is bad", "token *** is bad"),
        ("url=https://u:hf_AbCdEfGhIjKlMnOpQrSt@h/m", "***"),
        ("Authorization: Bearer abc failed", "Authorization: Bearer *** failed"),
        ("key=sk-0123456789abcdefghij", "***"),
        ("hf_hub_offline is set", "hf_hub_offline is set"),
        ("a  b", "a  b"),
    ] {
        assert_eq!(quote(line), expected);
    }
    assert_eq!(quote(&"é".repeat(1000)).len(), MAX_QUOTE);
}
