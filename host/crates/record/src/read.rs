//! Reading records back.

use std::io::{BufRead, Read as _};

use serde::Deserialize;

use crate::format::{Record, VERSION};

/// No line is longer: what is, is no record.
const LONGEST_LINE: u64 = 64 << 20;

/// A line that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct ReadError {
    /// Its number, from 1.
    pub line: u64,
    /// What is wrong.
    pub problem: ReadProblem,
}

/// What is wrong with a line.
#[derive(Debug, thiserror::Error)]
pub enum ReadProblem {
    /// The file cannot be read on. Nothing comes after it.
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// Longer than any record. Nothing comes after it.
    #[error("is longer than {} MiB, and no record is", LONGEST_LINE >> 20)]
    TooLong,
    /// Not a record.
    #[error("is no decision record: {0}")]
    Json(#[from] serde_json::Error),
    /// Of a later version of the format.
    #[error("has version {0}, and this program reads {VERSION}; use a newer one")]
    Version(u32),
}

#[derive(Deserialize)]
struct Head {
    v: u32,
    kind: String,
}

/// The records of a file in order. Lines of unknown kinds are skipped, and so is a last line without an end that is torn: the
/// writer was killed.
pub fn records(input: impl BufRead) -> impl Iterator<Item = Result<Record, ReadError>> {
    Records { input, line: 0, over: false }
}

struct Records<R> {
    input: R,
    line: u64,
    over: bool,
}

impl<R: BufRead> Iterator for Records<R> {
    type Item = Result<Record, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.over {
            let mut text = Vec::new();
            self.line += 1;
            let read = (&mut self.input).take(LONGEST_LINE).read_until(b'\n', &mut text);
            let whole = text.ends_with(b"\n");
            let parsed = match read {
                Err(error) => {
                    self.over = true;
                    Err(error.into())
                }
                Ok(size) if size as u64 == LONGEST_LINE && !whole => {
                    self.over = true;
                    Err(ReadProblem::TooLong)
                }
                Ok(0) => return None,
                Ok(_) if text.trim_ascii().is_empty() => continue,
                Ok(_) => parse(&text),
            };
            match parsed {
                Ok(None) => {}
                Ok(Some(record)) => return Some(Ok(record)),
                Err(ReadProblem::Json(_)) if !whole => return None,
                Err(problem) => return Some(Err(ReadError { line: self.line, problem })),
            }
        }
        None
    }
}

fn parse(line: &[u8]) -> Result<Option<Record>, ReadProblem> {
    let Head { v, kind } = serde_json::from_slice(line)?;
    if v != VERSION {
        return Err(ReadProblem::Version(v));
    }
    Ok(match kind.as_str() {
        "topology" => Some(Record::Topology(serde_json::from_slice(line)?)),
        "policies" => Some(Record::Policies(serde_json::from_slice(line)?)),
        "decision" => Some(Record::Decision(serde_json::from_slice(line)?)),
        _ => None,
    })
}
