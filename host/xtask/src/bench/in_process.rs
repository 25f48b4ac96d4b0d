//! Figures of the benchmark `request` of the host, which is client, host and engine in one process:
//! allocations, and instructions counted by callgrind.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use pointsman_xtask::command::{cargo, output, target_dir};
use pointsman_xtask::setup;

/// The compiled benchmark.
pub(super) struct InProcess {
    program: PathBuf,
    /// The folder of policies in several languages, if they were built.
    guests: PathBuf,
    /// The folder of compiled policies.
    cache: PathBuf,
}

/// The allocations of a request or a chunk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allocations {
    pub(super) number: f64,
    pub(super) bytes: f64,
}

/// The instructions of a request or a chunk.
#[derive(Debug)]
pub(super) struct Profile {
    pub(super) total: f64,
    /// The instructions of each function itself, without those that it calls.
    functions: HashMap<String, f64>,
}

impl InProcess {
    /// Builds the benchmark, with the names of functions.
    pub(super) fn build(root: &Path) -> Result<Self> {
        println!("== building the benchmark `request`");
        // Only the last step differs from `cargo bench`: a profile of its own would compile all
        // dependencies again.
        let mut build = cargo(root)?;
        build.args(["rustc", "--profile", "bench", "--package", "pointsman", "--bench", "request"]);
        build.args(["--quiet", "--message-format", "json", "--", "-C", "strip=none"]);
        build.stdin(Stdio::null()).stderr(Stdio::inherit());
        let built = build.output().context("failed to start cargo")?;
        if !built.status.success() {
            bail!("failed to build the benchmark: {}", built.status);
        }
        let messages = String::from_utf8_lossy(&built.stdout).into_owned();
        let program = messages.lines().filter_map(executable).next_back();
        let program = program.context("cargo names no program")?.into();
        let guests = target_dir()?.join("guests").join("fresh");
        Ok(Self { program, guests, cache: target_dir()?.join("bench").join("compiled") })
    }

    /// Returns the allocations of a workload without those of another one, and the features of the
    /// CPU.
    pub(super) fn allocations(&self, workload: &str, without: &str) -> Result<Allocations> {
        let of = |workload| -> Result<[f64; 2]> {
            let text = self.run(&mut self.command(&[workload, "1000"]))?;
            Ok([field(&text, "allocations")?, field(&text, "bytes")?])
        };
        let ([number, bytes], [less, fewer]) = (of(workload)?, of(without)?);
        Ok(Allocations { number: number - less, bytes: bytes - fewer })
    }

    /// Returns the median time of a warm call of each policy, in microseconds.
    pub(super) fn advise(&self) -> Result<Vec<(String, f64)>> {
        let text = self.run(&mut self.command(&["advise"]))?;
        let time = |line: &str| {
            let (name, time) = line.split_once(' ')?;
            Some((name.to_owned(), time.parse().ok()?))
        };
        Ok(text.lines().filter_map(time).collect())
    }

    /// Returns the architecture and the features of callgrind's CPU.
    pub(super) fn features(&self) -> Result<String> {
        let mut command = Command::new("valgrind");
        command.args(["--quiet", "--tool=none"]).arg(&self.program).args(["direct", "1"]);
        let text = self.run(&mut command)?;
        let line = text.lines().find_map(|line| line.strip_prefix("features "));
        line.map(str::to_owned).context("the benchmark names no features")
    }

    /// Returns what this number of requests or chunks of a workload execute, each; `None` if
    /// valgrind cannot run it.
    fn profile(&self, workload: &str, number: u32) -> Result<Option<Profile>> {
        setup::debian_install(&["valgrind"])?;
        // With a compiled policy in the cache, callgrind does not count the compilation.
        self.run(&mut self.command(&[workload, "1"]))?;
        let folder = target_dir()?.join("bench");
        fs::create_dir_all(&folder)?;
        let file = folder.join(format!("request-{workload}.callgrind"));
        let mut command = Command::new("valgrind");
        command.args(["--quiet", "--tool=callgrind", "--toggle-collect=*counted_section*"]);
        command.arg(format!("--callgrind-out-file={}", file.display())).arg(&self.program);
        command.args([workload, &number.to_string()]);
        let result = self.run(self.with_folders(&mut command));
        // rustix looks for the clock in a page of the kernel's that valgrind hides from programs,
        // unless it is built with its feature `use-libc-auxv`. Calls of policies read that clock.
        if result.as_ref().is_err_and(|error| error.to_string().contains("check_elf_base")) {
            return Ok(None);
        }
        result?;
        let mut annotate = Command::new("callgrind_annotate");
        annotate.args(["--auto=no", "--threshold=100", "--show-percs=no"]).arg(&file);
        let text = output(&mut annotate).context("callgrind_annotate failed")?;
        Profile::parse(&text, f64::from(number)).map(Some)
    }

