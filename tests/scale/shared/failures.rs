//! Replicators in this process, and a store that fails: no change is lost, and none counts twice.

use std::fs;
use std::time::Duration;

use pointsman_shared::{Namespace, Replicator, Settings, SharedAddress};
use pointsman_tests::wait_until;
use rustix::process::Signal;

use crate::redis::{Redis, cluster};

const HOUR: Option<Duration> = Some(Duration::from_secs(3600));

fn replicator(address: SharedAddress) -> Replicator {
    with_ca(address, None)
}

fn with_ca(address: SharedAddress, ca: Option<Vec<u8>>) -> Replicator {
    let settings = Settings {
        address,
        ca,
        prefix: "test".to_owned(),
        interval: Duration::from_millis(50),
        max_keys: 10_000,
    };
    Replicator::start(settings).unwrap()
}

fn single(redis: &Redis) -> Replicator {
    replicator(SharedAddress::Single(redis.url()))
}

fn namespace(replicator: &Replicator) -> Namespace {
    replicator.namespace("n", 1 << 20)
}

/// Waits until all know the same total, and nothing is pending.
fn wait_for_total(replicators: &[Replicator], key: &str, total: i64) {
    wait_until(&format!("{key} is {total} for all"), || {
        replicators.iter().all(|replicator| namespace(replicator).total(key) == total)
    });
    wait_until("nothing is pending", || {
        replicators.iter().all(|replicator| replicator.status().pending == 0)
    });
}

fn add(replicators: &[Replicator], keys: usize) {
    for replicator in replicators {
        (0..keys).for_each(|key| _ = namespace(replicator).add(&format!("k{key}"), 1, HOUR));
    }
}

#[test]
fn shared_values_and_counters_reach_all_replicas() {
    let redis = Redis::run(&[]);
    let replicators = [single(&redis), single(&redis)];
    let (one, other) = (namespace(&replicators[0]), namespace(&replicators[1]));
    one.put("v", b"first", None);
    one.add("c", 3, HOUR);
    wait_until("the value arrives", || other.get("v").as_deref() == Some(b"first"));
    other.put("v", &[0, 255, 10, 13], HOUR);
    wait_until("the later value wins", || one.get("v").as_deref() == Some(&[0, 255, 10, 13]));
    one.remove("v");
    wait_until("the removal arrives", || other.get("v").is_none());
    other.add("c", -1, HOUR);
    wait_for_total(&replicators, "c", 2);
    other.reset("c");
    other.add("c", 10, HOUR);
    wait_for_total(&replicators, "c", 10);
    one.add("short", 1, Some(Duration::from_millis(300)));
    wait_until("the counter arrives", || other.total("short") == 1);
    wait_until("it expires for all", || one.total("short") == 0 && other.total("short") == 0);
    // A replica that starts reads what there is.
    other.put("late", b"value", None);
    wait_for_total(&replicators, "c", 10);
    let third = single(&redis);
    assert!(namespace(&third).wait_loaded(Duration::from_secs(10)));
    let loaded = namespace(&third);
    assert_eq!((loaded.total("c"), loaded.get("late").as_deref()), (10, Some(&b"value"[..])));
}

#[test]
fn shared_store_that_stands_still_loses_and_repeats_nothing() {
    let redis = Redis::run(&[]);
    let replicators = [single(&redis), single(&redis), single(&redis)];
    add(&replicators, 20);
    wait_for_total(&replicators, "k0", 3);
    for round in 1..=3_i64 {
        redis.signal(Signal::STOP);
        // Commands that time out stay in the connections, and are executed late.
        add(&replicators, 20);
        wait_until("the store is down for all", || {
            replicators.iter().all(|replicator| !replicator.status().is_up)
        });
        add(&replicators, 20);
        redis.signal(Signal::CONT);
        for key in 0..20 {
            wait_for_total(&replicators, &format!("k{key}"), 3 + 6 * round);
        }
    }
}

#[test]
fn full_shared_store_keeps_changes_until_it_has_memory() {
    let redis = Redis::run(&["--maxmemory-policy", "noeviction"]);
    let replicators = [single(&redis), single(&redis)];
    add(&replicators, 5);
    wait_for_total(&replicators, "k0", 2);
    assert_eq!(redis.command(&["CONFIG", "SET", "maxmemory", "1"]), "+OK");
    add(&replicators, 5);
    wait_until("the store is down for all", || {
        replicators.iter().all(|replicator| !replicator.status().is_up)
    });
    assert!(replicators.iter().all(|replicator| replicator.status().pending == 5));
    assert_eq!(redis.command(&["CONFIG", "SET", "maxmemory", "0"]), "+OK");
    (0..5).for_each(|key| wait_for_total(&replicators, &format!("k{key}"), 4));
}

