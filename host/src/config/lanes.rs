//! The `[[lanes]]` of the configuration.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use pointsman_fleet::{BackOff, EngineSpec, ExternalSpec, LaneSpec, ProcessSpec, Secret, Timeouts};

use super::reader::Section;
use super::secret;

const SECOND: Duration = Duration::from_secs(1);

/// All lanes. `None` only together with a mistake.
pub(super) fn read(root: &Section<'_>, folder: &Path) -> Option<Vec<LaneSpec>> {
    let sections = root.sections("lanes");
    if sections.is_empty() {
        root.mistake(
            "lanes",
            "there is no lane; write at least one `[[lanes]]` with a `name` and a `[lanes.engine]`",
        );
    }
    let mut names = HashSet::new();
    let mut groups: Vec<String> = Vec::new();
    let mut lanes = Some(Vec::new());
    for section in sections {
        let lane = read_lane(&section, folder, &mut groups);
        if let Some(lane) = &lane
            && !names.insert(lane.name.clone())
        {
            section.mistake("name", format!("there is a lane \"{}\" already", lane.name));
        }
        lanes = lanes.zip(lane).map(|(mut lanes, lane)| {
            lanes.push(lane);
            lanes
        });
    }
    lanes
}

fn read_lane(section: &Section<'_>, folder: &Path, groups: &mut Vec<String>) -> Option<LaneSpec> {
    let name = section.required_text("name", "\"orchestrator\"");
    let models = section.texts("models");
    if models.as_ref().is_some_and(Vec::is_empty) {
        section.mistake(
            "models",
            "is empty; name the models that this lane answers to, or leave it out for the lane's own name",
        );
    }
    let labels = section.text_pairs("labels");
    let max_context = section.number("max-context", 0..=100_000_000, 0);
    let slots = section.number("slots", 1..=10_000, 4);
    let group = section.text("group").map_or(0, |group| number_of(groups, group));
    let cost_milli = section.number("cost", 0..=1_000_000_000, 0);
    let engine_model = section.text("engine-model").map(str::to_owned);
    let engine = read_engine(&section.section("engine"), folder, section);
    let timeouts = read_timeouts(&section.section("timeouts"));
    section.report_unknown();
    let name = name?.to_owned();
    let models = models.unwrap_or_else(|| vec![name.clone()]);
    let engine = engine?;
    Some(LaneSpec {
        name,
        models,
        labels,
        max_context,
        slots,
        group,
        cost_milli,
        engine_model,
        engine,
        timeouts,
    })
}

/// Groups are named in the file and numbered, from 1, everywhere else.
fn number_of(groups: &mut Vec<String>, group: &str) -> u32 {
    let place = groups.iter().position(|known| known == group).unwrap_or_else(|| {
        groups.push(group.to_owned());
        groups.len() - 1
    });
    u32::try_from(place + 1).unwrap_or(u32::MAX)
}

#[derive(Clone, Copy)]
enum Kind {
    LlamaCpp,
    External,
}

fn read_engine(section: &Section<'_>, folder: &Path, lane: &Section<'_>) -> Option<EngineSpec> {
    if !lane.has("engine") {
        lane.mistake("engine", "is missing; write `[lanes.engine]` with a `driver`");
        return None;
    }
    if !section.has("driver") {
        section.mistake("driver", "is missing; write `driver = \"llama-cpp\"` or `driver = \"external\"`");
        return None;
    }
    let kinds = [("llama-cpp", Some(Kind::LlamaCpp)), ("external", Some(Kind::External))];
    let engine = match section.word("driver", &kinds, None)? {
        Kind::LlamaCpp => read_process(section, folder).map(EngineSpec::LlamaCpp),
        Kind::External => read_external(section, folder).map(EngineSpec::External),
    };
    section.report_unknown();
    engine
}

fn read_process(section: &Section<'_>, folder: &Path) -> Option<ProcessSpec> {
    let command = section.texts("command");
    let example = "command = [\"llama-server\", \"-m\", \"model.gguf\", \"--port\", \"{port}\"]";
    match &command {
        None if !section.has("command") => {
            section.mistake("command", format!("is missing; write for example `{example}`"))
        }
        Some(command) if command.iter().all(|word| word.trim().is_empty()) => {
            section.mistake("command", format!("is empty; write for example `{example}`"));
        }
        _ => {}
    }
    let port = section.number("port", 1..=65_535, 0u16);
    let uses_port = |command: &Vec<String>| command.iter().any(|word| word.contains("{port}"));
    if port == 0 && command.as_ref().is_some_and(|command| !uses_port(command)) {
        section.mistake(
            "command",
            "does not say where the engine is to listen; put `{port}` where its port belongs, or set `port`",
        );
    }
    let back_off = section.section("back-off");
    let first = back_off.duration("first", SECOND);
    let most = back_off.duration("most", 60 * SECOND);
    let reset_after = back_off.duration("reset-after", 60 * SECOND);
    if first.is_zero() || most < first {
        back_off.mistake("most", "`first` must be more than nothing, and `most` not less than `first`");
    }
    back_off.report_unknown();
    Some(ProcessSpec {
        command: command?,
        env: section.text_pairs("env"),
        directory: Some(folder.join(section.text("directory").unwrap_or("."))),
        port: (port != 0).then_some(port),
        start_timeout: section.duration("start-timeout", 120 * SECOND),
        stop_grace: section.duration("stop-grace", 10 * SECOND),
        back_off: BackOff { first, most, reset_after },
    })
}

fn read_external(section: &Section<'_>, folder: &Path) -> Option<ExternalSpec> {
    let url = section.required_text("url", "\"http://127.0.0.1:8080\"");
    let key = secret(section, "key-env", "key-file", folder).map(Secret::new);
    let probe_every = section.duration("probe-every", 5 * SECOND);
    match ExternalSpec::try_new(url?, key, probe_every) {
        Ok(spec) => Some(spec),
        Err(error) => {
            section.mistake("url", error.to_string());
            None
        }
    }
}

fn read_timeouts(section: &Section<'_>) -> Timeouts {
    let timeouts = Timeouts {
        connect: section.duration("connect", 2 * SECOND),
        // An answer that is not streamed has its first byte when it is complete.
        first_byte: section.duration("first-byte", 300 * SECOND),
        idle: section.duration("idle", 60 * SECOND),
    };
    for key in ["connect", "first-byte", "idle"] {
        let zero = match key {
            "connect" => timeouts.connect.is_zero(),
            "first-byte" => timeouts.first_byte.is_zero(),
            _ => timeouts.idle.is_zero(),
        };
        if zero {
            section.mistake(key, "must be more than nothing");
        }
    }
    section.report_unknown();
    timeouts
}
