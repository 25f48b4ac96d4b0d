//! `cargo xtask release`: all artifacts of a release, in one folder. The same source, tools and
//! binary give the same bytes.

mod debian;
mod elf;
mod sbom;
mod source;
mod tarball;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use pointsman_xtask::command::{output, run, target_dir};
use pointsman_xtask::{setup, sha256};

use self::elf::Requirements;
use self::source::Source;
use crate::dist;

/// Options of the command line.
#[derive(Debug, Default)]
struct Options {
    /// The folder of the artifacts, instead of `<target>/release-artifacts`, which is replaced.
    out: Option<PathBuf>,
    /// A binary that has been built, instead of a build of the release profile.
    binary: Option<PathBuf>,
}

/// Builds the binary unless one is given, and packs it.
pub(crate) fn release(root: &Path, arguments: &[&str]) -> Result<()> {
    let options = Options::parse(arguments)?;
    if setup::missing("strip") {
        setup::debian_install(&["binutils"])?;
    }
    let source = Source::read(root)?;
    let work = tempfile::tempdir()?;
    let out = out_folder(options.out)?;

    let binary = work.path().join("pointsman");
    if let Some(built) = options.binary {
        run(Command::new("strip").arg("--strip-all").arg("-o").arg(&binary).arg(built))?;
    } else {
        let [built, debug] = dist::build(root, Some(&source.commit))?;
        fs::copy(built, &binary)?;
        fs::copy(debug, out.join(format!("{}.debug", source.name())))?;
    }
    check_version(&binary, &source)?;
    let requirements = Requirements::read(&binary)?;

    let sbom = out.join(format!("pointsman-{}.cdx.json", source.version));
    fs::write(&sbom, sbom::sbom(root, &source, &binary)?)?;
    let tree = tree::Tree { root, binary: &binary, sbom: &sbom };
    tarball::pack(&tree, &source, work.path(), &out)?;
    debian::pack(&tree, &source, &requirements, work.path(), &out)?;

    for (file, size) in write_checksums(&out)? {
        println!("{}: {:.1} MB", out.join(file).display(), size as f64 / 1e6);
    }
    println!("requires {requirements}");
    Ok(())
}

impl Options {
    fn parse(arguments: &[&str]) -> Result<Self> {
        let mut options = Self::default();
        let mut rest = arguments;
        while let [name, value, more @ ..] = rest {
            match *name {
                "--out" => options.out = Some(value.into()),
                "--binary" => options.binary = Some(value.into()),
                other => bail!("unknown option `{other}`; expected --out or --binary"),
            }
            rest = more;
        }
        match rest {
            [] => Ok(options),
            [last, ..] => bail!("`{last}` is incomplete; expected --out DIR or --binary PATH"),
        }
    }
}

/// Returns the folder of the artifacts, which exists and is empty.
fn out_folder(chosen: Option<PathBuf>) -> Result<PathBuf> {
    let out = match chosen {
        Some(out) => std::path::absolute(out)?,
        None => {
            let out = target_dir()?.join("release-artifacts");
            if out.exists() {
                fs::remove_dir_all(&out)?;
            }
            out
        }
    };
    fs::create_dir_all(&out).with_context(|| format!("failed to create {}", out.display()))?;
    // The checksums are those of all files in it.
    if fs::read_dir(&out)?.next().is_some() {
        bail!("{} is not empty; name a new folder", out.display());
    }
    Ok(out)
}

/// Rejects a binary that was built from another version.
fn check_version(binary: &Path, source: &Source) -> Result<()> {
    let expected = format!("pointsman {}", source.version);
    let found = output(Command::new(binary).arg("--version")).unwrap_or_default();
    if found.lines().next() != Some(expected.as_str()) {
        bail!("{}: expected `{expected}`, found `{found}`", binary.display());
    }
    Ok(())
}

/// Writes `SHA256SUMS` for all files of a folder. Returns their names and sizes in bytes.
fn write_checksums(out: &Path) -> Result<Vec<(String, usize)>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(out)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let (mut sums, mut sizes) = (String::new(), Vec::new());
    for name in names {
        let content = fs::read(out.join(&name))?;
        sums.push_str(&format!("{}  {name}\n", sha256(&content)));
        sizes.push((name, content.len()));
    }
    fs::write(out.join("SHA256SUMS"), sums)?;
    Ok(sizes)
}
