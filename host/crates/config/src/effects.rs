//! When a changed key of the configuration takes effect in a running host: one table, from which
//! the plan of a reload, the documentation and their tests are made.

use std::fmt::Write as _;

/// When a changed key takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// For the next request, without a restart of anything.
    Now,
    /// At once, but the engine of the lane is stopped and started again, as for a switch: requests
    /// in flight finish first, and new ones wait.
    Lane,
    /// In the next process of the host.
    Handover,
    /// After a stop and a start of the host, which end the engines.
    Restart,
}

impl Effect {
    /// Returns the effect in words, for tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Now => "at once",
            Self::Lane => "restarts the lane",
            Self::Handover => "next process of the host",
            Self::Restart => "restart of the host",
        }
    }
}

/// Keys of one table that take effect in the same way.
#[derive(Debug)]
pub struct KeyGroup {
    /// The table, as a path without the positions in lists, for example `lanes.engine`.
    pub table: &'static str,
    /// When the keys take effect.
    pub effect: Effect,
    /// The keys.
    pub keys: &'static [&'static str],
}

const fn group(table: &'static str, effect: Effect, keys: &'static [&'static str]) -> KeyGroup {
    KeyGroup { table, effect, keys }
}

/// All keys of the configuration.
pub const EFFECTS: &[KeyGroup] = &[
    group(
        "server",
        Effect::Now,
        &[
            "hosts",
            "max-body",
            "body-memory",
            "max-upload",
            "upload-memory",
            "spool-dir",
            "spool-size",
            "body-timeout",
            "write-timeout",
            "idle-timeout",
            "drain-timeout",
            "keep-alive",
            "response-model",
            "idempotency-keep",
            "idempotency-grace",
            "idempotency-memory",
            "max-attempts",
            "deadline",
            "path-prefix",
            "default-model",
            "models",
            "health",
            "compression",
        ],
    ),
    group("server.cors", Effect::Now, &["origins", "credentials", "headers", "max-age"]),
    group("server", Effect::Handover, &["listen", "mode", "http2", "proxy-protocol"]),
    group(
        "server.tls",
        Effect::Handover,
        &["certificate", "key", "client-ca", "client-certificates"],
    ),
    group(
        "listeners",
        Effect::Now,
        &["path-prefix", "default-model", "models", "health", "compression"],
    ),
    group("listeners.cors", Effect::Now, &["origins", "credentials", "headers", "max-age"]),
    group("listeners", Effect::Handover, &["address", "mode", "http2", "proxy-protocol"]),
    group(
        "listeners.tls",
        Effect::Handover,
        &["certificate", "key", "client-ca", "client-certificates"],
    ),
    group("log", Effect::Now, &["level", "format"]),
    group(
        "log",
        Effect::Handover,
        &[
            "dir",
            "max-size",
            "keep",
            "max-total",
            "daily",
            "access",
            "access-omit",
            "access-client",
        ],
    ),
    group("telemetry", Effect::Now, &["traces", "sample", "follow-parent"]),
    group(
        "telemetry",
        Effect::Handover,
        &["endpoint", "protocol", "timeout", "metrics-interval", "service-name"],
    ),
    group("keys", Effect::Now, &["tenant", "env", "file", "group", "engine-admin"]),
    group("peers", Effect::Now, &["name", "key-env", "key-file"]),
    group(
        "fleet",
        Effect::Handover,
        &["name", "salt-env", "salt-file", "stale-after", "down-after"],
    ),
    group("access", Effect::Now, &["keys", "anonymous", "query-key"]),
    group(
        "access.tokens",
        Effect::Handover,
        &[
            "issuer",
            "audience",
            "jwks-url",
            "jwks-file",
            "ca",
            "algorithms",
            "leeway",
            "refresh",
            "grace",
            "tenant-claim",
            "group-claim",
            "default-tenant",
            "default-group",
        ],
    ),
    group("state", Effect::Restart, &["dir"]),
    group("state", Effect::Handover, &["orphan-grace", "after-crash"]),
    group(
        "conversations",
        Effect::Handover,
        &["enabled", "max-bytes", "max-age", "min-tokens", "save-timeout", "share-tenants"],
    ),
    group("admin", Effect::Now, &["decisions"]),
    group("admin", Effect::Handover, &["socket", "listen", "token-env", "token-file"]),
    group("console", Effect::Now, &["enabled", "client-listener"]),
    group("pick", Effect::Now, &["max-wait", "endpoints"]),
    group("pick", Effect::Restart, &["listen", "max-streams"]),
    group(
        "pick.hosts",
        Effect::Now,
        &["name", "url", "key-env", "key-file", "ca-file", "queue-there"],
    ),
    group("queue", Effect::Now, &["per-lane", "total", "max-wait", "aging"]),
    group(
        "switching",
        Effect::Now,
        &["starvation-timeout", "min-residency", "linger", "drain-timeout"],
    ),
    group(
        "policies",
        Effect::Now,
        &["dir", "on-conflict", "keep", "poll-interval", "require-signature"],
    ),
    group("policies", Effect::Handover, &["cache"]),
    group(
        "policies.chain",
        Effect::Now,
        &[
            "name",
            "source",
            "follow",
            "follow-interval",
            "weight",
            "on-error",
            "on-open",
            "config",
            "deadline",
            "budget",
            "memory",
            "rollout",
            "min-version",
        ],
    ),
    group("policies.chain", Effect::Handover, &["state"]),
    group("policies.chain.canary", Effect::Now, &["share", "by"]),
    group(
        "policies.chain.probation",
        Effect::Now,
        &["duration", "max-faults", "max-slow", "control", "outcomes"],
    ),
    group("policies.signers", Effect::Now, &["name", "file"]),
    group(
        "registries",
        Effect::Now,
        &[
            "host",
            "mirrors",
            "ca",
            "plain-http",
            "token-host",
            "username-env",
            "username-file",
            "password-env",
            "password-file",
        ],
    ),
    group(
        "guards",
        Effect::Now,
        &[
            "name",
            "only-labels",
            "never-labels",
            "never-external",
            "keep-model",
            "max-output-tokens",
            "min-priority",
            "max-priority",
        ],
    ),
    group(
        "guards.when",
        Effect::Now,
        &["tenants", "groups", "headers", "endpoints", "min-body", "min-prompt-tokens"],
    ),
    group("responses", Effect::Now, &["max-background"]),
    group(
        "responses",
        Effect::Handover,
        &["max-response", "max-tenant-bytes", "max-bytes", "max-entries", "max-age"],
    ),
    group("usage", Effect::Now, &["keep", "max-rows"]),
    group(
        "shared-state",
        Effect::Handover,
        &[
            "url",
            "url-env",
            "url-file",
            "cluster",
            "ca-file",
            "prefix",
            "interval",
            "max-pending",
            "replicas",
        ],
    ),
    group("shared-state.sentinel", Effect::Handover, &["urls", "master"]),
    group(
        "records",
        Effect::Now,
        &["dir", "mode", "max-body", "sample", "errors", "max-size", "keep"],
    ),
    group("records.queue", Effect::Now, &["records", "memory"]),
    group(
        "records.redact",
        Effect::Now,
        &["text", "tenant", "state", "headers", "fields", "key-env", "key-file"],
    ),
    group("models", Effect::Now, &["name", "lanes", "hidden"]),
    group("groups", Effect::Now, &["name", "memory", "pool", "free-timeout"]),
    group(
        "lanes",
        Effect::Now,
        &[
            "name",
            "models",
            "labels",
            "cost",
            "max-context",
            "slots",
            "group",
            "endpoints",
            "engine-model",
            "stream-usage",
            "load",
            "unload-after",
            "expected-load-time",
            "fallback-statuses",
        ],
    ),
    group("lanes.liveness", Effect::Now, &["stall-timeout", "probe-interval", "probe-timeout"]),
    group("lanes.timeouts", Effect::Now, &["connect", "first-byte", "idle"]),
    group("lanes", Effect::Lane, &["memory", "sleep-memory"]),
    group(
        "lanes.engine",
        Effect::Now,
        &[
            "key-env",
            "key-file",
            "ca-file",
            "probe-interval",
            "probe-path",
            "reuse-connections",
            "check-listener",
            "ready",
            "start-timeout",
            "stop-grace",
        ],
    ),
    group(
        "lanes.engine.backoff",
        Effect::Now,
        &["initial", "max", "reset-after", "max-failures", "retry-failed-after"],
    ),
    group(
        "lanes.engine",
        Effect::Lane,
        &[
            "driver",
            "url",
            "lane",
            "queue-there",
            "program",
            "command",
            "directory",
            "env",
            "port",
            "shutdown-timeout",
            "unload-mode",
            "model",
            "served-names",
            "adapters",
            "arguments",
            "context",
            "gpu-layers",
            "load-mode",
            "dtype",
            "quantization",
            "max-model-len",
            "max-num-seqs",
            "gpu-memory-utilization",
            "kv-cache-memory",
            "tensor-parallel",
            "pipeline-parallel",
            "enforce-eager",
            "block-size",
            "trust-remote-code",
            "tool-call-parser",
            "reasoning-parser",
            "download-dir",
            "load-format",
            "priority-scheduling",
            "offline",
            "device",
            "hsa-override",
            "cache-root",
        ],
    ),
];

/// Returns when a key takes effect, by its path without positions, for example `lanes.slots`;
/// `None` for a path that is not one of a key.
pub fn effect_of(path: &str) -> Option<Effect> {
    let (table, key) = path.rsplit_once('.')?;
    let found = EFFECTS.iter().find(|group| group.table == table && group.keys.contains(&key))?;
    Some(found.effect)
}

/// Returns the table of all keys in Markdown, for the documentation.
pub fn effects_table() -> String {
    let mut text = "| keys | take effect |\n|---|---|\n".to_owned();
    for KeyGroup { table, effect, keys } in EFFECTS {
        let keys: Vec<String> = keys.iter().map(|key| format!("`{key}`")).collect();
        // Writing to a string does not fail.
        writeln!(text, "| `{table}`: {} | {} |", keys.join(", "), effect.as_str()).ok();
    }
    text
}
