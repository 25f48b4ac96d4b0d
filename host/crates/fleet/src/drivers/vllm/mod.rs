//! `driver = "vllm"`: `vllm serve`, which refuses connections while loading, then returns 200 with
//! an empty body on `/health`.
//!
//! ```text
//!   [lanes.engine] ──section──> VllmSettings ──check──> problems
//!   env file ──────import─────>      │
//!                                 command ──> arguments + environment ──> the process
//!                                                                             │ log lines
//!                                                         progress: read, measure
//! ```
//!
//! The modules `command`, `import`, `progress` and `settings` do not start processes, read files or
//! access the host's environment: all input and output is text and values. The details are those
//! of vLLM 0.32.0: its `envs.py` and argument parser, and a recorded start.

pub mod command;
mod endpoints;
mod env_file;
pub mod import;
mod measure;
pub(crate) mod metrics;
mod model_folder;
mod need;
pub mod progress;
mod section;
pub mod settings;
pub(crate) mod sleep;
mod utilization;

use std::path::PathBuf;
use std::time::Duration;

use pointsman_domain::{EndpointSet, EngineKind, is_local_path, public_name};

pub use self::command::{Command, Listen, command};
pub use self::env_file::parse_env_file;
pub use self::import::{Imported, import};
pub use self::measure::{Measurement, measure};
pub(crate) use self::progress::message;
pub use self::progress::{Loading, Phase, read};
pub use self::settings::{GpuSelector, Permille, SettingProblem, VllmSettings};
use self::utilization::fraction;
use super::process_section::missing_model;
use crate::driver::{
    Description, Driver, DriverInfo, LaneContext, LaneDefaults, MetricsSource, Prepared, Target,
    is_equal,
};
use crate::engine_spec::{CommandLine, ProcessSpec, UnloadMode};
use crate::footprint::{format_size, weight_files};
use crate::hub_cache::hub_snapshot;
use crate::launch::Launch;
use crate::launch_memory::LaunchMemory;
use crate::memory::Pool;
use crate::memory_estimate::MemoryEstimate;
use crate::model_card::{Adapter, ModelCard};
use crate::progress::Evidence;
use crate::proof::Reuse;

/// The driver.
pub static DRIVER: DriverInfo = DriverInfo {
    key: "vllm",
    purpose: None,
    kind: EngineKind::Vllm,
    defaults: LaneDefaults {
        expected_load: Duration::from_secs(60),
        probe_interval: Duration::from_secs(60),
        ..LaneDefaults::MANAGED
    },
    read: section::read,
};

/// A vLLM server.
#[derive(Debug, PartialEq)]
pub struct Vllm {
    /// Settings of vLLM.
    pub settings: VllmSettings,
    /// How the host runs the process.
    pub run: ProcessSpec,
    /// How the engine frees its memory for other lanes.
    pub strategy: UnloadMode,
    /// The model's own configuration says that it reads images.
    pub vision: bool,
    /// The endpoints of the model, as far as its files and the settings tell.
    pub endpoints: EndpointSet,
    /// The memory that was computed from the model's files.
    pub estimate: Option<MemoryEstimate>,
}

