//! Fuzzing of host configurations.

use std::path::Path;

use pointsman_fuzz::Fuzz;

use crate::Config;

const SMALL: &str = r#"
queue = { per-lane = 8, total = 12, max-wait = "2s" }
switching = { min-residency = 1.5, linger = "1s" }
[server]
listen = "127.0.0.1:0"
max-body = "1MiB"
[[groups]]
name = "gpu"
memory = "10GiB"
[[lanes]]
name = "a"
models = ["m"]
group = "gpu"
memory = "8GiB"
slots = 2
expected-load-time = "1s"
[lanes.engine]
driver = "command"
command = ["engine", "--port", "{port}"]
stop-grace = "2s"
[[lanes]]
name = "b"
[lanes.engine]
driver = "external"
url = "http://127.0.0.1:1"
[[lanes]]
name = "c"
[lanes.engine]
driver = "pointsman"
url = "http://127.0.0.1:2"
lane = "a"
queue-there = 1
"#;

/// Every error of a configuration has a line of the file, and an accepted configuration is within
/// the limits that the rest of the host relies on.
#[test]
fn configurations() {
    let fuzz = Fuzz::new("configurations").input(SMALL).files("examples", ".toml");
    let words = ["context", "gpu-layers", "kv-cache-memory", "tensor-parallel", "unload-mode"];
    fuzz.words(&words).run(|input| {
        let Ok(text) = std::str::from_utf8(input) else { return false };
        match Config::parse(text, Path::new("/conf/pointsman.toml")) {
            Ok(config) => {
                assert!(!config.fleet.lanes.is_empty());
                assert_eq!(config.needs.len(), config.fleet.lanes.len());
                assert!((1..=1 << 30).contains(&config.server.max_body));
                for lane in &config.fleet.lanes {
                    assert!(lane.slots > 0, "{lane:?}");
                    assert!(lane.group.is_none_or(|group| group < config.fleet.groups.len()));
                }
                true
            }
            Err(errors) => {
                let lines = text.lines().count() + 1;
                assert!(!errors.is_empty());
                assert!(errors.iter().all(|error| error.line <= lines), "{errors:?}");
                false
            }
        }
    });
}
