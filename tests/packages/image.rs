//! The container image: built without a network and without privileged mounts, and its root run as
//! a container runtime runs it. Requires root, as buildah does here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use pointsman_tests::client::{chat, get, post};
use pointsman_tests::host::{program, root, send_signal};
use pointsman_tests::wait_until;
use pointsman_xtask::setup::namespace_command;
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{assert_golden, run, run_any, shutdown_limit, venv_program};

const FAKE_ENGINE: &str = env!("CARGO_BIN_EXE_fake-engine");
const NAME: &str = "image::image_serves_as_its_user_on_a_read_only_root";
/// Set for the test that runs in the namespaces: the folder of [`Image`].
const INSIDE: &str = "POINTSMAN_TEST_IMAGE";
/// What a container runtime mounts: a read-only root, `/proc`, `/dev`, and writable folders, here
/// empty ones of the user.
const MOUNTS: &str = r#"set -e
ip link set lo up
mount --bind "$1" "$1"
mount --rbind /proc "$1/proc"
mount --rbind /dev "$1/dev"
for folder in var/lib/pointsman var/cache/pointsman; do
    mount -t tmpfs -o uid=65532,gid=65532,mode=0700 tmpfs "$1/$folder"
done
mount -t tmpfs -o mode=1777 tmpfs "$1/tmp"
mount -o remount,bind,ro "$1"
shift
exec "$@"
"#;
const CONFIG: &str = r#"
log.format = "json"
state.dir = "/var/lib/pointsman/state"
[policies]
dir = "/usr/share/pointsman/policies"
[[policies.chain]]
name = "cortex"
[[lanes]]
name = "coder"
models = ["coder", "auto"]
[lanes.engine]
driver = "llama-cpp"
command = ["/opt/fake-engine", "--port", "{port}", "--alias", "{lane}"]
"#;

/// A build context, and the storage of the image that is built from it.
struct Image {
    dir: TempDir,
}

impl Image {
    /// Makes a context of the host program without its symbols.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let binary = dir.path().join("pointsman");
        run(Command::new("strip").arg("-o").arg(&binary).arg(program(FAKE_ENGINE)));
        make_context(&binary, &dir.path().join("context"));
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn buildah(&self) -> Command {
        let mut command = Command::new("buildah");
        command.args(["--storage-driver", "vfs"]);
        command.arg("--root").arg(self.path("storage"));
        command.arg("--runroot").arg(self.path("run"));
        command
    }

    /// Builds the image.
    fn build(&self) {
        let mut build = self.buildah();
        build.args(["bud", "--quiet", "--isolation", "chroot"]);
        // Images of the OCI format have no health check.
        build.args(["--format", "docker", "--timestamp", "0", "--tag", "pointsman"]);
        run(build.arg(self.path("context")));
    }

    /// Returns what buildah knows of the image.
    fn inspect(&self) -> Value {
        let mut inspect = self.buildah();
        let text = run(inspect.args(["inspect", "--type", "image", "pointsman"]));
        serde_json::from_str(&text).unwrap()
    }

    /// Returns the settings of the image that are not those of the builder.
    fn config(&self) -> Value {
        let mut config = self.inspect()["Docker"]["config"].take();
        let settings = config.as_object_mut().unwrap();
        settings.retain(|key, value| {
            // The id of the build container, and what is empty or off.
            key != "Hostname" && !matches!(value, Value::Bool(false)) && !is_empty(value)
        });
        let labels = settings["Labels"].as_object_mut().unwrap();
        labels.retain(|name, _| name != "io.buildah.version");
        config
    }
}

fn is_empty(value: &Value) -> bool {
    *value == json!("") || *value == json!([]) || *value == json!({})
}

fn make_context(binary: &Path, context: &Path) {
    let script = root().join("host/packaging/oci/context.sh");
    run(Command::new(script).args([binary, context]));
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|value| value.as_str().unwrap()).collect()
}

#[test]
fn image_serves_as_its_user_on_a_read_only_root() {
    if let Some(dir) = std::env::var_os(INSIDE) {
        return run_container(Path::new(&dir));
    }
    let image = Image::new();
    image.build();
    let config = image.config();
    assert_golden("image.json", &format!("{config:#}\n"));
    // Reproducible: the context and the files of the image are the same the next time.
    make_context(&image.path("pointsman"), &image.path("again"));
    for archive in ["system.tar", "pointsman.tar"] {
        let read = |context: &str| fs::read(image.path(context).join(archive)).unwrap();
        assert!(read("context") == read("again"), "{archive} differs");
    }
    let layers = || image.inspect()["Docker"]["rootfs"]["diff_ids"].take();
    let before = layers();
    image.build();
    assert_eq!(layers(), before);

    let container = run(image.buildah().args(["from", "pointsman"]));
    let mounted = run(image.buildah().args(["mount", container.trim()]));
    let rootfs = Path::new(mounted.trim());
    for folder in ["proc", "dev", "opt"] {
        fs::create_dir_all(rootfs.join(folder)).unwrap();
    }
    fs::copy(FAKE_ENGINE, rootfs.join("opt/fake-engine")).unwrap();
    fs::write(rootfs.join("etc/pointsman/pointsman.toml"), CONFIG).unwrap();
    fs::write(image.path("config.json"), config.to_string()).unwrap();

    let mut inside = namespace_command().expect("namespaces, which root may create");
    inside.args(["sh", "-c", MOUNTS, "sh"]).arg(rootfs);
    inside.arg(std::env::current_exe().unwrap()).args(["--exact", NAME, "--nocapture"]);
    inside.env(INSIDE, image.dir.path()).env("POINTSMAN_TEST_ROOT", rootfs);
    println!("{}", run(&mut inside));
    run(image.buildah().args(["umount", container.trim()]));
}

