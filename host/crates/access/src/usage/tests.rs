use std::path::Path;

use pointsman_store::{Namespace, Options};
use proptest::prelude::*;

use super::row::Names;
use super::*;
use crate::limits::{AccountId, Period};

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;

/// 2026-11-27T00:00:00Z.
const NOW: u64 = 1_795_737_600_000;

fn store(path: Option<&Path>) -> Store {
    let namespace = Namespace {
        name: "responses",
        max_entries: 100,
        max_bytes: 1 << 20,
        max_owner_bytes: 1 << 20,
        max_value: 1000,
        max_age: Duration::from_secs(3600),
    };
    let namespaces = vec![namespace];
    let path = path.map(Path::to_owned);
    Store::open(Options { path, namespaces, on_loss: Box::new(|_| {}) }).unwrap()
}

fn book(path: Option<&Path>) -> UsageBook {
    UsageBook::new(store(path), UsageSettings::default())
}

fn record(book: &UsageBook, unix_ms: u64, tenant: &str, model: &str, output: u32) {
    let identity =
        Identity { tenant: Some(tenant.into()), name: "k".into(), ..Identity::default() };
    book.record(&UsageEvent {
        unix_ms,
        identity: &Arc::new(identity),
        model,
        lane: "lane",
        requests: 1,
        failed: output == 0,
        tokens: TokenCounts { prompt: 10, cached: 4, output },
        waiting: Duration::from_millis(5),
        engine: Duration::from_millis(1500),
    });
}

fn query(from: &str, to: &str, by: &str) -> UsageQuery {
    UsageQuery::parse(Some(from), Some(to), Some(by), None, NOW).unwrap()
}

fn all(book: &UsageBook, by: &str) -> Vec<(String, Counts)> {
    let report = book.report(&query("2020-01-01", "2030-01-01", by)).unwrap();
    report.rows.into_iter().map(|(group, counts)| (group.join("/"), counts)).collect()
}

fn requests(book: &UsageBook, by: &str) -> Vec<(String, u64)> {
    all(book, by).into_iter().map(|(group, counts)| (group, counts.requests)).collect()
}

#[test]
fn usage_is_added_up_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    for output in [7, 0] {
        let book = book(Some(&path));
        record(&book, NOW, "a", "m", output);
        record(&book, NOW + HOUR, "b", "m", output);
        book.save(Vec::new()).unwrap();
        // A report has also what was not saved.
        record(&book, NOW + 2 * HOUR, "a", "n", output);
        assert!(requests(&book, "tenant").iter().map(|(_, count)| count).sum::<u64>() >= 3);
    }
    let book = book(Some(&path));
    let expected = Counts {
        requests: 2,
        failed: 1,
        prompt_tokens: 20,
        cached_tokens: 8,
        output_tokens: 7,
        waiting_ms: 10,
        engine_ms: 3000,
    };
    assert_eq!(
        all(&book, "hour,tenant,key,model,lane"),
        [
            ("2026-11-27T00:00:00Z/a/k/m/lane".to_owned(), expected),
            ("2026-11-27T01:00:00Z/b/k/m/lane".to_owned(), expected),
            ("2026-11-27T02:00:00Z/a/k/n/lane".to_owned(), expected),
        ]
    );
    assert_eq!(
        requests(&book, "day,tenant"),
        [("2026-11-27/a".to_owned(), 4), ("2026-11-27/b".to_owned(), 2),]
    );
    let hour = book.report(&query("2026-11-27T01:00:00Z", "2026-11-27T02:00:00Z", "month"));
    let csv = hour.unwrap().to_csv();
    assert_eq!(
        csv,
        "month,requests,failed,prompt_tokens,cached_tokens,output_tokens,waiting_seconds,\
         engine_seconds\r\n2026-11,2,1,20,8,7,0.01,3.0\r\n"
    );
}

#[test]
fn old_hours_become_days_and_older_ones_go() {
    let book = book(None);
    for age in [0, 34, 36, 40, 399, 402] {
        for hour in [1, 5] {
            record(&book, NOW - age * DAY + hour * HOUR, "a", "m", 1);
        }
    }
    book.save(Vec::new()).unwrap();
    assert!(!book.maintain(NOW).unwrap());
    let rows = requests(&book, "hour");
    let expected = [
        ("2025-10-24T00:00:00Z", 2),
        ("2026-10-18T00:00:00Z", 2),
        ("2026-10-22T00:00:00Z", 2),
        ("2026-10-24T01:00:00Z", 1),
        ("2026-10-24T05:00:00Z", 1),
        ("2026-11-27T01:00:00Z", 1),
        ("2026-11-27T05:00:00Z", 1),
    ];
    assert_eq!(rows, expected.map(|(hour, count)| (hour.to_owned(), count)));
    // Also what is written later, as by a clock that was wrong.
    record(&book, NOW - 36 * DAY, "a", "m", 1);
    book.save(Vec::new()).unwrap();
    book.maintain(NOW).unwrap();
    assert_eq!(requests(&book, "hour")[2].1, 3);
}

