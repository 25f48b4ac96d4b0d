//! Parses files that set environment variables.

use std::str::Chars;

/// Dockerfile instructions that set no environment variable.
const INSTRUCTIONS: [&str; 17] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// The reason why a line of an env file is invalid. Never quotes the line, which may be secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum EnvSyntaxError {
    #[error("not an assignment: expected KEY=VALUE")]
    NotAnAssignment,
    #[error("invalid variable name before `=`")]
    InvalidName,
    #[error("invalid ENV instruction: expected ENV KEY=VALUE")]
    InvalidEnv,
    #[error("unexpected text after the closing quote")]
    TextAfterQuote,
    #[error("missing closing quote")]
    UnclosedQuote,
}

/// Parses the variables that a text sets: lines of `KEY=VALUE` or `export KEY=VALUE`, `ENV`
/// instructions of a Dockerfile, `- KEY=VALUE` or `KEY: VALUE` of a compose file. Other
/// instructions and lower-case keys are ignored.
///
/// # Errors
/// Returns the number of the first invalid line, from 1, and what is wrong with it. The line is not
/// quoted, because it may be secret.
pub fn parse_env_file(text: &str) -> Result<Vec<(String, String)>, (usize, String)> {
    let mut found = Vec::new();
    let mut lines = text.lines().map(str::trim).enumerate();
    while let Some((index, line)) = lines.next() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        // A backslash continues a line; comments in between are skipped, as in a Dockerfile.
        let mut joined = line.to_owned();
        while joined.ends_with('\\') {
            joined.pop();
            let Some((_, more)) = lines.by_ref().find(|(_, more)| !more.starts_with('#')) else {
                break;
            };
            joined.extend([" ", more]);
        }
        statement(joined.trim(), &mut found).map_err(|error| (index + 1, error.to_string()))?;
    }
    Ok(found)
}

fn statement(line: &str, found: &mut Vec<(String, String)>) -> Result<(), EnvSyntaxError> {
    let (first, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    match first {
        "export" => return assignment(rest, found),
        "ENV" => return docker_env(rest.trim(), found),
        "-" => {
            let item = rest.trim();
            let bare = ['"', '\'']
                .iter()
                .find_map(|&mark| item.strip_prefix(mark)?.strip_suffix(mark))
                .unwrap_or(item);
            // Ports and volumes of a compose file are written as list items too.
            let is_assignment = bare.split_once('=').is_some_and(|(name, _)| is_name(name));
            return if is_assignment { assignment(bare, found) } else { Ok(()) };
        }
        _ if INSTRUCTIONS.contains(&first) => return Ok(()),
        _ => {}
    }
    match line.split_once([':', '=']) {
        Some((name, rest)) if line.as_bytes().get(name.len()) == Some(&b':') => {
            let name = name.trim_end();
            if is_name(name) && !name.contains(|letter: char| letter.is_ascii_lowercase()) {
                found.push((name.to_owned(), value(rest)?));
            }
            Ok(())
        }
        _ => assignment(line, found),
    }
}

fn assignment(line: &str, found: &mut Vec<(String, String)>) -> Result<(), EnvSyntaxError> {
    let (name, rest) = line.split_once('=').ok_or(EnvSyntaxError::NotAnAssignment)?;
    let name = name.trim();
    if !is_name(name) {
        return Err(EnvSyntaxError::InvalidName);
    }
    found.push((name.to_owned(), value(rest)?));
    Ok(())
}

/// Parses `KEY=VALUE KEY=VALUE`, or `KEY VALUE` where the rest of the line is the value.
fn docker_env(rest: &str, found: &mut Vec<(String, String)>) -> Result<(), EnvSyntaxError> {
    let (first, more) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    if !first.contains('=') {
        return assignment(&format!("{first}={more}"), found);
    }
    for word in split_words(rest)? {
        let (name, value) = word
            .split_once('=')
            .filter(|(name, _)| is_name(name))
            .ok_or(EnvSyntaxError::InvalidEnv)?;
        found.push((name.to_owned(), value.to_owned()));
    }
    Ok(())
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

/// Splits words as in a Dockerfile, and removes their quotes.
fn split_words(text: &str) -> Result<Vec<String>, EnvSyntaxError> {
    let mut words = vec![String::new()];
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        if letter.is_whitespace() {
            words.push(String::new());
        } else if let Some(word) = words.last_mut() {
            match letter {
                '"' | '\'' => word.push_str(&quoted(&mut letters, letter)?),
                '\\' => word.extend(letters.next()),
                _ => word.push(letter),
            }
        }
    }
    words.retain(|word| !word.is_empty());
    Ok(words)
}
