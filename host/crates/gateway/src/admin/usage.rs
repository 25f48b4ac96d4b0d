//! `GET /usage` of the admin API: what was used at this host or at all hosts, as JSON or CSV.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, Request, State};
use axum::response::Response;
use bytes::Bytes;
use pointsman_access::{Moment, UsageBook, UsageError, UsageQuery};
use serde::Deserialize;

use super::respond::respond_with;
use crate::admin_error::AdminError;
use crate::error_code::ErrorCode;
use crate::response;

/// The parameters. An unknown one may be a misspelt one, and is an error.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    from: Option<String>,
    to: Option<String>,
    by: Option<String>,
    tenant: Option<String>,
    format: Option<String>,
    hosts: Option<String>,
}

/// The form of the response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Csv,
}

/// What the parameters say.
struct Wanted {
    query: UsageQuery,
    format: Format,
    of_all_hosts: bool,
}

pub(super) async fn usage(State(book): State<Arc<UsageBook>>, request: Request) -> Response {
    let parsed = Query::try_from_uri(request.uri());
    let parsed = parsed.map_err(|error| invalid(&error)).and_then(|Query(query)| parse(&query));
    respond_with(request, move || {
        let Wanted { query, format, of_all_hosts } = parsed?;
        let report = if of_all_hosts { book.report_all(&query) } else { book.report(&query) };
        let report = report.map_err(|error| refused(&error))?;
        Ok(match format {
            Format::Json => response::json(report.to_json().to_string()),
            Format::Csv => response::typed("text/csv; charset=utf-8", Bytes::from(report.to_csv())),
        })
    })
    .await
}

fn parse(parameters: &Parameters) -> Result<Wanted, AdminError> {
    let Parameters { from, to, by, tenant, format, hosts } = parameters;
    let unknown = |message| Err(AdminError::new(ErrorCode::InvalidRequest, message));
    let format = match format.as_deref() {
        None | Some("json") => Format::Json,
        Some("csv") => Format::Csv,
        Some(_) => return unknown("unknown `format`: expected json or csv"),
    };
    let of_all_hosts = match hosts.as_deref() {
        None => false,
        Some("all") => true,
        Some(_) => return unknown("unknown `hosts`: expected all, or no such parameter"),
    };
    let now = Moment::now(Duration::ZERO).unix_ms;
    let (from, to, by) = (from.as_deref(), to.as_deref(), by.as_deref());
    let query = UsageQuery::parse(from, to, by, tenant.as_deref(), now);
    Ok(Wanted { query: query.map_err(|error| refused(&error))?, format, of_all_hosts })
}

fn invalid(error: &axum::extract::rejection::QueryRejection) -> AdminError {
    AdminError::new(ErrorCode::InvalidRequest, error.body_text())
}

fn refused(error: &UsageError) -> AdminError {
    let code = match error {
        UsageError::InvalidTime { .. }
        | UsageError::UnknownColumn(_)
        | UsageError::RepeatedColumn(_)
        | UsageError::EmptyRange
        | UsageError::OtherReport
        | UsageError::HostColumn
        | UsageError::TooManyRows => ErrorCode::InvalidRequest,
        UsageError::NotShared => ErrorCode::UsageNotShared,
        UsageError::HostsUnavailable(_) => ErrorCode::SharedStateUnavailable,
        UsageError::Store(_) => ErrorCode::StoreUnavailable,
    };
    AdminError::new(code, error.to_string())
}
