//! Reads `[lanes.engine]` with `driver = "vllm"`.

use std::time::Duration;

use pointsman_settings::{Code, Section, format_duration};

use super::endpoints::endpoints;
use super::model_folder::ModelFolder;
use super::settings::{GpuSelector, Permille, SettingProblem, VllmSettings};
use super::{Vllm, need};
use crate::driver::{ANY_NAME, EngineConfig, LaneBasics};
use crate::drivers::process_section::{allow_foreign_listener, names_of_model, read_run};
use crate::engine_spec::UnloadMode;

/// The first load on a new type of GPU compiles kernels for many minutes.
const START_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// Time that vLLM's processes take to exit, on top of the time that running requests get.
const TEARDOWN: Duration = Duration::from_secs(25);

pub(super) fn read(section: &Section<'_>, lane: &LaneBasics<'_>) -> Option<EngineConfig> {
    let shutdown = section.duration("shutdown-timeout", Duration::from_secs(10));
    let mut run = read_run(section, lane.folder, START_TIMEOUT, shutdown + TEARDOWN);
    if run.stop_grace < shutdown {
        section.error_at(
            "stop-grace",
            Code::Conflict.with(format!(
                "less than `shutdown-timeout` ({}): running requests would be killed before it; \
                 set it to {} \
                 or remove it",
                format_duration(shutdown),
                format_duration(shutdown + TEARDOWN)
            )),
        );
    }
    let strategies = [
        ("restart", UnloadMode::Restart),
        ("sleep-1", UnloadMode::SleepLevel1),
        ("sleep-2", UnloadMode::SleepLevel2),
    ];
    let strategy = section.choice("unload-mode", &strategies, UnloadMode::Restart);
    let model = section.required_string("model", "\"/models/coder-awq\"");
    let mut settings = read_settings(section, lane);
    allow_foreign_listener(section, &settings.program, &mut run);
    settings.shutdown_timeout_s =
        u32::try_from(shutdown.as_millis().div_ceil(1000)).unwrap_or(u32::MAX);
    settings.sleep_mode = strategy != UnloadMode::Restart;
    // A missing model has been reported; the other settings are checked nevertheless.
    settings.model = model.unwrap_or("model").to_owned();
    check(section, &settings, lane);
    // LoRA adapters add model names that are only known to vLLM.
    let adapters = settings.arguments.iter().any(|word| word.starts_with("--lora-modules"));
    let mut names = settings.served_names.clone();
    if names.is_empty() {
        names.push(settings.model.clone());
    }
    names.extend(settings.adapters.iter().map(|(name, _)| name.clone()));
    let path = run.directory.as_deref()?.join(model?);
    let folder = ModelFolder::read(&path);
    let endpoints = endpoints(&folder, &settings.arguments);
    let vision = folder.has_vision;
    if adapters {
        names.truncate(1);
        names.push(ANY_NAME.to_owned());
    }
    Some(EngineConfig {
        max_context: settings.max_model_len.unwrap_or(0),
        names,
        derived_names: names_of_model(model?, &path),
        model: Some(need::model(path, run.directory.as_deref()?, &settings, lane.slots)),
        ..EngineConfig::new(Vllm { settings, run, strategy, vision, endpoints, estimate: None })
    })
}

/// Reads all settings except the model, the sleep mode and the shutdown timeout.
fn read_settings(section: &Section<'_>, lane: &LaneBasics<'_>) -> VllmSettings {
    let text = |key| section.string(key).map(str::to_owned);
    let at_most = |max| 1..=max;
    let utilization = section.decimal("gpu-memory-utilization").and_then(|text| {
        let part = Permille::parse(&text);
        if part.is_none() {
            let message =
                format!("{text} is out of range: expected a fraction in (0, 1], for example 0.45");
            section.error_at("gpu-memory-utilization", Code::OutOfRange.with(message));
        }
        part
    });
    let device = |text: &str| {
        GpuSelector::parse(text).ok_or_else(|| {
            format!(
                "invalid GPU \"{}\": expected its index, for example \"0\", or \"GPU-\" and its \
                 UUID as shown by \
                 `rocminfo`",
                text.escape_debug()
            )
        })
    };
    let adapters = section.string_pairs("adapters");
    VllmSettings {
        program: section.strings("program").unwrap_or_else(|| VllmSettings::default().program),
        served_names: section
            .strings("served-names")
            .unwrap_or_else(|| default_names(lane, &adapters)),
        dtype: text("dtype"),
        quantization: text("quantization"),
        max_model_len: section
            .optional_integer("max-model-len", at_most(100_000_000))
            .or(Some(lane.max_context).filter(|tokens| *tokens > 0)),
        max_num_seqs: section
            .optional_integer("max-num-seqs", at_most(1_000_000))
            .or(Some(lane.slots)),
        gpu_memory_utilization: utilization,
        kv_cache_bytes: section.bytes("kv-cache-memory"),
        tensor_parallel: section.optional_integer("tensor-parallel", at_most(1024)),
        pipeline_parallel: section.optional_integer("pipeline-parallel", at_most(1024)),
        enforce_eager: section.bool("enforce-eager", false),
        block_size: section.optional_integer("block-size", at_most(65_536)),
        trust_remote_code: section.bool("trust-remote-code", false),
        tool_call_parser: text("tool-call-parser"),
        reasoning_parser: text("reasoning-parser"),
        adapters,
        download_dir: text("download-dir"),
        load_format: text("load-format"),
        priority_scheduling: section.bool("priority-scheduling", true),
        offline: section.bool("offline", false),
        device: section.parsed("device", device),
        hsa_override: text("hsa-override"),
        cache_root: text("cache-root"),
        arguments: section.strings("arguments").unwrap_or_default(),
        env: section.string_pairs("env"),
        ..VllmSettings::default()
    }
}

/// Returns the default served names: the lane's name, which vLLM reports as the model, and the
/// lane's models, except those that are adapters.
fn default_names(lane: &LaneBasics<'_>, adapters: &[(String, String)]) -> Vec<String> {
    let mut names = vec![lane.name.clone()];
    for model in &lane.models {
        let is_adapter = adapters.iter().any(|(name, _)| name == model);
        if !is_adapter && !names.contains(model) {
            names.push(model.clone());
        }
    }
    names
}

fn check(section: &Section<'_>, settings: &VllmSettings, lane: &LaneBasics<'_>) {
    if settings.kv_cache_bytes == Some(0) {
        section.error_at("kv-cache-memory", Code::OutOfRange.with("must be greater than zero"));
    }
    // A cache of zero bytes has been reported already.
    let settings = VllmSettings { kv_cache_bytes: None, ..settings.clone() };
    for SettingProblem { key, message } in settings.check() {
        section.error_at(key, message);
    }
    let gpus = settings
        .tensor_parallel
        .unwrap_or(1)
        .saturating_mul(settings.pipeline_parallel.unwrap_or(1));
    if settings.device.is_some() && gpus > 1 {
        section.error_at(
            "device",
            format!(
                "names one GPU, but `tensor-parallel` times `pipeline-parallel` needs {gpus}; \
                 remove it, or set \
                 `env = {{ ROCR_VISIBLE_DEVICES = \"0,1\" }}` instead"
            ),
        );
    }
    if let Some(max) = settings.max_model_len
        && lane.max_context > max
    {
        section.error_at(
            "max-model-len",
            format!(
                "{max} is less than the lane's `max-context` ({}), so vLLM would reject requests \
                 that the lane \
                 accepts; remove one of the two",
                lane.max_context
            ),
        );
    }
}
