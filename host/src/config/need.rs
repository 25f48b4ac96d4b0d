//! How much memory a lane needs, and whether its group has it.

use std::path::PathBuf;

use pointsman_fleet::vllm::VllmSettings;
use pointsman_fleet::{
    EngineSpec, Footprint, GroupSpec, LaneSpec, Residency, Serving, SwitchStrategy, gib, of_model,
};

use super::engines::{Engine, Kind};
use pointsman_settings::Section;

/// A model in files, and what is asked of it.
pub(super) struct Model {
    path: PathBuf,
    kind: Kind,
    /// Tokens of the longest sequence, if that is known.
    context: Option<u32>,
    sequences: u32,
    eager: bool,
    /// Bytes of the cache, if they do not follow from the sequences.
    cache: Option<u64>,
}

impl Model {
    pub(super) fn llama_cpp(path: PathBuf, context: Option<u32>, slots: u32) -> Self {
        Self { path, kind: Kind::LlamaCpp, context, sequences: slots, eager: true, cache: None }
    }

    pub(super) fn vllm(path: PathBuf, settings: &VllmSettings, slots: u32) -> Self {
        Self {
            path,
            kind: Kind::Vllm,
            context: settings.max_model_len,
            sequences: settings.max_num_seqs.unwrap_or(slots),
            eager: settings.enforce_eager,
            cache: settings.kv_cache_bytes.filter(|bytes| *bytes > 0),
        }
    }
}

/// What a lane needs of its group's memory.
#[derive(Default)]
pub(super) struct Need {
    pub(super) bytes: u64,
    pub(super) asleep: u64,
    /// How that comes about.
    pub(super) text: String,
    /// What would help if it is too much.
    remedy: Remedy,
}

#[derive(Default)]
struct Remedy {
    footprint: Option<Footprint>,
    vllm: bool,
    sequences: u64,
}

/// Why a need cannot be worked out: a key of the engine or, without one, of the lane, and what is wrong with it.
struct Problem {
    of_engine: bool,
    key: &'static str,
    what: String,
}

/// The need of a lane in `group`. `None` only together with a mistake.
pub(super) fn read(
    lane: &Section<'_>,
    section: &Section<'_>,
    group: Option<&GroupSpec>,
    engine: &mut Engine,
) -> Option<Need> {
    let declared = lane.bytes("memory");
    let asleep = read_asleep(lane, &engine.spec);
    if group.is_none() {
        for key in ["memory", "sleep-memory"] {
            // A group that does not exist has been noted.
            if lane.has(key) && !lane.has("group") {
                let what =
                    "counts among the lanes of a group; name one with `group`, or leave it out";
                lane.error_at(key, what);
            }
        }
        return Some(Need {
            text: "not counted, as it is in no group".to_owned(),
            ..Need::default()
        });
    }
    let there = engine.model.as_ref().filter(|model| model.path.exists());
    let worked_out = match there.map(work_out).transpose() {
        Ok(worked_out) => worked_out,
        Err(problem) if declared.is_none() || problem.key == "kv-cache-memory" => {
            let at = if problem.of_engine { section } else { lane };
            at.error_at(problem.key, problem.what);
            return None;
        }
        Err(_) => None,
    };
    let need = match (declared, worked_out) {
        (None, None) => {
            if !lane.has("memory") {
                lane.error_at("memory", missing(engine));
            }
            return None;
        }
        (None, Some(need)) => need,
        (Some(0), _) => {
            lane.error_at("memory", "must be more than nothing");
            return None;
        }
        (Some(bytes), worked_out) => {
            let need = worked_out.unwrap_or_default();
            let beside = match need.text.as_str() {
                "" => String::new(),
                text => format!("; worked out from its files: {text}"),
            };
            Need { bytes, text: format!("{} (`memory`{beside})", gib(bytes)), ..need }
        }
    };
    limit_cache(engine, &need);
    if asleep > need.bytes {
        lane.error_at(
            "sleep-memory",
            format!("{} is more than it needs when it is awake, {}", gib(asleep), gib(need.bytes)),
        );
    }
    Some(Need { asleep, ..need })
}

