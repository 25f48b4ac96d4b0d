//! Which usage is wanted, and how it is added up.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use super::counts::Counts;
use super::hosts::ReportedHost;
use super::row::RowKey;

/// Seconds of an hour.
const HOUR_SECONDS: u64 = 3600;

/// Maximum number of rows of a report, which bounds its memory.
pub(super) const MAX_GROUPS: usize = 100_000;

/// By what usage is added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// The tenant.
    Tenant,
    /// The name of the key.
    Key,
    /// The model.
    Model,
    /// The lane.
    Lane,
    /// The hour. Of days that were added up, the first one.
    Hour,
    /// The day.
    Day,
    /// The month.
    Month,
    /// The host, in a report of all hosts.
    Host,
}

/// All columns with their names.
const COLUMNS: [(&str, Column); 8] = [
    ("tenant", Column::Tenant),
    ("key", Column::Key),
    ("model", Column::Model),
    ("lane", Column::Lane),
    ("hour", Column::Hour),
    ("day", Column::Day),
    ("month", Column::Month),
    ("host", Column::Host),
];

impl Column {
    /// Returns the name, for example `tenant`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::Key => "key",
            Self::Model => "model",
            Self::Lane => "lane",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Month => "month",
            Self::Host => "host",
        }
    }

    fn value(self, row: &RowKey, host: &str) -> String {
        let names = &row.names;
        match self {
            Self::Tenant => names.tenant.to_string(),
            Self::Key => names.key.to_string(),
            Self::Model => names.model.to_string(),
            Self::Lane => names.lane.to_string(),
            Self::Hour => format_hour(row.start),
            Self::Day => format_hour(row.start)[..10].to_owned(),
            Self::Month => format_hour(row.start)[..7].to_owned(),
            Self::Host => host.to_owned(),
        }
    }
}

/// The reason why usage cannot be reported.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// A date or time that cannot be read.
    #[error(
        "invalid `{name}` \"{value}\": expected a date in UTC such as 2026-11-01, or a time such \
         as 2026-11-01T10:00:00Z"
    )]
    InvalidTime {
        /// The parameter.
        name: &'static str,
        /// What it is.
        value: String,
    },
    /// An unknown column.
    #[error(
        "unknown column \"{0}\" in `by`: expected tenant, key, model, lane, host, and one of hour, \
         day or month"
    )]
    UnknownColumn(String),
    /// A column that is named twice, or a second one of time.
    #[error("column \"{0}\" in `by` is one too many")]
    RepeatedColumn(String),
    /// The end of the time is not after its beginning.
    #[error("`from` must be before `to`")]
    EmptyRange,
    /// The report would have too many rows.
    #[error("more than {MAX_GROUPS} rows: choose fewer columns in `by`, or a shorter time")]
    TooManyRows,
    /// A report of another host that cannot be added.
    #[error("the report is of another time, or has other columns in `by`")]
    OtherReport,
    /// The column `host` in a report of one host.
    #[error("column \"host\" in `by` is only for the usage of all hosts")]
    HostColumn,
    /// Hosts do not share their usage.
    #[error(
        "hosts do not share their usage: configure [shared-state] on all of them, or add reports \
         of other hosts with `pointsman usage --with`"
    )]
    NotShared,
    /// The usage of other hosts cannot be read.
    #[error("cannot read the usage of other hosts: {0}; that of this host alone is available")]
    HostsUnavailable(String),
    /// The store cannot be read.
    #[error("cannot read the store of the usage")]
    Store(#[from] pointsman_store::StoreError),
}

/// Which usage is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageQuery {
    /// The first hour, in hours since 1970.
    pub(super) from: u32,
    /// The hour after the last one.
    pub(super) to: u32,
    pub(super) by: Vec<Column>,
    pub(super) tenant: Option<String>,
}

impl UsageQuery {
    /// Reads the parameters of a query. `None` or empty ones stand for: the beginning of the month,
    /// now, by tenant, and all tenants.
    ///
    /// # Errors
    /// If one of them is invalid.
    pub fn parse(
        from: Option<&str>,
        to: Option<&str>,
        by: Option<&str>,
        tenant: Option<&str>,
        now_unix_ms: u64,
    ) -> Result<Self, UsageError> {
        let given = |text: Option<&str>| text.filter(|text| !text.is_empty()).map(str::to_owned);
        let time =
            |name, text: Option<&str>| given(text).map(|text| parse_time(name, &text)).transpose();
        let this_month = format!("{}-01", &format_hour(hour_of(now_unix_ms))[..7]);
        let from = match time("from", from)? {
            Some(seconds) => seconds,
            None => parse_time("from", &this_month)?,
        };
        // The hour that is not over is reported as well.
        let to = time("to", to)?.unwrap_or(now_unix_ms / 1000 + 1);
        let hours = |seconds: u64| u32::try_from(seconds).unwrap_or(u32::MAX);
        let (from, to) = (hours(from / HOUR_SECONDS), hours(to.div_ceil(HOUR_SECONDS)));
        if from >= to {
            return Err(UsageError::EmptyRange);
        }
        let by = parse_columns(&given(by).unwrap_or_else(|| "tenant".to_owned()))?;
        Ok(Self { from, to, by, tenant: given(tenant) })
    }
}

