//! How much memory a lane needs, and whether its group's budget covers it.

use pointsman_fleet::{
    EngineConfig, Footprint, GroupSpec, LaneSpec, Model, Remedies, Residency, UnloadMode,
    format_size,
};
use pointsman_settings::{Code, Problem, Section};

/// The memory that a lane takes of its group's budget.
#[derive(Default)]
pub(super) struct Need {
    pub(super) bytes: u64,
    pub(super) asleep: u64,
    /// How the need was computed, for people.
    pub(super) text: String,
    /// What would reduce the need.
    remedy: Remedy,
}

#[derive(Default)]
struct Remedy {
    /// The computed need, and what the engine's driver suggests to reduce it.
    computed: Option<(Footprint, Remedies)>,
    sequences: u64,
}

/// Why a need cannot be computed.
struct ComputeError {
    /// Whether `key` belongs to the engine or to the lane.
    in_engine: bool,
    key: &'static str,
    problem: Problem,
}

/// Reads or computes the need of a lane. Returns `None` only if an error was reported.
pub(super) fn read(
    lane: &Section<'_>,
    section: &Section<'_>,
    group: Option<&GroupSpec>,
    engine: &mut EngineConfig,
) -> Option<Need> {
    let declared = lane.bytes("memory");
    let asleep = read_asleep(lane, engine.strategy());
    if group.is_none() {
        for key in ["memory", "sleep-memory"] {
            // An unknown group has been reported already.
            if lane.has(key) && !lane.has("group") {
                let message = "only counts within a group; set `group`, or remove it";
                lane.error_at(key, Code::Conflict.with(message));
            }
        }
        return Some(Need {
            text: "not counted: the lane has no group".to_owned(),
            ..Need::default()
        });
    }
    let on_disk = engine.model.as_ref().filter(|model| model.path.exists());
    let computed = match on_disk.map(compute).transpose() {
        Ok(computed) => computed,
        Err(error) if declared.is_none() || error.key == "kv-cache-memory" => {
            let section = if error.in_engine { section } else { lane };
            // What is wrong with the key itself also keeps its file from being read.
            if !section.has_error_at(error.key) {
                section.error_at(error.key, error.problem);
            }
            return None;
        }
        Err(_) => None,
    };
    let need = match (declared, computed) {
        (None, None) => {
            if !lane.has("memory") {
                lane.error_at("memory", missing_memory(engine));
            }
            return None;
        }
        (None, Some(need)) => need,
        (Some(0), _) => {
            lane.error_at("memory", Code::OutOfRange.with("must be greater than zero"));
            return None;
        }
        (Some(bytes), computed) => {
            let need = computed.unwrap_or_default();
            let estimate = match need.text.as_str() {
                "" => String::new(),
                text => format!("; computed from its files: {text}"),
            };
            Need { bytes, text: format!("{} (`memory`{estimate})", format_size(bytes)), ..need }
        }
    };
    limit_cache(engine, &need);
    if asleep > need.bytes {
        lane.error_at(
            "sleep-memory",
            Code::OutOfRange.with(format!(
                "{} exceeds the need of the lane while it is awake, {}",
                format_size(asleep),
                format_size(need.bytes)
            )),
        );
    }
    Some(Need { asleep, ..need })
}

fn read_asleep(lane: &Section<'_>, strategy: UnloadMode) -> u64 {
    let asleep = lane.bytes("sleep-memory");
    match strategy {
        UnloadMode::Restart if lane.has("sleep-memory") => lane.error_at(
            "sleep-memory",
            Code::Conflict.with(
                "only used by a vLLM that sleeps; set `unload-mode = \"sleep-1\"` in its engine, \
                 or remove it",
            ),
        ),
        UnloadMode::SleepLevel1 | UnloadMode::SleepLevel2
            if lane.has("group") && !lane.has("sleep-memory") =>
        {
            lane.error_at(
                "sleep-memory",
                Code::MissingKey.with(
                    "missing; set it to the memory that the engine holds while it sleeps: about \
                     1GiB on a \
                     discrete GPU; with \"sleep-1\" on a GPU that shares system memory, the \
                     weights as well",
                ),
            );
        }
        _ => {}
    }
    asleep.unwrap_or(0)
}

/// Explains why `memory` is required.
fn missing_memory(engine: &EngineConfig) -> Problem {
    let example = "set for example `memory = \"22GiB\"`";
    let message = match &engine.model {
        Some(model) => format!(
            "missing, and cannot be computed because {} does not exist on this machine; \
             {example}: the \
             size of the weight files, the KV cache, and 2 to 4 GiB",
            model.path.display()
        ),
        None if !engine.is_managed() => format!(
            "missing; the host does not load or unload an external engine, so its memory always \
             counts: \
             {example}, or remove `group`"
        ),
        None => {
            format!("missing; {example}, the memory that the engine holds while it runs")
        }
    };
    Code::MissingKey.with(message)
}

