//! Public traces in CSV format: <https://github.com/Azure/AzurePublicDataset> and
//! <https://github.com/HPMLL/BurstGPT>.

use std::path::Path;

use super::error::{TraceError, TraceLineError};
use super::rows::{Lines, TraceRow};
use crate::timestamp;

/// Opens an Azure trace: `TIMESTAMP,ContextTokens,GeneratedTokens`.
pub(super) fn azure(file: &Path) -> impl Iterator<Item = Result<TraceRow, TraceError>> + use<> {
    let read = |fields: [&str; 3]| {
        let [at, prompt, output] = fields;
        let time =
            timestamp::parse(at).ok_or_else(|| TraceLineError::InvalidTime(at.to_owned()))?;
        Ok(Some(TraceRow {
            at: time,
            prompt: Some(tokens(prompt)?),
            output: Some(tokens(output)?),
            ..TraceRow::default()
        }))
    };
    Table {
        lines: Lines::open(file),
        columns: None,
        names: ["TIMESTAMP", "ContextTokens", "GeneratedTokens"],
        read,
    }
}

/// Opens a BurstGPT trace:
/// `Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type`.
///
/// Rows without response tokens are failed requests, whose response length is unknown. They are
/// skipped.
pub(super) fn burst_gpt(file: &Path) -> impl Iterator<Item = Result<TraceRow, TraceError>> + use<> {
    let read = |fields: [&str; 4]| {
        let [at, model, prompt, output] = fields;
        let seconds: Option<f64> = at.parse().ok().filter(|seconds| (0.0..1e12).contains(seconds));
        let seconds = seconds.ok_or_else(|| TraceLineError::InvalidSeconds(at.to_owned()))?;
        let (prompt, output) = (tokens(prompt)?, tokens(output)?);
        let row = TraceRow {
            at: (seconds * 1e6).round() as i64,
            model: Some(model.into()),
            prompt: Some(prompt),
            output: Some(output),
            ..TraceRow::default()
        };
        Ok(Some(row).filter(|_| output > 0))
    };
    let names = ["Timestamp", "Model", "Request tokens", "Response tokens"];
    Table { lines: Lines::open(file), columns: None, names, read }
}

fn tokens(text: &str) -> Result<u32, TraceLineError> {
    text.parse().map_err(|_| TraceLineError::InvalidTokens(text.to_owned()))
}

/// A table with columns of these names, in any order. `read` returns `None` for rows to skip.
struct Table<const N: usize, F> {
    lines: Lines,
    /// The index of each column, once the header has been read.
    columns: Option<[usize; N]>,
    names: [&'static str; N],
    read: F,
}

impl<const N: usize, F> Iterator for Table<N, F>
where
    F: Fn([&str; N]) -> Result<Option<TraceRow>, TraceLineError>,
{
    type Item = Result<TraceRow, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let line = match self.lines.next()? {
                Ok(line) => line,
                Err(error) => return Some(Err(error)),
            };
            let fields: Vec<&str> = fields(&line).collect();
            if fields == [""] {
                continue;
            }
            let Some(columns) = self.columns else {
                match self.parse_header(&fields) {
                    Ok(columns) => self.columns = Some(columns),
                    Err(error) => return Some(Err(self.lines.error(error))),
                }
                continue;
            };
            let picked = columns.map(|column| fields.get(column).copied().unwrap_or_default());
            match (self.read)(picked) {
                Ok(None) => {}
                Ok(Some(row)) => return Some(Ok(row)),
                Err(error) => return Some(Err(self.lines.error(error))),
            }
        }
    }
}

impl<const N: usize, F> Table<N, F> {
    fn parse_header(&self, fields: &[&str]) -> Result<[usize; N], TraceLineError> {
        let mut columns = [0; N];
        for (column, name) in columns.iter_mut().zip(self.names) {
            let index = fields.iter().position(|field| field.eq_ignore_ascii_case(name));
            *column = index.ok_or_else(|| TraceLineError::MissingColumn {
                name,
                expected: self.names.join("`, `"),
            })?;
        }
        Ok(columns)
    }
}

/// Splits a line into fields. The fields of these traces are numbers, times and plain names, and
/// never contain a comma.
fn fields(line: &str) -> impl Iterator<Item = &str> {
    line.trim_start_matches('\u{feff}').split(',').map(|field| field.trim().trim_matches('"'))
}