impl Driver for Vllm {
    fn info(&self) -> &'static DriverInfo {
        &DRIVER
    }

    fn equals(&self, other: &dyn Driver) -> bool {
        is_equal(self, other)
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
        let command = command(&self.settings, Listen::Port(port), &inherited);
        let launch = Launch {
            command: command.words,
            env: command.env,
            remove_env: command.remove_env,
            directory: self.run.directory.clone(),
        };
        Prepared { launch, warnings: command.warnings }
    }

    fn target(&self, port: u16) -> Target {
        Target { priorities: self.settings.priority_scheduling, ..Target::local(port) }
    }

    fn ready_paths(&self) -> Vec<&str> {
        vec!["/health"]
    }

    fn reuse(&self) -> Reuse {
        Reuse::Proven
    }

    fn progress_evidence(&self) -> Evidence {
        // Tokens, also those of the prompt, are counted with the first output. The processes poll
        // the GPU in a loop, whether it works or not.
        Evidence { prompts: false, counters: true, computing: false }
    }

    fn metrics_sources(&self) -> &'static [MetricsSource] {
        &[("/metrics", |body| metrics::vllm(&String::from_utf8_lossy(body)))]
    }

    fn strategy(&self) -> UnloadMode {
        self.strategy
    }

    fn model<'a>(&'a self, _lane: &'a str) -> &'a str {
        self.settings.served_names.first().unwrap_or(&self.settings.model)
    }

    fn card(&self) -> ModelCard {
        let public = |model: &str| Some(public_name(model).to_owned());
        let adapters = self.settings.adapters.iter();
        ModelCard {
            root: public(&self.settings.model),
            owner: Some("vllm".to_owned()),
            context: self.settings.max_model_len,
            trained_context: None,
            tools: self.settings.tool_call_parser.is_some(),
            reasoning: self.settings.reasoning_parser.is_some(),
            vision: self.vision,
            endpoints: None,
            adapters: adapters
                .map(|(name, path)| Adapter { name: name.clone(), root: public(path) })
                .collect(),
            peer: None,
        }
    }

    fn endpoints(&self) -> EndpointSet {
        self.endpoints
    }

    fn limit_kv_cache(&mut self, bytes: u64) {
        let settings = &mut self.settings;
        if settings.gpu_memory_utilization.is_none() && settings.kv_cache_bytes.is_none() {
            // The flag counts for each GPU.
            settings.kv_cache_bytes = Some(bytes / settings.devices());
        }
    }

    fn fit(&self, launch: &mut Launch, memory: &LaunchMemory) -> Option<String> {
        let fraction = fraction(&self.settings, memory)?;
        launch.command.extend(["--gpu-memory-utilization".to_owned(), fraction.part.to_string()]);
        Some(format!("gpu-memory-utilization {}: {}", fraction.part, fraction.explain()))
    }

    fn estimate(&self) -> Option<MemoryEstimate> {
        self.estimate
    }

    fn set_estimate(&mut self, estimate: MemoryEstimate) {
        // As each of its workers reports it.
        let devices = self.settings.devices();
        self.estimate = Some(MemoryEstimate {
            weights: estimate.weights / devices,
            // Without a size, the cache gets what is left of the fraction.
            kv: self.settings.kv_cache_bytes,
            ..estimate
        });
    }

    fn weights(&self) -> Vec<PathBuf> {
        let folder = self.run.directory.clone().unwrap_or_default();
        let adapters = self.settings.adapters.iter().map(|(_, path)| path);
        let own = self.settings.download_dir.as_ref().map(|own| folder.join(own));
        let variable = |name: &str| {
            let set = self.settings.env.iter().find(|(known, _)| known == name);
            let set = set.map(|(_, value)| value.into());
            set.or_else(|| std::env::var_os(name)).map(PathBuf::from)
        };
        let path = |model: &String| {
            let path = folder.join(model);
            if path.exists() { Some(path) } else { hub_snapshot(model, own.as_deref(), variable) }
        };
        let models = std::iter::once(&self.settings.model).chain(adapters);
        models.filter_map(path).flat_map(|path| weight_files(&path)).collect()
    }

    fn describe(&self, lane: &LaneContext<'_>) -> Description {
        let port = Listen::Port(self.run.port.unwrap_or(0));
        let mut found = command(&self.settings, port, lane.environment);
        if let Some(place) =
            found.words.iter().position(|word| word == "--port").filter(|_| self.run.port.is_none())
            && let Some(port) = found.words.get_mut(place + 1)
        {
            "{port}".clone_into(port);
        }
        // Without the free memory, which is another one when the engine is started.
        let (need, total) = (lane.need, lane.pool_total);
        let memory = LaunchMemory { need, total, unused: None, device: None };
        match fraction(&self.settings, &memory).filter(|_| lane.pool.is_some()) {
            Some(fraction) => found
                .words
                .extend(["--gpu-memory-utilization".to_owned(), fraction.part.to_string()]),
            None => found.warnings.extend(utilization(&self.settings, lane)),
        }
        let model = Some(self.settings.model.as_str()).filter(|model| is_local_path(model));
        found.warnings.extend(
            model.and_then(|model| {
                missing_model(model, &found.words, self.run.directory.as_deref())
            }),
        );
        let command = CommandLine { command: found.words, env: found.env };
        Description { command: Some(command), warnings: found.warnings }
    }
}

/// Warns if the fraction of the GPU that a vLLM takes does not match its need, or cannot be
/// computed.
fn utilization(settings: &VllmSettings, lane: &LaneContext<'_>) -> Option<String> {
    let Some(Pool::Gpu { .. }) = lane.pool else { return None };
    match settings.gpu_memory_utilization {
        None => lane.pool_total.is_none().then(|| {
            "the size of the GPU is unknown, so the host leaves `gpu-memory-utilization` to vLLM, \
             which only starts if 0.92 of the GPU's memory is free; set it to the fraction that \
             this lane may take"
                .to_owned()
        }),
        Some(Permille(part)) if settings.kv_cache_bytes.is_none() => {
            let takes = lane.pool_total? / 1000 * u64::from(part);
            (takes > lane.need).then(|| {
                format!(
                    "vLLM takes {} of the GPU, {}, but the group reserves {} for it; remove the \
                     fraction, raise `memory`, or set `kv-cache-memory`",
                    Permille(part),
                    format_size(takes),
                    format_size(lane.need)
                )
            })
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests;
