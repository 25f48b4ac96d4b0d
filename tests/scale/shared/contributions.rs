//! What hosts contribute: absolute values in a store that loses its data.

use std::time::Duration;

use pointsman_shared::{
    BudgetPart, Contribution, ContributionWriter, CopyRole, DayPart, Settings, SharedAddress,
    SharedContributions, Written,
};
use tokio::runtime::Runtime;

use crate::redis::{Redis, cluster};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long the store keeps a day.
const KEEP: Duration = Duration::from_secs(400 * 24 * 3600);
/// Days from before the tests until after them.
const ALL_DAYS: (u32, u32) = (0, 40_000);

fn settings(address: SharedAddress) -> Settings {
    Settings {
        address,
        ca: None,
        prefix: "test".to_owned(),
        interval: Duration::from_millis(50),
        max_keys: 100,
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn today() -> u32 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u32::try_from(now.as_secs() / DAY.as_secs()).unwrap()
}

fn part(day: u32, hour: Option<u8>, value: &str, is_complete: bool) -> DayPart {
    DayPart { day, values: vec![(hour, value.as_bytes().to_vec())], is_complete }
}

/// Returns what all hosts have contributed to a day, in order.
fn read(runtime: &Runtime, all: &SharedContributions, day: u32) -> Vec<(u64, Option<u8>, String)> {
    let read = runtime.block_on(all.day(day, (0, 23), 0, 1 << 20)).unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let mut values: Vec<_> =
        read.into_iter().map(|Contribution { id, hour, value }| (id, hour, text(value))).collect();
    values.sort();
    values
}

/// Writes and reads by two hosts in a store that is empty.
fn check(address: &SharedAddress) {
    let runtime = runtime();
    let writer = |id, name| ContributionWriter::new(settings(address.clone()), id, name).unwrap();
    let mut hosts = [writer(1, "gpu 1"), writer(2, "gpu-2")];
    let all = SharedContributions::new(settings(address.clone())).unwrap();
    let today = today();
    let mut write =
        |host: usize, parts: &[DayPart]| runtime.block_on(hosts[host].write(parts, KEEP)).unwrap();
    // Nothing of this process is known at first.
    assert_eq!(write(0, &[part(today, Some(7), "a", false)]), Written::Unknown);
    let later = [part(today, Some(7), "b", false), part(today - 1, Some(23), "c", false)];
    assert_eq!(write(0, &later), Written::Known);
    let old = [part(today, Some(7), "d", false), part(today - 500, Some(1), "e", false)];
    assert_eq!(write(1, &old), Written::Unknown);
    let hour = |id, hour, value: &str| (id, Some(hour), value.to_owned());
    assert_eq!(read(&runtime, &all, today), [hour(1, 7, "b"), hour(2, 7, "d")]);
    let index = runtime.block_on(all.index(ALL_DAYS.0, ALL_DAYS.1)).unwrap();
    // What is older than the store keeps it was not written.
    assert_eq!(index.days, [today - 1, today]);
    let mut names: Vec<&str> = index.hosts.iter().map(|host| &*host.name).collect();
    names.sort_unstable();
    assert_eq!(names, ["gpu 1", "gpu-2"]);
    assert!(index.hosts.iter().all(|host| host.age < Duration::from_secs(30)));
    // Hours that are added up are replaced in one step.
    assert_eq!(write(0, &[part(today, None, "sum", true)]), Written::Known);
    let expected = [(1, None, "sum".to_owned()), hour(2, 7, "d")];
    assert_eq!(read(&runtime, &all, today), expected);
    let others = runtime.block_on(all.day(today, (8, 23), 1, 1 << 20)).unwrap();
    assert_eq!(others, []);
    let too_large = runtime.block_on(all.day(today, (0, 23), 0, 2)).unwrap_err();
    assert!(matches!(too_large, pointsman_shared::DirectError::TooLarge(2)), "{too_large}");
}

#[test]
fn contributions_are_written_again_after_the_store_has_lost_them() {
    let mut redis = Redis::run(&[]);
    let (address, runtime, today) = (SharedAddress::Single(redis.url()), runtime(), today());
    check(&address);
    let ttl = redis.command(&["PTTL", &format!("{{test:usage}}:d:{today}")]);
    let ttl: u64 = ttl.trim_start_matches(':').parse().unwrap();
    assert!(Duration::from_millis(ttl) >= KEEP && Duration::from_millis(ttl) < KEEP + 2 * DAY);
    let mut host = ContributionWriter::new(settings(address.clone()), 3, "gpu-3").unwrap();
    let mut write = |parts: &[DayPart]| runtime.block_on(host.write(parts, KEEP));
    assert_eq!([(); 2].map(|()| write(&[]).unwrap()), [Written::Unknown, Written::Known]);
    redis.kill();
    assert!(write(&[]).is_err());
    redis.start();
    let mut known = None;
    pointsman_tests::wait_until("the store replies", || {
        known = write(&[]).ok();
        known.is_some()
    });
    assert_eq!((known, write(&[]).unwrap()), (Some(Written::Unknown), Written::Known));
}

/// Two processes with one id: one of them has a copy of the other one's state directory.
#[test]
fn writers_with_one_id_find_each_other_and_the_younger_one_leaves() {
    let redis = Redis::run(&[]);
    let (address, runtime, today) = (SharedAddress::Single(redis.url()), runtime(), today());
    let writer = |name| ContributionWriter::new(settings(address.clone()), 1, name).unwrap();
    let parts = [part(today, Some(7), "a", false)];
    let write = |host: &mut ContributionWriter| runtime.block_on(host.write(&parts, KEEP)).unwrap();
    let mut older = writer("gpu-1");
    assert_eq!([(); 2].map(|()| write(&mut older)), [Written::Unknown, Written::Known]);
    // The store knows milliseconds.
    pointsman_tests::pause(Duration::from_millis(20));
    let mut younger = writer("gpu-2");
    let mut older_found = Written::Known;
    for _ in 0..3 {
        assert_eq!(write(&mut younger), Written::Unknown);
        older_found = write(&mut older);
    }
    let copied = |name: &str, role| Written::Copied { name: name.to_owned(), role };
    assert_eq!(older_found, copied("gpu-2", CopyRole::Older));
    assert_eq!(write(&mut younger), copied("gpu-1", CopyRole::Younger));
    let all = SharedContributions::new(settings(address.clone())).unwrap();
    assert_eq!(read(&runtime, &all, today).len(), 1);
    runtime.block_on(younger.leave()).unwrap();
    assert_eq!(read(&runtime, &all, today), []);
    assert_eq!(runtime.block_on(all.index(ALL_DAYS.0, ALL_DAYS.1)).unwrap().hosts, []);
    assert_eq!([(); 2].map(|()| write(&mut older)), [Written::Unknown, Written::Known]);
}

#[test]
fn used_budgets_are_never_taken_back_and_added_up_over_hosts() {
    let redis = Redis::run(&[]);
    let (address, runtime) = (SharedAddress::Single(redis.url()), runtime());
    let writer = |id| ContributionWriter::new(settings(address.clone()), id, "x").unwrap();
    let mut hosts = [writer(1), writer(2), writer(3)];
    let mut tell = |host: usize, used: &[[u64; 3]]| {
        let part = |(number, used): (usize, &[u64; 3])| BudgetPart {
            name: format!("b{number}"),
            used: *used,
            keep: DAY,
        };
        let parts: Vec<BudgetPart> = used.iter().enumerate().map(part).collect();
        runtime.block_on(hosts[host].write_budgets(&parts)).unwrap()
    };
    assert_eq!(tell(0, &[[1, 2, 3], [0; 3]]), [[0; 3]; 2]);
    assert_eq!(tell(1, &[[10, 20, 1 << 50], [5, 0, 0]]), [[1, 2, 3], [0; 3]]);
    // A write that comes late has less.
    assert_eq!(tell(1, &[[4, 20, 0]]), [[1, 2, 3]]);
    assert_eq!(tell(2, &[[0; 3], [0; 3]]), [[11, 22, (1 << 50) + 3], [5, 0, 0]]);
    assert_eq!(tell(2, &[]), [[0; 3]; 0]);
    assert_eq!(redis.command(&["HLEN", "{test:usage}:b:b0"]), ":2");
}

#[test]
fn hosts_that_are_gone_are_bounded() {
    let redis = Redis::run(&[]);
    let (address, runtime) = (SharedAddress::Single(redis.url()), runtime());
    let fill = "for number = 1, 2048 do redis.call('HSET', KEYS[1], \
                string.format('%016x', number), '1.1 ' .. (ARGV[1] + number) .. ' old') end";
    let now = (u64::from(today()) * 86_400_000).to_string();
    redis.command(&["EVAL", fill, "1", "{test:usage}:hosts", &now]);
    let mut host = ContributionWriter::new(settings(address), 1 << 40, "new").unwrap();
    let written = runtime.block_on(host.write(&[], KEEP)).unwrap();
    assert_eq!(written, Written::Unknown);
    assert_eq!(redis.command(&["HLEN", "{test:usage}:hosts"]), ":2048");
    // The one that was silent for longest.
    let first = redis.command(&["HEXISTS", "{test:usage}:hosts", "0000000000000001"]);
    assert_eq!(first, ":0");
}

#[test]
fn contributions_are_in_one_slot_of_a_cluster() {
    let nodes = cluster();
    check(&SharedAddress::Cluster(vec![nodes[0].url()]));
}