#[test]
fn shared_counters_survive_the_loss_of_all_data() {
    let mut redis = Redis::run(&[]);
    let replicators = [single(&redis), single(&redis)];
    add(&replicators, 3);
    wait_for_total(&replicators, "k0", 2);
    redis.kill();
    add(&replicators, 3);
    redis.start();
    (0..3).for_each(|key| wait_for_total(&replicators, &format!("k{key}"), 4));
    assert_eq!(redis.command(&["FLUSHALL"]), "+OK");
    add(&replicators[..1], 3);
    (0..3).for_each(|key| wait_for_total(&replicators, &format!("k{key}"), 5));
}

#[test]
fn sentinel_fail_over_of_the_shared_store_loses_nothing() {
    let mut master = Redis::run(&[]);
    let port = master.port.to_string();
    let replica = Redis::run(&["--replicaof", "127.0.0.1", &port]);
    wait_until("the replica follows", || {
        replica.command(&["INFO", "replication"]).contains("master_link_status:up")
    });
    let sentinel = Redis::sentinel(&master);
    let address = SharedAddress::Sentinel {
        sentinels: vec![sentinel.url()],
        master: "main".to_owned(),
        node: None,
    };
    wait_until("the Sentinel knows the replica", || {
        sentinel.command(&["INFO", "sentinel"]).contains("slaves=1")
    });
    let replicators = [replicator(address.clone()), replicator(address)];
    add(&replicators, 10);
    wait_for_total(&replicators, "k0", 2);
    master.kill();
    add(&replicators, 10);
    wait_until("the replica is the master", || {
        replica.command(&["INFO", "replication"]).contains("role:master")
    });
    (0..10).for_each(|key| wait_for_total(&replicators, &format!("k{key}"), 4));
    assert!(replicators.iter().all(|replicator| replicator.status().is_up));
}

#[test]
fn shared_store_is_reached_by_tls_with_its_own_authority() {
    let issued = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let files = tempfile::tempdir().unwrap();
    let (certificate, key) = (files.path().join("cert"), files.path().join("key"));
    fs::write(&certificate, issued.cert.pem()).unwrap();
    fs::write(&key, issued.signing_key.serialize_pem()).unwrap();
    let port = Redis::prepare(&[]).port;
    let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
    let files = ["--tls-cert-file", certificate, "--tls-key-file", key];
    let tls = ["--tls-port", &port.to_string(), "--tls-auth-clients", "no"];
    let redis = Redis::run(&[&files[..], &tls[..], &["--requirepass", "open"]].concat());
    let address = |password: &str, host: &str| {
        SharedAddress::Single(format!("rediss://:{password}@{host}:{port}"))
    };
    let ca = Some(issued.cert.pem().into_bytes());
    let secure = with_ca(address("open", "localhost"), ca.clone());
    namespace(&secure).add("k", 7, HOUR);
    wait_for_total(&[secure], "k", 7);
    // Neither a server of another name nor one that the system does not know.
    let refused = [
        with_ca(address("open", "127.0.0.1"), ca.clone()),
        with_ca(address("open", "localhost"), None),
        with_ca(address("shut", "localhost"), ca),
    ];
    for replicator in refused {
        wait_until("a connection fails", || replicator.status().failures > 1);
        assert_eq!(replicator.status().rounds, 0);
    }
    drop(redis);
}

#[test]
fn shared_state_is_distributed_over_a_cluster() {
    let nodes = cluster();
    let address = SharedAddress::Cluster(vec![nodes[0].url()]);
    let replicators = [replicator(address.clone()), replicator(address)];
    add(&replicators, 100);
    (0..100).for_each(|key| wait_for_total(&replicators, &format!("k{key}"), 2));
    namespace(&replicators[0]).put("v", b"value", HOUR);
    wait_until("the value arrives", || namespace(&replicators[1]).get("v").is_some());
    let used = |node: &&Redis| node.command(&["DBSIZE"]) != ":0";
    assert!(nodes.iter().filter(used).count() >= 2);
}
