//! What a configuration comes to, in lines for people. No secrets.

use pointsman_fleet::vllm::{Listen, Permille, VllmSettings, command};
use pointsman_fleet::{
    CommandLine, EngineSpec, Gpu, GroupSpec, LaneSpec, Machine, Pool, Residency, gib,
};

use crate::config::{Config, format_duration, shown_pool};

/// Most lanes of a group for which all sets are looked at.
const MOST_SETS: usize = 16;

/// Lines about the groups and lanes of a configuration on this machine. `environment` is what engines inherit.
pub(super) fn of(
    config: &Config,
    machine: &Machine,
    environment: &[(String, String)],
) -> Vec<String> {
    let fleet = &config.fleet;
    let mut lines = Vec::new();
    if let Some(dir) = &fleet.state_dir {
        lines.push(format!("engines are recorded in {}", dir.display()));
    }
    let gpus = machine.gpus();
    for (index, group) in fleet.groups.iter().enumerate() {
        let members: Vec<(&LaneSpec, &String)> = fleet
            .lanes
            .iter()
            .zip(&config.needs)
            .filter(|(lane, _)| lane.group == Some(index))
            .collect();
        of_group(group, &members, &mut lines);
        lines.extend(group.pool.map(|pool| format!("  now: {}", machine.explain(&pool))));
        let total = group.pool.and_then(|pool| total(pool, machine, &gpus));
        if let Some(total) = total.filter(|total| group.budget > *total) {
            lines.push(format!("  note: the group has more than this machine, {}", gib(total)));
        }
    }
    lines.extend(shared(&fleet.groups, machine, &gpus));
    for lane in &fleet.lanes {
        let group = lane.group.and_then(|index| fleet.groups.get(index));
        of_lane(lane, group, &gpus, environment, &mut lines);
    }
    lines
}

fn of_group(group: &GroupSpec, members: &[(&LaneSpec, &String)], lines: &mut Vec<String>) {
    let pool = shown_pool(group.pool);
    lines.push(format!(
        "group {}: {} for its lanes together, pool {pool}",
        group.name,
        gib(group.budget)
    ));
    for (lane, need) in members {
        lines.push(format!("  {}: {need}", lane.name));
    }
    let names = |lanes: &[&LaneSpec], between: &str| {
        lanes.iter().map(|lane| lane.name.as_str()).collect::<Vec<_>>().join(between)
    };
    let turns = |lane: &&LaneSpec| matches!(lane.residency, Residency::OnDemand { .. });
    let (turning, standing): (Vec<&LaneSpec>, Vec<&LaneSpec>) =
        members.iter().map(|(lane, _)| *lane).partition(turns);
    let held = standing.iter().fold(0u64, |sum, lane| sum.saturating_add(lane.need));
    let room = group.budget.saturating_sub(held);
    if !standing.is_empty() {
        let left = if turning.is_empty() { "left over" } else { "left for the others" };
        lines.push(format!(
            "  always there: {} ({}; {} {left})",
            names(&standing, ", "),
            gib(held),
            gib(room)
        ));
    }
    let all = turning.iter().fold(0u64, |sum, lane| sum.saturating_add(lane.need));
    match turning.len() {
        0 | 1 => {}
        _ if all <= room => {
            lines.push(format!("  fit together: {} ({})", names(&turning, ", "), gib(all)))
        }
        2..=MOST_SETS => {
            let needs: Vec<u64> = turning.iter().map(|lane| lane.need).collect();
            let sets = together(&needs, room);
            if sets.iter().all(|set| set.len() == 1) {
                lines.push(format!("  take turns, one at a time: {}", names(&turning, ", ")));
                return;
            }
            let set = |set: &Vec<usize>| {
                let lanes: Vec<&LaneSpec> =
                    set.iter().filter_map(|lane| turning.get(*lane).copied()).collect();
                names(&lanes, " + ")
            };
            let sets: Vec<String> = sets.iter().map(set).collect();
            lines.push(format!("  take turns; at once there can be: {}", sets.join(", or ")));
        }
        _ => lines.push(format!("  take turns, as they fit: {}", names(&turning, ", "))),
    }
}

