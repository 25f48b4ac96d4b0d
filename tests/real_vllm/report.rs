//! What was seen, as lines of a table: situation, what was seen, seconds; tabs between them.

use std::fs::File;
use std::io::Write as _;
use std::time::Duration;

pub(crate) struct Report {
    file: Option<File>,
}

impl Report {
    /// In the file that `POINTSMAN_REAL_VLLM_TABLE` names, and on the terminal.
    pub(crate) fn open() -> Self {
        let file = std::env::var_os("POINTSMAN_REAL_VLLM_TABLE");
        Self {
            file: file.map(|file| File::options().create(true).append(true).open(file).unwrap()),
        }
    }

    pub(crate) fn row(&mut self, situation: &str, seen: &str, took: Option<Duration>) {
        let took = took.map(seconds).unwrap_or_default();
        let seen = seen.replace(['\n', '\t'], " ");
        println!("   {situation}: {seen} {took}");
        if let Some(file) = &mut self.file {
            writeln!(file, "{situation}\t{seen}\t{took}").unwrap();
        }
    }
}

/// With as many digits as mean something.
pub(crate) fn seconds(took: Duration) -> String {
    let took = took.as_secs_f64();
    if took < 1.0 { format!("{took:.3}") } else { format!("{took:.1}") }
}
