//! Three hosts that know each other, a picker with Envoy, and Redis, on five machines.

use std::fs;
use std::time::Duration;

use pointsman_tests::host::{Host, fake_lane, program};
use pointsman_tests::wait_until;
use tempfile::TempDir;

use super::load::DIGEST;
use crate::FAKE_ENGINE;
use crate::envoy::{Envoy, free_port};
use crate::network::{Kept, Network, address};
use crate::redis::Redis;

/// Number of hosts, whose machines are the first ones.
const HOSTS: usize = 3;
/// The machine of the picker and of Envoy.
pub(super) const EDGE: usize = 4;
/// The machine of Redis.
pub(super) const REDIS: usize = 5;
/// The port of the hosts for other machines.
const PORT: u16 = 8000;
/// Interval in which hosts share.
pub(super) const INTERVAL: Duration = Duration::from_millis(50);

/// What runs on the machines.
#[derive(Debug)]
pub(super) struct Machines {
    /// The port of Envoy.
    envoy: Kept<u16>,
    pub(super) picker: Host,
    pub(super) hosts: Vec<Host>,
    _redis: Redis,
    pub(super) network: Network,
}

impl Machines {
    /// Starts all. `limit` is that of the clients' key, in requests per minute, and `token_ms` the
    /// time for which the engines compute a token.
    pub(super) fn start(limit: u32, token_ms: u32) -> Self {
        let network = Network::new(REDIS);
        let arguments = ["--bind", "0.0.0.0", "--protected-mode", "no"];
        let redis = network.on(REDIS, || Redis::run(&arguments));
        let common = format!(
            "[access]\nkeys = \"keys.toml\"\n[shared-state]\nurl = \"redis://{}:{}\"\n\
             interval = \"{}ms\"\nreplicas = {HOSTS}\n",
            address(REDIS),
            redis.port,
            INTERVAL.as_millis()
        );
        // The first host has lanes of the others, which therefore start before it.
        let host = |number: usize| {
            let config = common.clone() + &host_config(number, token_ms);
            let start = || Host::start_in(&program(FAKE_ENGINE), folder(limit), &config, &[]);
            network.on(number, || start().wait_until_ready())
        };
        let mut hosts: Vec<Host> = (1..=HOSTS).rev().map(host).collect();
        hosts.reverse();
        let lanes: String = (1..=HOSTS)
            .map(|number| peer_lane(&format!("h{number}"), number, "own", "edge.key"))
            .collect();
        let config = format!("{common}[pick]\n{lanes}");
        let picker = network.on(EDGE, || {
            let picker = Host::start_picker(&program(FAKE_ENGINE), folder(limit), &config);
            picker.wait_until_ready()
        });
        // Replaced by the addresses of the hosts.
        let ports = [1, 2];
        let pickers = [picker.port, network.on(EDGE, free_port)];
        let envoy = network.keep(EDGE, move || {
            let envoy = Envoy::start(pickers, ports, |text| {
                let old = [1, 2, 2].map(|port| format!("127.0.0.1, port_value: {port} "));
                (1..=HOSTS).zip(old).fold(text, |text, (number, old)| {
                    let new = format!("{}, port_value: {PORT} ", address(number));
                    assert!(text.contains(&old));
                    text.replacen(&old, &new, 1)
                })
            });
            let port = envoy.port;
            (envoy, port)
        });
        let machines = Self { envoy, picker, hosts, _redis: redis, network };
        wait_until("all share", || machines.all().all(is_sharing));
        machines
    }

    /// Returns the hosts and the picker.
    pub(super) fn all(&self) -> impl Iterator<Item = &Host> {
        self.hosts.iter().chain([&self.picker])
    }

    /// Returns the port on which a machine serves clients on the same machine.
    pub(super) fn port(&self, machine: usize) -> u16 {
        match machine {
            EDGE => self.envoy.value,
            host => self.hosts[host - 1].port,
        }
    }
}

/// Returns true if Redis responds to a host.
pub(super) fn is_sharing(host: &Host) -> bool {
    host.metric("pointsman_shared_state_up", "") > 0.5
}

/// Returns a folder with the keys of clients and hosts.
fn folder(limit: u32) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("edge.key", "edge-key-0123456789");
    write("host.key", "host-key-0123456789");
    let limits = format!("limits = {{ requests-per-minute = {limit} }}");
    write(
        "keys.toml",
        &format!("[[keys]]\nid = \"k\"\nhash = \"sha256:{DIGEST}\"\ntenant = \"t\"\n{limits}\n"),
    );
    dir
}

/// All hosts have the lane `own`, for Envoy. All but the first have `far`, which the first one has
/// as `far2` and `far3`.
fn host_config(number: usize, token_ms: u32) -> String {
    let script = format!("{{\"token-ms\": {token_ms}}}");
    let lane = |name: &str, model: &str| {
        let arguments = ["--slots", "3", "--script", &script];
        fake_lane(FAKE_ENGINE, name, &[model], "slots = 3", &arguments)
    };
    let peer = |number: usize| peer_lane(&format!("far{number}"), number, "far", "host.key");
    let far = match number {
        1 => (2..=HOSTS).map(peer).collect(),
        _ => lane("far", "far"),
    };
    format!(
        "[[listeners]]\naddress = \"{}:{PORT}\"\n\
         [[peers]]\nname = \"edge\"\nkey-file = \"edge.key\"\n\
         [[peers]]\nname = \"host\"\nkey-file = \"host.key\"\n{}{far}",
        address(number),
        lane("own", "m")
    )
}

/// Returns the configuration of a lane that is the lane `there` of a host.
fn peer_lane(name: &str, number: usize, there: &str, key: &str) -> String {
    let address = address(number);
    format!(
        "[[lanes]]\nname = {name:?}\n[lanes.engine]\ndriver = \"pointsman\"\nlane = {there:?}\n\
         url = \"http://{address}:{PORT}\"\nkey-file = {key:?}\n"
    )
}
