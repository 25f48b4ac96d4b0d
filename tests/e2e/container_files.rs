//! Files for containers, as far as they are checked without the tools of `tests/packages`.

use std::fs;
use std::path::{Path, PathBuf};

use pointsman_tests::host::root;
use toml::Table;

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn packaging(file: &str) -> PathBuf {
    root().join("host/packaging").join(file)
}

fn read(file: &str) -> String {
    fs::read_to_string(packaging(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Returns the values of a key of a file whose lines are `KEY SEPARATOR VALUE`.
fn values<'a>(text: &'a str, key: &str, separator: char) -> Vec<&'a str> {
    let pairs = text.lines().filter_map(|line| line.trim().split_once(separator));
    pairs.filter(|(name, _)| name.trim() == key).map(|(_, value)| value.trim()).collect()
}

#[test]
fn version_is_that_of_the_workspace() {
    let chart = read("helm/pointsman/Chart.yaml");
    assert_eq!(values(&chart, "version", ':'), [VERSION]);
    assert_eq!(values(&chart, "appVersion", ':'), [format!("\"{VERSION}\"")]);
    let quadlet = read("quadlet/pointsman.container");
    let image = format!("localhost/pointsman-rocm-vllm:{VERSION}");
    assert_eq!(values(&quadlet, "Image", '='), [image]);
    for (kind, image) in [("development", "pointsman"), ("strix", "pointsman-rocm-vllm")] {
        let compose = read(&format!("compose/{kind}/compose.yaml"));
        let image = format!("{image}:${{POINTSMAN_VERSION:-{VERSION}}}");
        assert!(values(&compose, "image", ':').contains(&image.as_str()), "{kind}");
    }
    for page in ["container", "compose", "helm"] {
        let text = fs::read_to_string(root().join(format!("host/docs/install/{page}.md"))).unwrap();
        for image in ["pointsman:", "pointsman-rocm-vllm:"] {
            let tags = text.split(image).skip(1).filter(|tag| tag.starts_with(char::is_numeric));
            for tag in tags {
                assert!(tag.starts_with(VERSION), "{page}: {image}{tag:.10}");
            }
        }
    }
}

/// The keys of `[Container]` that the quadlet may have, of those that Podman 5.2 knows. Podman
/// ignores a unit with any other key.
const QUADLET_KEYS: [&str; 15] = [
    "AddDevice",
    "ContainerName",
    "DropCapability",
    "EnvironmentFile",
    "GroupAdd",
    "Image",
    "NoNewPrivileges",
    "PublishPort",
    "Pull",
    "RunInit",
    "SeccompProfile",
    "ShmSize",
    "StopTimeout",
    "Ulimit",
    "Volume",
];

#[test]
fn quadlet_has_known_keys_and_what_the_gpu_needs() {
    let text = read("quadlet/pointsman.container");
    let mut section = "";
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match line.strip_prefix('[') {
            Some(name) => section = name,
            None => {
                let (key, _) = line.split_once('=').unwrap_or_else(|| panic!("{line}"));
                let is_known = section != "Container]" || QUADLET_KEYS.contains(&key);
                assert!(is_known, "{key}");
            }
        }
    }
    assert_eq!(values(&text, "AddDevice", '='), ["/dev/kfd", "/dev/dri"]);
    for group in values(&text, "GroupAdd", '=') {
        assert!(group.parse::<u32>().is_ok(), "{group} is not a number");
    }
    assert_eq!(values(&text, "PublishPort", '='), ["127.0.0.1:11434:8000"]);
    // systemd waits longer than Podman, or it would kill Podman.
    let stop: u32 = values(&text, "StopTimeout", '=')[0].parse().unwrap();
    let limit = values(&text, "TimeoutStopSec", '=')[0].strip_suffix('s').unwrap();
    assert!(limit.parse::<u32>().unwrap() > stop, "{limit} s, and Podman waits {stop} s");
}

#[test]
fn lanes_of_compose_are_those_of_the_example() {
    let parse = |text: String| -> Table { text.parse().unwrap() };
    let example = parse(fs::read_to_string(root().join("examples/cortex.toml")).unwrap());
    let compose = parse(read("compose/strix/config/pointsman.toml"));
    let lanes = |config: &Table| config["lanes"].as_array().unwrap().clone();
    assert_eq!(lanes(&compose).len(), lanes(&example).len());
    for (ours, theirs) in lanes(&compose).iter().zip(lanes(&example)) {
        assert_eq!(ours["name"], theirs["name"]);
        // The others are containers of their own.
        if ours["engine"]["driver"].as_str() == Some("vllm") {
            assert_eq!(*ours, theirs);
        }
    }
    for key in ["queue", "switching"] {
        assert_eq!(compose[key], example[key], "{key}");
    }
    assert_eq!(compose["policies"]["chain"], example["policies"]["chain"]);
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files_below(&path, found) } else { found.push(path) }
    }
}

/// What compose files and Dockerfiles that are commonly copied have, and what is wrong on a current
/// machine: an override of the GPU, groups by name, two mounts of shared memory, a health check
/// with a program that images lack, and the version of Compose's format.
#[test]
fn common_faults_are_absent() {
    let mut files = Vec::new();
    for folder in ["oci", "compose", "quadlet", "helm"] {
        files_below(&packaging(folder), &mut files);
    }
    assert!(files.len() > 10, "{files:?}");
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
        for line in lines {
            let faults = [
                line.contains("HSA_OVERRIDE"),
                line.contains("/dev/shm:"),
                line.contains("curl"),
                ["- video", "- render", "GroupAdd=video", "GroupAdd=render"].contains(&line),
                line.starts_with("version:") && file.ends_with("compose.yaml"),
                line.starts_with("USER root"),
            ];
            // The text that Helm prints is for a machine that has curl.
            let is_fault = faults.contains(&true) && !file.ends_with("NOTES.txt");
            assert!(!is_fault, "{}: {line}", file.display());
        }
    }
}
