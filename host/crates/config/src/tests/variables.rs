//! References to environment variables.

use super::*;

#[test]
fn values_of_variables_are_values_of_keys() {
    let name = env!("CARGO_PKG_NAME");
    let labels = "labels = { a = \"${CARGO_PKG_NAME}\", b = \"$${CARGO_PKG_NAME}\" }\n";
    let lane = LANE.replace("[lanes.engine]", &format!("{labels}[lanes.engine]"));
    let config = parse(&format!("log.level = \"${{POINTSMAN_UNSET:-debug}}\"\n{lane}")).unwrap();
    assert_eq!(config.log.filter, "debug");
    let value = |label: &str| config.fleet.lanes[0].labels.iter().find(|(key, _)| key == label);
    assert_eq!(value("a").map(|(_, value)| value.as_str()), Some(name));
    assert_eq!(value("b").map(|(_, value)| value.as_str()), Some("${CARGO_PKG_NAME}"));
    let found: Vec<_> = config.variables.iter().map(|found| (&*found.key, &*found.name)).collect();
    let expected = [("lanes[0].labels.a", "CARGO_PKG_NAME"), ("log.level", "POINTSMAN_UNSET")];
    assert_eq!(found, expected);
}

#[test]
fn unset_variables_have_a_line_a_key_and_a_code() {
    let source = LANE.replace("http://127.0.0.1:1", "${POINTSMAN_UNSET}");
    let engine = "5: lanes[0].engine.url [unavailable]".to_owned();
    assert!(errors(&source).contains(&engine), "{:?}", errors(&source));
    // Placeholders are only for secrets.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.toml");
    std::fs::write(&file, &source).unwrap();
    let error = Config::load_without_secrets(&file, &[]).unwrap_err();
    assert!(error.diagnostics().iter().any(|error| error.code == Code::Unavailable), "{error}");
}

/// A client of the admin API need not have the variables of the service.
#[test]
fn admin_api_is_found_without_the_variables_of_other_parts() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.toml");
    let state = "[state]\ndir = \"${POINTSMAN_UNSET:-s}\"\n";
    let lane = LANE.replace("http://127.0.0.1:1", "${POINTSMAN_UNSET}");
    std::fs::write(&file, format!("{state}{lane}")).unwrap();
    let admin = Admin::find(&file).unwrap();
    assert_eq!(admin.link.or(admin.socket), Some(dir.path().join("s/admin.sock")));
    std::fs::write(&file, state.replace(":-s", "")).unwrap();
    let error = Admin::find(&file).unwrap_err();
    assert_eq!(error.diagnostics()[0].code, Code::Unavailable);
    assert_eq!(error.diagnostics()[0].key, "state.dir");
}