/// The sets of lanes that fit into `room` together and to which none can be added; for up to [`MOST_SETS`] lanes.
fn together(needs: &[u64], room: u64) -> Vec<Vec<usize>> {
    let members = |set: u32| (0..needs.len()).filter(move |lane| set & (1 << lane) != 0);
    let sum = |set: u32| members(set).fold(0u64, |sum, lane| sum.saturating_add(needs[lane]));
    let full = |set: u32| {
        (0..needs.len()).all(|lane| set & (1 << lane) != 0 || sum(set | 1 << lane) > room)
    };
    (1..1u32 << needs.len())
        .filter(|set| sum(*set) <= room && full(*set))
        .map(|set| members(set).collect())
        .collect()
}

/// Bytes of a pool on this machine, if they can be seen.
fn total(pool: Pool, machine: &Machine, gpus: &[Gpu]) -> Option<u64> {
    match pool {
        Pool::System => machine.total(),
        Pool::Gpu { minor } => gpus
            .iter()
            .find(|gpu| minor.is_none_or(|minor| minor == gpu.minor))
            .map(memory_of)
            .filter(|total| *total > 0),
    }
}

fn memory_of(gpu: &Gpu) -> u64 {
    gpu.vram_total.saturating_add(if gpu.apu { gpu.gtt_total } else { 0 })
}

/// A GPU that shares the system's memory cannot give away what other groups hold of it.
fn shared(groups: &[GroupSpec], machine: &Machine, gpus: &[Gpu]) -> Option<String> {
    let own =
        gpus.iter().filter(|gpu| gpu.apu).map(|gpu| gpu.vram_total).reduce(u64::saturating_add)?;
    let all = machine.total()?.saturating_add(own);
    let counted = groups.iter().filter(|group| group.pool.is_some());
    let sum = counted.fold(0u64, |sum, group| sum.saturating_add(group.budget));
    (sum > all).then(|| {
        format!(
            "note: the groups have {} together, and the GPU shares the system's memory, {} in all",
            gib(sum),
            gib(all)
        )
    })
}

fn of_lane(
    lane: &LaneSpec,
    group: Option<&GroupSpec>,
    gpus: &[Gpu],
    environment: &[(String, String)],
    lines: &mut Vec<String>,
) {
    let when = match lane.residency {
        Residency::External => "there already".to_owned(),
        Residency::Always => "always loaded".to_owned(),
        Residency::OnDemand { preload, unload_after } => {
            let begin = if preload { "loaded at the start" } else { "loaded when it is wanted" };
            let end =
                unload_after.map(|after| format!(", unloaded after {}", format_duration(after)));
            format!("{begin}{}", end.unwrap_or_default())
        }
    };
    let context = match lane.max_context {
        0 => "context not known".to_owned(),
        tokens => format!("{tokens} tokens"),
    };
    let slots = lane.slots;
    let driver = match &lane.engine {
        EngineSpec::Vllm { .. } => "vllm",
        EngineSpec::LlamaCpp { .. } => "llama-cpp",
        EngineSpec::Command { .. } => "command",
        EngineSpec::External(_) => "external",
    };
    let s = if slots == 1 { "" } else { "s" };
    lines.push(format!("lane {}: {driver}, {when}, {slots} slot{s}, {context}", lane.name));
    match &lane.engine {
        EngineSpec::Vllm { settings, run, .. } => {
            let found = command(settings, Listen::Port(run.port.unwrap_or(0)), environment);
            let mut words = found.words;
            if let Some(place) =
                words.iter().position(|word| word == "--port").filter(|_| run.port.is_none())
                && let Some(port) = words.get_mut(place + 1)
            {
                "{port}".clone_into(port);
            }
            of_words(&words, &found.env, lines);
            lines.extend(found.warnings.iter().map(|warning| format!("  note: {warning}")));
            lines.extend(
                utilization(settings, lane, group, gpus).map(|note| format!("  note: {note}")),
            );
        }
        EngineSpec::LlamaCpp { words, .. } => {
            of_words(&words.command, &words.env, lines);
            lines.extend(prompt_cache(words, group).map(|note| format!("  note: {note}")));
        }
        EngineSpec::Command { words, .. } => of_words(&words.command, &words.env, lines),
        EngineSpec::External(_) => {}
    }
}

