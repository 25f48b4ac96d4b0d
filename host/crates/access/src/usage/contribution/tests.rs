use std::collections::BTreeMap;

use parking_lot::Mutex;
use pointsman_domain::TokenCounts;
use pointsman_store::{Options, Store};
use proptest::prelude::*;

use super::super::{UsageEvent, UsageSettings};
use super::*;
use crate::identity::Identity;

const HOUR: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR;
/// 2026-11-27T00:00:00Z.
const NOW: u64 = 1_795_737_600_000;

/// A host, a day, and an hour.
type Key = (u64, u32, Option<u8>);

/// A store that hosts share.
#[derive(Debug, Default)]
struct Shared {
    values: Mutex<BTreeMap<Key, Vec<u8>>>,
    is_away: Mutex<bool>,
}

impl Shared {
    fn write(&self, id: u64, parts: &[UsagePart]) {
        let mut all = self.values.lock();
        for part in parts {
            if part.is_complete {
                all.retain(|(host, day, _), _| (*host, *day) != (id, part.day));
            }
            for (hour, value) in &part.values {
                all.insert((id, part.day, *hour), value.clone());
            }
        }
    }
}

impl OtherHosts for Shared {
    fn hosts(&self, first: u32, last: u32) -> Result<(Vec<ReportedHost>, Vec<u32>), String> {
        if *self.is_away.lock() {
            return Err("away".to_owned());
        }
        let all = self.values.lock();
        let ids: BTreeSet<u64> = all.keys().map(|(id, _, _)| *id).collect();
        let days: BTreeSet<u32> = all.keys().map(|(_, day, _)| *day).collect();
        let host =
            |id: u64| ReportedHost { id, name: "other".to_owned(), age: Duration::from_secs(id) };
        let days = days.into_iter().filter(|day| (first..=last).contains(day)).collect();
        Ok((ids.into_iter().map(host).collect(), days))
    }

    fn day(
        &self,
        day: u32,
        (first, last): (u8, u8),
        except: u64,
        _: usize,
    ) -> Result<Vec<HostValue>, String> {
        let all = self.values.lock();
        let wanted = all.iter().filter(|((id, of, hour), _)| {
            *id != except && *of == day && hour.is_none_or(|hour| (first..=last).contains(&hour))
        });
        let value = |((id, _, hour), value): (&Key, &Vec<u8>)| HostValue {
            id: *id,
            hour: *hour,
            value: value.clone(),
        };
        Ok(wanted.map(value).collect())
    }
}

fn book(shared: &Arc<Shared>) -> UsageBook {
    let options = Options { path: None, namespaces: Vec::new(), on_loss: Box::new(|_| {}) };
    let book = UsageBook::new(Store::open(options).unwrap(), UsageSettings::default());
    book.share("this", Arc::clone(shared) as Arc<dyn OtherHosts>);
    book
}

fn record(book: &UsageBook, unix_ms: u64, tenant: &str, model: &str) {
    let identity =
        Identity { tenant: Some(tenant.into()), name: "k".into(), ..Identity::default() };
    book.record(&UsageEvent {
        unix_ms,
        identity: &Arc::new(identity),
        model,
        lane: "lane",
        requests: 1,
        failed: false,
        tokens: TokenCounts { prompt: 10, cached: 4, output: 3 },
        waiting: Duration::from_millis(5),
        engine: Duration::from_millis(1500),
    });
}

fn contribute(book: &UsageBook, shared: &Shared) {
    book.save(Vec::new()).unwrap();
    while book.has_changed() {
        shared.write(book.id().unwrap(), &book.take_changed(100).unwrap());
    }
}

fn query(from: &str, to: &str, by: &str) -> UsageQuery {
    UsageQuery::parse(Some(from), Some(to), Some(by), None, NOW).unwrap()
}

fn requests(book: &UsageBook, query: &UsageQuery) -> Vec<(String, u64)> {
    let rows = book.report_all(query).unwrap().rows;
    rows.into_iter().map(|(group, counts)| (group.join("/"), counts.requests)).collect()
}