fn read_asleep(lane: &Section<'_>, engine: &EngineSpec) -> u64 {
    let asleep = lane.bytes("sleep-memory");
    let strategy = match engine {
        EngineSpec::Vllm { strategy, .. } => *strategy,
        EngineSpec::LlamaCpp { .. } | EngineSpec::Command { .. } | EngineSpec::External(_) => {
            SwitchStrategy::Restart
        }
    };
    match strategy {
        SwitchStrategy::Restart if lane.has("sleep-memory") => lane.error_at(
            "sleep-memory",
            "is for a vLLM that sleeps; write `unload-mode = \"sleep-1\"` in its engine too, or leave it out",
        ),
        SwitchStrategy::SleepOne | SwitchStrategy::SleepTwo
            if lane.has("group") && !lane.has("sleep-memory") =>
        {
            lane.error_at(
                "sleep-memory",
                "is missing; write what the engine holds of the group's memory while it sleeps: about 1GiB on a GPU with \
                 memory of its own, and with \"sleep-1\" on one that shares the system's all of its weights besides",
            );
        }
        _ => {}
    }
    asleep.unwrap_or(0)
}

fn missing(engine: &Engine) -> String {
    let example = "write for example `memory = \"22GiB\"`";
    match (&engine.model, &engine.spec) {
        (Some(model), _) => format!(
            "is missing, and there is no {} on this machine that it could be worked out from; {example}: the size of the \
             weights' files, the cache, and 2 to 4 GiB",
            model.path.display()
        ),
        (None, EngineSpec::External(_)) => format!(
            "is missing; the engine is not ours to load or unload, so that it counts for good: {example}, or leave \
             `group` out"
        ),
        (None, _) => {
            format!(
                "is missing; {example}, what the engine holds of the group's memory while it runs"
            )
        }
    }
}

fn work_out(model: &Model) -> Result<Need, Problem> {
    let Some(context) = model.context else {
        return Err(Problem {
            of_engine: false,
            key: "max-context",
            what: "is missing, and without it nobody knows how large the cache gets; write for example `max-context = \
                   32768`, or say yourself what the lane needs with `memory`"
                .to_owned(),
        });
    };
    let sequences = if model.cache.is_some() { 1 } else { model.sequences };
    let serving =
        Serving { context: context.into(), sequences: sequences.into(), eager: model.eager };
    let mut footprint = of_model(&model.path, &serving).map_err(|error| Problem {
        of_engine: true,
        key: "model",
        what: error.to_string(),
    })?;
    let mut text = footprint.explain();
    if let Some(cache) = model.cache {
        if cache < footprint.kv {
            return Err(Problem {
                of_engine: true,
                key: "kv-cache-memory",
                what: format!(
                    "{} cannot hold one sequence of {context} tokens, which takes {}, and vLLM would not start; write at \
                     least that, or a smaller `max-context`",
                    gib(cache),
                    gib(footprint.kv)
                ),
            });
        }
        footprint.kv = cache;
        let (weights, overhead) = (gib(footprint.weights), gib(footprint.overhead));
        text = format!(
            "weights {weights} + KV {} (`kv-cache-memory`) + overhead {overhead} = {}",
            gib(cache),
            gib(footprint.total())
        );
    }
    let bytes = footprint.total();
    let vllm = model.kind == Kind::Vllm;
    let remedy = Remedy { footprint: Some(footprint), vllm, sequences: sequences.into() };
    Ok(Need { bytes, asleep: 0, text, remedy })
}

/// vLLM takes nearly the whole GPU unless it is told otherwise: it gets what the weights leave of the need. Where that is not
/// enough for one sequence, it would not start, and the operator may know better.
fn limit_cache(engine: &mut Engine, need: &Need) {
    let (EngineSpec::Vllm { settings, .. }, Some(footprint)) =
        (&mut engine.spec, &need.remedy.footprint)
    else {
        return;
    };
    let left = need.bytes.saturating_sub(footprint.weights).saturating_sub(footprint.overhead);
    let one = footprint.kv / need.remedy.sequences.max(1);
    if settings.gpu_memory_utilization.is_none()
        && settings.kv_cache_bytes.is_none()
        && left >= one.max(1)
    {
        settings.kv_cache_bytes = Some(left);
    }
}

