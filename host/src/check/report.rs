//! The summary of a configuration that `check` prints. It contains no secrets.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use pointsman_domain::adapter_of_lane;
use pointsman_fleet::{Gpu, GroupSpec, LaneContext, LaneSpec, Machine, Residency, format_size};

use super::reported;
use crate::inherited;
use crate::stop_limits::StopLimits;
use pointsman_config::{Config, Variable, format_duration, format_pool};

/// Maximum number of on-demand lanes in a group for which all sets are enumerated (2^16 at most).
const MAX_ENUMERATED_LANES: usize = 16;

/// Returns lines about the groups and lanes of a configuration on this machine. `environment` is
/// what engines inherit.
pub(super) fn lines(
    config: &Config,
    machine: &Machine,
    environment: &[(String, String)],
) -> Vec<String> {
    let fleet = &config.fleet;
    let mut lines = vec![shutdown_line(config)];
    if let Some(dir) = &fleet.state_dir {
        lines.push(format!("state directory: {}", dir.display()));
    }
    lines.extend(inherited::warnings(fleet).iter().map(|warning| format!("warning: {warning}")));
    let gpus = machine.gpus();
    for (index, group) in fleet.groups.iter().enumerate() {
        let members: Vec<(&LaneSpec, &String)> = fleet
            .lanes
            .iter()
            .zip(&config.needs)
            .filter(|(lane, _)| lane.group == Some(index))
            .collect();
        describe_group(group, &members, &mut lines);
        lines.extend(group.pool.map(|pool| format!("  now: {}", machine.explain(&pool))));
        let total = group.pool.and_then(|pool| machine.size(&pool));
        if let Some(total) = total.filter(|total| group.budget > *total) {
            lines.push(format!(
                "  warning: the budget exceeds the memory of this machine, {}",
                format_size(total)
            ));
        }
    }
    lines.extend(shared(&fleet.groups, machine, &gpus));
    let reported = reported::lines(config.admin.client_socket());
    for lane in &fleet.lanes {
        let group = lane.group.and_then(|index| fleet.groups.get(index));
        let pool = group.and_then(|group| group.pool);
        let pool_total = pool.and_then(|pool| machine.size(&pool));
        let context = LaneContext { need: lane.need, pool, pool_total, environment };
        describe_lane(lane, &context, &mut lines);
        lines.extend(reported.get(&lane.name).map(|line| format!("  {line}")));
    }
    lines
}

/// Returns a line for each environment variable that the file refers to, without its value.
pub(super) fn variables(found: &[Variable]) -> Vec<String> {
    let mut keys: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for Variable { name, key, is_default, .. } in found {
        let default = if *is_default { " (default)" } else { "" };
        keys.entry(name).or_default().push(format!("{key}{default}"));
    }
    keys.iter().map(|(name, keys)| format!("variable {name}: {}", keys.join(", "))).collect()
}

/// Returns how long a shutdown takes at most, and warns if a service manager may not wait for it.
fn shutdown_line(config: &Config) -> String {
    /// `docker stop` and `docker compose stop`.
    const DOCKER: Duration = Duration::from_secs(10);
    /// `DefaultTimeoutStopSec` of systemd.
    const SYSTEMD: Duration = Duration::from_secs(90);
    let limit = StopLimits::new(config.server.drain_timeout, &config.fleet).limit;
    let seconds = format_duration(Duration::from_secs(limit.as_secs()));
    let warning = match limit {
        limit if limit > SYSTEMD => {
            " (warning: more than the 90s of systemd, unless Type=notify, and the 10s of Docker; \
             set TimeoutStopSec or stop_grace_period)"
        }
        limit if limit > DOCKER => {
            " (warning: more than the 10s of Docker; set stop_grace_period there)"
        }
        _ => "",
    };
    format!("shutdown: {seconds} at most{warning}")
}

