//! Checks of the other hosts whose lanes a configuration has.

use std::time::Duration;

use futures_util::future::join_all;
use pointsman_config::Config;
use pointsman_fleet::{FAILURES, PeerEndpoint, PeerProbe, PeerProbeError, probe_peer};

use super::finding::Finding;

const CHECK: &str = "peer";
/// Maximum time for the lanes of a host, with the connection.
const TIMEOUT: Duration = Duration::from_secs(5);
/// By how much the clock of another host may differ.
const MAX_CLOCK_DIFFERENCE_MS: i64 = 1000;
/// Maximum number of lanes that a finding names.
const MAX_NAMED: usize = 16;

/// Another host, and the lanes that it is to have.
#[derive(Debug)]
struct Wanted {
    endpoint: PeerEndpoint,
    lanes: Vec<String>,
}

/// Asks each other host of a configuration once for its lanes.
pub(super) async fn check(config: &Config) -> Vec<Finding> {
    join_all(wanted(config).iter().map(examine)).await.concat()
}

async fn examine(host: &Wanted) -> Vec<Finding> {
    let probe = probe_peer(&host.endpoint, TIMEOUT).await;
    findings(&host.endpoint.url.to_string(), &host.lanes, probe)
}

/// Returns the other hosts of a configuration, each once.
fn wanted(config: &Config) -> Vec<Wanted> {
    let mut hosts: Vec<Wanted> = Vec::new();
    let mut add = |endpoint: PeerEndpoint, lane: Option<&str>| {
        let at = hosts.iter().position(|host| host.endpoint == endpoint);
        let at = at.unwrap_or_else(|| {
            hosts.push(Wanted { endpoint, lanes: Vec::new() });
            hosts.len() - 1
        });
        hosts[at].lanes.extend(lane.map(str::to_owned));
    };
    for lane in &config.fleet.lanes {
        if let Some((endpoint, there)) = lane.engine.peer_host() {
            add(endpoint, Some(there));
        }
    }
    for host in config.pick.iter().flat_map(|pick| &pick.hosts) {
        add(host.endpoint.clone(), None);
    }
    hosts
}

/// Returns the findings about a host that is to have these lanes.
fn findings(
    url: &str,
    wanted: &[String],
    probe: Result<PeerProbe, PeerProbeError>,
) -> Vec<Finding> {
    let PeerProbe { name, lanes, clock_ahead_ms } = match probe {
        Ok(probe) => probe,
        Err(error) => return vec![not_told(url, &error)],
    };
    let name = if name.is_empty() { url.to_owned() } else { format!("{name} ({url})") };
    let mut findings = Vec::new();
    for lane in wanted.iter().filter(|lane| !lanes.contains(lane)) {
        let named: Vec<String> =
            lanes.iter().take(MAX_NAMED).map(|lane| format!("`{lane}`")).collect();
        let fact = format!("host {name} has no lane `{lane}`; its lanes: {}", named.join(", "));
        findings.push(Finding::problem(CHECK, fact, fix_of("peer_lane_missing")));
    }
    findings.extend(clock_ahead_ms.and_then(|ahead| clock(&name, ahead)));
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, format!("host {name} tells of {} lanes", lanes.len())));
    }
    findings
}

/// Reports that a host has not told its lanes.
fn not_told(url: &str, error: &PeerProbeError) -> Finding {
    let fix = match error.code {
        "peer_unreachable" | "peer_silent" => {
            "check that it runs, `url`, and the firewalls on the way"
        }
        "peer_key_refused" => {
            "use the same key in `[[peers]]` there and in `key-file` or `key-env` here"
        }
        "peer_unexpected_status" => "correct `url`: another server responds there",
        _ => "use the same version of Pointsman on both hosts",
    };
    Finding::problem(CHECK, format!("host {url}: {error}"), fix)
}

