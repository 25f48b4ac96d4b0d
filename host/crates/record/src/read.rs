//! Reading records.

use std::io::{BufRead, Read as _};

use serde::Deserialize;

use crate::format::{MIN_VERSION, Record, VERSION};

/// Maximum length of a line.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// The error for a line that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct ReadError {
    /// Line number, starting at 1.
    pub line: u64,
    /// What is wrong with the line.
    #[source]
    pub problem: ReadProblem,
}

/// What is wrong with a line.
#[derive(Debug, thiserror::Error)]
pub enum ReadProblem {
    /// Reading failed. No further records follow.
    #[error("failed to read: {0}")]
    Io(#[from] std::io::Error),
    /// The line is too long. No further records follow.
    #[error("line exceeds {} MiB", MAX_LINE_BYTES >> 20)]
    TooLong,
    /// The line is not a record.
    #[error("not a decision record: {0}")]
    Json(#[from] serde_json::Error),
    /// The version of the format is not supported.
    #[error(
        "unsupported format version {0}: expected {MIN_VERSION} to {VERSION}; use a newer program"
    )]
    Version(u32),
}

#[derive(Deserialize)]
struct Head {
    v: u32,
    kind: String,
}

/// Returns the records of a file in order.
///
/// Lines of unknown kinds are skipped. So is an incomplete last line, which a killed writer leaves
/// behind.
pub fn records(input: impl BufRead) -> impl Iterator<Item = Result<Record, ReadError>> {
    selected_records(input, |_| true)
}

/// Returns the records of those lines that `is_wanted`, which is called before they are parsed.
pub(crate) fn selected_records<R: BufRead>(
    input: R,
    is_wanted: impl Fn(&[u8]) -> bool,
) -> impl Iterator<Item = Result<Record, ReadError>> {
    Records { input, is_wanted, line: 0, finished: false }
}

struct Records<R, F> {
    input: R,
    is_wanted: F,
    line: u64,
    finished: bool,
}

impl<R: BufRead, F: Fn(&[u8]) -> bool> Iterator for Records<R, F> {
    type Item = Result<Record, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.finished {
            let mut text = Vec::new();
            self.line += 1;
            let read = (&mut self.input).take(MAX_LINE_BYTES).read_until(b'\n', &mut text);
            let complete = text.ends_with(b"\n");
            let parsed = match read {
                Err(error) => {
                    self.finished = true;
                    Err(error.into())
                }
                Ok(size) if size as u64 == MAX_LINE_BYTES && !complete => {
                    self.finished = true;
                    Err(ReadProblem::TooLong)
                }
                Ok(0) => return None,
                Ok(_) if text.trim_ascii().is_empty() || !(self.is_wanted)(&text) => continue,
                Ok(_) => parse(&text),
            };
            match parsed {
                Ok(None) => {}
                Ok(Some(record)) => return Some(Ok(record)),
                Err(ReadProblem::Json(_)) if !complete => return None,
                Err(problem) => return Some(Err(ReadError { line: self.line, problem })),
            }
        }
        None
    }
}

fn parse(line: &[u8]) -> Result<Option<Record>, ReadProblem> {
    let Head { v, kind } = serde_json::from_slice(line)?;
    if !(MIN_VERSION..=VERSION).contains(&v) {
        return Err(ReadProblem::Version(v));
    }
    Ok(match kind.as_str() {
        "topology" => Some(Record::Topology(serde_json::from_slice(line)?)),
        "policies" => Some(Record::Policies(serde_json::from_slice(line)?)),
        "decision" => Some(Record::Decision(serde_json::from_slice(line)?)),
        _ => None,
    })
}
