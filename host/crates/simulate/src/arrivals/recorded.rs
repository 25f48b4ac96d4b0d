//! Decision records of a host as traffic.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pointsman_domain::{AttemptResult, Outcome};
use pointsman_record::{DecisionRecord, Record, TryRecord, files, records};

use super::rows::Row;

/// The requests of a file, or of all files in a folder.
pub(super) fn rows(path: &Path) -> Box<dyn Iterator<Item = Result<Row, String>>> {
    let paths = if path.is_dir() { files(path) } else { Ok(vec![path.to_owned()]) };
    match paths {
        Ok(paths) if paths.is_empty() => {
            Box::new(std::iter::once(Err(format!("{} has no decision records", path.display()))))
        }
        Ok(paths) => Box::new(paths.into_iter().flat_map(of_file)),
        Err(error) => {
            Box::new(std::iter::once(Err(format!("{} cannot be read: {error}", path.display()))))
        }
    }
}

fn of_file(path: PathBuf) -> Box<dyn Iterator<Item = Result<Row, String>>> {
    let file = match File::open(&path) {
        Ok(file) => BufReader::new(file),
        Err(error) => {
            return Box::new(std::iter::once(Err(format!(
                "{} cannot be read: {error}",
                path.display()
            ))));
        }
    };
    Box::new(records(file).filter_map(move |record| match record {
        Ok(Record::Decision(decision)) => Some(Ok(row(*decision))),
        Ok(Record::Topology(_) | Record::Policies(_)) => None,
        Err(error) => Some(Err(format!("{}:{}: {}", path.display(), error.line, error.problem))),
    }))
}

fn row(record: DecisionRecord) -> Row {
    let figures = record.figures;
    let decided = i64::try_from(record.now_ms).unwrap_or(i64::MAX).saturating_mul(1000);
    let age = i64::try_from(record.age.as_micros()).unwrap_or(i64::MAX);
    let known = |tokens: u32| Some(tokens).filter(|tokens| *tokens > 0);
    let outcome = record.outcome.as_ref();
    let (headers, body) =
        record.request.map_or((None, None), |request| (Some(request.headers), request.body));
    Row {
        at: decided.saturating_sub(age),
        tenant: record.tenant,
        model: Some(record.model),
        endpoint: Some(figures.endpoint),
        headers: headers.map(Arc::from),
        // As the engine counted them, if it did.
        prompt: outcome
            .and_then(|outcome| known(outcome.prompt_tokens))
            .or(known(figures.prompt_tokens)),
        output: outcome.and_then(|outcome| known(outcome.output_tokens)),
        max_tokens: known(figures.max_output_tokens),
        stream: Some(figures.streaming),
        body: body.map(Bytes::from),
        id: Some(record.request_id),
        took: took(&record.tries, outcome),
    }
}

/// How long the engine worked on it that answered it: to the first byte, and from there to the end.
fn took(tries: &[TryRecord], outcome: Option<&Outcome>) -> Option<(Duration, Duration)> {
    let answered = tries.last().filter(|tried| tried.result == AttemptResult::Ok)?;
    let worked = answered.took.saturating_sub(answered.queue);
    let first = outcome?.ttft.saturating_sub(answered.begun + answered.queue).min(worked);
    Some((first, worked - first))
}
