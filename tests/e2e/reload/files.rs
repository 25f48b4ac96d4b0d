//! The configuration file, however it is written: by editors, tools, Kubernetes, and halfway.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use pointsman_tests::attack::{HostileEngine, external_lane};
use pointsman_tests::deployment::{Deployment, policy_dir, replace_symlink};
use pointsman_tests::guests::replace_file;
use pointsman_tests::{pause, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::FAKE_ENGINE;

/// A host whose configuration is written in many ways; `limit` is a value that all of them change.
struct Written {
    deployment: Deployment,
    engine: HostileEngine,
}

impl Written {
    fn start() -> Self {
        let engine = HostileEngine::honest();
        let text = config(&engine, 1);
        let deployment = Deployment::start(FAKE_ENGINE, policy_dir(&[]), &text);
        Self { deployment, engine }
    }

    fn file(&self) -> PathBuf {
        self.deployment.host.dir.path().join("pointsman.toml")
    }

    /// Returns the text of the configuration with this limit, as it is in the file.
    fn text(&self, limit: u32) -> String {
        let now = fs::read_to_string(self.file()).unwrap();
        let (head, _) = now.split_once("[server]").unwrap();
        format!("{head}{}", config(&self.engine, limit))
    }

    fn config_status(&self) -> Value {
        self.deployment.host.status()["config"].clone()
    }

    fn generation(&self) -> u64 {
        self.config_status()["generation"].as_u64().unwrap()
    }

    /// Waits until the host has applied something new by itself.
    fn wait_for_change(&self, what: &str, change: impl FnOnce()) {
        let before = self.generation();
        change();
        wait_until(what, || self.generation() > before);
        assert_eq!(self.config_status()["error"], Value::Null, "{what}");
        assert_eq!(self.deployment.send_chat("a").status, 200);
    }

    /// Waits until the host has reported an error that contains this text, and has not changed.
    fn assert_rejected(&self, what: &str, part: &str) {
        let before = self.generation();
        wait_until(what, || {
            let error = self.config_status()["error"].clone();
            error.as_str().is_some_and(|error| error.contains(part))
        });
        assert_eq!(self.generation(), before, "{what}");
        assert_eq!(self.deployment.send_chat("a").status, 200);
        assert_eq!(self.config_status()["last_reload"]["result"], "rejected");
    }
}

/// Returns the configuration without `[admin]`.
fn config(engine: &HostileEngine, limit: u32) -> String {
    let lane = external_lane("a", &["a"], engine, "");
    format!("[server]\nmax-attempts = {limit}\n[policies]\npoll-interval = \"1s\"\n{lane}")
}

#[test]
fn file_is_applied_however_it_is_written() {
    let written = Written::start();
    let file = written.file();
    written.wait_for_change("a renamed file is applied", || {
        replace_file(&file, written.text(2).as_bytes());
    });
    written.wait_for_change("a file that is overwritten is applied", || {
        fs::write(&file, written.text(3)).unwrap();
    });
    written.wait_for_change("a file that an editor saves with a backup is applied", || {
        let (text, backup) = (written.text(4), file.with_extension("toml~"));
        fs::rename(&file, &backup).unwrap();
        fs::write(&file, text).unwrap();
        fs::remove_file(backup).unwrap();
    });
    written.wait_for_change("a file that is written slowly is applied", || {
        let text = written.text(5);
        let mut out = fs::File::create(&file).unwrap();
        for line in text.split_inclusive('\n') {
            out.write_all(line.as_bytes()).unwrap();
            out.flush().unwrap();
            pause(std::time::Duration::from_millis(20));
        }
    });
    // Links as Kubernetes makes them: the file → ..data/file, and ..data → ..2026_1.
    let volume = |name: &str, limit: u32| {
        let folder = file.with_file_name(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("pointsman.toml"), written.text(limit)).unwrap();
    };
    written.wait_for_change("a file that becomes a link is applied", || {
        volume("..2026_1", 6);
        replace_symlink(&file.with_file_name("..data"), "..2026_1".as_ref());
        replace_symlink(&file, "..data/pointsman.toml".as_ref());
    });
    written.wait_for_change("a switched link is applied", || {
        volume("..2026_2", 7);
        replace_symlink(&file.with_file_name("..data"), "..2026_2".as_ref());
    });
    let text = written.text(8);
    fs::write(file.with_file_name("..2026_2").join("pointsman.toml"), text).unwrap();
    written.wait_for_change("SIGHUP reloads", || written.deployment.host.signal(Signal::HUP));
    written.deployment.host.assert_no_request_lost();
}

#[test]
fn incomplete_file_changes_nothing() {
    let written = Written::start();
    let file = written.file();
    let whole = fs::read_to_string(&file).unwrap();
    fs::write(&file, "").unwrap();
    written.assert_rejected("an empty file is rejected", "[cut_off]");
    fs::write(&file, &whole).unwrap();
    wait_until("the file is whole again", || written.config_status()["error"].is_null());
    assert_eq!(written.generation(), 1);
    // In the middle of a line, and of a value.
    for cut in [whole.len() / 2, whole.len() - 8] {
        replace_file(&file, &whole.as_bytes()[..cut]);
        written.assert_rejected("a part of the file is rejected", "pointsman.toml:");
        replace_file(&file, whole.as_bytes());
        wait_until("the file is whole again", || written.config_status()["error"].is_null());
    }
    // A part that is valid by itself: another lane was at the end.
    let second = external_lane("b", &["b"], &written.engine, "");
    written.wait_for_change("a lane is added", || {
        replace_file(&file, format!("{whole}{second}").as_bytes());
    });
    fs::write(&file, &whole).unwrap();
    written.assert_rejected("the beginning of the file is not believed", "[cut_off]");
    // An operator confirms it.
    let outcome = written.deployment.reload();
    assert_eq!((&outcome["result"], &outcome["error"]), (&json!("applied"), &Value::Null));
    assert_eq!(outcome["plan"]["removed"], json!(["lanes.b"]));
}
