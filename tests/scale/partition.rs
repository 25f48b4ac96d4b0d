//! Three hosts, a picker with Envoy, and Redis, each on a machine of its own. Links between them
//! are cut under load: packets are lost, and nothing tells either side.

mod load;
mod machines;

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use pointsman_shared::overshoot;
use pointsman_tests::client::{ResponseStream, chat};
use pointsman_tests::host::Host;
use pointsman_tests::{pause, wait_until};
use serde_json::json;

use self::load::{Load, Sample, ask, begin, lane};
use self::machines::{EDGE, Machines, REDIS, is_sharing};
use crate::network::address;

/// `fleet.stale-after` and `fleet.down-after`, as they are by default.
const STALE_AFTER: Duration = Duration::from_secs(1);
const DOWN_AFTER: Duration = Duration::from_secs(5);
/// What a busy machine of a test may add to a time.
const SLACK: Duration = Duration::from_secs(5);
/// Maximum time until a lane is ready after its link is up again: the longest pause between two
/// connections, and a packet that is sent again.
const HEALS_WITHIN: Duration = Duration::from_secs(9);
/// How long the link stays cut after the lane is down.
const CUT: Duration = Duration::from_secs(2);
/// A limit in requests per minute that is not reached.
const UNLIMITED: u32 = 1_000_000;
/// The time between two requests of a client that uses a limit up.
const PACE: Duration = Duration::from_millis(30);
/// The host that has lanes of others, and the one that is cut off.
const ONE: usize = 1;
const TWO: usize = 2;

/// The links that a test cuts, and who notices it.
struct Cut<'a> {
    name: &'a str,
    /// From and to which machines packets are lost.
    links: &'a [(usize, usize)],
    /// The process that reads the host [`TWO`] over the link.
    reader: &'a Host,
    /// Its lane.
    lane: &'a str,
}

impl Cut<'_> {
    /// Returns how often the host was found silent, and in this state.
    fn silences(&self, state: &str) -> usize {
        let events = self.reader.events("peer_silent", &[("state", state)]);
        events.iter().filter(|event| event.text("host").contains(&address(TWO))).count()
    }

    fn is(&self, state: &str) -> bool {
        self.reader.lane(self.lane)["state"] == state
    }

    /// Cuts the links under load, and checks what clients see of it: nothing but a delay.
    fn run(&self, machines: &Machines) {
        let (degraded, down) = (self.silences("degraded"), self.silences("down"));
        let load = Load::start(machines);
        let begun = Instant::now();
        wait_until("all hosts serve", || {
            load.has_served(begun, &["h1", "h2", "h3", "far2", "far3"])
        });
        let begun = Instant::now();
        self.links.iter().for_each(|(from, to)| machines.network.cut(*from, *to));
        wait_until("the host is degraded", || self.silences("degraded") > degraded);
        let stale = begun.elapsed();
        wait_until("the host is down", || self.silences("down") > down && self.is("down"));
        let lost = begun.elapsed();
        pause(CUT);
        let healed = Instant::now();
        self.links.iter().for_each(|(from, to)| machines.network.heal(*from, *to));
        wait_until("the lane is ready", || self.is("ready"));
        let ready = healed.elapsed();
        wait_until("the lane serves", || load.has_served(healed, &[self.lane]));
        let samples = load.stop();
        let longest = |samples: &[Sample]| samples.iter().map(|it| it.took).max().unwrap();
        println!(
            "{}: degraded after {stale:.1?}, down after {lost:.1?}, ready {ready:.1?} after the \
             end; requests by Envoy: {}, the longest {:.1?}; by a host: {}, the longest {:.1?}",
            self.name,
            samples[0].len(),
            longest(&samples[0]),
            samples[1].len(),
            longest(&samples[1])
        );
        assert!(stale < STALE_AFTER + SLACK, "{stale:?}");
        assert!(lost < DOWN_AFTER + SLACK, "{lost:?}");
        assert!(ready < HEALS_WITHIN, "{ready:?}");
        for sample in samples.iter().flatten() {
            assert_eq!(sample.status, 200, "{}: {sample:?}", sample.text);
            assert!(sample.took < DOWN_AFTER + SLACK, "{sample:?}");
        }
        machines.all().for_each(Host::assert_no_request_lost);
    }
}

#[test]
fn host_and_picker_that_do_not_reach_each_other() {
    let machines = Machines::start(UNLIMITED, 50);
    let links = [(EDGE, TWO), (TWO, EDGE)];
    let cut = |name, links| Cut { name, links, reader: &machines.picker, lane: "h2" };
    cut("picker and host", &links).run(&machines);
    cut("picker to host", &links[..1]).run(&machines);
    cut("host to picker", &links[1..]).run(&machines);
}

#[test]
fn hosts_that_do_not_reach_each_other() {
    let machines = Machines::start(UNLIMITED, 50);
    let links = [(ONE, TWO), (TWO, ONE)];
    let cut = |name, links| Cut { name, links, reader: &machines.hosts[0], lane: "far2" };
    cut("host and host", &links).run(&machines);
    cut("reader to host", &links[..1]).run(&machines);
    cut("host to reader", &links[1..]).run(&machines);
}

