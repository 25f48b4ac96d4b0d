//! Looks up one decision in decision records.

use std::io::BufReader;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use pointsman_files::open_regular;
use pointsman_record::RecordedDecision;

use crate::replay::record_files;

/// Finds the decision about the request `id`. Lines that are not records are skipped.
pub(crate) fn find(paths: &[PathBuf], id: &str) -> Result<RecordedDecision> {
    for file in record_files(paths)? {
        let found = pointsman_record::find(BufReader::new(open_regular(&file)?), id);
        if let Some(found) = found.with_context(|| file.display().to_string())? {
            return Ok(found);
        }
    }
    bail!("no record of request `{id}`");
}
