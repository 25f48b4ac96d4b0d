//! The decision records of a host as traffic.

use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pointsman_domain::{AttemptResult, Outcome};
use pointsman_files::open_regular;
use pointsman_record::{AttemptRecord, DecisionRecord, Record, files, records};

use super::error::TraceError;
use super::rows::TraceRow;

type Rows = Box<dyn Iterator<Item = Result<TraceRow, TraceError>>>;

/// Opens a record file, or all record files in a folder.
pub(super) fn rows(path: &Path) -> Rows {
    let paths = if path.is_dir() { files(path) } else { Ok(vec![path.to_owned()]) };
    match paths {
        Ok(paths) if paths.is_empty() => failed(TraceError::NoRecords { path: path.to_owned() }),
        Ok(paths) => Box::new(paths.into_iter().flat_map(rows_of_file)),
        Err(source) => failed(TraceError::Open { path: path.to_owned(), source }),
    }
}

fn failed(error: TraceError) -> Rows {
    Box::new(std::iter::once(Err(error)))
}

fn rows_of_file(path: PathBuf) -> Rows {
    let file = match open_regular(&path) {
        Ok(file) => BufReader::new(file),
        Err(error) => return failed(TraceError::Open { path, source: error.into() }),
    };
    Box::new(records(file).filter_map(move |record| match record {
        Ok(Record::Decision(decision)) => Some(Ok(row(*decision))),
        Ok(Record::Topology(_) | Record::Policies(_)) => None,
        Err(source) => Some(Err(TraceError::Record { path: path.clone(), source })),
    }))
}

fn row(record: DecisionRecord) -> TraceRow {
    let figures = record.figures;
    // Saturating, because a damaged record may contain any number.
    let decided = i64::try_from(record.now_ms).unwrap_or(i64::MAX).saturating_mul(1000);
    let age = i64::try_from(record.age.as_micros()).unwrap_or(i64::MAX);
    let known = |tokens: u32| Some(tokens).filter(|tokens| *tokens > 0);
    let outcome = record.outcome.as_ref();
    let (headers, body) =
        record.request.map_or((None, None), |request| (Some(request.headers), request.body));
    TraceRow {
        at: decided.saturating_sub(age),
        tenant: record.tenant,
        model: Some(record.model),
        endpoint: Some(figures.endpoint),
        headers: headers.map(Arc::from),
        // The engine's count, if there is one, is more precise than the estimate.
        prompt: outcome
            .and_then(|outcome| known(outcome.prompt_tokens))
            .or(known(figures.prompt_tokens)),
        output: outcome.and_then(|outcome| known(outcome.output_tokens)),
        max_tokens: known(figures.max_output_tokens),
        stream: Some(figures.streaming),
        body: body.map(Bytes::from),
        id: Some(record.request_id),
        recorded_times: recorded_times(&record.tries, outcome),
    }
}

/// Returns how long the engine that served the request worked on it: to the first byte, and from
/// there to the end.
fn recorded_times(
    attempts: &[AttemptRecord],
    outcome: Option<&Outcome>,
) -> Option<(Duration, Duration)> {
    let successful = attempts.last().filter(|attempt| attempt.result == AttemptResult::Ok)?;
    let total = successful.took.saturating_sub(successful.queue);
    let granted_at = successful.begun + successful.queue;
    let first = outcome?.ttft.saturating_sub(granted_at).min(total);
    Some((first, total - first))
}