impl Remedy {
    fn sentence(&self, budget: u64) -> String {
        let Some(footprint) = &self.footprint else {
            return "what helps: a model with fewer bits a weight, less context, fewer slots, or a group with more memory"
                .to_owned();
        };
        let fixed = footprint.weights.saturating_add(footprint.overhead);
        let mut ways = Vec::new();
        if fixed < budget {
            let each = footprint.kv_per_token.saturating_mul(self.sequences).max(1);
            let tokens = (budget - fixed) / each / 1024 * 1024;
            if tokens > 0 {
                ways.push(format!(
                    "at most `max-context = {tokens}` with {} at once",
                    self.sequences
                ));
            }
            ways.push("fewer `slots`".to_owned());
            if self.vllm {
                ways.push(format!(
                    "a cache of its own size that they share, `kv-cache-memory` up to {}",
                    gib(budget - fixed)
                ));
            }
        } else if !self.vllm {
            ways.push("a file with fewer bits a weight, such as Q4_K_M".to_owned());
        } else if is_plain(footprint) {
            // 4 bits, scales for groups of 128, and embeddings that stay as they are.
            let weights = footprint.weights / 10 * 3;
            ways.push(format!(
                "a model with 4 bits a weight (AWQ or GPTQ), whose weights take about {}",
                gib(weights)
            ));
            ways.push("less cache as well, with fewer `slots` or `kv-cache-memory`".to_owned());
        } else {
            ways.push("a smaller model".to_owned());
        }
        if self.vllm {
            ways.push(
                "more GPUs with `tensor-parallel`, whose memory the group has together".to_owned(),
            );
        }
        format!("what helps: {}", ways.join("; "))
    }
}

/// Weights of 16 bits or more.
fn is_plain(footprint: &Footprint) -> bool {
    matches!(
        footprint.dtype.as_deref(),
        Some("bfloat16" | "float16" | "float32" | "half" | "float") | None
    )
}

/// Whether each lane's group has what it needs, alone and beside those that are always there.
pub(super) fn check(lanes: &[(&Section<'_>, &LaneSpec, &Need)], groups: &[GroupSpec]) {
    for (index, group) in groups.iter().enumerate() {
        let budget = group.budget;
        let of_group = format!("{} of group \"{}\"", gib(budget), group.name);
        let mut fitting = Vec::new();
        for lane in lanes.iter().filter(|(_, spec, _)| spec.group == Some(index)) {
            let (section, _, need) = lane;
            if need.bytes > budget {
                let remedy = need.remedy.sentence(budget);
                let what =
                    format!("{} > {of_group}: it could never be loaded; {remedy}", need.text);
                section.error_at(at(section), what);
            } else {
                fitting.push(lane);
            }
        }
        let stands =
            |spec: &LaneSpec| matches!(spec.residency, Residency::Always | Residency::External);
        let (standing, others): (Vec<_>, Vec<_>) =
            fitting.into_iter().partition(|(_, spec, _)| stands(spec));
        let held = standing.iter().fold(0u64, |sum, (_, _, need)| sum.saturating_add(need.bytes));
        let each: Vec<String> = standing
            .iter()
            .map(|(_, spec, need)| format!("{} {}", spec.name, gib(need.bytes)))
            .collect();
        let each = each.join(" + ");
        if let Some((section, _, _)) = standing.last().filter(|_| held > budget) {
            let what = format!(
                "the lanes that are always loaded are too many: {each} = {} > {of_group}; let one be loaded when it is \
                 wanted (`load = \"on-demand\"`), or give the group more memory",
                gib(held)
            );
            section.error_at(at(section), what);
            continue;
        }
        for (section, spec, need) in others {
            let sum = held.saturating_add(need.bytes);
            if sum > budget {
                let what = format!(
                    "{} {} beside the lanes that are always loaded, {each}, = {} > {of_group}: it could never be loaded; \
                     let one of those be loaded when it is wanted (`load = \"on-demand\"`), or give the group more memory",
                    spec.name,
                    gib(need.bytes),
                    gib(sum)
                );
                section.error_at(at(section), what);
            }
        }
    }
}

fn at(section: &Section<'_>) -> &'static str {
    if section.has("memory") { "memory" } else { "group" }
}
