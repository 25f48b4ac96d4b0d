//! `driver = "command"`: any program with the OpenAI API that the host starts.

use std::time::Duration;

use pointsman_domain::EngineKind;
use pointsman_settings::Section;

use super::process_section::{SECOND, allow_foreign_listener, fill, read_command_line, read_run};
use crate::driver::{
    Description, Driver, DriverInfo, EngineConfig, LaneBasics, LaneContext, LaneDefaults, Prepared,
    is_equal,
};
use crate::engine_spec::{CommandLine, ProcessSpec};
use crate::proof::Reuse;

/// The driver.
pub static DRIVER: DriverInfo = DriverInfo {
    key: "command",
    purpose: Some("any other program"),
    kind: EngineKind::Other,
    // Nothing is known of its work, so that silence proves nothing.
    defaults: LaneDefaults { stall: Duration::ZERO, ..LaneDefaults::MANAGED },
    read,
};

fn read(section: &Section<'_>, lane: &LaneBasics<'_>) -> Option<EngineConfig> {
    let example = "command = [\"python3\", \"server.py\", \"--port\", \"{port}\"]";
    let command_line = read_command_line(section, example);
    let mut run = read_run(section, lane.folder, 120 * SECOND, 10 * SECOND);
    if let Some(command_line) = &command_line {
        allow_foreign_listener(section, &command_line.command, &mut run);
    }
    let ready = section.string("ready").unwrap_or("/health");
    let is_path = ready.starts_with('/') && ready.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_path {
        section.error_at(
            "ready",
            format!(
                "invalid path \"{}\": expected for example \"/health\", or \"/api/version\" for \
                 Ollama",
                ready.escape_debug()
            ),
        );
    }
    Some(EngineConfig::new(Program {
        command_line: command_line?,
        ready_path: ready.to_owned(),
        reuse_connections: section.bool("reuse-connections", false),
        run,
    }))
}

/// A program with a command line.
#[derive(Debug, PartialEq)]
pub struct Program {
    /// Program, arguments and environment.
    pub command_line: CommandLine,
    /// Path that returns a 2xx status when the engine is ready.
    pub ready_path: String,
    /// Connections are used for several requests.
    pub reuse_connections: bool,
    /// How the host runs the process.
    pub run: ProcessSpec,
}

impl Driver for Program {
    fn info(&self) -> &'static DriverInfo {
        &DRIVER
    }

    fn equals(&self, other: &dyn Driver) -> bool {
        is_equal(self, other)
    }

    fn run(&self) -> Option<&ProcessSpec> {
        Some(&self.run)
    }

    fn prepare(&self, lane: &str, port: u16) -> Prepared {
        fill(&self.command_line, &self.run, lane, port)
    }

    fn ready_paths(&self) -> Vec<&str> {
        vec![&self.ready_path]
    }

    fn reuse(&self) -> Reuse {
        if self.reuse_connections { Reuse::Always } else { Reuse::Never }
    }

    fn describe(&self, _lane: &LaneContext<'_>) -> Description {
        Description { command: Some(self.command_line.clone()), warnings: Vec::new() }
    }
}
