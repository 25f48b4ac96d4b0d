//! Facts of golden cases, produced by the parser that handles requests.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use pointsman_domain::Facts;
use pointsman_openai::{Head, Request};
use pointsman_policy::{CaseRequest, FactsError};

/// Returns the facts that a policy receives about a case's request.
pub(crate) fn from_case(case: &CaseRequest) -> Result<Facts, FactsError> {
    let mut headers = HeaderMap::new();
    for (name, value) in &case.headers {
        let parsed = name.parse::<HeaderName>().ok().zip(HeaderValue::from_str(value).ok());
        let (name, value) =
            parsed.ok_or_else(|| format!("`{name}: {value}` is not a valid header"))?;
        headers.insert(name, value);
    }
    let tenant = case.tenant.clone();
    let head = Head {
        id: "case".into(),
        tenant,
        key_name: case.key_name.clone(),
        key_group: case.key_group.clone(),
        allowance: case.allowance,
        headers,
        ..Head::default()
    };
    let body = case.body.get().to_owned().into();
    let request = Request::parse(case.endpoint, body, head)?;
    Ok(Facts {
        request: Arc::new(request),
        now_ms: case.now_ms,
        seed: case.seed,
        age: Duration::ZERO,
        attempt: 0,
        time_left: None,
        lanes_left: None,
    })
}
