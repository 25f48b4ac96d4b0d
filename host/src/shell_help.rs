//! `pointsman completions` and `pointsman man`: what shells and `man` know of the command line.

use std::path::Path;

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::output::print;

/// Prints the completions of a shell.
pub(crate) fn completions(shell: Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut visible(), "pointsman", &mut script);
    print(&String::from_utf8(script)?)
}

/// Returns the command line without the commands that only the host itself uses, which shells would
/// offer.
fn visible() -> clap::Command {
    let all = Cli::command();
    let visible = all.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    clap::Command::new("pointsman").version(env!("CARGO_PKG_VERSION")).subcommands(visible)
}

/// Writes the manual pages, one for each command, into a folder.
pub(crate) fn man(dir: &Path) -> Result<()> {
    let write = || {
        std::fs::create_dir_all(dir)?;
        clap_mangen::generate_to(Cli::command(), dir)
    };
    write().with_context(|| format!("failed to write manual pages to {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clap checks the arguments of a command only when it is used.
    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_visible_command_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        man(&dir.path().join("man1")).unwrap();
        let page = |name: &str| std::fs::read_to_string(dir.path().join("man1").join(name));
        assert!(page("pointsman.1").unwrap().starts_with(".ie"));
        let command = Cli::command();
        assert!(command.get_subcommands().any(clap::Command::is_hide_set));
        for command in command.get_subcommands() {
            let name = format!("pointsman-{}.1", command.get_name());
            assert_eq!(page(&name).is_ok(), !command.is_hide_set(), "{name}");
        }
        assert!(page("pointsman-policy-list.1").unwrap().contains("\\-\\-config"));
    }
}
