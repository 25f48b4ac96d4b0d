//! What the engines of a running host have reported of their memory, next to what was computed.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use http::Method;
use pointsman_fleet::format_size;
use serde_json::Value;

use crate::policy::HostClient;

/// A host that does not respond within this time is left out.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The parts of a lane's memory in `/status`, and their names for people.
const PARTS: [(&str, &str); 3] =
    [("weights_bytes", "weights"), ("kv_bytes", "KV"), ("compute_bytes", "buffers")];

/// Returns a line for each lane whose engine has reported its memory to the host that listens on
/// this socket; none if there is not one.
pub(super) fn lines(socket: Option<&Path>) -> BTreeMap<String, String> {
    let Some(socket) = socket.filter(|path| path.exists()) else { return BTreeMap::new() };
    let client = HostClient::on_socket(socket);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let text = runtime.ok().and_then(|runtime| {
        let call = client.call_text(Method::GET, "/status", String::new());
        runtime.block_on(async { tokio::time::timeout(TIMEOUT, call).await.ok()?.ok() })
    });
    let status = text.and_then(|text| serde_json::from_str::<Value>(&text).ok());
    let lanes = status.as_ref().and_then(|status| status["lanes"].as_array());
    let line = |lane: &Value| Some((lane["name"].as_str()?.to_owned(), line(lane)?));
    lanes.into_iter().flatten().filter_map(line).collect()
}

/// Describes the memory of one lane.
fn line(lane: &Value) -> Option<String> {
    let part =
        |(key, name): &(&str, &str)| Some(format!("{name} {}", format_size(lane[*key].as_u64()?)));
    let parts: Vec<String> = PARTS.iter().filter_map(part).collect();
    let off = lane["memory_estimate"]["off_percent"].as_f64();
    let off = off.map_or_else(String::new, |percent| format!("; estimated {percent:+.1} %"));
    let warning = match lane["memory_estimate"]["is_off"].as_bool() {
        Some(true) => " (warning: more than 10 %; set `memory`)",
        Some(false) | None => "",
    };
    (!parts.is_empty()).then(|| format!("reported: {}{off}{warning}", parts.join(", ")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reported_and_estimated_memory_are_shown() {
        let lane = |estimate: Value| {
            json!({ "weights_bytes": 1 << 30, "kv_bytes": 1 << 20, "compute_bytes": null,
                "memory_estimate": estimate })
        };
        for (lane, expected) in [
            (lane(Value::Null), Some("reported: weights 1.0 GiB, KV 1 MiB")),
            (
                lane(json!({ "off_percent": 3.12, "is_off": false })),
                Some("reported: weights 1.0 GiB, KV 1 MiB; estimated +3.1 %"),
            ),
            (
                lane(json!({ "off_percent": -20.0, "is_off": true })),
                Some(
                    "reported: weights 1.0 GiB, KV 1 MiB; estimated -20.0 % (warning: more than \
                     10 %; set `memory`)",
                ),
            ),
            (json!({ "name": "a" }), None),
        ] {
            assert_eq!(line(&lane).as_deref(), expected);
        }
        assert!(lines(Some(Path::new("/none"))).is_empty() && lines(None).is_empty());
    }
}