#[test]
fn report_of_all_hosts_is_their_sum_by_host_and_hour() {
    let shared = Arc::<Shared>::default();
    let (one, other) = (book(&shared), book(&shared));
    for hour in [0, 0, 5, 23] {
        record(&one, NOW + hour * HOUR, "a", "m");
        record(&other, NOW + hour * HOUR, "b", "m");
    }
    contribute(&other, &shared);
    // What is not contributed yet is part of the host's own report only.
    record(&one, NOW, "a", "m");
    record(&other, NOW, "b", "m");
    let all = query("2026-11-01", "2026-12-01", "host,tenant");
    assert_eq!(requests(&one, &all), [("other/b".to_owned(), 4), ("this/a".to_owned(), 5)]);
    let some = query("2026-11-27T05:00:00Z", "2026-11-27T06:00:00Z", "tenant");
    assert_eq!(requests(&one, &some), [("a".to_owned(), 1), ("b".to_owned(), 1)]);
    let report = one.report_all(&all).unwrap();
    let counts = report.rows.get(&vec!["other".to_owned(), "b".to_owned()]).unwrap();
    assert_eq!((counts.prompt_tokens, counts.output_tokens, counts.engine_ms), (40, 12, 6000));
    let json = report.to_json();
    assert_eq!(json["hosts"].as_array().unwrap().len(), 2, "{json}");
    assert_eq!(json["hosts"][1]["age_seconds"], 0.0, "{json}");
    assert!(one.report(&query("2026-11-01", "2026-12-01", "tenant")).unwrap().hosts.is_none());
}

#[test]
fn reports_of_all_hosts_need_a_store_that_replies() {
    let shared = Arc::<Shared>::default();
    let book = book(&shared);
    record(&book, NOW, "a", "m");
    *shared.is_away.lock() = true;
    let all = query("2026-11-01", "2026-12-01", "tenant");
    assert!(matches!(book.report_all(&all), Err(UsageError::HostsUnavailable(_))));
    assert_eq!(book.report(&all).unwrap().rows.len(), 1);
    let alone = UsageBook::default();
    assert!(matches!(alone.report_all(&all), Err(UsageError::NotShared)));
    let by_host = query("2026-11-01", "2026-12-01", "host");
    assert!(matches!(book.report(&by_host), Err(UsageError::HostColumn)));
}

#[test]
fn host_that_began_anew_keeps_what_it_had_contributed() {
    let shared = Arc::<Shared>::default();
    let (reader, before) = (book(&shared), book(&shared));
    record(&before, NOW, "a", "m");
    contribute(&before, &shared);
    let after = book(&shared);
    assert_ne!(before.id().unwrap(), after.id().unwrap());
    record(&after, NOW, "a", "m");
    contribute(&after, &shared);
    let all = query("2026-11-01", "2026-12-01", "host");
    assert_eq!(requests(&reader, &all), [("other".to_owned(), 2)]);
    // It is one host, whose age is that of its latest contribution.
    let hosts = reader.report_all(&all).unwrap().hosts.unwrap();
    let latest = before.id().unwrap().min(after.id().unwrap());
    assert_eq!(hosts.len(), 2);
    assert_eq!((&*hosts[0].name, hosts[0].id), ("other", latest));
}

/// What was used before a store was copied counts once, and all that was used since then, by each
/// of both hosts.
#[test]
fn copy_of_a_store_contributes_what_was_used_since_it_began() {
    let shared = Arc::<Shared>::default();
    let (original, copy) = (book(&shared), book(&shared));
    for book in [&original, &copy] {
        for hour in [0, 0, 5, 6, 6] {
            record(book, NOW + hour * HOUR, "a", "m");
        }
        record(book, NOW - 40 * DAY_MS, "a", "m");
        book.save(Vec::new()).unwrap();
        book.maintain(NOW + 6 * HOUR).unwrap();
    }
    record(&original, NOW + 6 * HOUR, "a", "m");
    contribute(&original, &shared);
    assert!(!copy.has_beginning());
    copy.note_beginning(NOW + 6 * HOUR).unwrap();
    record(&copy, NOW + 6 * HOUR, "a", "m");
    record(&copy, NOW + 6 * HOUR, "b", "m");
    record(&copy, NOW + 7 * HOUR, "a", "m");
    copy.save(Vec::new()).unwrap();
    let before = copy.id().unwrap();
    assert_eq!(copy.begin_anew().unwrap(), []);
    assert_ne!(copy.id().unwrap(), before);
    copy.give_back_all().unwrap();
    contribute(&copy, &shared);
    let all = query("2026-01-01", "2026-12-01", "tenant");
    let expected = [("a".to_owned(), 9), ("b".to_owned(), 1)];
    assert_eq!(requests(&original, &all), expected);
    assert_eq!(requests(&copy, &all), expected);
    // The copy has all rows in a report of its own.
    let own = copy.report(&all).unwrap();
    let sum: u64 = own.rows.values().map(|counts| counts.requests).sum();
    assert_eq!(sum, 9);
    // Also when hours have been added up to days.
    let later = NOW + 40 * DAY_MS;
    for book in [&original, &copy] {
        while book.maintain(later).unwrap() {}
        contribute(book, &shared);
    }
    let all = query("2026-01-01", "2027-12-01", "tenant");
    assert_eq!(requests(&original, &all), expected);
    assert_eq!(requests(&copy, &all), expected);
}

