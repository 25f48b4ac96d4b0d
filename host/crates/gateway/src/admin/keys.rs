//! `GET /keys` of the admin API: the limits of keys, what is used of them, and what was refused.
//! Never a secret, or a part of one.

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::response::Response;
use axum::routing::get;
use pointsman_access::{AccountId, Activity, Identity, LimitUse};
use serde::Deserialize;
use serde_json::{Value, json};

use super::requests::unix_ms;
use super::respond::respond_with;
use crate::admin_error::AdminError;
use crate::error_code::ErrorCode;
use crate::pipeline::Pipeline;
use crate::response::{self, only};

/// Number of keys that are listed by default, and in events.
pub(super) const DEFAULT_KEYS: usize = 100;
/// Maximum number of keys that are listed.
const MAX_KEYS: usize = 10_000;

/// The parameters. An unknown one may be a misspelt one, and is an error.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    limit: Option<usize>,
}

pub(super) fn routes() -> Router<Arc<Pipeline>> {
    Router::new().route("/keys", only("GET, HEAD", get(list)))
}

async fn list(State(pipeline): State<Arc<Pipeline>>, request: Request) -> Response {
    let parsed = Query::try_from_uri(request.uri()).map_err(|error| invalid(&error));
    respond_with(request, move || {
        let Query(Parameters { limit }) = parsed?;
        let limit = limit.unwrap_or(DEFAULT_KEYS).min(MAX_KEYS);
        Ok(response::json(report(&pipeline, limit).to_string()))
    })
    .await
}

fn invalid(error: &QueryRejection) -> AdminError {
    AdminError::new(ErrorCode::InvalidRequest, error.body_text())
}

/// A key, its limits, and what it has done.
struct Entry {
    identity: Arc<Identity>,
    is_token: bool,
    limits: Vec<LimitUse>,
    activity: Option<Activity>,
    /// How much of the limit is used that is nearest to be reached, in thousandths; `None` if the
    /// key has no limits.
    nearest_permille: Option<u16>,
}

impl Entry {
    /// Compares with another one: the first one is nearest to a limit.
    fn order(&self, other: &Self) -> Ordering {
        let rank = |entry: &Self| Reverse((entry.nearest_permille, entry.last_used()));
        let (one, two) = (&self.identity, &other.identity);
        let names = || (&one.tenant, &one.name).cmp(&(&two.tenant, &two.name));
        rank(self).cmp(&rank(other)).then_with(names)
    }

    fn last_used(&self) -> Option<u64> {
        Some(self.activity.as_ref()?.last_used_unix_ms)
    }

    fn to_json(&self) -> Value {
        let Self { identity, is_token, limits, activity, nearest_permille } = self;
        let refusal = activity.as_ref().and_then(|activity| activity.last_refusal.as_ref());
        let refusal = refusal.map(|refusal| {
            let mut found = account_json(&refusal.account);
            found["unix_ms"] = refusal.unix_ms.into();
            found["limit"] = refusal.limit.label().into();
            found["period"] = refusal.limit.period().map(|period| period.to_string()).into();
            found
        });
        json!({
            "name": identity.name,
            "tenant": identity.tenant,
            "group": identity.group,
            "kind": if *is_token { "token" } else { "key" },
            "expires_unix_ms": identity.expires.map(unix_ms),
            "last_used_unix_ms": self.last_used(),
            "requests": activity.as_ref().map_or(0, |activity| activity.requests),
            "refused": activity.as_ref().map_or(0, |activity| activity.refused),
            "last_refusal": refusal,
            "nearest_permille": nearest_permille,
            "limits": limits.iter().map(limit_json).collect::<Vec<_>>(),
        })
    }
}

/// Returns the keys that are nearest to their limits, at most `max`. Nothing in it changes just
/// because time passes, but for what limits per minute count.
pub(super) fn report(pipeline: &Pipeline, max: usize) -> Value {
    let mut entries = entries(pipeline);
    let total = entries.len();
    // All are compared, and only those that are shown are sorted.
    if max < total {
        entries.select_nth_unstable_by(max, Entry::order);
        entries.truncate(max);
    }
    entries.sort_unstable_by(Entry::order);
    let keys: Vec<Value> = entries.iter().map(Entry::to_json).collect();
    json!({ "total": total, "keys": keys })
}

/// Returns all keys, and the bearers of tokens that have sent requests.
fn entries(pipeline: &Pipeline) -> Vec<Entry> {
    let (keys, meter) = (&pipeline.keys, &pipeline.meter);
    let mut activity: HashMap<u64, Activity> = meter.activity().snapshot();
    let entry = |identity: Arc<Identity>, is_token, activity| {
        let limits = meter.limit_uses(&identity);
        let nearest_permille = limits.iter().map(LimitUse::used_permille).max();
        Entry { identity, is_token, limits, activity, nearest_permille }
    };
    let mut entries = Vec::new();
    for identity in keys.identities() {
        let activity = activity.remove(&identity.key);
        entries.push(entry(identity, false, activity));
    }
    // What is left: bearers of tokens, and keys that are gone.
    for activity in activity.into_values() {
        if let Some(identity) = keys.current_bearer(&activity.identity) {
            entries.push(entry(Arc::new(identity), true, Some(activity)));
        }
    }
    entries
}

fn limit_json(limit: &LimitUse) -> Value {
    let mut found = account_json(&limit.account);
    found["limit"] = limit.limit.label().into();
    found["period"] = limit.limit.period().map(|period| period.to_string()).into();
    found["max"] = limit.max.into();
    found["used"] = limit.used.into();
    found["left"] = limit.left().into();
    // In whole seconds: two clocks are read, and their difference is not exact.
    found["resets_unix_ms"] = limit.resets_unix_ms.map(|ms| ms.div_ceil(1000) * 1000).into();
    found
}

/// Returns what an account is for, and the name of its group or tenant.
fn account_json(account: &AccountId) -> Value {
    let (kind, name) = match account {
        AccountId::Key(_) => ("key", None),
        AccountId::Group(name) => ("group", Some(name)),
        AccountId::Tenant(name) => ("tenant", Some(name)),
    };
    json!({ "account": kind, "account_name": name })
}