fn describe_group(group: &GroupSpec, members: &[(&LaneSpec, &String)], lines: &mut Vec<String>) {
    let pool = format_pool(group.pool);
    lines.push(format!("group {}: budget {}, pool {pool}", group.name, format_size(group.budget)));
    for (lane, need) in members {
        lines.push(format!("  {}: {need}", lane.name));
    }
    let names = |lanes: &[&LaneSpec], between: &str| {
        lanes.iter().map(|lane| lane.name.as_str()).collect::<Vec<_>>().join(between)
    };
    let is_on_demand = |lane: &&LaneSpec| matches!(lane.residency, Residency::OnDemand { .. });
    let (on_demand, fixed): (Vec<&LaneSpec>, Vec<&LaneSpec>) =
        members.iter().map(|(lane, _)| *lane).partition(is_on_demand);
    let held = fixed.iter().fold(0u64, |sum, lane| sum.saturating_add(lane.need));
    let available = group.budget.saturating_sub(held);
    if !fixed.is_empty() {
        lines.push(format!(
            "  always loaded: {} ({}; {} remaining)",
            names(&fixed, ", "),
            format_size(held),
            format_size(available)
        ));
    }
    let all = on_demand.iter().fold(0u64, |sum, lane| sum.saturating_add(lane.need));
    match on_demand.len() {
        0 | 1 => {}
        _ if all <= available => lines.push(format!(
            "  all fit together: {} ({})",
            names(&on_demand, ", "),
            format_size(all)
        )),
        2..=MAX_ENUMERATED_LANES => {
            let needs: Vec<u64> = on_demand.iter().map(|lane| lane.need).collect();
            let sets = maximal_sets(&needs, available);
            if sets.iter().all(|set| set.len() == 1) {
                lines.push(format!("  take turns, one at a time: {}", names(&on_demand, ", ")));
                return;
            }
            let set = |set: &Vec<usize>| {
                let lanes: Vec<&LaneSpec> =
                    set.iter().filter_map(|lane| on_demand.get(*lane).copied()).collect();
                names(&lanes, " + ")
            };
            let sets: Vec<String> = sets.iter().map(set).collect();
            lines.push(format!("  take turns; loaded together: {}", sets.join(", or ")));
        }
        _ => lines.push(format!("  take turns, as they fit: {}", names(&on_demand, ", "))),
    }
}

/// Returns the maximal sets of lanes that fit into `available` bytes together, for up to
/// [`MAX_ENUMERATED_LANES`] lanes.
fn maximal_sets(needs: &[u64], available: u64) -> Vec<Vec<usize>> {
    let members = |set: u32| (0..needs.len()).filter(move |lane| set & (1 << lane) != 0);
    let sum = |set: u32| members(set).fold(0u64, |sum, lane| sum.saturating_add(needs[lane]));
    let full = |set: u32| {
        (0..needs.len()).all(|lane| set & (1 << lane) != 0 || sum(set | 1 << lane) > available)
    };
    (1..1u32 << needs.len())
        .filter(|set| sum(*set) <= available && full(*set))
        .map(|set| members(set).collect())
        .collect()
}

/// Warns if the budgets of all groups exceed memory that a GPU shares with the system.
fn shared(groups: &[GroupSpec], machine: &Machine, gpus: &[Gpu]) -> Option<String> {
    let own =
        gpus.iter().filter(|gpu| gpu.apu).map(|gpu| gpu.vram_total).reduce(u64::saturating_add)?;
    let all = machine.total()?.saturating_add(own);
    let counted = groups.iter().filter(|group| group.pool.is_some());
    let sum = counted.fold(0u64, |sum, group| sum.saturating_add(group.budget));
    (sum > all).then(|| {
        format!(
            "warning: the budgets of all groups are {}, more than the {} that the GPU and the \
             system share",
            format_size(sum),
            format_size(all)
        )
    })
}

fn describe_lane(lane: &LaneSpec, around: &LaneContext<'_>, lines: &mut Vec<String>) {
    let when = match lane.residency {
        Residency::External => "external".to_owned(),
        Residency::Always => "always loaded".to_owned(),
        Residency::OnDemand { preload, unload_after } => {
            let load = if preload { "loaded at start" } else { "loaded on demand" };
            let unload = unload_after.map(|after| {
                format!(", unloaded after {} without a request", format_duration(after))
            });
            format!("{load}{}", unload.unwrap_or_default())
        }
    };
    let context = match lane.max_context {
        0 => "unknown context".to_owned(),
        tokens => format!("{tokens} tokens"),
    };
    let slots = lane.slots;
    let driver = lane.engine.info().key;
    let s = if slots == 1 { "" } else { "s" };
    lines.push(format!("lane {}: {driver}, {when}, {slots} slot{s}, {context}", lane.name));
    lines.push(format!("  models: {}", names(lane)));
    let description = lane.engine.describe(around);
    if let Some(command_line) = &description.command {
        let program = command_line.command.first().map_or("", String::as_str);
        let directory = lane.engine.run().and_then(|run| run.directory.as_deref());
        let env = command_line.env.iter().chain(around.environment);
        let paths = env.into_iter().find(|(name, _)| name == "PATH").map_or("", |(_, paths)| paths);
        if !program_exists(program, directory, paths) {
            let place = if program.contains('/') { "" } else { " in PATH" };
            let program = program.escape_debug();
            lines.push(format!(
                "  warning: `program` or `command`: no executable file `{program}`{place}"
            ));
        }
        describe_command(&command_line.command, &command_line.env, lines);
    }
    lines.extend(description.warnings.iter().map(|warning| format!("  warning: {warning}")));
}

