//! Checks whether the program of an engine was built for the GPUs: which code a library of
//! llama.cpp contains, and what PyTorch says of itself.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use memchr::memmem;
use pointsman_files::open_regular;

use super::finding::Finding;
use super::system::System;

const CHECK: &str = "engine_targets";
/// What precedes the name of a GPU in a library with code for it (Clang's offload bundles).
const MARK: &[u8] = b"amdgcn-amd-amdhsa--";
/// Maximum length of the name of a GPU.
const MAX_NAME: usize = 24;
/// How much of a library is read at a time.
const CHUNK: usize = 1 << 20;
/// Maximum size of a library that is searched.
const MAX_LIBRARY: u64 = 2 << 30;
/// Maximum length of the first line of a script.
const MAX_FIRST_LINE: u64 = 512;
/// The mark of the line that [`PYTORCH_CODE`] prints.
const PYTORCH_MARK: &str = "pytorch-targets:";

/// Prints the platform of PyTorch, and the GPUs that it was built for, also without one.
pub(super) const PYTORCH_CODE: &str = "import torch\n\
    name = 'hip' if torch.version.hip else 'cuda' if torch.version.cuda else 'cpu'\n\
    flags = getattr(torch._C, '_cuda_getArchFlags', lambda: '')() or ''\n\
    print('pytorch-targets:', name, flags)\n";

/// Checks the libraries next to the program of an engine of llama.cpp. Says nothing if they have no
/// code for GPUs of AMD, or have it compressed.
pub(super) fn of_llama_cpp(system: &System, program: &str) -> Option<Finding> {
    let program = find_program(system, program)?;
    let dir = program.parent()?;
    let dirs = [dir.to_owned(), dir.join("../lib"), dir.join("../lib64")];
    let libraries = dirs.iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
    let libraries = libraries.map(|entry| entry.path()).filter(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with("libggml-hip"))
    });
    let targets: BTreeSet<String> =
        libraries.chain([program.clone()]).flat_map(|path| of_library(&path)).collect();
    compare(system, &program.display().to_string(), &targets)
}

/// Checks what [`PYTORCH_CODE`] has printed.
pub(super) fn of_pytorch(system: &System, interpreter: &str, output: &str) -> Option<Finding> {
    let line = output.lines().find_map(|line| line.trim().strip_prefix(PYTORCH_MARK))?;
    let mut words = line.split_whitespace();
    let platform = words.next()?;
    let shown = format!("PyTorch of {interpreter}");
    if platform == "hip" {
        return compare(system, &shown, &words.map(str::to_owned).collect());
    }
    let gfx = system.gpus.iter().find_map(|gpu| gpu.gfx.as_deref())?;
    let fact = format!("{shown} was built for {platform}, and the GPU is {gfx}");
    Some(match platform {
        "cpu" => Finding::note(CHECK, fact, "install a build for ROCm to use the GPU"),
        _ => Finding::problem(
            CHECK,
            fact,
            "install the wheel for ROCm; for other versions of Python than 3.12, pip installs the \
             one for CUDA",
        ),
    })
}

/// Returns the interpreter of a program in Python: the program itself, or that of a script.
pub(super) fn interpreter(system: &System, program: &str) -> Option<String> {
    let is_python = |path: &str| {
        let name = Path::new(path).file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with("python"))
    };
    if is_python(program) {
        return Some(program.to_owned());
    }
    let file = open_regular(&find_program(system, program)?).ok()?;
    let mut start = Vec::new();
    file.take(MAX_FIRST_LINE).read_to_end(&mut start).ok()?;
    let text = String::from_utf8_lossy(&start);
    let line = text.lines().next()?.strip_prefix("#!")?.trim();
    is_python(line).then(|| line.to_owned())
}

/// Returns the path of a program, which is searched for as a shell does.
fn find_program(system: &System, program: &str) -> Option<PathBuf> {
    let found = if program.contains('/') {
        PathBuf::from(program)
    } else {
        let path = system.environment.get("PATH").cloned().unwrap_or_default();
        let mut places = std::env::split_paths(&path).map(|dir| dir.join(program));
        places.find(|place| place.is_file())?
    };
    found.canonicalize().ok()
}

