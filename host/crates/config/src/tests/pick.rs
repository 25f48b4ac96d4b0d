//! Tests of `[pick]`.

use std::fs;

use super::*;

const EXTERNAL: &str = "[[lanes]]\nname = \"a\"\n[lanes.engine]\ndriver = \"external\"\nurl = \
                        \"http://10.0.0.1:8000\"\n";

#[test]
fn section_has_defaults_and_is_not_needed() {
    assert_eq!(parse(EXTERNAL).unwrap().pick, None);
    let pick = parse(&format!("[pick]\n[queue]\nmax-wait = \"7s\"\n{EXTERNAL}")).unwrap().pick;
    let expected = Pick {
        listen: "127.0.0.1:9002".parse().unwrap(),
        max_wait: Duration::from_secs(7),
        max_streams: 4096,
        endpoints: None,
        hosts: Vec::new(),
    };
    assert_eq!(pick, Some(expected));
    let long = format!("[pick]\nmax-wait = \"99s\"\n{EXTERNAL}");
    assert_eq!(parse(&long).unwrap().pick.unwrap().max_wait, Duration::from_secs(60));
}

#[test]
fn lanes_that_a_proxy_cannot_reach_are_rejected() {
    let name = EXTERNAL.replace("10.0.0.1:8000", "gpu-1:8000");
    let port = EXTERNAL.replace("10.0.0.1:8000", "10.0.0.1");
    for lane in [OWN, &name, &port] {
        let errors = errors(&format!("[pick]\n{lane}"));
        assert!(errors[0].ends_with("lanes[0].engine [not_pickable]"), "{errors:?}");
    }
    assert_rejects(
        &format!("[pick]\nlisten = \"0.0.0.0:1\"\n{EXTERNAL}"),
        "pick.listen",
        Code::InvalidValue,
    );
}

/// A lane that the host starts.
const OWN: &str =
    "[[lanes]]\nname = \"own\"\n[lanes.engine]\ndriver = \"llama-cpp\"\ncommand = [\"x\"]\n";

/// Returns the result for a configuration with this file of endpoints, and its path.
fn with_endpoints(text: &str, lanes: &str) -> (Result<Config, Vec<Diagnostic>>, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("endpoints.toml");
    fs::write(&file, text).unwrap();
    let config = format!("[pick]\nendpoints = {:?}\n{lanes}", file.to_str().unwrap());
    (Config::parse(&config, Path::new("/conf/pointsman.toml")), file.display().to_string())
}

#[test]
fn file_of_endpoints_has_further_lanes() {
    let other = EXTERNAL.replace("\"a\"", "\"b\"");
    let names = |config: Config| -> Vec<String> {
        config.fleet.lanes.into_iter().map(|lane| lane.name).collect()
    };
    assert_eq!(names(with_endpoints(&other, EXTERNAL).0.unwrap()), ["a", "b"]);
    assert_eq!(names(with_endpoints(&other, "").0.unwrap()), ["b"]);
}

#[test]
fn errors_in_the_file_of_endpoints_name_their_place() {
    let invalid = EXTERNAL.replace("name = \"a\"", "name = 1");
    let (result, file) = with_endpoints(&invalid, "");
    let error = &result.unwrap_err()[0];
    assert_eq!((error.key.as_str(), error.code), ("pick.endpoints", Code::InvalidValue));
    let place = format!("{file}:2: lanes[0].name: ");
    assert!(error.message.contains(&place) && error.message.contains("[wrong_type]"), "{error:?}");
    let (result, _) = with_endpoints(EXTERNAL, EXTERNAL);
    assert_eq!(result.unwrap_err()[0].code, Code::Duplicate);
    let named = EXTERNAL.replace("10.0.0.1:8000", "gpu-1:8000").replace("\"a\"", "\"b\"");
    let (result, _) = with_endpoints(&named, EXTERNAL);
    let codes: Vec<Code> = result.unwrap_err().iter().map(|error| error.code).collect();
    assert!(codes.contains(&Code::NotPickable), "{codes:?}");
    let missing = format!("[pick]\nendpoints = \"none.toml\"\n{EXTERNAL}");
    let error = Config::parse(&missing, Path::new("/conf/p.toml")).unwrap_err();
    assert!(error[0].message.contains("[unreadable]"), "{error:?}");
}

