//! The error codes in `docs/errors.md` that other crates define.

use pointsman_settings::Code;

const PAGE: &str = include_str!("../../docs/errors.md");

/// Returns the codes in the first table below a heading of the page.
fn documented(heading: &str) -> Vec<&'static str> {
    let (_, section) = PAGE.split_once(&format!("\n## {heading}\n")).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    rows.map(|(code, _)| code).collect()
}

/// Returns the code that follows in the order of the enum. Exhaustive, so that a new code cannot
/// be added without its successor, and the test below finds it missing in the page.
fn next(code: Code) -> Option<Code> {
    match code {
        Code::Unreadable => Some(Code::Syntax),
        Code::Syntax => Some(Code::UnknownKey),
        Code::UnknownKey => Some(Code::MissingKey),
        Code::MissingKey => Some(Code::WrongType),
        Code::WrongType => Some(Code::OutOfRange),
        Code::OutOfRange => Some(Code::InvalidValue),
        Code::InvalidValue => Some(Code::Conflict),
        Code::Conflict => Some(Code::Duplicate),
        Code::Duplicate => Some(Code::UnknownName),
        Code::UnknownName => Some(Code::Unavailable),
        Code::Unavailable => Some(Code::CutOff),
        Code::CutOff => Some(Code::OutOfMemory),
        Code::OutOfMemory => Some(Code::NotPickable),
        Code::NotPickable => None,
    }
}

#[test]
fn documentation_lists_all_configuration_codes() {
    let codes = std::iter::successors(Some(Code::Unreadable), |code| next(*code));
    let codes: Vec<&str> = codes.map(Code::as_str).collect();
    assert_eq!(documented("Configuration errors"), codes);
}
