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
