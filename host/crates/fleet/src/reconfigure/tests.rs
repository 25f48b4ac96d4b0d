use std::collections::BTreeMap;
use std::time::Duration;

use super::LaneChange::{Added, InPlace, Removed, Restarted};
use crate::drivers::command::Program;
use crate::drivers::vllm::{Vllm, VllmSettings};
use crate::engine_spec::NO_BACK_OFF;
use crate::tests::lane;
use crate::*;

/// A program that the host starts.
fn program() -> Program {
    Program {
        command_line: CommandLine {
            command: ["server", "--port", "{port}"].map(str::to_owned).to_vec(),
            env: vec![("A".to_owned(), "1".to_owned())],
        },
        ready_path: "/health".to_owned(),
        reuse_connections: false,
        run: run(),
    }
}

fn run() -> ProcessSpec {
    ProcessSpec {
        directory: Some("/".into()),
        port: None,
        check_listener: true,
        start_timeout: Duration::from_secs(10),
        stop_grace: Duration::from_secs(10),
        backoff: NO_BACK_OFF,
    }
}

fn spec(driver: impl driver::Driver) -> EngineSpec {
    driver::EngineConfig::new(driver).into_spec()
}

fn fleet(lanes: Vec<LaneSpec>) -> FleetSpec {
    let group = |name: &str| GroupSpec {
        name: name.to_owned(),
        budget: 100,
        pool: None,
        free_timeout: Duration::from_secs(60),
    };
    FleetSpec {
        lanes,
        groups: vec![group("gpu"), group("cpu")],
        rules: Rules::default(),
        state_dir: None,
        conversations: None,
        keeper: KeeperSpec::default(),
        secret_variables: Vec::new(),
        machine: "/".into(),
        peering: crate::Peering::default(),
    }
}

fn one_lane(change: impl FnOnce(&mut LaneSpec)) -> FleetSpec {
    let residency = Residency::OnDemand { preload: false, unload_after: None };
    let mut only = LaneSpec { group: Some(0), need: 50, ..lane("a", spec(program()), residency) };
    change(&mut only);
    fleet(vec![only])
}

fn with_program(change: impl FnOnce(&mut Program)) -> FleetSpec {
    let mut program = program();
    change(&mut program);
    one_lane(|lane| lane.engine = spec(program))
}

fn only(name: &str, change: LaneChange) -> BTreeMap<String, LaneChange> {
    BTreeMap::from([(name.to_owned(), change)])
}

#[test]
fn equal_configurations_have_no_changes() {
    assert_eq!(one_lane(|_| {}).changes_to(&one_lane(|_| {})), BTreeMap::new());
}