fn parse_columns(text: &str) -> Result<Vec<Column>, UsageError> {
    let mut columns: Vec<Column> = Vec::new();
    let is_time = |column: &Column| matches!(column, Column::Hour | Column::Day | Column::Month);
    for name in text.split(',').map(str::trim) {
        let found = COLUMNS.iter().find(|(known, _)| *known == name);
        let (_, column) = found.ok_or_else(|| UsageError::UnknownColumn(name.to_owned()))?;
        let has_time = columns.iter().any(is_time);
        if columns.contains(column) || (has_time && is_time(column)) {
            return Err(UsageError::RepeatedColumn(name.to_owned()));
        }
        columns.push(*column);
    }
    Ok(columns)
}

/// Reads a date or a time, and returns the seconds since 1970.
fn parse_time(name: &'static str, text: &str) -> Result<u64, UsageError> {
    let invalid = || UsageError::InvalidTime { name, value: text.chars().take(40).collect() };
    let time = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
    let time = humantime::parse_rfc3339(&time).map_err(|_| invalid())?;
    let since = time.duration_since(UNIX_EPOCH).map_err(|_| invalid())?;
    Ok(since.as_secs())
}

/// Returns the hour of a time, in hours since 1970.
pub(super) fn hour_of(unix_ms: u64) -> u32 {
    u32::try_from(unix_ms / 1000 / HOUR_SECONDS).unwrap_or(u32::MAX)
}

/// Writes the beginning of an hour, for example 2026-11-27T10:00:00Z.
pub(super) fn format_hour(hour: u32) -> String {
    // Up to the end of the year 9999, which is all that can be written.
    const LAST: u64 = 253_402_300_799;
    let seconds = (u64::from(hour) * HOUR_SECONDS).min(LAST);
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}

/// What was used, added up.
#[derive(Debug)]
pub struct UsageReport {
    pub(super) query: UsageQuery,
    /// By the values of the columns.
    pub(super) rows: BTreeMap<Vec<String>, Counts>,
    /// The host whose rows are added.
    pub(super) host: String,
    /// All hosts that have contributed; `None` in a report of one host.
    pub(super) hosts: Option<Vec<ReportedHost>>,
}

impl UsageReport {
    pub(super) fn new(query: &UsageQuery) -> Self {
        let (rows, host, hosts) = Default::default();
        Self { query: query.clone(), rows, host, hosts }
    }

    /// Adds a row, if it is wanted.
    pub(super) fn add(&mut self, row: &RowKey, counts: &Counts) -> Result<(), UsageError> {
        let UsageQuery { from, to, by, tenant } = &self.query;
        let is_wanted = tenant.as_deref().is_none_or(|tenant| *row.names.tenant == *tenant);
        if !is_wanted || !(*from..*to).contains(&row.start) {
            return Ok(());
        }
        let group = by.iter().map(|column| column.value(row, &self.host)).collect();
        self.rows.entry(group).or_default().add(counts);
        if self.rows.len() > MAX_GROUPS { Err(UsageError::TooManyRows) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-27T11:30:00Z.
    const NOW: u64 = 1_795_779_000_000;

    fn parse(from: &str, to: &str, by: &str) -> Result<UsageQuery, UsageError> {
        UsageQuery::parse(Some(from), Some(to), Some(by), None, NOW)
    }

    #[test]
    fn times_are_hours_in_utc() {
        let query = UsageQuery::parse(None, None, None, Some("a"), NOW).unwrap();
        assert_eq!(format_hour(query.from), "2026-11-01T00:00:00Z");
        assert_eq!(format_hour(query.to), "2026-11-27T12:00:00Z");
        assert_eq!((query.by, query.tenant), (vec![Column::Tenant], Some("a".to_owned())));
        let query = parse("2026-02-28T10:59:00Z", "2026-03-01", "").unwrap();
        assert_eq!(format_hour(query.from), "2026-02-28T10:00:00Z");
        assert_eq!(format_hour(query.to), "2026-03-01T00:00:00Z");
        assert_eq!(format_hour(u32::MAX).len(), 20);
    }

    #[test]
    fn invalid_queries_are_refused() {
        for bad in ["2026-13-01", "2026-02-30", "yesterday", "1969-12-31", "2026-11-1", "=1+1"] {
            let error = parse(bad, "", "").unwrap_err();
            assert!(matches!(error, UsageError::InvalidTime { name: "from", .. }), "{bad}");
        }
        assert!(matches!(parse("2026-11-02", "2026-11-02", ""), Err(UsageError::EmptyRange)));
        assert!(matches!(parse("", "", "tenant,user"), Err(UsageError::UnknownColumn(_))));
        for twice in ["tenant,tenant", "hour,day"] {
            assert!(matches!(parse("", "", twice), Err(UsageError::RepeatedColumn(_))));
        }
    }
}
