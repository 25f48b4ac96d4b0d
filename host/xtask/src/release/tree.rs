//! The files of a release, as they are below `/usr/local` or `/usr`.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use pointsman_xtask::command::run;

/// The inputs of the files of a release.
#[derive(Debug)]
pub(super) struct Tree<'a> {
    /// The root folder of the workspace.
    pub(super) root: &'a Path,
    /// The stripped binary.
    pub(super) binary: &'a Path,
    pub(super) sbom: &'a Path,
}

/// A folder below which the files of a release are installed on a system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prefix {
    /// `/usr/local`, which belongs to the administrator.
    Local,
    /// `/usr`, which belongs to the system's packages.
    System,
}

impl Prefix {
    fn path(self) -> &'static str {
        match self {
            Self::Local => "/usr/local/",
            Self::System => "/usr/",
        }
    }

    /// Returns the folder in which zsh looks for completions.
    fn zsh(self) -> &'static str {
        match self {
            Self::Local => "share/zsh/site-functions",
            Self::System => "share/zsh/vendor-completions",
        }
    }
}

impl Tree<'_> {
    /// Writes all files of a release to `dir`, which stands for the folder of the prefix.
    pub(super) fn write(&self, dir: &Path, prefix: Prefix) -> Result<()> {
        install(self.binary, &dir.join("bin/pointsman"), 0o755)?;
        let packaging = self.root.join("host/packaging");
        for (file, place) in [
            ("pointsman.service", "lib/systemd/system/pointsman.service"),
            ("pointsman.socket", "lib/systemd/system/pointsman.socket"),
            ("pointsman.sysusers", "lib/sysusers.d/pointsman.conf"),
            ("pointsman.tmpfiles", "lib/tmpfiles.d/pointsman.conf"),
            ("pointsman.toml", "share/pointsman/pointsman.toml"),
        ] {
            let text = read(&packaging.join(file))?;
            // The files are written for `/usr/local`.
            let text = text.replace(Prefix::Local.path(), prefix.path());
            write(&dir.join(place), text.as_bytes())?;
        }
        let doc = dir.join("share/doc/pointsman");
        for file in ["LICENSE", "README.md", ".github/CHANGELOG.md"] {
            let source = self.root.join(file);
            let name = source.file_name().context("a file has a name")?;
            install(&source, &doc.join(name), 0o644)?;
        }
        install(self.sbom, &doc.join("pointsman.cdx.json"), 0o644)?;
        copy_folder(&self.root.join("examples"), &doc.join("examples"))?;
        copy_folder(&self.root.join("policies"), &dir.join("share/pointsman/policies"))?;
        self.write_shell_help(dir, prefix)
    }

    /// Writes what shells and `man` know of the program, which prints it.
    fn write_shell_help(&self, dir: &Path, prefix: Prefix) -> Result<()> {
        let share = dir.join("share");
        for (shell, place) in [
            ("bash", share.join("bash-completion/completions/pointsman")),
            ("fish", share.join("fish/vendor_completions.d/pointsman.fish")),
            ("zsh", dir.join(prefix.zsh()).join("_pointsman")),
        ] {
            let mut command = Command::new(self.binary);
            let output = command.args(["completions", shell]).stdin(Stdio::null()).output()?;
            if !output.status.success() || output.stdout.is_empty() {
                bail!("`pointsman completions {shell}` failed: {}", output.status);
            }
            write(&place, &output.stdout)?;
        }
        run(Command::new(self.binary).arg("man").arg(share.join("man/man1")))?;
        set_modes(&share.join("man"))
    }
}

/// Reads a text file.
pub(super) fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("failed to read {}", file.display()))
}

/// Writes a file with mode 0644, and the folders above it.
pub(super) fn write(file: &Path, content: &[u8]) -> Result<()> {
    let folder = file.parent().context("a file has a folder")?;
    fs::create_dir_all(folder)?;
    fs::write(file, content).with_context(|| format!("failed to write {}", file.display()))?;
    set_mode(file, 0o644)
}

/// Copies a file.
pub(super) fn install(source: &Path, target: &Path, mode: u32) -> Result<()> {
    let content =
        fs::read(source).with_context(|| format!("failed to read {}", source.display()))?;
    write(target, &content)?;
    set_mode(target, mode)
}

/// Sets the modes of all files and folders, which otherwise depend on the umask: a file stays
/// executable if it is.
pub(super) fn set_modes(path: &Path) -> Result<()> {
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            set_modes(&entry?.path())?;
        }
    }
    let is_executable = metadata.is_dir() || metadata.permissions().mode() & 0o100 != 0;
    set_mode(path, if is_executable { 0o755 } else { 0o644 })
}

pub(super) fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
        .with_context(|| format!("failed to set the mode of {}", path.display()))
}

fn copy_folder(source: &Path, target: &Path) -> Result<()> {
    let entries =
        fs::read_dir(source).with_context(|| format!("failed to read {}", source.display()))?;
    for entry in entries {
        let entry = entry?;
        let to = target.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &to)?;
        } else {
            install(&entry.path(), &to, 0o644)?;
        }
    }
    Ok(())
}
