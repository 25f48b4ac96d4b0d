//! What a release is made of: version, commit and time.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use pointsman_xtask::command::output;

/// The source of a release.
#[derive(Debug)]
pub(super) struct Source {
    /// `workspace.package.version`.
    pub(super) version: String,
    /// The commit, with `-dirty` if files have been changed since.
    pub(super) commit: String,
    /// The time of all files in the artifacts, in seconds since 1970.
    pub(super) epoch: u64,
}

impl Source {
    /// Reads version, commit and the time of the commit.
    ///
    /// Where there is no Git repository, as in an archive of the source, `POINTSMAN_COMMIT` and
    /// `SOURCE_DATE_EPOCH` say them. If set, they also override those of the repository.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let manifest = std::fs::read_to_string(root.join("Cargo.toml"))?;
        let manifest: toml::Table = manifest.parse().context("Cargo.toml")?;
        let version = manifest["workspace"]["package"]["version"].as_str();
        let version = version.context("Cargo.toml has no workspace.package.version")?.to_owned();
        let git = |arguments: &[&str]| {
            output(Command::new("git").current_dir(root).args(arguments))
                .filter(|text| !text.is_empty())
        };
        let commit = match variable("POINTSMAN_COMMIT") {
            Some(commit) => Some(commit),
            None => git(&["rev-parse", "HEAD"]).map(|commit| {
                let is_dirty = git(&["status", "--porcelain", "--untracked-files=no"]).is_some();
                if is_dirty { format!("{commit}-dirty") } else { commit }
            }),
        };
        let epoch = match variable("SOURCE_DATE_EPOCH") {
            Some(epoch) => Some(epoch),
            None => git(&["log", "-1", "--format=%ct"]),
        };
        let (Some(commit), Some(epoch)) = (commit, epoch) else {
            bail!("not a Git repository; set POINTSMAN_COMMIT and SOURCE_DATE_EPOCH");
        };
        let epoch = epoch.parse().with_context(|| format!("invalid SOURCE_DATE_EPOCH {epoch}"))?;
        Ok(Self { version, commit, epoch })
    }

    /// Returns the name of the release for this architecture, for example
    /// `pointsman-1.2.3-x86_64-linux`.
    pub(super) fn name(&self) -> String {
        format!("pointsman-{}-{}-linux", self.version, std::env::consts::ARCH)
    }

    /// Returns the time of the release in a format of `date`.
    pub(super) fn date(&self, format: &str) -> Result<String> {
        let mut date = Command::new("date");
        date.env("LC_ALL", "C").args(["-u", "-d", &format!("@{}", self.epoch), format]);
        output(&mut date).context("failed to run `date`")
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
