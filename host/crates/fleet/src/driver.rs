//! What differs between kinds of engines.

use std::sync::Arc;

use pointsman_domain::EngineKind;

use crate::process::Launch;
use crate::scrape::{self, EngineMetrics};
use crate::spec::{CommandLine, EngineSpec, ExternalSpec, ProcessSpec, Secret, SwitchStrategy};
use crate::tls::Trust;
use crate::vllm::{self, VllmSettings};

/// The address we give to engines that we start: they are for us alone.
pub(crate) const HOST: &str = "127.0.0.1";

/// Where an engine listens.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// It wants TLS.
    pub(crate) https: bool,
    /// Host and port.
    pub(crate) authority: String,
    /// Comes before every path.
    pub(crate) base_path: String,
    /// Sent as a bearer token.
    pub(crate) key: Option<Secret>,
    /// It orders its own queue by `X-Vllm-Priority`, lower first (engines.md section 1.3).
    pub(crate) priorities: bool,
}

/// How an engine is started, and what is to be said about that.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) launch: Launch,
    pub(crate) warnings: Vec<String>,
}

/// Where an engine tells something about itself: a path, and who understands what comes from there.
pub(crate) type Source = (&'static str, fn(&[u8]) -> EngineMetrics);

/// One kind of engine.
pub(crate) trait Driver: Send + Sync {
    /// What policies see.
    fn kind(&self) -> EngineKind;
    /// How it is run; `None` for one that is not ours to start.
    fn run(&self) -> Option<&ProcessSpec>;
    /// How it is started for a lane on `port`.
    fn prepare(&self, lane: &str, port: u16) -> Prepared;
    /// Where it listens, once started on `port`.
    fn target(&self, port: u16) -> Target;
    /// Paths that answer 200 when it can serve, the first one that exists counting.
    fn ready_paths(&self) -> Vec<&str>;
    /// What it tells about itself.
    fn figures(&self) -> &'static [Source] {
        &[]
    }
    /// May a connection to it carry several requests, one after the other?
    fn reuses_connections(&self) -> bool {
        true
    }
    /// Whom to trust when it wants TLS; `None` if it does not.
    fn trust(&self) -> Option<Trust<'_>> {
        None
    }
    /// How it makes room for other lanes.
    fn strategy(&self) -> SwitchStrategy {
        SwitchStrategy::Restart
    }
    /// Model name to ask it for when we ask for ourselves.
    fn model<'a>(&'a self, lane: &'a str) -> &'a str {
        lane
    }
}

/// The driver for an engine.
pub(crate) fn driver(spec: &EngineSpec) -> Arc<dyn Driver> {
    match spec.clone() {
        EngineSpec::Vllm { settings, run, strategy } => Arc::new(Vllm { settings, run, strategy }),
        // 503 on every path while it loads, then 200 on `/health`.
        EngineSpec::LlamaCpp { words, run } => Arc::new(Program {
            kind: EngineKind::LlamaCpp,
            words,
            ready: "/health".to_owned(),
            run,
        }),
        EngineSpec::Command { words, ready, run } => {
            Arc::new(Program { kind: EngineKind::Other, words, ready, run })
        }
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

/// Put lane, host and port where a command line wants them.
fn fill(words: &CommandLine, run: &ProcessSpec, lane: &str, port: u16) -> Prepared {
    let fill = |word: &String| {
        word.replace("{port}", &port.to_string()).replace("{host}", HOST).replace("{lane}", lane)
    };
    let launch = Launch {
        words: words.command.iter().map(fill).collect(),
        env: words.env.iter().map(|(name, value)| (name.clone(), fill(value))).collect(),
        remove_env: Vec::new(),
        directory: run.directory.clone(),
    };
    Prepared { launch, warnings: Vec::new() }
}

/// `vllm serve`: refuses connections while it loads, then 200 with an empty body on `/health`.
struct Vllm {
    settings: Box<VllmSettings>,
    run: ProcessSpec,
    strategy: SwitchStrategy,
}

impl Driver for Vllm {
    fn kind(&self) -> EngineKind {
        EngineKind::Vllm
    }

    fn run(&self) -> Option<&ProcessSpec> {
        Some(&self.run)
    }

    fn prepare(&self, _lane: &str, port: u16) -> Prepared {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        let inherited: Vec<(String, String)> = std::env::vars_os().filter_map(text).collect();
        let command = vllm::command(&self.settings, vllm::Listen::Port(port), &inherited);
        let launch = Launch {
            words: command.words,
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

    fn figures(&self) -> &'static [Source] {
        &[("/metrics", |body| scrape::vllm(&String::from_utf8_lossy(body)))]
    }

    fn strategy(&self) -> SwitchStrategy {
        self.strategy
    }

    fn model<'a>(&'a self, _lane: &'a str) -> &'a str {
        self.settings.served_names.first().unwrap_or(&self.settings.model)
    }
}

/// A program with a command line: a llama.cpp server, or any other with the OpenAI API.
struct Program {
    kind: EngineKind,
    words: CommandLine,
    ready: String,
    run: ProcessSpec,
}

impl Driver for Program {
    fn kind(&self) -> EngineKind {
        self.kind
    }

    fn run(&self) -> Option<&ProcessSpec> {
        Some(&self.run)
    }

    fn prepare(&self, lane: &str, port: u16) -> Prepared {
        fill(&self.words, &self.run, lane, port)
    }

    fn target(&self, port: u16) -> Target {
        local(port)
    }

    fn ready_paths(&self) -> Vec<&str> {
        vec![&self.ready]
    }

    fn reuses_connections(&self) -> bool {
        // After a stream llama.cpp's server closes the connection without saying so (seen with b115xx).
        self.kind != EngineKind::LlamaCpp
    }

    fn figures(&self) -> &'static [Source] {
        match self.kind {
            EngineKind::LlamaCpp => &LLAMA_CPP_FIGURES,
            _ => &[],
        }
    }
}

/// Metrics only where it was started with `--metrics`; slots always, unless it was told not to.
const LLAMA_CPP_FIGURES: [Source; 2] = [
    ("/metrics", |body| scrape::llama_cpp(&String::from_utf8_lossy(body))),
    ("/slots", |body| {
        let (slots, slots_busy) = scrape::slots(body).unzip();
        EngineMetrics { slots, slots_busy, running: slots_busy, ..EngineMetrics::default() }
    }),
];

/// Any server with the OpenAI API that is there already. Not all of them have `/health`.
struct External(ExternalSpec);

impl Driver for External {
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

    fn trust(&self) -> Option<Trust<'_>> {
        self.0.https.then_some(Trust { also: self.0.authorities.as_deref() })
    }

    fn ready_paths(&self) -> Vec<&str> {
        vec!["/health", "/v1/models"]
    }
}