    /// Returns what a request or chunk of a workload executes without what it does in another one;
    /// `None` if valgrind cannot run one of them.
    pub(super) fn difference(
        &self,
        (workload, without): (&str, &str),
        number: u32,
    ) -> Result<Option<Profile>> {
        let (all, other) = (self.profile(workload, number)?, self.profile(without, number)?);
        Ok(all.zip(other).map(|(all, other)| all.without(&other)))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments);
        self.with_folders(&mut command);
        command
    }

    fn with_folders<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let command = command.env("POINTSMAN_BENCH_CACHE", &self.cache);
        command.env("POINTSMAN_FRESH_GUESTS", &self.guests)
    }

    fn run(&self, command: &mut Command) -> Result<String> {
        let result = command.stdin(Stdio::null()).output().context("failed to start")?;
        if !result.status.success() {
            let error = String::from_utf8_lossy(&result.stderr);
            bail!("{command:?} failed: {}\n{error}", result.status);
        }
        Ok(String::from_utf8_lossy(&result.stdout).into_owned())
    }
}

/// Returns the benchmark of one of cargo's messages. Binaries of the package are built with it.
fn executable(message: &str) -> Option<&str> {
    if !message.contains("\"kind\":[\"bench\"]") {
        return None;
    }
    let (_, rest) = message.split_once("\"executable\":\"")?;
    rest.split_once('"').map(|(path, _)| path)
}

fn field(text: &str, name: &str) -> Result<f64> {
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.with_context(|| format!("no {name} in {text}"))?.parse().context("not a number")
}

impl Profile {
    /// Reads the output of `callgrind_annotate`: a line for each function.
    fn parse(text: &str, number: f64) -> Result<Self> {
        let (mut total, mut functions) = (None, HashMap::new());
        for line in text.lines() {
            let Some((count, name)) = line.trim().split_once(' ') else { continue };
            let Ok(count) = count.replace(',', "").parse::<f64>() else { continue };
            let name = name.trim();
            if name.contains("PROGRAM TOTALS") {
                total = Some(count / number);
            } else if let Some((_, function)) = name.split_once(':') {
                let function = function.rsplit_once(" [").map_or(function, |(name, _)| name);
                *functions.entry(function.to_owned()).or_default() += count / number;
            }
        }
        let total = total.context("the profile has no totals")?;
        Ok(Self { total, functions })
    }

    /// Returns this profile without the instructions of another one.
    fn without(mut self, other: &Self) -> Self {
        self.total -= other.total;
        for (function, count) in &other.functions {
            *self.functions.entry(function.clone()).or_default() -= count;
        }
        self
    }

    /// Returns the functions with the most instructions.
    pub(super) fn largest(&self, number: usize) -> Vec<(&str, f64)> {
        let mut all: Vec<(&str, f64)> =
            self.functions.iter().map(|(name, count)| (name.as_str(), *count)).collect();
        all.sort_by(|left, right| right.1.total_cmp(&left.1).then(left.0.cmp(right.0)));
        all.truncate(number);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANNOTATED: &str = "\
        1,000 PROGRAM TOTALS\n\
        600  ???:hyper::proto::h1::role::parse [/t/request-1]\n\
        300  ./malloc/malloc.c:malloc [/lib/libc.so.6]\n\
        100  ???:0x00000000048c3a90 [???]\n";

    #[test]
    fn profile_is_read_and_another_one_is_subtracted() {
        let profile = Profile::parse(ANNOTATED, 10.0).unwrap();
        assert_eq!(profile.total, 100.0);
        let less = Profile::parse("200 PROGRAM TOTALS\n200 ???:malloc [x]\n", 10.0).unwrap();
        let left = profile.without(&less);
        assert_eq!(left.total, 80.0);
        let largest = [("hyper::proto::h1::role::parse", 60.0), ("malloc", 10.0)];
        assert_eq!(left.largest(2)[0], largest[0]);
        assert_eq!(left.functions["malloc"], largest[1].1);
    }

    #[test]
    fn profile_without_totals_is_an_error() {
        assert!(Profile::parse("600  ???:main [x]\n", 1.0).is_err());
    }

    #[test]
    fn program_is_found_in_messages_of_cargo() {
        let message = |kind: &str, path: &str| {
            format!("{{\"target\":{{\"kind\":[\"{kind}\"]}},\"executable\":{path}}}")
        };
        assert_eq!(executable(&message("bench", "\"/t/request-1\"")), Some("/t/request-1"));
        assert_eq!(executable(&message("bench", "null")), None);
        assert_eq!(executable(&message("bin", "\"/t/pointsman\"")), None);
    }
}
