//! The GPU memory that all fake engines of a test share: a directory with files like those of the
//! kernel.
//!
//! Each engine holds a number of bytes (`held/<pid>`). A helper process in a session of its own
//! frees them some time after the engine has exited, as a GPU driver does.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::options::Options;

const CARD: &str = "sys/class/drm/renderD128/device";
const PROCESSES: &str = "sys/class/kfd/kfd/proc";

/// The error that there is too little memory. All numbers are bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct OutOfMemory {
    pub(super) free: u64,
    pub(super) total: u64,
    pub(super) requested: u64,
}

/// The memory that an engine holds.
#[derive(Debug)]
pub(super) struct Memory {
    root: PathBuf,
    bytes: u64,
    pid: u32,
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Writes a number atomically.
fn write(path: &Path, number: u64) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, format!("{number}\n"))?;
    fs::rename(new, path)
}

/// Sets the number of bytes that a process holds, and updates the files; `None` frees all of its
/// memory.
fn set(root: &Path, pid: u32, bytes: Option<u64>) -> io::Result<Result<(), OutOfMemory>> {
    let lock = File::options().create(true).truncate(false).write(true).open(root.join("lock"))?;
    lock.lock()?;
    let (held, card, process) =
        (root.join("held"), root.join(CARD), root.join(PROCESSES).join(pid.to_string()));
    fs::create_dir_all(&held)?;
    fs::create_dir_all(&card)?;
    let mine = held.join(pid.to_string());
    let mut others = 0;
    for entry in fs::read_dir(&held)? {
        let path = entry?.path();
        if path != mine && path.extension().is_none() {
            others += number(&path).unwrap_or(0);
        }
    }
    let total = number(&card.join("mem_info_vram_total")).unwrap_or(u64::MAX);
    match bytes {
        Some(requested) if others.saturating_add(requested) > total => {
            return Ok(Err(OutOfMemory { free: total.saturating_sub(others), total, requested }));
        }
        Some(bytes) => {
            fs::create_dir_all(&process)?;
            write(&mine, bytes)?;
            write(&process.join("vram_1"), bytes)?;
        }
        None => {
            // The files may have been removed already.
            fs::remove_file(&mine).ok();
            fs::remove_dir_all(&process).ok();
        }
    }
    write(&card.join("mem_info_vram_used"), others + bytes.unwrap_or(0))?;
    Ok(Ok(()))
}

/// Returns the error of a vLLM that finds less memory free than the fraction of the device that it
/// was started with.
fn refusal(options: &Options, root: &Path) -> Option<OutOfMemory> {
    let part = options.gpu_memory_utilization.filter(|_| options.vllm())?;
    let size = |name: &str| number(&root.join(CARD).join(name));
    let all = size("mem_info_vram_total")?;
    let free = all.saturating_sub(size("mem_info_vram_used").unwrap_or(0));
    let total = options.device_total.unwrap_or(all);
    let requested = (total as f64 * part).ceil() as u64;
    (requested > free).then_some(OutOfMemory { free, total, requested })
}

impl Memory {
    /// Allocates the memory of the options for this process, and waits for it if the options say
    /// so.
    pub(super) async fn hold(
        options: &Options,
        pid: u32,
    ) -> Result<Result<Option<Self>, OutOfMemory>> {
        let Some(root) = options.memory_root.clone().filter(|_| options.memory_bytes > 0) else {
            return Ok(Ok(None));
        };
        fs::create_dir_all(&root)?;
        if let Some(refused) = refusal(options, &root) {
            return Ok(Err(refused));
        }
        let memory = Self { root, bytes: options.memory_bytes, pid };
        memory.start_helper(options.memory_linger_ms)?;
        loop {
            match set(&memory.root, pid, Some(memory.bytes))? {
                Ok(()) => return Ok(Ok(Some(memory))),
                Err(_) if options.memory_wait => {
                    tokio::time::sleep(Duration::from_millis(20)).await
                }
                Err(full) => return Ok(Err(full)),
            }
        }
    }

    /// Holds this percentage of the memory.
    pub(super) fn resize(&self, percent: u64) -> Result<(), OutOfMemory> {
        set(&self.root, self.pid, Some(self.bytes.saturating_mul(percent) / 100)).unwrap_or(Ok(()))
    }

    fn start_helper(&self, linger: u64) -> Result<()> {
        let mut helper = Command::new(std::env::current_exe()?);
        helper
            .arg("memory-helper")
            .arg(&self.root)
            .args([self.pid.to_string(), linger.to_string()]);
        helper.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut helper = helper.spawn().context("failed to start the memory helper")?;
        let mut ready = String::new();
        BufReader::new(helper.stdout.take().context("no output of the memory helper")?)
            .read_line(&mut ready)?;
        ensure!(ready.trim() == "ready", "the memory helper did not start");
        Ok(())
    }
}

/// Returns the start time of a process that is alive.
fn started(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit(") ").next()?.split(' ');
    let state = fields.next()?;
    (!matches!(state, "Z" | "X")).then(|| fields.nth(18).map(str::to_owned))?
}

/// Runs as the helper: frees the memory of a process some time after the process has exited.
pub(super) async fn release_after_exit(root: &Path, pid: u32, linger: Duration) -> Result<()> {
    // Fails only if this process leads a session already.
    rustix::process::setsid().ok();
    let process = started(pid);
    say!("ready");
    while process.is_some() && started(pid) == process {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(linger).await;
    if root.exists() {
        // Freeing memory cannot fail for want of memory.
        set(root, pid, None)?.ok();
    }
    Ok(())
}