/// A container runtime without a runtime: runs commands in the root as the image's settings say.
struct Container {
    config: Value,
    rootfs: PathBuf,
}

impl Container {
    fn command(&self, words: &[&str]) -> Command {
        // With its path, because the search path is that of the image.
        let mut command = Command::new("/usr/sbin/chroot");
        command.arg(format!("--userspec={}", self.config["User"].as_str().unwrap()));
        command.arg(&self.rootfs).args(words).env_clear();
        let variables = strings(&self.config["Env"]);
        command.envs(variables.iter().map(|variable| variable.split_once('=').unwrap()));
        command
    }

    fn start(&self) -> Child {
        let words = [strings(&self.config["Entrypoint"]), strings(&self.config["Cmd"])].concat();
        let log = fs::File::create(self.log()).unwrap();
        self.command(&words).stdin(Stdio::null()).stderr(log).spawn().unwrap()
    }

    fn log(&self) -> PathBuf {
        self.rootfs.join("tmp/log")
    }

    /// Runs the health check of the image; returns whether the container is healthy, and why.
    fn health(&self) -> (bool, String) {
        let test = strings(&self.config["Healthcheck"]["Test"]);
        assert_eq!(test[0], "CMD");
        run_any(&mut self.command(&test[1..]))
    }
}

/// In the namespaces: starts the container as its image says, on the port that it exposes.
fn run_container(dir: &Path) {
    let config = serde_json::from_str(&fs::read_to_string(dir.join("config.json")).unwrap());
    let rootfs = PathBuf::from(std::env::var_os("POINTSMAN_TEST_ROOT").unwrap());
    let container = Container { config: config.unwrap(), rootfs };
    assert!(!container.health().0, "healthy without a host");

    let mut host = container.start();
    wait_until("the container is healthy", || {
        let exited = host.try_wait().unwrap();
        let log = || fs::read_to_string(container.log()).unwrap();
        assert!(exited.is_none(), "{exited:?}: {}", log());
        container.health().0
    });
    assert_eq!(container.health().1, "200 {\"status\":\"ok\"}\n");
    assert_eq!(get(8000, "/health").status, 200);
    let response = post(8000, "/v1/chat/completions", &chat("auto", json!({ "max_tokens": 2 })));
    assert_eq!(response.status, 200, "{}", response.text());
    // The image's policy, compiled in the container, has decided.
    let policy = response.header("x-pointsman-policy").unwrap_or_default();
    assert!(policy.starts_with("cortex@"), "{policy}: {}", response.text());
    let state = container.rootfs.join("var/lib/pointsman/state");
    assert!(state.is_dir(), "no state directory");

    send_signal(host.id(), Signal::TERM);
    assert!(host.wait().unwrap().success());
    assert!(!container.health().0, "healthy after a stop");
}

#[test]
fn containerfiles_and_their_script_are_without_findings() {
    for file in ["Containerfile", "Containerfile.rocm-vllm"] {
        let file = root().join("host/packaging/oci").join(file);
        let output = run(Command::new(venv_program("hadolint")).args(["--no-color"]).arg(file));
        assert_eq!(output, "");
    }
    run(Command::new("shellcheck").arg(root().join("host/packaging/oci/context.sh")));
}

/// The first configuration that a reader of the page writes.
#[test]
fn configuration_of_the_page_is_accepted_and_stops_in_time() {
    let page = fs::read_to_string(root().join("host/docs/install/container.md")).unwrap();
    let (_, text) = page.split_once("<<'END'\n").unwrap();
    let (config, commands) = text.split_once("\nEND\n").unwrap();
    let (_, timeout) = commands.split_once("--stop-timeout ").unwrap();
    let timeout: u64 = timeout.split_whitespace().next().unwrap().parse().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let limit = shutdown_limit(&program(FAKE_ENGINE), config, dir.path());
    assert!(limit <= timeout, "{timeout} s, and a shutdown takes {limit} s");
}

/// A file whose version is not that of the binary would give the image wrong labels.
#[test]
fn context_has_the_version_of_the_binary_and_needs_a_new_folder() {
    let dir = tempfile::tempdir().unwrap();
    let context = dir.path().join("context");
    make_context(&program(FAKE_ENGINE), &context);
    let version = format!("\nARG VERSION={}\n", env!("CARGO_PKG_VERSION"));
    for file in ["Containerfile", "Containerfile.rocm-vllm"] {
        assert!(fs::read_to_string(context.join(file)).unwrap().contains(&version), "{file}");
    }
    let script = root().join("host/packaging/oci/context.sh");
    let again = Command::new(script).args([program(FAKE_ENGINE), context]).output().unwrap();
    assert_eq!(again.status.code(), Some(73));
}