/// A command line, and the names of the variables: their values may be secret.
fn of_words(words: &[String], env: &[(String, String)], lines: &mut Vec<String>) {
    let mut hidden = false;
    let mut format_duration = Vec::new();
    for word in words {
        let plain =
            |letter: char| letter.is_ascii_alphanumeric() || "-_./:=,+@%{}".contains(letter);
        let (flag, value) = word.split_once('=').unwrap_or((word, ""));
        let secret = flag.starts_with('-') && {
            let flag = flag.to_ascii_lowercase();
            ["key", "token", "secret", "password"]
                .iter()
                .any(|part| flag.split(['-', '_']).any(|word| word == *part))
        };
        if hidden && !word.starts_with('-') {
            format_duration.push("…".to_owned());
            continue;
        }
        hidden = secret && value.is_empty();
        if secret && !value.is_empty() {
            format_duration.push(format!("{flag}=…"));
        } else if !word.is_empty() && word.chars().all(plain) {
            format_duration.push(word.clone());
        } else {
            format_duration.push(format!("'{}'", word.escape_debug()));
        }
    }
    lines.push(format!("  {}", format_duration.join(" ")));
    if !env.is_empty() {
        let names: Vec<&str> = env.iter().map(|(name, _)| name.as_str()).collect();
        lines.push(format!("  with {}", names.join(", ")));
    }
}

/// What is to be said of the part of the GPU that a vLLM takes.
fn utilization(
    settings: &VllmSettings,
    lane: &LaneSpec,
    group: Option<&GroupSpec>,
    gpus: &[Gpu],
) -> Option<String> {
    let Some(Pool::Gpu { minor }) = group?.pool else { return None };
    let gpu = gpus.iter().find(|gpu| minor.is_none_or(|minor| minor == gpu.minor));
    let total = gpu.map(memory_of).filter(|total| *total > 0);
    match settings.gpu_memory_utilization {
        None => {
            let takes =
                if settings.kv_cache_bytes.is_some() { "" } else { ", and takes that much" };
            let part = |total: u64| {
                let part = lane.need.saturating_mul(1000).div_ceil(total).clamp(1, 1000);
                let part = u16::try_from(part).unwrap_or(1000);
                format!("; here {} of {} would be {}", gib(lane.need), gib(total), Permille(part))
            };
            Some(format!(
                "vLLM starts only if 0.92 of the GPU's memory is free{takes}; write `gpu-memory-utilization`, the part that \
                 this lane may take{}",
                total.map(part).unwrap_or_default()
            ))
        }
        Some(Permille(part)) if settings.kv_cache_bytes.is_none() => {
            let takes = total? / 1000 * u64::from(part);
            (takes > lane.need).then(|| {
                format!(
                    "vLLM takes {} of the GPU, {}, and the group counts {} for it; write less, or more `memory`, or \
                     `kv-cache-memory`",
                    Permille(part),
                    gib(takes),
                    gib(lane.need)
                )
            })
        }
        Some(_) => None,
    }
}

/// llama-server's second cache, which no budget sees.
fn prompt_cache(words: &CommandLine, group: Option<&GroupSpec>) -> Option<String> {
    let counted = group?.pool == Some(Pool::System);
    let said = words
        .command
        .iter()
        .any(|word| ["--cache-ram", "-cram"].contains(&word.split('=').next().unwrap_or_default()));
    (counted && !said).then(|| {
        "llama-server keeps up to 8 GiB of old prompts in memory besides; write `arguments = [\"--cache-ram\", \"MIB\"]`, \
         and count them in `memory`"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_as_large_as_they_can_be() {
        assert_eq!(together(&[18, 18, 12], 48), [vec![0, 1, 2]]);
        assert_eq!(together(&[30, 30, 14], 48), [vec![0, 2], vec![1, 2]]);
        assert_eq!(together(&[30, 30, 20], 48), [vec![0], vec![1], vec![2]]);
        assert_eq!(together(&[u64::MAX, 1], 48), [vec![1]]);
    }

    #[test]
    fn no_secret_is_shown() {
        let words = [
            "x",
            "--api-key",
            "s3cret",
            "--hf-token=s3cret",
            "--max-tokens",
            "5",
            "two words",
            "--key",
        ];
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let mut lines = Vec::new();
        of_words(&words, &[("HF_TOKEN".to_owned(), "s3cret".to_owned())], &mut lines);
        let expected = "  x --api-key … --hf-token=… --max-tokens 5 'two words' --key";
        assert_eq!(lines, [expected, "  with HF_TOKEN"]);
    }
}
