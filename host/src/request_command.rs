//! `pointsman request …`: requests in flight of a running host.

use anyhow::Result;
use http::Method;
use pointsman_report::table::clean;
use serde_json::Value;

use crate::cli::request::Request;
use crate::output;
use crate::policy::{aligned, call, percent_encoded};

/// Runs a subcommand.
///
/// # Errors
/// If the host is not reachable, or no request has the id.
pub(crate) fn request(command: Request) -> Result<()> {
    match command {
        Request::List(host) => {
            let requests = call(&host, Method::GET, "/requests", None)?["requests"].take();
            let rows = requests.as_array().map_or(&[][..], Vec::as_slice);
            output::print(&if host.json { format!("{requests:#}\n") } else { table(rows) })
        }
        Request::Cancel { id, host } => {
            let path = format!("/requests/{}", percent_encoded(&id));
            let cancelled = call(&host, Method::DELETE, &path, None)?;
            let text = || format!("{} requests cancelled\n", cancelled["cancelled"]);
            output::print(&if host.json { format!("{cancelled:#}\n") } else { text() })
        }
    }
}

fn table(requests: &[Value]) -> String {
    const HEAD: [&str; 8] = ["ID", "TENANT", "ENDPOINT", "MODEL", "LANE", "STATE", "AGE", "TOKENS"];
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(requests.iter().map(|request| {
        let text = |name: &str| request[name].as_str().map_or_else(|| "-".to_owned(), clean);
        let state = match request["position"].as_u64() {
            Some(position) => format!("{} ({position})", text("state")),
            None => text("state"),
        };
        let age = request["age_ms"].as_u64().unwrap_or_default() / 1000;
        let tokens = request["tokens"].as_u64().map_or_else(|| "-".to_owned(), |n| n.to_string());
        [
            text("id"),
            text("tenant"),
            text("endpoint"),
            text("model"),
            text("lane"),
            state,
            format!("{age} s"),
            tokens,
        ]
    }));
    aligned(&rows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn requests_are_a_table() {
        let queued = json!({ "id": "\u{7}r1", "tenant": null, "endpoint": "chat", "model": "m",
                             "lane": "a", "state": "queued", "position": 3, "age_ms": 4200 });
        let text = table(&[queued]);
        let line: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(line[1..], ["-", "chat", "m", "a", "queued", "(3)", "4", "s", "-"]);
        assert!(!text.contains('\u{7}'), "{text}");
    }
}
