//! Parses files that set environment variables.

use std::str::Chars;

/// The reason why a line of an env file is invalid. Never quotes the line, which may be secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum EnvSyntaxError {
    #[error("not an assignment: expected KEY=VALUE")]
    NotAnAssignment,
    #[error("invalid variable name before `=`")]
    InvalidName,
    #[error("unexpected text after the closing quote")]
    TextAfterQuote,
    #[error("missing closing quote")]
    UnclosedQuote,
}

/// Parses the variables that an env file sets: lines of `KEY=VALUE` or `export KEY=VALUE`.
///
/// # Errors
/// Returns the number of the first invalid line, from 1, and what is wrong with it. The line is not
/// quoted, because it may be secret.
pub fn parse_env_file(text: &str) -> Result<Vec<(String, String)>, (usize, String)> {
    let lines = text.lines().map(str::trim).enumerate();
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|(index, line)| assignment(line).map_err(|error| (index + 1, error.to_string())))
        .collect()
}

fn assignment(line: &str) -> Result<(String, String), EnvSyntaxError> {
    let line = match line.split_once(char::is_whitespace) {
        Some(("export", rest)) => rest,
        _ => line,
    };
    let (name, rest) = line.split_once('=').ok_or(EnvSyntaxError::NotAnAssignment)?;
    let name = name.trim();
    if !is_name(name) {
        return Err(EnvSyntaxError::InvalidName);
    }
    Ok((name.to_owned(), value(rest)?))
}

fn is_name(text: &str) -> bool {
    !text.starts_with(|first: char| first.is_ascii_digit())
        && !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Parses a value, without its quotes and without the comment after it.
fn value(rest: &str) -> Result<String, EnvSyntaxError> {
    let mut letters = rest.trim_start().chars();
    if let Some(mark @ ('"' | '\'')) = letters.next() {
        let value = quoted(&mut letters, mark)?;
        let after = letters.as_str().trim_start();
        let is_end = after.is_empty() || after.starts_with('#');
        return if is_end { Ok(value) } else { Err(EnvSyntaxError::TextAfterQuote) };
    }
    let comment = rest
        .match_indices('#')
        .map(|(at, _)| at)
        .find(|&at| rest.get(..at).is_some_and(|before| before.ends_with(char::is_whitespace)));
    Ok(comment.and_then(|at| rest.get(..at)).unwrap_or(rest).trim().to_owned())
}

/// Parses up to the closing `mark`. A backslash escapes only in double quotes.
fn quoted(letters: &mut Chars<'_>, mark: char) -> Result<String, EnvSyntaxError> {
    let mut value = String::new();
    while let Some(letter) = letters.next() {
        match letter {
            _ if letter == mark => return Ok(value),
            '\\' if mark == '"' => value.extend(letters.next()),
            _ => value.push(letter),
        }
    }
    Err(EnvSyntaxError::UnclosedQuote)
}