/// Returns the GPUs for which a library has code.
fn of_library(path: &Path) -> BTreeSet<String> {
    let mut targets = BTreeSet::new();
    let Ok(file) = open_regular(path) else { return targets };
    let mut file = file.take(MAX_LIBRARY);
    let mut bytes = Vec::with_capacity(CHUNK + MARK.len() + MAX_NAME);
    loop {
        // What was found before an error is all that can be read.
        let Ok(count) = file.by_ref().take(CHUNK as u64).read_to_end(&mut bytes) else {
            return targets;
        };
        let is_end = count < CHUNK;
        targets.extend(memmem::find_iter(&bytes, MARK).filter_map(|at| {
            let name = bytes[at + MARK.len()..].iter().take(MAX_NAME);
            let name = name.take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'-');
            let name: String = name.map(|byte| char::from(*byte)).collect();
            // One that may continue is found again, with the next part.
            let is_whole = is_end || at + MARK.len() + name.len() < bytes.len();
            (is_whole && name.starts_with("gfx")).then_some(name)
        }));
        if is_end {
            return targets;
        }
        bytes.drain(..bytes.len().saturating_sub(MARK.len() + MAX_NAME));
    }
}

/// Compares the GPUs that a program was built for with those of the system.
fn compare(system: &System, shown: &str, targets: &BTreeSet<String>) -> Option<Finding> {
    let gfx: Vec<&str> = system.gpus.iter().filter_map(|gpu| gpu.gfx.as_deref()).collect();
    if targets.is_empty() || gfx.is_empty() {
        return None;
    }
    let list = targets.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let missing = gfx.iter().find(|gfx| !targets.iter().any(|target| serves(target, gfx)));
    Some(match missing {
        None => Finding::ok(CHECK, format!("{shown} was built for {}", gfx.join(", "))),
        Some(gfx) => Finding::problem(
            CHECK,
            format!("{shown} has no code for {gfx}, only for {list}"),
            format!("install a build for {gfx}; HSA_OVERRIDE_GFX_VERSION does not replace it"),
        ),
    })
}

/// Returns true if code for a target runs on a GPU: `gfx1151`, `gfx90a:xnack-`, `gfx11-generic`.
fn serves(target: &str, gfx: &str) -> bool {
    let name = target.split(':').next().unwrap_or(target);
    match name.strip_suffix("-generic") {
        Some(family) => gfx.starts_with(family) && gfx.len() == family.len() + 2,
        None => name == gfx,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_at_any_place_of_a_library_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("libggml-hip.so");
        // At the borders of the parts that are read.
        for shift in 0..MARK.len() + 12 {
            let mut bytes = vec![b'-'; CHUNK - shift];
            bytes.extend_from_slice(b"hipv4-amdgcn-amd-amdhsa--gfx1151\0");
            bytes.extend_from_slice(b"amdgcn-amd-amdhsa--gfx90a:xnack-\0amdgcn-amd-amdhsa--x");
            bytes.extend_from_slice(b"hipv4-amdgcn-amd-amdhsa--gfx11-generic");
            fs::write(&path, bytes).unwrap();
            let found: Vec<String> = of_library(&path).into_iter().collect();
            assert_eq!(found, ["gfx11-generic", "gfx1151", "gfx90a"], "{shift}");
        }
    }

    #[test]
    fn generic_targets_serve_their_family() {
        for (target, gfx, expected) in [
            ("gfx1151", "gfx1151", true),
            ("gfx1100", "gfx1151", false),
            ("gfx90a:xnack-", "gfx90a", true),
            ("gfx11-generic", "gfx1151", true),
            ("gfx11-generic", "gfx1201", false),
            ("gfx9-generic", "gfx906", true),
        ] {
            assert_eq!(serves(target, gfx), expected, "{target} {gfx}");
        }
    }
}
