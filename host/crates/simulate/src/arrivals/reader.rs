//! A file of requests, read from its begin to its end.

use std::fs::File;
use std::io::{BufReader, Error};
use std::path::{Path, PathBuf};

/// Where requests are read from. Nothing comes after what cannot be read.
pub(super) struct Source {
    file: PathBuf,
    input: Result<BufReader<File>, Option<Error>>,
    /// Number of the line that was read last.
    line: u64,
}

impl Source {
    /// A file whose reader has it at line `line` before anything was read. One that cannot be opened says so when it is read.
    pub(super) fn open(file: &Path, line: u64) -> Self {
        Self {
            file: file.to_owned(),
            input: File::open(file).map(BufReader::new).map_err(Some),
            line,
        }
    }

    /// What is wrong with the line that was read last.
    pub(super) fn error(&self, what: impl std::fmt::Display) -> String {
        format!("{}:{}: {what}", self.file.display(), self.line)
    }

    /// The next thing that `read` finds; it counts the lines.
    pub(super) fn next<T>(
        &mut self,
        read: impl FnOnce(&mut BufReader<File>, &mut u64) -> Result<Option<T>, String>,
    ) -> Option<Result<T, String>> {
        let input = match &mut self.input {
            Ok(input) => input,
            Err(error) => {
                let error = error.take()?;
                return Some(Err(format!("{} cannot be read: {error}", self.file.display())));
            }
        };
        let found = read(input, &mut self.line);
        if found.is_err() {
            self.input = Err(None);
        }
        found.map_err(|what| self.error(what)).transpose()
    }
}
