//! What is particular to vLLM: how it is started, what its log says, and how older settings are taken over.
//!
//! ```text
//!   env file ──parse_env_file, import──> VllmSettings ──check──> sentences about mistakes
//!                                             │
//!                                          command ──> words + environment ──> the process
//!                                                                                   │ log lines
//!                                                             progress: read, measure, fatal
//! ```
//!
//! Nothing here starts a process, reads a file or looks at our own environment: text and values come in, text and values
//! go out. The facts are those of vLLM 0.32.0: its `envs.py` and argument parser, and a recorded start.

use std::str::Chars;

pub mod command;
pub mod import;
pub mod progress;
pub mod settings;
pub(crate) mod sleep;

pub use self::command::{Command, Listen, command};
pub use self::import::{Imported, import};
pub use self::progress::{Loading, Measured, Phase, fatal, measure, read};
pub use self::settings::{GpuSelector, Permille, VllmSettings};

#[cfg(test)]
mod tests;

/// Instructions of a Dockerfile that set no variable of the environment.
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

/// The variables that a text sets: lines of `KEY=VALUE` or `export KEY=VALUE`, `ENV` of a Dockerfile, `- KEY=VALUE` or
/// `KEY: VALUE` of a compose file. Other instructions and other keys (in small letters) are passed over.
///
/// # Errors
/// The number of the first line that is none of that, from 1, and what is wrong with it; without its text, which may be
/// secret.
pub fn parse_env_file(text: &str) -> Result<Vec<(String, String)>, (usize, String)> {
    let mut found = Vec::new();
    let mut lines = text.lines().map(str::trim).enumerate();
    while let Some((place, line)) = lines.next() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut whole = line.to_owned();
        while whole.ends_with('\\') {
            whole.pop();
            let Some((_, more)) = lines.by_ref().find(|(_, more)| !more.starts_with('#')) else {
                break;
            };
            whole.extend([" ", more]);
        }
        statement(whole.trim(), &mut found).map_err(|why| (place + 1, why))?;
    }
    Ok(found)
}

fn statement(line: &str, found: &mut Vec<(String, String)>) -> Result<(), String> {
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
            // Ports and volumes look like this too.
            let sets = bare.split_once('=').is_some_and(|(name, _)| is_name(name));
            return if sets { assignment(bare, found) } else { Ok(()) };
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

fn assignment(line: &str, found: &mut Vec<(String, String)>) -> Result<(), String> {
    let (name, rest) = line.split_once('=').ok_or("it sets no variable; write KEY=VALUE")?;
    let name = name.trim();
    if !is_name(name) {
        return Err("what is before the = is no name of a variable".to_owned());
    }
    found.push((name.to_owned(), value(rest)?));
    Ok(())
}

/// `KEY=VALUE KEY=VALUE`, or `KEY VALUE` where the rest of the line is the value.
fn docker_env(rest: &str, found: &mut Vec<(String, String)>) -> Result<(), String> {
    let (first, more) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    if !first.contains('=') {
        return assignment(&format!("{first}={more}"), found);
    }
    for word in split_words(rest)? {
        let (name, value) =
            word.split_once('=').filter(|(name, _)| is_name(name)).ok_or("write ENV KEY=VALUE")?;
        found.push((name.to_owned(), value.to_owned()));
    }
    Ok(())
}

fn is_name(text: &str) -> bool {
    !text.starts_with(|first: char| first.is_ascii_digit())
        && !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// A value without its quotes and without the comment behind it.
fn value(rest: &str) -> Result<String, String> {
    let mut letters = rest.trim_start().chars();
    if let Some(mark @ ('"' | '\'')) = letters.next() {
        let value = quoted(&mut letters, mark)?;
        let after = letters.as_str().trim_start();
        let clean = after.is_empty() || after.starts_with('#');
        return if clean {
            Ok(value)
        } else {
            Err("there is text behind the closing quote".to_owned())
        };
    }
    let comment = rest
        .match_indices('#')
        .map(|(at, _)| at)
        .find(|&at| rest.get(..at).is_some_and(|before| before.ends_with(char::is_whitespace)));
    Ok(comment.and_then(|at| rest.get(..at)).unwrap_or(rest).trim().to_owned())
}

/// What is up to the closing `mark`. Only double quotes know the backslash.
fn quoted(letters: &mut Chars<'_>, mark: char) -> Result<String, String> {
    let mut value = String::new();
    while let Some(letter) = letters.next() {
        match letter {
            _ if letter == mark => return Ok(value),
            '\\' if mark == '"' => value.extend(letters.next()),
            _ => value.push(letter),
        }
    }
    Err("a quote is not closed".to_owned())
}

/// Words as a Dockerfile has them, without their quotes.
fn split_words(text: &str) -> Result<Vec<String>, String> {
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
