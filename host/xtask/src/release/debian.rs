//! The package for Debian and Ubuntu.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use pointsman_xtask::command::{output, run};

use super::elf::Requirements;
use super::source::Source;
use super::tree::{Prefix, Tree, read, set_mode, set_modes, write};

const MAINTAINER_SCRIPTS: [&str; 3] = ["postinst", "postrm", "prerm"];

/// Packs `pointsman_VERSION_ARCH.deb`.
pub(super) fn pack(
    tree: &Tree<'_>,
    source: &Source,
    requirements: &Requirements,
    work: &Path,
    out: &Path,
) -> Result<()> {
    let folder = work.join("debian");
    let (version, arch) = (version(&source.version), arch()?);
    tree.write(&folder.join("usr"), Prefix::System)?;
    adapt(&folder)?;
    write_changelog(&folder, source, &version)?;
    let templates = tree.root.join("host/packaging/debian");
    for (file, place) in [
        ("copyright", "usr/share/doc/pointsman/copyright"),
        ("lintian-overrides", "usr/share/lintian/overrides/pointsman"),
    ] {
        write(&folder.join(place), read(&templates.join(file))?.as_bytes())?;
    }
    set_modes(&folder)?;

    let control = folder.join("DEBIAN");
    let values = [
        ("@VERSION@", version.clone()),
        ("@ARCH@", arch.to_owned()),
        ("@SIZE@", installed_kib(&folder)?.to_string()),
        ("@GLIBC@", requirements.glibc()),
    ];
    let mut text = read(&templates.join("control"))?;
    for (name, value) in values {
        text = text.replace(name, &value);
    }
    let md5sums = md5sums(&folder)?;
    write(&control.join("control"), text.as_bytes())?;
    write(&control.join("conffiles"), b"/etc/pointsman/pointsman.toml\n")?;
    write(&control.join("md5sums"), md5sums.as_bytes())?;
    for script in MAINTAINER_SCRIPTS {
        let file = control.join(script);
        write(&file, read(&templates.join(script))?.as_bytes())?;
        set_mode(&file, 0o755)?;
    }
    set_mode(&control, 0o755)?;

    let package = out.join(format!("pointsman_{version}_{arch}.deb"));
    let mut build = Command::new("dpkg-deb");
    // xz would make it a third smaller and take a minute; Debian's tools do not read zstd.
    build.args(["--root-owner-group", "-Zgzip", "--build"]).arg(&folder).arg(package);
    // Newer files get this time, which are all.
    build.env("SOURCE_DATE_EPOCH", source.epoch.to_string());
    run(&mut build)
}

/// Returns a semantic version in Debian's form, in which pre-releases are older, too.
fn version(semantic: &str) -> String {
    semantic.replace('-', "~")
}

/// Returns Debian's name of this architecture.
fn arch() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("unsupported architecture {other}; expected x86_64 or aarch64"),
    }
}

/// Moves files to where Debian has them: the configuration to `/etc`, and manual pages compressed.
fn adapt(folder: &Path) -> Result<()> {
    let etc = folder.join("etc/pointsman");
    fs::create_dir_all(&etc)?;
    fs::rename(folder.join("usr/share/pointsman/pointsman.toml"), etc.join("pointsman.toml"))?;
    // Its text is one of base-files, to which `copyright` refers.
    fs::remove_file(folder.join("usr/share/doc/pointsman/LICENSE"))?;
    let mut compress = vec![folder.join("usr/share/doc/pointsman/CHANGELOG.md")];
    for entry in fs::read_dir(folder.join("usr/share/man/man1"))? {
        compress.push(entry?.path());
    }
    run(Command::new("gzip").args(["-n", "-9"]).args(compress))
}

/// Writes the changelog of the package, which refers to that of Pointsman.
fn write_changelog(folder: &Path, source: &Source, version: &str) -> Result<()> {
    let text = format!(
        "pointsman ({version}) stable; urgency=medium\n\n  \
         * See CHANGELOG.md.gz.\n  * Commit {}.\n\n -- {MAINTAINER}  {}\n",
        source.commit,
        source.date("+%a, %d %b %Y %H:%M:%S +0000")?,
    );
    let file = folder.join("usr/share/doc/pointsman/changelog");
    write(&file, text.as_bytes())?;
    run(Command::new("gzip").args(["-n", "-9"]).arg(file))
}

/// As in `control`. A name that cannot be resolved, so that reports do not go to a stranger.
const MAINTAINER: &str = "Pointsman contributors <pointsman@pointsman.invalid>";

/// Returns the sizes of all files, each rounded up to KiB, and one KiB for each folder, as dpkg
/// counts them.
fn installed_kib(folder: &Path) -> Result<u64> {
    let mut sum = 1;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        sum += if entry.file_type()?.is_dir() {
            installed_kib(&entry.path())?
        } else {
            entry.metadata()?.len().div_ceil(1024)
        };
    }
    Ok(sum)
}

/// Returns the checksums that `dpkg --verify` compares, of all files but the configuration.
fn md5sums(folder: &Path) -> Result<String> {
    let mut files = Vec::new();
    collect(folder, Path::new("usr"), &mut files)?;
    files.sort();
    output(Command::new("md5sum").current_dir(folder).args(files))
        .map(|sums| format!("{sums}\n"))
        .context("failed to run `md5sum`")
}

fn collect(folder: &Path, path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder.join(path))? {
        let entry = entry?;
        let file = path.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            collect(folder, &file, files)?;
        } else {
            files.push(file);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pre_release_sorts_before_its_release() {
        assert_eq!(version("1.2.3"), "1.2.3");
        assert_eq!(version("1.2.3-rc.1"), "1.2.3~rc.1");
    }
}
