//! The cost of one request, in a host that is a part of this process: allocations and, under
//! callgrind, instructions. `cargo xtask bench request` and `cargo xtask bench guard` run this with
//! the name of a workload and a number of requests, and subtract what the same traffic costs
//! without a host.
//!
//! Client, host and engine share one thread and take turns, so that two runs execute nearly the
//! same instructions. They are connected by the loopback interface, because the host connects to
//! engines by TCP; the kernel's part of that is not counted. The clock is not paused: tokio only
//! has a clock that can be paused when it is built with other features than in a host. Instead, no
//! lane is probed, and a measurement is over before other timers matter.

#![expect(clippy::unwrap_used, reason = "a failed setup has to end the benchmark")]
#![expect(clippy::print_stdout, reason = "the figures are the result")]
#![expect(unsafe_code, reason = "counting allocations needs a custom allocator")]

#[path = "shared/gateway.rs"]
mod gateway;
mod shared;
#[path = "request/traffic.rs"]
mod traffic;

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pointsman_fleet::{ExternalSpec, FleetTasks, LaneSpec};
use pointsman_gateway::{Drain, ListenerSettings};
use pointsman_policy::{Policies, PolicySpec, RuntimeSettings};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use self::gateway::{gateway, lane};
use self::shared::calls::{LONG_DEADLINE, measure};
use self::shared::{facts, fleet, load, policies, policy_dir};
use self::traffic::{Client, Engine};

/// Requests or chunks before the measurement.
const WARM_UP: u32 = 50;

/// The system allocator with counts of the allocations.
struct CountingAllocator;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn count(size: usize) {
    ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    BYTES.fetch_add(size as u64, Ordering::Relaxed);
}

// SAFETY: every call is forwarded unchanged to the system allocator.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Workload {
    /// The client is connected to a host, and not to the engine.
    has_host: bool,
    has_policy: bool,
    /// Chunks of one stream are counted, and not requests.
    is_stream: bool,
}

impl Workload {
    fn named(name: &str) -> Option<Self> {
        let (has_host, has_policy, is_stream) = match name {
            "direct" => (false, false, false),
            "plain" => (true, false, false),
            "cortex" => (true, true, false),
            "direct-chunk" => (false, false, true),
            "chunk" => (true, false, true),
            _ => return None,
        };
        Some(Self { has_host, has_policy, is_stream })
    }
}

fn main() {
    // `cargo test` runs benchmarks without a workload, or lists their tests.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    match &arguments[..] {
        [name] if name == "advise" => advise(),
        [name, number] => run(Workload::named(name).unwrap(), number.parse().unwrap()),
        _ => {}
    }
}

/// A client and what it is connected to.
struct Setup {
    client: Client,
    _policies: Option<Arc<Policies>>,
    _fleet: Option<FleetTasks>,
    /// The engine, and the host's listener. They end with the setup.
    _tasks: JoinSet<()>,
}

fn run(workload: Workload, number: u32) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut setup = runtime.block_on(set_up(workload));
    runtime.block_on(setup.client.work(WARM_UP));
    let before = (ALLOCATIONS.load(Ordering::Relaxed), BYTES.load(Ordering::Relaxed));
    counted_section(&runtime, &mut setup.client, number);
    let per_unit = |counter: &AtomicU64, before: u64| {
        (counter.load(Ordering::Relaxed) - before) as f64 / f64::from(number)
    };
    println!("allocations {:.2}", per_unit(&ALLOCATIONS, before.0));
    println!("bytes {:.2}", per_unit(&BYTES, before.1));
    println!("features {}", features().join(" "));
}

/// The part of the program whose instructions are counted: callgrind finds it by its name.
#[inline(never)]
fn counted_section(runtime: &Runtime, client: &mut Client, number: u32) {
    runtime.block_on(client.work(number));
}

async fn set_up(workload: Workload) -> Setup {
    let mut tasks = JoinSet::new();
    let engine = Engine::bind().await;
    let (engine_port, pace) = (engine.port(), engine.pace());
    tasks.spawn(engine.serve());
    if !workload.has_host {
        let client = Client::connect(engine_port, workload.is_stream, pace).await;
        return Setup { client, _policies: None, _fleet: None, _tasks: tasks };
    }
    let policies = policies(runtime_settings());
    if workload.has_policy {
        load(&policies, vec![policy("cortex", policy_dir("cortex"))]);
    }
    let url = format!("http://127.0.0.1:{engine_port}");
    let external = ExternalSpec::try_new(&url, None, Duration::from_secs(60)).unwrap();
    // Neither probes nor scrapes.
    let external = external.with_probe_path("").with_reused_connections(true);
    let lane = LaneSpec { engine: external.into(), ..lane("coder", "a", engine_port) };
    let (gateway, fleet) = gateway(vec![lane], policies.slot(), Drain::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tasks.spawn(async move { gateway.serve(listener, ListenerSettings::default()).await });
    let client = Client::connect(port, workload.is_stream, pace).await;
    let decided_by = if workload.has_policy { "cortex" } else { "built-in" };
    let head = client.head();
    assert!(head.contains(&format!("x-pointsman-policy: {decided_by}")), "{head}");
    Setup { client, _policies: Some(policies), _fleet: Some(fleet), _tasks: tasks }
}

fn folder(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from)
}

/// Returns settings with a cache in the folder `POINTSMAN_BENCH_CACHE`, so that no policy is
/// compiled under callgrind.
fn runtime_settings() -> RuntimeSettings {
    let cache_dir = folder("POINTSMAN_BENCH_CACHE");
    RuntimeSettings { warm_instances: 1, cache_dir, ..RuntimeSettings::default() }
}

/// Returns a policy whose calls may take as long as they do under callgrind.
fn policy(name: &str, folder: PathBuf) -> PolicySpec {
    let mut spec = PolicySpec::new(name, folder);
    spec.settings.deadline = Some(LONG_DEADLINE);
    spec
}

/// Prints the median times of warm calls with eight lanes, in microseconds. The policies in other
/// languages are those that `cargo xtask guests` built into the folder `POINTSMAN_FRESH_GUESTS`.
fn advise() {
    let time = |name: &str, folder: &Path, (model, prompt)| {
        let policies = policies(runtime_settings());
        load(&policies, vec![policy(name, folder.to_owned())]);
        let times = measure(&policies, &facts(model, prompt), &fleet(8), 1);
        times.p50.as_secs_f64() * 1e6
    };
    println!("cortex {:.2}", time("cortex", &policy_dir("cortex"), ("coder", 2_070)));
    let Some(guests) = folder("POINTSMAN_FRESH_GUESTS") else { return };
    for language in ["javascript", "python"] {
        let built = guests.join(format!("team-lanes-{language}"));
        if built.exists() {
            println!("{language} {:.2}", time("team-lanes", &built, ("auto", 2_000)));
        }
    }
}

/// Returns the features of the CPU on which libraries choose between implementations. Callgrind's
/// CPU has fewer than the machine's.
fn features() -> Vec<&'static str> {
    let mut found = vec![std::env::consts::ARCH];
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! detect {
            ($($name:tt)*) => {
                $(if std::arch::is_x86_feature_detected!($name) { found.push($name); })*
            };
        }
        detect!("sse4.2" "avx" "avx2" "bmi2" "fma" "aes" "sha" "avx512f");
    }
    found
}