/// The lanes of hosts, as a source would find them.
#[derive(Debug)]
struct Found(Vec<HostLane>);

impl Discovery for Found {
    fn key(&self) -> &'static str {
        "hosts"
    }

    fn lanes(&self, pick: &Pick) -> Result<Vec<LaneText>, String> {
        let text = |host: &PickHost| LaneText {
            origin: (&host.name).into(),
            text: host.lanes_text(&self.0),
            has_references: false,
        };
        Ok(pick.hosts.iter().map(text).collect())
    }

    fn version(&self, _pick: &Pick) -> u64 {
        0
    }

    fn follow(&self, _pick: Option<&Pick>) {}
}

const HOSTS: &str = "[pick]\n[[pick.hosts]]\nname = \"g1\"\nurl = \"http://10.0.0.1:8080\"\n\
                     queue-there = 3\n[[pick.hosts]]\nname = \"g2\"\nurl = \
                     \"http://10.0.0.2:8080\"\n";

fn discover(config: &str, names: &[&str]) -> Result<Config, ConfigError> {
    let lane = |name: &&str| HostLane {
        name: (*name).to_owned(),
        labels: vec![("zone".to_owned(), "a \"quoted\" ${HOME}".to_owned())],
    };
    let found = Found(names.iter().map(lane).collect());
    Config::discover(config, Path::new("/conf/p.toml"), &[&found])
}

#[test]
fn lanes_of_hosts_have_the_name_of_the_host_and_what_it_tells() {
    assert!(discover(HOSTS, &[]).unwrap().fleet.lanes.is_empty());
    let own = format!("{HOSTS}{EXTERNAL}");
    let lanes = discover(&own, &["big", "x]\ny\"${HOME}"]).unwrap().fleet.lanes;
    let names: Vec<&str> = lanes.iter().map(|lane| lane.name.as_str()).collect();
    let odd = "x]\ny\"${HOME}";
    let expected = ["a", "g1.big", &format!("g1.{odd}"), "g2.big", &format!("g2.{odd}")];
    assert_eq!(names, expected);
    let lane = &lanes[1];
    assert_eq!(lane.labels, [("zone".to_owned(), "a \"quoted\" ${HOME}".to_owned())]);
    assert!(lane.engine.is_peer() && lane.models == ["g1.big"]);
    assert_eq!(lane.engine.external_address().unwrap().authority, "10.0.0.1:8080");
    // What the lane and the configuration of such a lane have in common is compared as a whole.
    let written = "[[lanes]]\nname = \"g1.big\"\nlabels.zone = \"a \\\"quoted\\\" $${HOME}\"\n\
                   engine = { driver = \"pointsman\", url = \"http://10.0.0.1:8080\", lane = \
                   \"big\", queue-there = 3 }\n";
    let expected = &parse(written).unwrap().fleet.lanes[0];
    assert_eq!(format!("{expected:?}"), format!("{lane:?}"));
}

#[test]
fn invalid_hosts_are_rejected() {
    for (from, to, key, code) in [
        ("g1", "g.1", "pick.hosts[0].name", Code::InvalidValue),
        ("g1", "", "pick.hosts[0].name", Code::InvalidValue),
        ("g2", "g1", "pick.hosts[1].name", Code::Duplicate),
        ("10.0.0.2:8080", "gpu-2:8080", "pick.hosts[1].url", Code::NotPickable),
        ("10.0.0.2:8080", "10.0.0.2", "pick.hosts[1].url", Code::NotPickable),
    ] {
        assert_rejects(&HOSTS.replace(from, to), key, code);
    }
    // Names of a lane here and of one there.
    let own = EXTERNAL.replace("\"a\"", "\"g1.big\"");
    let error = discover(&format!("{HOSTS}{own}"), &["big"]).unwrap_err();
    let codes: Vec<Code> = error.diagnostics().iter().map(|error| error.code).collect();
    assert_eq!(codes, [Code::Duplicate]);
}
