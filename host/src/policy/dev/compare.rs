//! Compares the decisions of a policy with the last recorded ones.

use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use pointsman_files::open_regular;
use pointsman_policy::ChainSpec;
use pointsman_record::{Record, records};
use pointsman_replay::{ChainSource, Replay};

use crate::replay::record_files;
use crate::{chains, simulate};

/// Maximum number of decisions that are shown one by one.
const MAX_DIFFERENCES: usize = 5;

/// Replays the last decisions with the policy in `dir`, and returns the report. The calls have
/// states of their own, so that trials have no effect on a host.
pub(super) fn compare(
    dir: &Path,
    paths: &[PathBuf],
    last: usize,
    chain: Option<&ChainSpec>,
) -> Result<String> {
    let argument = dir.display().to_string();
    // Owns temporary folders, which must exist until the policies have been loaded.
    let policies = chains::policies(&[argument], chain.unwrap_or(&ChainSpec::default()))?;
    let source = match chain {
        None => ChainSource::Recorded { overrides: policies.list.clone() },
        Some(chain) => {
            let mut chain = chain.clone();
            for policy in &policies.list {
                match chain.policies.iter_mut().find(|link| link.name == policy.name) {
                    Some(link) => link.dir.clone_from(&policy.dir),
                    None => bail!("no policy `{}` in the chain of the configuration", policy.name),
                }
            }
            ChainSource::Configured(chain)
        }
    };
    let env = simulate::stage()?;
    let mut replay = Replay::new(env.runtime(), source, MAX_DIFFERENCES)?;
    for (file, records) in last_records(paths, last)? {
        replay.start_file(&file.display().to_string());
        for record in records {
            replay.push(record)?;
        }
    }
    Ok(replay.finish().text())
}

/// Returns the last `count` decisions with the lanes and chains that they refer to, by file.
fn last_records(paths: &[PathBuf], count: usize) -> Result<Vec<(PathBuf, Vec<Record>)>> {
    let mut found = Vec::new();
    let mut left = count;
    // The files are sorted from the oldest to the newest one.
    for file in record_files(paths)?.into_iter().rev() {
        if left == 0 {
            break;
        }
        let mut kept = Vec::new();
        let mut decisions = 0;
        for record in records(BufReader::new(open_regular(&file)?)).filter_map(Result::ok) {
            decisions += usize::from(is_decision(&record));
            kept.push(record);
            // Seldom, because it moves all records.
            if decisions > 2 * left + 100 {
                drop_decisions(&mut kept, decisions - left);
                decisions = left;
            }
        }
        drop_decisions(&mut kept, decisions.saturating_sub(left));
        left -= decisions.min(left);
        found.push((file, kept));
    }
    found.reverse();
    Ok(found)
}

fn is_decision(record: &Record) -> bool {
    matches!(record, Record::Decision(_))
}

/// Removes the first `count` decisions.
fn drop_decisions(records: &mut Vec<Record>, count: usize) {
    let mut left = count;
    records.retain(|record| {
        let is_dropped = left > 0 && is_decision(record);
        left -= usize::from(is_dropped);
        !is_dropped
    });
}