#[test]
fn oldest_rows_go_if_there_are_too_many() {
    let book = UsageBook::new(store(None), UsageSettings { max_rows: 3, ..Default::default() });
    let mut removed = 0;
    for hour in 0..5 {
        record(&book, NOW + hour * HOUR, "a", "m", 1);
        removed += book.save(Vec::new()).unwrap().removed;
    }
    assert_eq!((requests(&book, "hour").len(), removed), (3, 2));
    assert_eq!(requests(&book, "hour")[0].0, "2026-11-27T02:00:00Z");
}

#[test]
fn batch_that_is_in_the_file_is_not_added_again() {
    let store = store(None);
    let names = Arc::new(Names::new("a", "k", "m", "l"));
    let key = RowKey { span: Span::Hour, start: hour_of(NOW), names };
    let batch = Batch::from([(key, Counts { requests: 1, ..Counts::default() })]);
    let budgets = BudgetTable::default();
    for number in [1, 1, 2] {
        file::write(&store, &batch, number, &budgets, 100).unwrap();
    }
    assert_eq!(file::last_batch(&store).unwrap(), 2);
    let book = UsageBook::new(store, UsageSettings::default());
    assert_eq!(requests(&book, "tenant"), [("a".to_owned(), 2)]);
}

#[test]
fn reports_are_bounded_and_of_one_tenant_if_wanted() {
    let book = book(None);
    for tenant in 0..3 {
        for model in 0..5 {
            record(&book, NOW, &format!("t{tenant}"), &format!("m{model}"), 1);
        }
    }
    let one = UsageQuery::parse(Some("2026-11-01"), None, Some("model"), Some("t1"), NOW + 1);
    assert_eq!(book.report(&one.unwrap()).unwrap().rows.len(), 5);
    for hour in 0..25_000 {
        (0..5).for_each(|model| record(&book, NOW - hour * HOUR, "a", &format!("m{model}"), 1));
    }
    let error = book.report(&query("2020-01-01", "2030-01-01", "hour,model")).unwrap_err();
    assert!(matches!(error, UsageError::TooManyRows));
}

#[test]
fn budgets_are_restored() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let row = |account: AccountId, period, start_unix_ms, tokens| BudgetRow {
        account,
        period,
        start_unix_ms,
        tokens,
        requests: 2,
        engine_ms: 3,
    };
    let key = row(AccountId::Key(u64::MAX), Period::Day, NOW, 5);
    let group = row(AccountId::Group("ä \" = x".into()), Period::Month, NOW - 26 * DAY, 6);
    let old = row(AccountId::Tenant("t".into()), Period::Month, NOW - 60 * DAY, 6);
    {
        let book = book(Some(&path));
        let before = BudgetRow { tokens: 1, ..key.clone() };
        book.save(vec![before, group.clone(), old]).unwrap();
        book.save(vec![key.clone()]).unwrap();
        assert_eq!(book.budgets().unwrap().len(), 3);
        book.maintain(NOW).unwrap();
    }
    let mut rows = book(Some(&path)).budgets().unwrap();
    rows.sort_by_key(|row| row.tokens);
    assert_eq!(rows, [key, group]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Whatever is recorded, saved, maintained and read in whichever order adds up.
    #[test]
    fn nothing_is_lost_and_nothing_counted_twice(
        steps in prop::collection::vec((0u8..6, 0u64..100, 0u8..3), 0..60),
    ) {
        let book = book(None);
        let mut expected = 0;
        for (what, days, tenant) in steps {
            match what {
                0..=3 => {
                    expected += 1;
                    record(&book, NOW - days * DAY, &format!("t{tenant}"), "m", 1);
                }
                4 => drop(book.save(Vec::new()).unwrap()),
                _ => drop(book.maintain(NOW).unwrap()),
            }
        }
        for by in ["tenant", "hour,model", "day", "month,key"] {
            prop_assert_eq!(requests(&book, by).iter().map(|row| row.1).sum::<u64>(), expected);
        }
    }
}
