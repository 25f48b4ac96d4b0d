//! `[fleet] config`: the parts of a host configuration that matter to a simulation.

use std::path::Path;
use std::time::Duration;

use pointsman_config::Config;
use pointsman_domain::PlanLimits;
use pointsman_domain::dispatch::GroupSetup;
use pointsman_settings::{Override, Problem};

use super::fleet::{HostConfig, HostLane};

/// Reads a host configuration with some keys overridden.
pub(crate) fn load_host_config(file: &Path, set: &toml::Table) -> Result<HostConfig, Problem> {
    let config = Config::load_without_secrets(file, &[Override::table(set)])
        .map_err(|error| error.to_string())?;
    let lane = |lane: &pointsman_fleet::LaneSpec| HostLane {
        info: lane.info(),
        setup: lane.setup(),
        first_byte: lane.timeouts.first_byte,
        hang_detection_time: Some(lane.liveness.stall)
            .filter(|stall| !stall.is_zero())
            .unwrap_or(Duration::MAX),
    };
    let ignored = [
        (!config.keys.is_empty(), "`[[keys]]`: their limits, weights and priorities"),
        (
            config.access.keys.is_some(),
            "`[access] keys`: the limits, weights and priorities of the keys file",
        ),
        (config.tokens.is_some(), "`[tokens]`: the rights and limits of tokens"),
    ];
    let groups = config.fleet.groups.iter().map(|group| GroupSetup { budget: group.budget });
    Ok(HostConfig {
        lanes: config.fleet.lanes.iter().map(lane).collect(),
        groups: groups.collect(),
        rules: config.fleet.rules,
        limits: PlanLimits {
            max_wait: config.queue.max_wait,
            max_steps: config.server.max_attempts,
        },
        guards: config.guards,
        deadline: config.server.deadline,
        chain: config.policies.chain,
        ignored: ignored.into_iter().filter(|(is_set, _)| *is_set).map(|(_, what)| what).collect(),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use pointsman_settings::Code;
    use tempfile::TempDir;

    use super::*;
    use crate::{Document, Experiment, ScenarioError, SimulationEnv};

    const HOST: &str = "[server]\nmax-attempts = 2\ndeadline = \"1m\"\n[queue]\nmax-wait = \
        \"30s\"\n[[lanes]]\nname = \"a\"\n[lanes.engine]\ndriver = \"llama-cpp\"\nmodel = \
        \"a.gguf\"\n[[lanes]]\nname = \"b\"\n[lanes.engine]\ndriver = \"external\"\nurl = \
        \"http://127.0.0.1:1\"\n";

    /// Returns a scenario in a folder with the host configuration `host.toml`.
    fn scenario(
        host: &str,
        set: &str,
        model: &str,
    ) -> (TempDir, Result<Experiment, ScenarioError>) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("host.toml"), host).unwrap();
        let text = format!(
            "duration = \"1m\"\n[fleet]\nconfig = \"host.toml\"\nset = {{ {set} }}\n\
             [[traffic]]\nmodel = {model:?}\nrate = \"1/s\"\nprompt = 10\noutput = 1\n"
        );
        let scenario =
            Document::new(text, &folder.path().join("scenario.toml")).scenario().unwrap();
        let mut experiment = Experiment::new(&scenario);
        let added = experiment.add("all", &scenario, None, &SimulationEnv::new().unwrap());
        let added = added.map_err(|error| match error {
            crate::ExperimentError::Scenario(error) => error,
            other => panic!("{other}"),
        });
        (folder, added.map(|()| experiment))
    }

    #[test]
    fn host_configuration_is_simulated() {
        let (_folder, experiment) = scenario(HOST, "", "a");
        let report = experiment.unwrap().run().unwrap();
        let summary = &report.variants[0].runs[0].summary;
        assert!(summary.accepted > 0, "the lane `a` of the host configuration serves requests");
        assert_eq!(summary.lost, 0);
    }

    #[test]
    fn parts_that_are_not_simulated_are_warnings() {
        let key = "[[keys]]\ntenant = \"t\"\nenv = \"K\"\n";
        for (host, count) in [(HOST.to_owned(), 0), (format!("{HOST}{key}"), 1)] {
            let (_folder, experiment) = scenario(&host, "", "a");
            let report = experiment.unwrap().run().unwrap();
            let warnings = &report.variants[0].runs[0].summary.warnings;
            assert_eq!(warnings.len(), count, "{warnings:?}");
            assert!(warnings.iter().all(|warning| warning.contains("keys")), "{warnings:?}");
        }
    }

    #[test]
    fn guards_of_a_host_configuration_are_simulated() {
        let guard = "[[guards]]\nname = \"g\"\nnever-external = true\n";
        for (model, is_served) in [("a", true), ("b", false)] {
            let host = format!("{HOST}[[models]]\nname = \"m\"\nlanes = [{model:?}]\n{guard}");
            let (_folder, experiment) = scenario(&host, "", "m");
            let report = experiment.unwrap().run().unwrap();
            let summary = &report.variants[0].runs[0].summary;
            assert!(summary.accepted > 0);
            assert_eq!(summary.all.output_tokens > 0, is_served, "{model}");
        }
    }

    #[test]
    fn keys_of_a_host_configuration_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("host.toml");
        fs::write(&file, HOST).unwrap();
        let set = "lanes.a.slots = 7".parse().unwrap();
        let config = load_host_config(&file, &set).unwrap();
        assert_eq!(config.limits, PlanLimits { max_wait: Duration::from_secs(30), max_steps: 2 });
        assert_eq!(config.deadline, Duration::from_secs(60));
        let lanes: Vec<_> = config
            .lanes
            .iter()
            .map(|lane| (lane.info.name.as_str(), lane.info.slots, lane.hang_detection_time))
            .collect();
        assert_eq!(lanes, [("a", 7, Duration::from_secs(120)), ("b", 4, Duration::MAX)]);
    }

    #[test]
    fn error_in_a_host_configuration_is_at_the_key_that_names_it() {
        for (host, set) in [(HOST, "lanes.a.slots = 0"), ("[server]\nnonsense = 1\n", "")] {
            let (_folder, experiment) = scenario(host, set, "a");
            let error = experiment.err().unwrap();
            let [diagnostic] = error.diagnostics() else { panic!("{error}") };
            assert_eq!((diagnostic.line, diagnostic.key.as_str()), (3, "fleet.config"));
            assert_eq!(diagnostic.code, Code::InvalidValue);
        }
    }
}