/// Begins streams on a machine, so many that lanes of [`TWO`] and of others have some. Returns
/// those of `lane_of_two`, and the others.
fn streams(
    machines: &Machines,
    (machine, model, lane_of_two, count): (usize, &str, &str, usize),
) -> [Vec<ResponseStream>; 2] {
    let port = machines.port(machine);
    let body = chat(model, json!({ "stream": true, "max_tokens": 240 }));
    let all = machines.network.on(machine, || {
        let one = || {
            let mut stream = begin(port, None, &body);
            assert!(stream.read_until("data: "), "{stream:?}");
            stream
        };
        (0..count).map(|_| one()).collect::<Vec<_>>()
    });
    let (cut, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|it| lane(it) == lane_of_two);
    assert!(!cut.is_empty() && !others.is_empty(), "{} of {count}", cut.len());
    [cut, others]
}

#[test]
fn streams_of_a_host_that_is_cut_off_end() {
    let machines = Machines::start(UNLIMITED, 50);
    let [edge, direct] =
        [(EDGE, "m", "h2", 4), (ONE, "far", "far2", 2)].map(|path| streams(&machines, path));
    let begun = Instant::now();
    for other in [EDGE, ONE] {
        machines.network.cut(TWO, other);
        machines.network.cut(other, TWO);
    }
    let ([by_envoy, others], [by_host, more]) = (edge, direct);
    for (name, streams) in [("Envoy", by_envoy), ("a host", by_host)] {
        for stream in streams {
            let (response, is_complete) = stream.finish();
            let text = response.text();
            assert!(!text.contains("[DONE]"), "{text}");
            assert!(!is_complete || text.contains("\"error\""), "{text}");
        }
        let took = begun.elapsed();
        println!("streams by {name} ended within {took:.1?}");
        assert!(took < DOWN_AFTER + SLACK, "{took:?}");
    }
    for stream in others.into_iter().chain(more) {
        let (response, is_complete) = stream.finish();
        assert!(is_complete && response.text().contains("[DONE]"), "{}", response.text());
    }
}

/// Sends requests with a limit to a host at a pace until enough were refused, and returns the
/// longest time of one.
fn use_up(port: u16, admitted: &AtomicUsize) -> Duration {
    let (mut refused, mut longest) = (0, Duration::ZERO);
    for number in 0.. {
        if refused == 20 {
            break;
        }
        let next = Instant::now() + PACE;
        let key = format!("{port}-{number}");
        let sample = ask(port, (number % 4 == 0).then_some(&*key), "m");
        longest = longest.max(sample.took);
        match sample.status {
            200 => _ = admitted.fetch_add(1, Relaxed),
            429 => refused += 1,
            _ => panic!("{sample:?}"),
        }
        pause(next.saturating_duration_since(Instant::now()));
    }
    longest
}

/// A limit holds over a time in which no host can reach Redis, and requests do not wait for it.
#[test]
fn redis_that_is_cut_off_refuses_nothing_and_loses_nothing() {
    const LIMIT: usize = 1000;
    /// Half a second for an idempotency key, and what a busy machine adds.
    const MAX_WAIT: Duration = Duration::from_secs(3);
    let machines = Machines::start(u32::try_from(LIMIT).unwrap(), 0);
    let admitted = AtomicUsize::new(0);
    let is_shared = |shared: bool| machines.hosts.iter().all(|host| is_sharing(host) == shared);
    let begun = Instant::now();
    thread::scope(|scope| {
        let clients = [1, 2, 3].map(|host| {
            let (network, port, admitted) = (&machines.network, machines.port(host), &admitted);
            scope.spawn(move || network.on(host, || use_up(port, admitted)))
        });
        wait_until("a third is used", || admitted.load(Relaxed) > LIMIT / 3);
        let cut = Instant::now();
        machines.network.set_link(REDIS, false);
        wait_until("all hosts notice", || is_shared(false));
        let noticed = cut.elapsed();
        let from = admitted.load(Relaxed);
        wait_until("requests are served meanwhile", || admitted.load(Relaxed) > from + 50);
        let healed = Instant::now();
        machines.network.set_link(REDIS, true);
        wait_until("all hosts share", || is_shared(true));
        let shared = healed.elapsed();
        let back = admitted.load(Relaxed);
        let longest = clients.map(|client| client.join().unwrap()).into_iter().max().unwrap();
        println!(
            "Redis: noticed after {noticed:.1?}, shared {shared:.1?} after the end; the longest \
             request {longest:.1?}; admitted {} of {LIMIT}, bound {}",
            admitted.load(Relaxed),
            bound()
        );
        assert!(back < LIMIT - 100, "Redis is back too late for the test: {back}");
        assert!(noticed < SLACK && shared < HEALS_WITHIN && longest < MAX_WAIT);
    });
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(58), "too slow for the limit to count: {took:?}");
    let admitted = admitted.load(Relaxed);
    assert!((LIMIT..=LIMIT + bound()).contains(&admitted), "{admitted}, bound {}", bound());
    for host in &machines.hosts {
        wait_until("nothing is pending", || {
            host.metric("pointsman_shared_state_pending", "") < 0.5
        });
        assert!(host.metric("pointsman_shared_state_dropped_total", "") < 0.5);
    }
}

/// Returns the bound that `pointsman check` prints, for this rate of requests at each host.
fn bound() -> usize {
    let rate = 1.0 / PACE.as_secs_f64();
    // Cast: a small number.
    overshoot(3, rate, machines::INTERVAL).ceil() as usize
}
