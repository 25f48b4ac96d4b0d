//! Public traces as CSV: <https://github.com/Azure/AzurePublicDataset> and <https://github.com/HPMLL/BurstGPT>.

use std::path::Path;

use super::rows::{Lines, Row};
use crate::scenario::moment;

/// `TIMESTAMP,ContextTokens,GeneratedTokens`.
pub(super) fn azure(file: &Path) -> impl Iterator<Item = Result<Row, String>> + use<> {
    let read = |fields: [&str; 3]| {
        let [at, prompt, output] = fields;
        let time = moment(at).ok_or_else(|| {
            format!("\"{at}\" is no time; there should be one such as 2023-11-16 18:15:46.6805900")
        })?;
        Ok(Some(Row {
            at: time,
            prompt: Some(tokens(prompt)?),
            output: Some(tokens(output)?),
            ..Row::default()
        }))
    };
    Table {
        lines: Lines::open(file),
        columns: None,
        names: ["TIMESTAMP", "ContextTokens", "GeneratedTokens"],
        read,
    }
}

/// `Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type`. Rows without an answer are requests that failed, and
/// nobody knows how long their answers would have been: they are left out.
pub(super) fn burst_gpt(file: &Path) -> impl Iterator<Item = Result<Row, String>> + use<> {
    let read = |fields: [&str; 4]| {
        let [at, model, prompt, output] = fields;
        let seconds: Option<f64> = at.parse().ok().filter(|seconds| (0.0..1e12).contains(seconds));
        let seconds = seconds.ok_or_else(|| format!("\"{at}\" is no time in seconds"))?;
        let (prompt, output) = (tokens(prompt)?, tokens(output)?);
        let row = Row {
            at: (seconds * 1e6).round() as i64,
            model: Some(model.into()),
            prompt: Some(prompt),
            output: Some(output),
            ..Row::default()
        };
        Ok(Some(row).filter(|_| output > 0))
    };
    let names = ["Timestamp", "Model", "Request tokens", "Response tokens"];
    Table { lines: Lines::open(file), columns: None, names, read }
}

fn tokens(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("\"{text}\" is no number of tokens"))
}

/// A table with columns of these names, in any order.
struct Table<const N: usize, F> {
    lines: Lines,
    columns: Option<[usize; N]>,
    names: [&'static str; N],
    read: F,
}

impl<const N: usize, F: Fn([&str; N]) -> Result<Option<Row>, String>> Iterator for Table<N, F> {
    type Item = Result<Row, String>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let line = match self.lines.next()? {
                Ok(line) => line,
                Err(what) => return Some(Err(what)),
            };
            let fields: Vec<&str> = fields(&line).collect();
            if fields == [""] {
                continue;
            }
            let Some(columns) = self.columns else {
                match self.header(&fields) {
                    Ok(columns) => self.columns = Some(columns),
                    Err(what) => return Some(Err(self.lines.error(what))),
                }
                continue;
            };
            let picked = columns.map(|column| fields.get(column).copied().unwrap_or_default());
            match (self.read)(picked) {
                Ok(None) => {}
                Ok(Some(row)) => return Some(Ok(row)),
                Err(what) => return Some(Err(self.lines.error(what))),
            }
        }
    }
}

impl<const N: usize, F> Table<N, F> {
    fn header(&self, fields: &[&str]) -> Result<[usize; N], String> {
        let mut columns = [0; N];
        for (column, name) in columns.iter_mut().zip(self.names) {
            let place = fields.iter().position(|field| field.eq_ignore_ascii_case(name));
            *column = place.ok_or_else(|| {
                format!(
                    "has no column `{name}`; the first line should name `{}`",
                    self.names.join("`, `")
                )
            })?;
        }
        Ok(columns)
    }
}

/// These traces have numbers, times and plain names in their fields, and never a comma.
fn fields(line: &str) -> impl Iterator<Item = &str> {
    line.trim_start_matches('\u{feff}').split(',').map(|field| field.trim().trim_matches('"'))
}
