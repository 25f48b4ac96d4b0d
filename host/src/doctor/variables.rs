//! Checks of environment variables that ROCm and vLLM read: those of the host, and those of lanes.

use std::collections::BTreeMap;

use super::expected::Expected;
use super::finding::Finding;
use super::gpu::is_strix;
use super::system::System;

/// The GPUs for which vLLM's AITER kernels exist.
const AITER: [&str; 2] = ["gfx942", "gfx950"];
/// Variables that are often set and that vLLM does not read, with the arguments that it does.
const UNKNOWN: [(&str, &str); 19] = [
    ("VLLM_MODEL", "`model` of the lane"),
    ("VLLM_DTYPE", "`dtype` of the lane"),
    ("VLLM_QUANTIZATION", "`quantization` of the lane"),
    ("VLLM_MAX_MODEL_LEN", "`max-model-len` of the lane"),
    ("VLLM_MAX_NUM_SEQS", "`max-num-seqs` of the lane"),
    ("VLLM_GPU_MEMORY_UTILIZATION", "`gpu-memory-utilization` of the lane"),
    ("VLLM_TENSOR_PARALLEL_SIZE", "`tensor-parallel` of the lane"),
    ("VLLM_PIPELINE_PARALLEL_SIZE", "`pipeline-parallel` of the lane"),
    ("VLLM_BLOCK_SIZE", "`block-size` of the lane"),
    ("VLLM_NUM_GPU_BLOCKS_OVERRIDE", "`--num-gpu-blocks-override` in `arguments`"),
    ("VLLM_ENFORCE_EAGER", "`enforce-eager` of the lane"),
    ("VLLM_TRUST_REMOTE_CODE", "`trust-remote-code` of the lane"),
    ("TRANSFORMERS_TRUST_REMOTE_CODE", "`trust-remote-code` of the lane"),
    ("VLLM_SWAP_SPACE", "`--kv-offloading-size` in `arguments`"),
    ("VLLM_HOST", "nothing: engines only listen on the loopback address"),
    ("VLLM_LOG_LEVEL", "`VLLM_LOGGING_LEVEL`"),
    ("VLLM_LOG_REQUESTS", "`--enable-log-requests` in `arguments`"),
    ("VLLM_CPU_ONLY", "a build of vLLM for CPUs"),
    ("VLLM_ROCM_GEMM_TUNING", "nothing: vLLM has no such setting"),
];
/// Variables of vLLM that are dangerous where a host runs it, with what they do.
const RISKY: [(&str, &str); 3] = [
    (
        "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH",
        "a vLLM whose engine has died goes on, and the host notices it late",
    ),
    (
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN",
        "contexts that the model was not made for return invalid output, or crash the engine",
    ),
    ("VLLM_SKIP_MODEL_NAME_VALIDATION", "requests for any model name are served by the loaded one"),
];
/// Variables for debugging ROCm, which make all engines slow, with the values that do nothing.
const DEBUGGING: [(&str, &str); 5] = [
    ("HIP_LAUNCH_BLOCKING", "0"),
    ("AMD_SERIALIZE_KERNEL", "0"),
    ("AMD_SERIALIZE_COPY", "0"),
    ("AMD_LOG_LEVEL", "0"),
    ("HSA_ENABLE_SDMA", "1"),
];

type Variables = BTreeMap<String, String>;

pub(super) fn check(system: &System, expected: &Expected) -> Vec<Finding> {
    let of_host = one(system, &system.environment);
    let mut findings = of_host.clone();
    for (lane, variables) in &expected.environments {
        // What lanes inherit is reported once.
        let own = one(system, variables).into_iter().filter(|finding| !of_host.contains(finding));
        findings.extend(own.map(|finding| Finding {
            fact: format!("lane `{lane}`: {}", finding.fact),
            ..finding
        }));
    }
    if findings.is_empty() {
        findings.push(Finding::ok("variables", "the variables of ROCm and vLLM are consistent"));
    }
    findings
}

fn one(system: &System, variables: &Variables) -> Vec<Finding> {
    let get =
        |name: &str| variables.get(name).map(String::as_str).filter(|value| !value.is_empty());
    let mut findings = Vec::new();
    // Newer ROCm has one for each GPU as well, `HSA_OVERRIDE_GFX_VERSION_0`.
    let overrides = variables
        .iter()
        .filter(|(name, value)| name.starts_with("HSA_OVERRIDE_GFX_VERSION") && !value.is_empty());
    findings.extend(overrides.filter_map(|(_, value)| hsa_override(system, value)));
    findings.extend(device_ids(system, &get));
    if let Some(port) = get("VLLM_PORT").filter(|port| port.parse::<u16>().is_err()) {
        findings.push(Finding::problem(
            "vllm_port",
            format!("VLLM_PORT is \"{port}\", as Kubernetes sets it for a service `vllm`"),
            "unset VLLM_PORT, or give the service another name",
        ));
    }
    if get("VLLM_API_KEY") == Some("None") {
        findings.push(Finding::warning(
            "vllm_api_key",
            "VLLM_API_KEY is \"None\": clients would need this text as the key",
            "unset VLLM_API_KEY",
        ));
    }
    let supports_aiter = |gfx: &str| AITER.contains(&gfx) || gfx.starts_with("gfx12");
    let other = system.gpus.iter().filter_map(|gpu| gpu.gfx.as_deref());
    if get("VLLM_ROCM_USE_AITER").is_some_and(|value| value != "0")
        && let Some(gfx) = other.clone().find(|gfx| !supports_aiter(gfx))
    {
        findings.push(Finding::problem(
            "vllm_aiter",
            format!("VLLM_ROCM_USE_AITER is set, and {gfx} has no AITER kernels"),
            "set VLLM_ROCM_USE_AITER=0",
        ));
    }
    findings.extend(UNKNOWN.iter().filter(|(name, _)| get(name).is_some()).map(|(name, key)| {
        Finding::note(
            "vllm_unknown",
            format!("{name} is set, and vLLM does not read it"),
            format!("use {key}; `pointsman import` converts env files"),
        )
    }));
    findings.extend(dangerous(&get));
    findings
}

