//! A sequential reader of trace files.

use std::fs::File;
use std::io::{BufReader, Error};
use std::path::{Path, PathBuf};

use pointsman_files::open_regular;

use super::error::{TraceError, TraceLineError};

/// A trace file that is read item by item. The first error ends the file.
pub(super) struct TraceReader {
    file: PathBuf,
    input: Result<BufReader<File>, Option<Error>>,
    /// The number of the last line that was read.
    line: u64,
}

impl TraceReader {
    /// Opens a file, whose current line is `line` before anything has been read. An error is
    /// returned by the first read.
    pub(super) fn open(file: &Path, line: u64) -> Self {
        Self {
            file: file.to_owned(),
            input: open_regular(file).map(BufReader::new).map_err(|error| Some(error.into())),
            line,
        }
    }

    /// Returns an error in the last line that was read.
    pub(super) fn error(&self, source: TraceLineError) -> TraceError {
        TraceError::Line { path: self.file.clone(), line: self.line, source }
    }

    /// Returns the next item, which `read` parses. `read` also counts the lines.
    pub(super) fn next<T>(
        &mut self,
        read: impl FnOnce(&mut BufReader<File>, &mut u64) -> Result<Option<T>, TraceLineError>,
    ) -> Option<Result<T, TraceError>> {
        let input = match &mut self.input {
            Ok(input) => input,
            Err(error) => {
                let source = error.take()?;
                return Some(Err(TraceError::Open { path: self.file.clone(), source }));
            }
        };
        let item = read(input, &mut self.line);
        if item.is_err() {
            self.input = Err(None);
        }
        item.map_err(|error| self.error(error)).transpose()
    }
}