/// Computes the need of a model from its files.
fn compute(model: &Model) -> Result<Need, ComputeError> {
    let Some(context) = model.context else {
        let message = "missing, and the size of the KV cache depends on it; set for example \
                       `max-context = 32768`, or set `memory`";
        let problem = Code::MissingKey.with(message);
        return Err(ComputeError { in_engine: false, key: "max-context", problem });
    };
    let sequences = if model.cache.is_some() { 1 } else { model.sequences };
    let computed = model.footprint(context, sequences);
    let mut footprint = computed.map_err(|error| ComputeError {
        in_engine: true,
        key: "model",
        problem: Code::Unavailable.with(error.to_string()),
    })?;
    let mut text = footprint.explain();
    if let Some(cache) = model.cache {
        if cache < footprint.kv {
            let message = format!(
                "{} cannot hold one sequence of {context} tokens, which takes {}, and vLLM would \
                 not start; \
                 raise it, or lower `max-context`",
                format_size(cache),
                format_size(footprint.kv)
            );
            let problem = Code::OutOfRange.with(message);
            return Err(ComputeError { in_engine: true, key: "kv-cache-memory", problem });
        }
        footprint.kv = cache;
        let (weights, overhead) = (format_size(footprint.weights), format_size(footprint.overhead));
        let extras: String = footprint.extras.iter().map(|extra| format!(" + {extra}")).collect();
        text = format!(
            "weights {weights} + KV {} (`kv-cache-memory`){extras} + overhead {overhead} = {}",
            format_size(cache),
            format_size(footprint.total())
        );
    }
    let bytes = footprint.total();
    let computed = Some((footprint, model.remedies));
    let remedy = Remedy { computed, sequences: sequences.into() };
    Ok(Need { bytes, asleep: 0, text, remedy })
}

/// Limits the engine's KV cache to what the weights leave of the need: without a limit vLLM takes
/// nearly the whole GPU. If the rest does not hold one sequence, vLLM would not start; then no
/// limit is set, since the operator may know better. The parts are kept, to be compared with what
/// the engine reports.
fn limit_cache(engine: &mut EngineConfig, need: &Need) {
    let Some((footprint, _)) = &need.remedy.computed else { return };
    let left = need.bytes.saturating_sub(footprint.fixed());
    let one = footprint.kv / need.remedy.sequences.max(1);
    if left >= one.max(1) {
        engine.limit_kv_cache(left);
    }
    engine.set_estimate(footprint.estimate());
}

impl Remedy {
    /// Suggests how to make the lane fit into a budget.
    fn hint(&self, budget: u64) -> String {
        let Some((footprint, remedies)) = &self.computed else {
            return "use a model with fewer bits per weight, less context or fewer slots, or raise \
                the budget"
                .to_owned();
        };
        let fixed = footprint.fixed();
        let room = (fixed < budget).then(|| budget - fixed);
        let mut hints = Vec::new();
        if let Some(room) = room {
            let each = footprint.kv_per_token.saturating_mul(self.sequences).max(1);
            let tokens = room / each / 1024 * 1024;
            if tokens > 0 {
                hints.push(format!(
                    "lower `max-context` to {tokens} with {} concurrent sequences",
                    self.sequences
                ));
            }
            hints.push("reduce `slots`".to_owned());
        }
        hints.extend(remedies(footprint, room));
        hints.join("; or ")
    }
}

/// Checks that each lane fits into its group's budget, alone and next to the lanes that are always
/// loaded.
pub(super) fn check(lanes: &[(&Section<'_>, &LaneSpec, &Need)], groups: &[GroupSpec]) {
    for (index, group) in groups.iter().enumerate() {
        let budget = group.budget;
        let of_group = format!("{} of group \"{}\"", format_size(budget), group.name);
        let mut fitting = Vec::new();
        for lane in lanes.iter().filter(|(_, spec, _)| spec.group == Some(index)) {
            let (section, _, need) = lane;
            if need.bytes > budget {
                let remedy = need.remedy.hint(budget);
                let message =
                    format!("{} > {of_group}: the lane can never be loaded; {remedy}", need.text);
                section.error_at(key_of_need(section), Code::OutOfMemory.with(message));
            } else {
                fitting.push(lane);
            }
        }
        let is_fixed =
            |spec: &LaneSpec| matches!(spec.residency, Residency::Always | Residency::External);
        let (fixed, others): (Vec<_>, Vec<_>) =
            fitting.into_iter().partition(|(_, spec, _)| is_fixed(spec));
        let held = fixed.iter().fold(0u64, |sum, (_, _, need)| sum.saturating_add(need.bytes));
        let each: Vec<String> = fixed
            .iter()
            .map(|(_, spec, need)| format!("{} {}", spec.name, format_size(need.bytes)))
            .collect();
        let each = each.join(" + ");
        if let Some((section, _, _)) = fixed.last().filter(|_| held > budget) {
            let message = format!(
                "the lanes that are always loaded do not fit together: {each} = {} > {of_group}; \
                 set \
                 `load = \"on-demand\"` for one of them, or raise the budget",
                format_size(held)
            );
            section.error_at(key_of_need(section), Code::OutOfMemory.with(message));
            continue;
        }
        for (section, spec, need) in others {
            let sum = held.saturating_add(need.bytes);
            if sum > budget {
                let message = format!(
                    "{} {} + always loaded {each} = {} > {of_group}: the lane can never be \
                     loaded; set \
                     `load = \"on-demand\"` for one of the others, or raise the budget",
                    spec.name,
                    format_size(need.bytes),
                    format_size(sum)
                );
                section.error_at(key_of_need(section), Code::OutOfMemory.with(message));
            }
        }
    }
}

/// Returns the key at which errors about a lane's need are reported.
fn key_of_need(section: &Section<'_>) -> &'static str {
    if section.has("memory") { "memory" } else { "group" }
}
