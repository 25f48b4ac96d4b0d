//! Drivers: what differs between kinds of engines.

use std::sync::Arc;

use pointsman_domain::EngineKind;

use crate::launch::{HOST, Launch};
use crate::scrape::{self, EngineMetrics};
use crate::spec::{CommandLine, EngineSpec, ExternalSpec, ProcessSpec, Secret, UnloadMode};
use crate::tls::TrustedRoots;
use crate::vllm::{self, VllmSettings};

/// The address of an engine.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// Connect with TLS.
    pub(crate) https: bool,
    /// Host and port.
    pub(crate) authority: String,
    /// Prefix of every path.
    pub(crate) base_path: String,
    /// Bearer token.
    pub(crate) key: Option<Secret>,
    /// The engine orders its own queue by `X-Vllm-Priority`, lower first (engines.md section 1.3).
    pub(crate) priorities: bool,
}

/// A prepared start of an engine.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) launch: Launch,
    /// Messages for the log.
    pub(crate) warnings: Vec<String>,
}

/// An endpoint with metrics: a path, and the parser of its responses.
pub(crate) type MetricsSource = (&'static str, fn(&[u8]) -> EngineMetrics);

/// One kind of engine.
pub(crate) trait Driver: Send + Sync {
    /// Returns the name of the driver in the configuration.
    fn name(&self) -> &'static str;
    /// Returns the kind of engine that policies see.
    fn kind(&self) -> EngineKind;
    /// Returns how the host runs the engine, or `None` for an external one.
    fn run(&self) -> Option<&ProcessSpec>;
    /// Prepares to start the engine of a lane on `port`.
    fn prepare(&self, lane: &str, port: u16) -> Prepared;
    /// Returns the address of an engine that was started on `port`.
    fn target(&self, port: u16) -> Target;
    /// Returns the readiness paths. The first one that exists decides: a 2xx status means ready.
    fn ready_paths(&self) -> Vec<&str>;
    /// Returns the endpoints with metrics.
    fn metrics_sources(&self) -> &'static [MetricsSource] {
        &[]
    }
    /// Returns true if a connection to the engine can be reused for several requests.
    fn reuses_connections(&self) -> bool {
        true
    }
    /// Returns the roots that the engine's certificate is verified against, or `None` without TLS.
    fn trusted_roots(&self) -> Option<TrustedRoots<'_>> {
        None
    }
    /// Returns how the engine frees its memory for other lanes.
    fn strategy(&self) -> UnloadMode {
        UnloadMode::Restart
    }
    /// Returns the model name for the host's own requests.
    fn model<'a>(&'a self, lane: &'a str) -> &'a str {
        lane
    }
}

/// Creates the driver of an engine.
pub(crate) fn driver(spec: &EngineSpec) -> Arc<dyn Driver> {
    match spec.clone() {
        EngineSpec::Vllm { settings, run, strategy } => Arc::new(Vllm { settings, run, strategy }),
        // Returns 503 on every path while loading, then 200 on `/health`.
        EngineSpec::LlamaCpp { words, run } => Arc::new(Program {
            name: "llama-cpp",
            kind: EngineKind::LlamaCpp,
            command_line: words,
            ready_path: "/health".to_owned(),
            run,
        }),
        EngineSpec::Command { words, ready, run } => Arc::new(Program {
            name: "command",
            kind: EngineKind::Other,
            command_line: words,
            ready_path: ready,
            run,
        }),
        EngineSpec::External(external) => Arc::new(External(external)),
    }
}

fn local(port: u16) -> Target {
    Target {
        https: false,
        authority: format!("{HOST}:{port}"),
        base_path: String::new(),
        key: None,
        priorities: false,
    }
}

/// Replaces the placeholders for lane, host and port in a command line.
fn fill(command_line: &CommandLine, run: &ProcessSpec, lane: &str, port: u16) -> Prepared {
    let fill = |word: &String| {
        word.replace("{port}", &port.to_string()).replace("{host}", HOST).replace("{lane}", lane)
    };
    let launch = Launch {
        command: command_line.command.iter().map(fill).collect(),
        env: command_line.env.iter().map(|(name, value)| (name.clone(), fill(value))).collect(),
        remove_env: Vec::new(),
        directory: run.directory.clone(),
    };
    Prepared { launch, warnings: Vec::new() }
}