/// Reports a clock that differs by too much in any case.
fn clock(name: &str, (at_least, at_most): (i64, i64)) -> Option<Finding> {
    let (difference, direction) = if at_least > MAX_CLOCK_DIFFERENCE_MS {
        (at_least, "ahead of")
    } else if at_most < -MAX_CLOCK_DIFFERENCE_MS {
        (-at_most, "behind")
    } else {
        return None;
    };
    let seconds = difference / 1000;
    let fact = format!(
        "the clock of host {name} is at least {seconds} s {direction} that of this machine: \
         deadlines, budgets and shared values are wrong by as much"
    );
    Some(Finding::warning(CHECK, fact, "synchronise both clocks (`timedatectl` shows their state)"))
}

/// Returns what to do about a failure, in the words of the table of failures.
fn fix_of(code: &str) -> &'static str {
    FAILURES.iter().find(|kind| kind.code == code).map_or("", |kind| kind.fix)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use pointsman_peers::{Event, HostInfo, LaneDescription, TopologyEvent, VERSION};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::super::finding::Verdict;
    use super::*;

    /// Returns the findings about a host that responds with this head, and tells of a lane `big`.
    async fn findings_about(head: &str, lane: &str) -> Vec<Finding> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let text = format!(
            "[[lanes]]\nname = \"far\"\n[lanes.engine]\ndriver = \"pointsman\"\n\
             url = \"http://{address}\"\nlane = {lane:?}\n"
        );
        let config = Config::from_source(&text, Path::new("/conf/p.toml")).unwrap();
        let lanes = vec![LaneDescription { name: "big".into(), ..LaneDescription::default() }];
        let host = HostInfo { id: "h".into(), name: "gpu-2".into(), ..HostInfo::default() };
        let event = TopologyEvent { version: VERSION, generation: 1, host, lanes };
        let response = format!("HTTP/1.1 {head}\r\n\r\n{}", Event::Topology(event).to_sse());
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(response.as_bytes()).await.unwrap();
        };
        let check = async { check(&config).await };
        tokio::join!(serve, check).1
    }

    #[tokio::test]
    async fn lanes_keys_and_clocks_of_other_hosts_are_checked() {
        for (head, lane, verdict, word) in [
            ("200 OK", "big", Verdict::Ok, "gpu-2"),
            ("200 OK", "bigg", Verdict::Problem, "`bigg`"),
            ("200 OK\r\ndate: Thu, 01 Jan 1970 00:16:40 GMT", "big", Verdict::Warning, "behind"),
            ("200 OK\r\ndate: Fri, 01 Jan 2100 00:00:00 GMT", "big", Verdict::Warning, "ahead"),
            ("401 Unauthorized", "big", Verdict::Problem, "peer_key_refused"),
            ("404 Not Found", "big", Verdict::Problem, "peer_unexpected_status"),
        ] {
            let found = findings_about(head, lane).await;
            let [finding] = &found[..] else { panic!("{head}: {found:?}") };
            assert_eq!((finding.check, finding.verdict), ("peer", verdict), "{head}: {finding:?}");
            assert!(finding.fact.contains(word), "{head}: {finding:?}");
            assert_eq!(finding.fix.is_empty(), verdict == Verdict::Ok, "{finding:?}");
        }
    }

    #[tokio::test]
    async fn host_that_is_away_is_found_once_for_all_of_its_lanes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let lane = |name: &str| {
            format!(
                "[[lanes]]\nname = {name:?}\n[lanes.engine]\ndriver = \"pointsman\"\n\
                 url = \"http://{address}\"\n"
            )
        };
        let text = [lane("a"), lane("b")].concat();
        let config = Config::from_source(&text, Path::new("/conf/p.toml")).unwrap();
        let found = check(&config).await;
        let [finding] = &found[..] else { panic!("{found:?}") };
        assert_eq!(finding.verdict, Verdict::Problem);
        assert!(finding.fact.contains("peer_unreachable"), "{finding:?}");
    }

    #[test]
    fn clocks_differ_only_if_they_differ_in_any_case() {
        for (ahead, is_reported) in [
            ((-450, 600), false),
            ((900, 2000), false),
            ((1001, 2001), true),
            ((-2001, -1001), true),
            ((-9000, 1500), false),
        ] {
            assert_eq!(clock("h", ahead).is_some(), is_reported, "{ahead:?}");
        }
    }
}