#[test]
fn keys_that_the_engine_does_not_need_apply_in_place() {
    let second = Duration::from_secs(1);
    let from = one_lane(|_| {});
    let changes: [(&'static str, FleetSpec); 16] = [
        ("models", one_lane(|lane| lane.models = vec!["m".to_owned()])),
        ("models", one_lane(|lane| lane.names.own = vec!["m".to_owned()])),
        ("labels", one_lane(|lane| lane.labels = vec![("a".to_owned(), "b".to_owned())])),
        ("max-context", one_lane(|lane| lane.max_context = 4096)),
        ("endpoints", one_lane(|lane| lane.endpoints = Some(Default::default()))),
        ("slots", one_lane(|lane| lane.slots += 1)),
        ("group", one_lane(|lane| lane.group = Some(1))),
        ("load", one_lane(|lane| lane.residency = Residency::Always)),
        ("expected-load-time", one_lane(|lane| lane.expected_load = 9 * second)),
        ("cost", one_lane(|lane| lane.cost_milli = 9)),
        ("engine-model", one_lane(|lane| lane.engine_model = Some("m".to_owned()))),
        ("stream-usage", one_lane(|lane| lane.stream_usage = !lane.stream_usage)),
        ("timeouts", one_lane(|lane| lane.timeouts.idle = 9 * second)),
        ("liveness", one_lane(|lane| lane.liveness.stall = 9 * second)),
        ("engine", with_program(|program| program.run.stop_grace = second)),
        ("engine", with_program(|program| program.ready_path = "/ready".to_owned())),
    ];
    for (key, to) in changes {
        assert_eq!(from.changes_to(&to), only("a", InPlace(vec![key])), "{key}");
        assert_eq!(to.changes_to(&from), only("a", InPlace(vec![key])), "{key}");
    }
}

#[test]
fn what_the_engine_was_launched_with_restarts_it() {
    let from = one_lane(|_| {});
    let changes = [
        ("engine", with_program(|program| program.command_line.command.push("-v".to_owned()))),
        ("engine", with_program(|program| program.command_line.env.clear())),
        ("engine", with_program(|program| program.run.directory = Some("/tmp".into()))),
        ("engine", with_program(|program| program.run.port = Some(8000))),
        ("memory", one_lane(|lane| lane.need = 51)),
        ("sleep-memory", one_lane(|lane| lane.asleep = 1)),
        (
            "load",
            one_lane(|lane| {
                let url = "http://127.0.0.1:1";
                lane.engine = ExternalSpec::try_new(url, None, Duration::ZERO).unwrap().into();
                lane.residency = Residency::External;
            }),
        ),
    ];
    for (key, to) in changes {
        let found = from.changes_to(&to);
        let Some(Restarted(keys)) = found.get("a") else { panic!("{key}: {found:?}") };
        assert!(keys.contains(&key), "{key}: {keys:?}");
        assert!(matches!(to.changes_to(&from).get("a"), Some(Restarted(_))), "{key}");
    }
}

#[test]
fn external_engine_is_another_one_at_another_address() {
    let at = |url: &str, key: Option<&str>| {
        let key = key.map(|key| Secret::new(key.to_owned()));
        let engine = ExternalSpec::try_new(url, key, Duration::from_secs(1)).unwrap();
        one_lane(|lane| (lane.engine, lane.residency) = (engine.into(), Residency::External))
    };
    let from = at("http://h:1", None);
    let engine = || vec!["engine"];
    assert_eq!(from.changes_to(&at("http://h:1/", None)), BTreeMap::new());
    assert_eq!(from.changes_to(&at("http://h:1", Some("k"))), only("a", InPlace(engine())));
    assert_eq!(from.changes_to(&at("http://h:2", None)), only("a", Restarted(engine())));
}

#[test]
fn vllm_is_restarted_for_its_arguments_only() {
    let with = |strategy, slots| {
        let settings = VllmSettings {
            model: "/m".to_owned(),
            max_num_seqs: Some(slots),
            sleep_mode: true,
            ..VllmSettings::default()
        };
        let engine = Vllm {
            settings,
            run: run(),
            strategy,
            vision: false,
            endpoints: Default::default(),
            estimate: None,
        };
        one_lane(|lane| lane.engine = spec(engine))
    };
    let from = with(UnloadMode::SleepLevel1, 4);
    let in_place = from.changes_to(&with(UnloadMode::SleepLevel2, 4));
    assert_eq!(in_place, only("a", InPlace(vec!["engine"])));
    let restarted = from.changes_to(&with(UnloadMode::SleepLevel1, 5));
    assert_eq!(restarted, only("a", Restarted(vec!["engine"])));
}

#[test]
fn lanes_and_groups_are_compared_by_name() {
    let lane = |name: &str| lane(name, spec(program()), Residency::Always);
    let (one, mut other) = (fleet(vec![lane("a"), lane("b")]), fleet(vec![lane("c"), lane("a")]));
    other.groups.swap(0, 1);
    other.groups[0].name = "disk".to_owned();
    other.groups[1].budget = 200;
    let changes = one.changes_to(&other);
    let expected = [
        ("b", Removed),
        ("c", Added),
        ("group cpu", Removed),
        ("group disk", Added),
        ("group gpu", InPlace(vec!["memory"])),
    ];
    let expected = expected.map(|(name, change)| (name.to_owned(), change));
    assert_eq!(changes, BTreeMap::from(expected));
}
