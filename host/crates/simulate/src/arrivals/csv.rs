//! Public traces in CSV format: <https://github.com/Azure/AzurePublicDataset> and
//! <https://github.com/HPMLL/BurstGPT>.

use std::path::Path;

use csv_core::ReadRecordResult;

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
        splitter: Splitter::default(),
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
    let splitter = Splitter::default();
    Table { lines: Lines::open(file), splitter, columns: None, names, read }
}

fn tokens(text: &str) -> Result<u32, TraceLineError> {
    text.parse().map_err(|_| TraceLineError::InvalidTokens(text.to_owned()))
}

/// A table with columns of these names, in any order. `read` returns `None` for rows to skip.
struct Table<const N: usize, F> {
    lines: Lines,
    splitter: Splitter,
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
            let fields = self.splitter.fields(line.trim_start_matches('\u{feff}'));
            if fields == [""] {
                continue;
            }
            let Some(columns) = self.columns else {
                match parse_header(self.names, &fields) {
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

/// Returns the index of each column in the fields of a header.
fn parse_header<const N: usize>(
    names: [&'static str; N],
    fields: &[&str],
) -> Result<[usize; N], TraceLineError> {
    let mut columns = [0; N];
    for (column, name) in columns.iter_mut().zip(names) {
        let index = fields.iter().position(|field| field.eq_ignore_ascii_case(name));
        *column = index
            .ok_or_else(|| TraceLineError::MissingColumn { name, expected: names.join("`, `") })?;
    }
    Ok(columns)
}

/// Splits lines into fields, which may be quoted. Line breaks in fields are not supported, so that
/// a line with a missing quote does not swallow the rest of the file.
///
/// This uses the parser of the `csv` crate without its reader, which does not count lines exactly
/// and has no maximum length.
struct Splitter {
    parser: csv_core::Reader,
    text: Vec<u8>,
    /// The end of each field in `text`.
    ends: Vec<usize>,
}

impl Default for Splitter {
    fn default() -> Self {
        Self { parser: csv_core::Reader::new(), text: Vec::new(), ends: Vec::new() }
    }
}

impl Splitter {
    /// Returns the fields of a line without surrounding spaces. An empty line has one empty field.
    fn fields(&mut self, line: &str) -> Vec<&str> {
        self.parser.reset();
        // Fields are never longer than the line, and there is a field for each comma and one more.
        // The parser needs space for one byte and one field more than it writes.
        self.text.resize(line.len() + 1, 0);
        self.ends.resize(line.bytes().filter(|byte| *byte == b',').count() + 2, 0);
        let (mut input, mut written, mut count) = (line.as_bytes(), 0, 0);
        loop {
            let (text, ends) = (&mut self.text[written..], &mut self.ends[count..]);
            let (result, read, added, fields) = self.parser.read_record(input, text, ends);
            input = &input[read..];
            written += added;
            count += fields;
            match result {
                // An empty input tells the parser that the line has ended.
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::Record
                | ReadRecordResult::End
                | ReadRecordResult::OutputFull
                | ReadRecordResult::OutputEndsFull => break,
            }
        }
        let mut start = 0;
        let mut fields = Vec::with_capacity(count.max(1));
        for end in &self.ends[..count] {
            // Removing quotes leaves valid UTF-8.
            let field = str::from_utf8(&self.text[start..*end]).unwrap_or_default();
            fields.push(field.trim());
            start = *end;
        }
        if fields.is_empty() {
            fields.push("");
        }
        fields
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quoted_fields_may_contain_commas_and_quotes() {
        let mut splitter = Splitter::default();
        for (line, fields) in [
            ("a,b,c\n", &["a", "b", "c"][..]),
            ("\"a, b\",\"say \"\"c\"\"\",\r\n", &["a, b", "say \"c\"", ""]),
            (" a , b", &["a", "b"]),
            ("\"a,b\n", &["a,b"]),
            (",,", &["", "", ""]),
            ("", &[""]),
            ("  \n", &[""]),
        ] {
            assert_eq!(splitter.fields(line), fields, "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn fields_round_trip(fields in prop::collection::vec("[a-z0-9\",é ]{0,12}", 2..8)) {
            let quoted = |field: &String| format!("\"{}\"", field.replace('"', "\"\""));
            let line = fields.iter().map(quoted).collect::<Vec<_>>().join(",");
            let expected: Vec<&str> = fields.iter().map(|field| field.trim()).collect();
            let mut splitter = Splitter::default();
            prop_assert_eq!(splitter.fields(&line), expected);
        }
    }
}