/// Returns the model names that a lane answers to, those that are listed first.
fn names(lane: &LaneSpec) -> String {
    let adapters = lane.names.adapters.iter().map(|adapter| adapter_of_lane(&lane.name, adapter));
    let mut listed = lane.models.clone();
    listed.extend(adapters.chain(lane.names.adapters.iter().cloned()));
    if !listed.contains(&lane.name) {
        listed.push(lane.name.clone());
    }
    let others: Vec<&str> =
        lane.names.own.iter().chain(&lane.names.derived).map(String::as_str).collect();
    let also =
        if others.is_empty() { String::new() } else { format!("; also {}", others.join(", ")) };
    format!("{}{also}", listed.join(", ")).escape_debug().to_string()
}

/// Returns true if a program exists. It is looked for as the system does when it starts it, in the
/// working directory of the engine, and in the folders of PATH if it has no path.
fn program_exists(program: &str, directory: Option<&Path>, paths: &str) -> bool {
    let is_executable = |path: &Path| {
        let found = path.metadata();
        found.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    match program.contains('/') {
        true => is_executable(&directory.unwrap_or(Path::new(".")).join(program)),
        false => std::env::split_paths(paths).any(|folder| is_executable(&folder.join(program))),
    }
}

/// Describes a command line with secrets hidden, and names the variables: their values may be
/// secret.
fn describe_command(words: &[String], env: &[(String, String)], lines: &mut Vec<String>) {
    let mut hidden = false;
    let mut shown = Vec::new();
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
            shown.push("…".to_owned());
            continue;
        }
        hidden = secret && value.is_empty();
        if secret && !value.is_empty() {
            shown.push(format!("{flag}=…"));
        } else if !word.is_empty() && word.chars().all(plain) {
            shown.push(word.clone());
        } else {
            shown.push(format!("'{}'", word.escape_debug()));
        }
    }
    lines.push(format!("  {}", shown.join(" ")));
    if !env.is_empty() {
        let names: Vec<&str> = env.iter().map(|(name, _)| name.as_str()).collect();
        lines.push(format!("  environment: {}", names.join(", ")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maximal_sets_cannot_be_extended() {
        assert_eq!(maximal_sets(&[18, 18, 12], 48), [vec![0, 1, 2]]);
        assert_eq!(maximal_sets(&[30, 30, 14], 48), [vec![0, 2], vec![1, 2]]);
        assert_eq!(maximal_sets(&[30, 30, 20], 48), [vec![0], vec![1], vec![2]]);
        assert_eq!(maximal_sets(&[u64::MAX, 1], 48), [vec![1]]);
    }

    #[test]
    fn programs_are_found_in_path_and_relative_to_the_working_directory() {
        let bin = Some(Path::new("/bin"));
        for (program, directory, paths, expected) in [
            ("sh", None, "/nowhere:/bin", true),
            ("sh", bin, "/nowhere", false),
            ("sh", None, "", false),
            ("./sh", bin, "", true),
            ("/bin/sh", None, "", true),
            ("/bin", None, "", false),
            ("/etc/passwd", None, "", false),
            ("/no/such", None, "/bin", false),
            ("", None, "/bin", false),
        ] {
            assert_eq!(program_exists(program, directory, paths), expected, "{program}");
        }
    }

    #[test]
    fn secrets_are_hidden() {
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
        describe_command(&words, &[("HF_TOKEN".to_owned(), "s3cret".to_owned())], &mut lines);
        let expected = "  x --api-key … --hf-token=… --max-tokens 5 'two words' --key";
        assert_eq!(lines, [expected, "  environment: HF_TOKEN"]);
    }
}
