//! The observations as lines of a table: case, observation and seconds, separated by tabs.

use std::fs::File;
use std::io::Write as _;
use std::time::Duration;

/// The table of observations.
pub(crate) struct Report {
    file: Option<File>,
}

impl Report {
    /// Opens the file that `POINTSMAN_REAL_VLLM_TABLE` names. All rows are printed as well.
    pub(crate) fn open() -> Self {
        let file = std::env::var_os("POINTSMAN_REAL_VLLM_TABLE");
        Self {
            file: file.map(|file| File::options().create(true).append(true).open(file).unwrap()),
        }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, case: &str, observation: &str, took: Option<Duration>) {
        let took = took.map(seconds).unwrap_or_default();
        let observation = observation.replace(['\n', '\t'], " ");
        println!("   {case}: {observation} {took}");
        if let Some(file) = &mut self.file {
            writeln!(file, "{case}\t{observation}\t{took}").unwrap();
        }
    }
}

/// Formats seconds with the significant digits.
pub(crate) fn seconds(took: Duration) -> String {
    let took = took.as_secs_f64();
    if took < 1.0 { format!("{took:.3}") } else { format!("{took:.1}") }
}