/// Returns the findings about variables that are dangerous, or that make engines slow.
fn dangerous<'v>(get: &dyn Fn(&str) -> Option<&'v str>) -> Vec<Finding> {
    let is_on = |name: &str| get(name).is_some_and(|value| value != "0");
    let risky = RISKY.iter().filter(|(name, _)| is_on(name)).map(|(name, effect)| {
        Finding::warning("vllm_risky", format!("{name} is set: {effect}"), format!("unset {name}"))
    });
    let debugging = DEBUGGING.iter().filter_map(|(name, neutral)| {
        let value = get(name).filter(|value| value != neutral)?;
        let fact = format!("{name} is {value}, which is for debugging and slows engines down");
        Some(Finding::warning("rocm_debugging", fact, format!("unset {name}")))
    });
    risky.chain(debugging).collect()
}

/// Returns the value of `HSA_OVERRIDE_GFX_VERSION` that names a GPU itself: `11.5.1` for gfx1151.
fn own_version(gfx: &str) -> Option<String> {
    let digits = gfx.strip_prefix("gfx")?;
    let (major, rest) = digits.split_at_checked(digits.len().checked_sub(2)?)?;
    let (minor, step) = rest.split_at_checked(1)?;
    Some(format!("{major}.{minor}.{}", u32::from_str_radix(step, 16).ok()?))
}

fn hsa_override(system: &System, value: &str) -> Option<Finding> {
    const CHECK: &str = "hsa_override";
    const FIX: &str = "unset HSA_OVERRIDE_GFX_VERSION, and remove `hsa-override` of lanes";
    let gfx: Vec<&str> = system.gpus.iter().filter_map(|gpu| gpu.gfx.as_deref()).collect();
    let first = gfx.first()?;
    let is_own = |gfx: &&str| own_version(gfx).as_deref() == Some(value);
    if gfx.iter().any(is_own) {
        let fact = format!("HSA_OVERRIDE_GFX_VERSION is {value}, which is the GPU's own version");
        return Some(Finding::note(CHECK, fact, format!("{FIX}: it has no effect")));
    }
    let fact = format!("HSA_OVERRIDE_GFX_VERSION is {value}, and the GPU is {first}");
    let major = own_version(first).and_then(|own| Some(own.split('.').next()?.to_owned()));
    let is_related = major.as_deref() == value.split('.').next();
    Some(match is_related && !is_strix(first) {
        true => Finding::warning(
            CHECK,
            fact,
            "use a build for this GPU; the override works only with closely related ones",
        ),
        // Known to end with `Memory access fault by GPU node-1`.
        false => Finding::problem(CHECK, format!("{fact}: invalid memory accesses"), FIX),
    })
}

fn device_ids<'v>(system: &System, get: &dyn Fn(&str) -> Option<&'v str>) -> Vec<Finding> {
    const CHECK: &str = "device_ids";
    const USE_DEVICE: &str = "unset HIP_VISIBLE_DEVICES and CUDA_VISIBLE_DEVICES, and use \
        `device`, which becomes ROCR_VISIBLE_DEVICES";
    let (hip, cuda) = (get("HIP_VISIBLE_DEVICES"), get("CUDA_VISIBLE_DEVICES"));
    let mut findings = Vec::new();
    if let (Some(hip), Some(cuda)) = (hip, cuda)
        && hip != cuda
    {
        let fact = format!(
            "HIP_VISIBLE_DEVICES is \"{hip}\" and CUDA_VISIBLE_DEVICES is \"{cuda}\": vLLM refuses \
             to start"
        );
        findings.push(Finding::problem(CHECK, fact, USE_DEVICE));
    }
    let rocr = get("ROCR_VISIBLE_DEVICES");
    let visible = match (rocr, system.gpus.len()) {
        (Some(list), all) => list.split(',').count().min(all),
        (None, all) => all,
    };
    for (name, list, count) in [
        ("HIP_VISIBLE_DEVICES", hip, visible),
        ("CUDA_VISIBLE_DEVICES", cuda.filter(|_| hip.is_none()), visible),
        ("ROCR_VISIBLE_DEVICES", rocr, system.gpus.len()),
    ] {
        for id in list.into_iter().flat_map(|list| list.split(',')).map(str::trim) {
            findings.extend(
                device_id(system, name, id, count)
                    .map(|fact| Finding::problem(CHECK, fact, USE_DEVICE)),
            );
        }
    }
    findings
}

/// Returns what is wrong with an id of a GPU, of which a variable can name `count`.
fn device_id(system: &System, name: &str, id: &str, count: usize) -> Option<String> {
    if let Ok(index) = id.parse::<usize>() {
        let is_missing = index >= count && !system.gpus.is_empty();
        return is_missing.then(|| {
            format!("{name} names the GPU {index}, and there are {count} (counted from 0)")
        });
    }
    if name != "ROCR_VISIBLE_DEVICES" {
        return Some(format!("{name} is \"{id}\": vLLM accepts only numbers there"));
    }
    let ids = system.gpus.iter().filter_map(|gpu| gpu.unique_id.as_deref());
    let mut ids = ids.map(|id| format!("GPU-{id}"));
    let is_known = ids.any(|known| known.eq_ignore_ascii_case(id));
    (!is_known && !system.gpus.is_empty())
        .then(|| format!("{name} names \"{id}\", which does not exist"))
}