/// The driver of `vllm serve`, which refuses connections while loading, then returns 200 with an
/// empty body on `/health`.
struct Vllm {
    settings: Box<VllmSettings>,
    run: ProcessSpec,
    strategy: UnloadMode,
}

impl Driver for Vllm {
    fn name(&self) -> &'static str {
        "vllm"
    }

    fn kind(&self) -> EngineKind {
        EngineKind::Vllm
    }

    fn run(&self) -> Option<&ProcessSpec> {
        Some(&self.run)
    }

    fn prepare(&self, _lane: &str, port: u16) -> Prepared {
        // Variables that are not UTF-8 are inherited anyway; vLLM's own are all ASCII.
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        let inherited: Vec<(String, String)> = std::env::vars_os().filter_map(text).collect();
        let command = vllm::command(&self.settings, vllm::Listen::Port(port), &inherited);
        let launch = Launch {
            command: command.words,
            env: command.env,
            remove_env: command.remove_env,
            directory: self.run.directory.clone(),
        };
        Prepared { launch, warnings: command.warnings }
    }

    fn target(&self, port: u16) -> Target {
        Target { priorities: self.settings.priority_scheduling, ..local(port) }
    }

    fn ready_paths(&self) -> Vec<&str> {
        vec!["/health"]
    }

    fn metrics_sources(&self) -> &'static [MetricsSource] {
        &[("/metrics", |body| scrape::vllm(&String::from_utf8_lossy(body)))]
    }

    fn strategy(&self) -> UnloadMode {
        self.strategy
    }

    fn model<'a>(&'a self, _lane: &'a str) -> &'a str {
        self.settings.served_names.first().unwrap_or(&self.settings.model)
    }
}

/// The driver of a program with a command line: a llama.cpp server, or any other server with the
/// OpenAI API.
struct Program {
    name: &'static str,
    kind: EngineKind,
    command_line: CommandLine,
    ready_path: String,
    run: ProcessSpec,
}

impl Driver for Program {
    fn name(&self) -> &'static str {
        self.name
    }

    fn kind(&self) -> EngineKind {
        self.kind
    }

    fn run(&self) -> Option<&ProcessSpec> {
        Some(&self.run)
    }

    fn prepare(&self, lane: &str, port: u16) -> Prepared {
        fill(&self.command_line, &self.run, lane, port)
    }

    fn target(&self, port: u16) -> Target {
        local(port)
    }

    fn ready_paths(&self) -> Vec<&str> {
        vec![&self.ready_path]
    }

    fn reuses_connections(&self) -> bool {
        // llama.cpp's server closes the connection after a stream without announcing it (seen with
        // b115xx).
        self.kind != EngineKind::LlamaCpp
    }

    fn metrics_sources(&self) -> &'static [MetricsSource] {
        match self.kind {
            EngineKind::LlamaCpp => &LLAMA_CPP_METRICS,
            EngineKind::Vllm | EngineKind::External | EngineKind::Other => &[],
        }
    }
}

/// llama.cpp has metrics only if started with `--metrics`; it has slots unless started with
/// `--no-slots`.
const LLAMA_CPP_METRICS: [MetricsSource; 2] = [
    ("/metrics", |body| scrape::llama_cpp(&String::from_utf8_lossy(body))),
    ("/slots", |body| {
        let (slots, slots_busy) = scrape::slots(body).unzip();
        EngineMetrics { slots, slots_busy, running: slots_busy, ..EngineMetrics::default() }
    }),
];

/// The driver of an existing server with the OpenAI API. Not every server has `/health`.
struct External(ExternalSpec);

impl Driver for External {
    fn name(&self) -> &'static str {
        "external"
    }

    fn kind(&self) -> EngineKind {
        EngineKind::External
    }

    fn run(&self) -> Option<&ProcessSpec> {
        None
    }

    fn prepare(&self, _lane: &str, _port: u16) -> Prepared {
        Prepared { launch: Launch::default(), warnings: Vec::new() }
    }

    fn target(&self, _port: u16) -> Target {
        let ExternalSpec { https, authority, base_path, key, .. } = self.0.clone();
        Target { https, authority, base_path, key, priorities: false }
    }

    fn trusted_roots(&self) -> Option<TrustedRoots<'_>> {
        self.0.https.then_some(TrustedRoots { additional: self.0.authorities.as_deref() })
    }

    fn ready_paths(&self) -> Vec<&str> {
        vec!["/health", "/v1/models"]
    }
}
