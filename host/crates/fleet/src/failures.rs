//! Why engines fail: kinds of failures, recognised by lines of an engine's log or by its end.
//!
//! The host explains a failure to operators and clients with a cause and a remedy, instead of the
//! traceback that it stands in. [`FAILURES`] is the whole list; the table in `docs/operations.md`
//! is the same text.

mod known;

use pointsman_domain::dispatch::Problem;

pub use self::known::FAILURES;

/// A kind of failure of engines.
#[derive(Debug, PartialEq, Eq)]
pub struct FailureKind {
    /// The stable code.
    pub code: &'static str,
    /// What happened.
    pub cause: &'static str,
    /// What to do.
    pub fix: &'static str,
    /// Lower-case texts of log lines that show the failure; `…` stands for any text.
    pub signs: &'static [&'static str],
    /// Texts like signs, of lines that engines may survive or that follow from another failure.
    pub hints: &'static [&'static str],
}

/// Maximum number of bytes of a log line that is quoted.
const MAX_QUOTE: usize = 200;
/// What replaces a secret in a line that is quoted.
const SECRET: &str = "***";

/// How certain it is that a log line shows why the engine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Certainty {
    Hint,
    Sign,
}

/// Returns the kind of failure that a log line shows.
pub(crate) fn recognise(line: &str) -> Option<(&'static FailureKind, Certainty)> {
    let line = line.to_lowercase();
    let shows = |texts: &[&str]| texts.iter().any(|text| contains(&line, text));
    let sign = FAILURES.iter().find(|kind| shows(kind.signs)).map(|kind| (kind, Certainty::Sign));
    sign.or_else(|| {
        let hint = FAILURES.iter().find(|kind| shows(kind.hints));
        hint.map(|kind| (kind, Certainty::Hint))
    })
}

/// Returns true if the line contains the parts of `pattern`, which `…` separates, in this order.
fn contains(line: &str, pattern: &str) -> bool {
    let mut rest = line;
    pattern.split('…').all(|part| match rest.split_once(part) {
        Some((_, after)) => {
            rest = after;
            true
        }
        None => false,
    })
}

impl FailureKind {
    /// Returns the kind with this code; that of an engine that ended for any reason if there is
    /// none.
    pub(crate) fn with_code(code: &str) -> &'static Self {
        let find = |code: &str| FAILURES.iter().find(|kind| kind.code == code);
        // The last alternative is never needed: the list has the code.
        find(code).or_else(|| find("engine_ended")).unwrap_or(&FAILURES[0])
    }

    /// Returns the problem of an engine that failed in this way, with a precise cause.
    pub(crate) fn problem_because(&self, cause: &str) -> Problem {
        Problem::new(self.code, format!("{cause}; {}", self.fix))
    }
}

/// Returns a log line as it is quoted: without secrets, and of limited length.
pub(crate) fn quote(line: &str) -> String {
    let mut text = without_secrets(line);
    text.truncate(text.floor_char_boundary(MAX_QUOTE));
    text
}

/// Returns a text with secrets replaced.
pub(crate) fn without_secrets(line: &str) -> String {
    let mut is_secret = false;
    let words = line.split(' ').map(|word| {
        let hidden = is_secret || has_token(word);
        is_secret = word.eq_ignore_ascii_case("bearer");
        if hidden && !word.is_empty() { SECRET } else { word }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Returns true if a word contains a token of a model hub or API.
fn has_token(word: &str) -> bool {
    /// Number of characters of the shortest tokens after the prefix.
    const MIN_TOKEN: usize = 16;
    ["hf_", "sk-"].iter().any(|prefix| {
        word.match_indices(prefix).any(|(start, _)| {
            let rest = &word[start + prefix.len()..];
            let is_token = |letter: char| letter.is_ascii_alphanumeric() || "-_".contains(letter);
            rest.chars().take_while(|letter| is_token(*letter)).count() >= MIN_TOKEN
        })
    })
}

#[cfg(test)]
mod tests;
