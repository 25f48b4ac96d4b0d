//! Reads what keys and groups may be used for.

use std::net::SocketAddr;
use std::ops::RangeInclusive;

use pointsman_domain::Endpoint;
use pointsman_settings::{Code, Section, nearest};

use crate::groups::Grants;
use crate::rights::endpoint_named;

/// Reads the rights in the table of a key or group.
pub(super) fn read_grants(section: &Section<'_>) -> Grants {
    Grants {
        models: section.strings("models"),
        lanes: section.strings("lanes"),
        endpoints: read_endpoints(section),
        listeners: read_listeners(section),
        engine_admin: section.has("engine-admin").then(|| section.bool("engine-admin", false)),
        priority: read_priority(section),
    }
}

fn read_endpoints(section: &Section<'_>) -> Option<Vec<Endpoint>> {
    let names = section.strings("endpoints")?;
    let mut endpoints = Vec::with_capacity(names.len());
    for name in names {
        match endpoint_named(&name) {
            Some(endpoint) => endpoints.push(endpoint),
            None => {
                let known = Endpoint::ALL.map(Endpoint::label);
                let hint = match nearest(&name, known) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("expected one of `{}`", known.join("`, `")),
                };
                let message = format!("unknown endpoint `{name}`; {hint}");
                section.error_at("endpoints", Code::UnknownName.with(message));
            }
        }
    }
    Some(endpoints)
}

/// Reads addresses of listeners, in the form in which the host writes them.
fn read_listeners(section: &Section<'_>) -> Option<Vec<String>> {
    let addresses = section.strings("listeners")?;
    let read = addresses.into_iter().map(|text| {
        let is_socket = text.strip_prefix("unix:").is_some_and(|path| path.starts_with('/'));
        match text.parse::<SocketAddr>() {
            Ok(address) => address.to_string(),
            Err(_) => {
                if !is_socket {
                    let message = format!(
                        "invalid address \"{text}\": expected that of a listener, for example \
                         \"127.0.0.1:8000\" or \"unix:/run/pointsman/api.sock\""
                    );
                    section.error_at("listeners", Code::InvalidValue.with(message));
                }
                text
            }
        }
    });
    Some(read.collect())
}

fn read_priority(parent: &Section<'_>) -> Option<RangeInclusive<i32>> {
    if !parent.has("priority") {
        return None;
    }
    let section = parent.section("priority");
    let all = i64::from(i32::MIN)..=i64::from(i32::MAX);
    let min = section.integer("min", all.clone(), i32::MIN);
    let max = section.integer("max", all, i32::MAX);
    section.report_unknown();
    if min > max {
        section.error_at("min", Code::OutOfRange.with("must be at most `max`"));
    }
    Some(min..=max)
}
