//! Arguments of `pointsman key …`.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use pointsman_access::{Budget, Period};

#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "one value for each process")]
pub(crate) enum Key {
    /// Add a key and print its secret, which cannot be shown again.
    New(NewKey),
    /// List the keys, without their secrets.
    List {
        #[command(flatten)]
        file: KeysFile,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Remove a key: running hosts refuse it from then on.
    Revoke {
        /// Id of the key.
        id: String,
        #[command(flatten)]
        file: KeysFile,
    },
    /// Replace the secret of a key and print the new one.
    Rotate {
        /// Id of the key.
        id: String,
        /// How long the old secret stays valid, for example `24h`; `0s` refuses it now.
        #[arg(long, value_name = "DURATION")]
        grace: String,
        #[command(flatten)]
        file: KeysFile,
    },
}

/// The keys file.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct KeysFile {
    /// Configuration file whose `access.keys` names the keys file.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Keys file.
    #[arg(long, value_name = "FILE")]
    pub(crate) keys: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct NewKey {
    /// Tenant of the key.
    #[arg(long)]
    pub(crate) tenant: String,
    /// Group of the key, which the file defines.
    #[arg(long)]
    pub(crate) group: Option<String>,
    /// Id of the key in the usage, the log and commands; random by default.
    #[arg(long, value_name = "ID")]
    pub(crate) name: Option<String>,
    /// When the key expires: a duration such as `30d`, a date, or a time in UTC.
    #[arg(long, value_name = "TIME")]
    pub(crate) expires: Option<String>,
    /// Model that the key may use, with `*` for any text; may be repeated.
    #[arg(long = "model", value_name = "NAME")]
    pub(crate) models: Vec<String>,
    /// Lane that the key may use, with `*` for any text; may be repeated.
    #[arg(long = "lane", value_name = "NAME")]
    pub(crate) lanes: Vec<String>,
    /// Endpoint that the key may use, for example `chat-completions`; may be repeated.
    #[arg(long = "endpoint", value_name = "NAME")]
    pub(crate) endpoints: Vec<String>,
    /// Address on which the key may be used; may be repeated.
    #[arg(long = "listener", value_name = "ADDRESS")]
    pub(crate) listeners: Vec<String>,
    /// Allow paths of engines that show or change what clients share.
    #[arg(long)]
    pub(crate) engine_admin: bool,
    /// Maximum number of requests in any 60 seconds.
    #[arg(long, value_name = "N")]
    pub(crate) requests_per_minute: Option<u32>,
    /// Maximum number of tokens in any 60 seconds.
    #[arg(long, value_name = "N")]
    pub(crate) tokens_per_minute: Option<u64>,
    /// Maximum number of requests in flight.
    #[arg(long, value_name = "N")]
    pub(crate) concurrent: Option<u32>,
    /// Maximum number of requests that wait in queues.
    #[arg(long, value_name = "N")]
    pub(crate) queued: Option<u32>,
    /// What may be used in a day, week or month, for example `day:tokens=1000000,requests=500` or
    /// `month:engine-seconds=3600`; may be repeated for other periods.
    #[arg(long = "budget", value_name = "PERIOD:AMOUNTS", value_parser = budget)]
    pub(crate) budgets: Vec<Budget>,
    /// Priorities that requests may have, for example `0..10`; others are moved into this range.
    #[arg(long, value_name = "MIN..MAX", value_parser = priority, allow_hyphen_values = true)]
    pub(crate) priority: Option<RangeInclusive<i32>>,
    #[command(flatten)]
    pub(crate) file: KeysFile,
}

/// Reads a budget.
fn budget(text: &str) -> Result<Budget, String> {
    const EXAMPLE: &str = "expected for example `day:tokens=1000000,requests=500`";
    let (period, amounts) = text.split_once(':').ok_or(EXAMPLE)?;
    let period = match period {
        "day" => Period::Day,
        "week" => Period::Week,
        "month" => Period::Month,
        _ => return Err(format!("unknown period `{period}`: expected `day`, `week` or `month`")),
    };
    let mut budget = Budget { period, tokens: None, requests: None, engine_seconds: None };
    for amount in amounts.split(',') {
        let (name, number) = amount.split_once('=').ok_or(EXAMPLE)?;
        let slot = match name {
            "tokens" => &mut budget.tokens,
            "requests" => &mut budget.requests,
            "engine-seconds" => &mut budget.engine_seconds,
            _ => {
                return Err(format!(
                    "unknown amount `{name}`: expected `tokens`, `requests` or `engine-seconds`"
                ));
            }
        };
        // Zero would refuse all requests; the keys file has signed integers.
        let number = number.replace('_', "").parse::<i64>().ok().filter(|number| *number > 0);
        let number = number.ok_or_else(|| format!("invalid number of {name}"))?;
        if slot.replace(number.unsigned_abs()).is_some() {
            return Err(format!("`{name}` is given twice"));
        }
    }
    Ok(budget)
}

/// Reads a range of priorities.
fn priority(text: &str) -> Result<RangeInclusive<i32>, String> {
    let read = |text: &str| text.parse::<i32>().ok();
    let range = text.split_once("..").and_then(|(min, max)| Some(read(min)?..=read(max)?));
    let range = range.or_else(|| read(text).map(|only| only..=only));
    range.filter(|range| !range.is_empty()).ok_or_else(|| "expected for example `0..10`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_and_priorities_are_read() {
        let read = budget("week:tokens=1_000,engine-seconds=5").unwrap();
        assert_eq!(
            (read.period, read.tokens, read.requests, read.engine_seconds),
            (Period::Week, Some(1000), None, Some(5))
        );
        for wrong in [
            "day",
            "day:",
            "day:tokens",
            "day:tokens=0",
            "year:tokens=1",
            "day:tokens=-1",
            "day:token=1",
            "day:tokens=1,tokens=2",
            "day:tokens=99999999999999999999",
        ] {
            assert!(budget(wrong).is_err(), "{wrong}");
        }
        assert_eq!((priority("-5..10"), priority("3")), (Ok(-5..=10), Ok(3..=3)));
        for wrong in ["", "..", "1..", "5..1", "a..b", "0..99999999999"] {
            assert!(priority(wrong).is_err(), "{wrong}");
        }
    }
}