#[test]
fn too_many_names_are_added_up_for_their_tenants() {
    let count = |requests| Counts { requests, prompt_tokens: 7, ..Counts::default() };
    let long = "x".repeat(150);
    let row = |number: u64| {
        let names = Names::new(&format!("t{}", number % 10), &long, &number.to_string(), &long);
        (Arc::new(names), count(number))
    };
    let value = encode((0..5000).map(row).collect());
    assert!(value.len() <= MAX_VALUE, "{}", value.len());
    let mut by_tenant: BTreeMap<Box<str>, (u64, u64)> = BTreeMap::new();
    for (names, counts) in decode(&value) {
        let sum = by_tenant.entry(names.tenant).or_default();
        *sum = (sum.0 + counts.requests, sum.1 + counts.prompt_tokens);
    }
    let sum = |tenant: u64| (0..500).map(|number| number * 10 + tenant).sum::<u64>();
    let expected = (0..10).map(|tenant| (format!("t{tenant}").into(), (sum(tenant), 3500)));
    assert_eq!(by_tenant, expected.collect());
    // The names with the most requests are kept.
    assert!(decode(&value).any(|(names, _)| &*names.model == "4999"));
    // Even tenants may be too many.
    let row =
        |number: u64| (Arc::new(Names::new(&format!("{long}{number}"), "", "", "")), count(1));
    let value = encode((0..5000).map(row).collect());
    assert!(value.len() <= MAX_VALUE + 100, "{}", value.len());
    assert_eq!(decode(&value).map(|(_, counts)| counts.requests).sum::<u64>(), 5000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever is lost, compacted and written again, in whichever order: at the end, all hosts
    /// report what was recorded at all of them.
    #[test]
    fn sums_over_hosts_are_exact_after_all_was_contributed(
        steps in prop::collection::vec((0u8..10, 0usize..3, 0u64..60), 0..80),
    ) {
        let shared = Arc::<Shared>::default();
        let books = [0; 3].map(|_| book(&shared));
        let mut expected = 0;
        for (what, host, age) in steps {
            let book = &books[host];
            match what {
                0..=4 => {
                    expected += 1;
                    record(book, NOW - age * 13 * HOUR, "t", "m");
                }
                5 => contribute(book, &shared),
                6 => drop(book.maintain(NOW + age * DAY_MS).unwrap()),
                7 => shared.values.lock().retain(|(id, _, _), _| *id != book.id().unwrap()),
                8 => {
                    // A write of which it is not known whether it was executed.
                    book.save(Vec::new()).unwrap();
                    let parts = book.take_changed(100).unwrap();
                    if age % 2 == 0 {
                        shared.write(book.id().unwrap(), &parts);
                    }
                    book.give_back(&parts);
                }
                _ => book.give_back_all().unwrap(),
            }
        }
        for book in &books {
            book.save(Vec::new()).unwrap();
            book.give_back_all().unwrap();
            contribute(book, &shared);
        }
        let all = query("2020-01-01", "2030-01-01", "tenant");
        for book in &books {
            prop_assert_eq!(requests(book, &all).iter().map(|row| row.1).sum::<u64>(), expected);
        }
    }

    #[test]
    fn other_bytes_are_not_a_fault(bytes: Vec<u8>) {
        decode(&bytes).for_each(drop);
    }
}
