//! The scripts of contributions: their arguments and their replies.

use std::time::Duration;

use redis::{Cmd, Value};

use super::{BudgetPart, Contribution, Contributor, ContributorIndex, DayPart, MAX_HOSTS};
use crate::direct::millis;

const WRITE: &str = include_str!("write.lua");
const BUDGETS: &str = include_str!("budgets.lua");
const DAY: &str = include_str!("day.lua");
const INDEX: &str = include_str!("index.lua");
const LEAVE: &str = include_str!("leave.lua");

/// Maximum number of days of an index: more than ten years.
const MAX_DAYS: usize = 4000;
/// Maximum length of the name of a host in bytes.
const MAX_NAME: usize = 200;
/// Counts that Lua has as they are.
const MAX_COUNT: u64 = 1 << 53;
/// The name of a field that is not for an hour.
const WHOLE_DAY: &str = "d";

/// What a write leaves: the process of the host, and the number of its write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) process: u64,
    pub(super) number: u64,
    /// When the process began, in milliseconds since 1970 by the clock of the store; `None` until
    /// the store has said it, and of a process of an earlier version.
    pub(super) began: Option<u64>,
}

/// What the store had of a host before a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Before {
    pub(super) mark: Mark,
    /// The name of the host that has written, for people.
    pub(super) name: String,
}

fn script(code: &str, keys: &[String]) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(code).arg(keys.len()).arg(keys);
    command
}

fn hosts_key(base: &str) -> String {
    format!("{base}:hosts")
}

fn days_key(base: &str) -> String {
    format!("{base}:days")
}

fn day_key(base: &str, day: u32) -> String {
    format!("{base}:d:{day}")
}

/// Returns the command that writes parts of the host with this id and name, whose process has been
/// running for `uptime`.
pub(super) fn write(
    base: &str,
    (id, name): (u64, &str),
    (Mark { process, number, began }, uptime): (Mark, Duration),
    parts: &[DayPart],
    keep: Duration,
) -> Cmd {
    let mut keys = vec![hosts_key(base), days_key(base)];
    keys.extend(parts.iter().map(|part| day_key(base, part.day)));
    let mut command = script(WRITE, &keys);
    let name = &name[..name.floor_char_boundary(MAX_NAME)];
    command.arg(hex(id)).arg(format!("{process:016x}.{number}"));
    command.arg(began.map_or_else(String::new, |began| began.to_string())).arg(millis(uptime));
    command.arg(name).arg(millis(keep)).arg(MAX_HOSTS);
    for DayPart { day, values, is_complete } in parts {
        command.arg(*day).arg(u8::from(*is_complete)).arg(values.len());
        for (hour, value) in values {
            let field = hour.map_or_else(|| WHOLE_DAY.to_owned(), |hour| hour.to_string());
            command.arg(field).arg(value.as_slice());
        }
    }
    command
}

/// Reads what was there before a write, if anything was, and when the process of the write began.
pub(super) fn parse_write(reply: &Value) -> Option<(Option<Before>, u64)> {
    let Value::Array(parts) = reply else { return None };
    let [before, began] = parts.as_slice() else { return None };
    Some((parse_before(text(before)?), text(began)?.parse().ok()?))
}

fn parse_before(text: &str) -> Option<Before> {
    let mut words = text.splitn(3, ' ');
    let mut mark = words.next()?.splitn(3, '.');
    let (process, number) = (parse_hex(mark.next()?)?, mark.next()?.parse().ok()?);
    let began = mark.next().and_then(|began| began.parse().ok());
    let name = words.nth(1).unwrap_or_default().to_owned();
    Some(Before { mark: Mark { process, number, began }, name })
}

/// Returns the command that removes what a host has contributed to these days.
pub(super) fn leave(base: &str, id: u64, days: &[u32]) -> Cmd {
    let mut keys = vec![hosts_key(base)];
    keys.extend(days.iter().map(|day| day_key(base, *day)));
    let mut command = script(LEAVE, &keys);
    command.arg(hex(id));
    command
}

/// Returns the command that writes what a host has used of budgets.
pub(super) fn write_budgets(base: &str, id: u64, parts: &[BudgetPart]) -> Cmd {
    let keys: Vec<String> =
        parts.iter().map(|part| format!("{base}:b:{name}", name = part.name)).collect();
    let mut command = script(BUDGETS, &keys);
    command.arg(hex(id));
    for BudgetPart { used, keep, .. } in parts {
        used.iter().for_each(|count| _ = command.arg(*count.min(&MAX_COUNT)));
        command.arg(millis(*keep));
    }
    command
}

/// Reads what others have used of budgets.
pub(super) fn parse_budgets(reply: &Value) -> Option<Vec<[u64; 3]>> {
    let Value::Array(sums) = reply else { return None };
    let three = |sum: &Value| {
        let mut counts = text(sum)?.split(' ').map(|count| count.parse().ok());
        Some([counts.next()??, counts.next()??, counts.next()??])
    };
    sums.iter().map(three).collect()
}

/// Returns the command that reads all hosts, and which days there are.
pub(super) fn index(base: &str, (first, last): (u32, u32)) -> Cmd {
    let mut command = script(INDEX, &[hosts_key(base), days_key(base)]);
    command.arg(first).arg(last).arg(MAX_DAYS);
    command
}

/// Reads the index.
pub(super) fn parse_index(reply: &Value) -> Option<ContributorIndex> {
    let Value::Array(parts) = reply else { return None };
    let [Value::Int(now), Value::Array(hosts), Value::Array(days)] = parts.as_slice() else {
        return None;
    };
    let now = u64::try_from(*now).ok()?;
    let contributor = |id: &Value, value: &Value| {
        let mut words = text(value)?.splitn(3, ' ').skip(1);
        let at: u64 = words.next()?.parse().ok()?;
        let (id, name) = (parse_hex(text(id)?)?, words.next()?.to_owned());
        Some(Contributor { id, name, age: Duration::from_millis(now.saturating_sub(at)) })
    };
    let (pairs, _) = hosts.as_chunks();
    // What cannot be read was written by a later version.
    let hosts = pairs.iter().filter_map(|[id, value]| contributor(id, value)).collect();
    let days = days.iter().map(|day| text(day)?.parse().ok()).collect::<Option<_>>()?;
    Some(ContributorIndex { hosts, days })
}

/// Returns the command that reads hours of a day, without those of the host `except`.
pub(super) fn day(
    base: &str,
    day: u32,
    (first, last): (u8, u8),
    except: u64,
    max_bytes: usize,
) -> Cmd {
    let mut command = script(DAY, &[day_key(base, day)]);
    command.arg(hex(except)).arg(first).arg(last).arg(max_bytes);
    command
}

/// Reads a day; `None` if the reply is not one of the script.
pub(super) fn parse_day(reply: Value) -> Option<Vec<Contribution>> {
    let Value::Array(values) = reply else { return None };
    let mut values = values.into_iter();
    let mut contributions = Vec::with_capacity(values.len() / 2);
    while let (Some(field), Some(value)) = (values.next(), values.next()) {
        let (Value::BulkString(value), Some((id, hour))) = (value, text(&field)?.split_once(':'))
        else {
            return None;
        };
        let hour = if hour == WHOLE_DAY { None } else { Some(hour.parse().ok()?) };
        contributions.push(Contribution { id: parse_hex(id)?, hour, value });
    }
    Some(contributions)
}

fn hex(id: u64) -> String {
    format!("{id:016x}")
}

fn parse_hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn replies_are_read_and_others_refused() {
        let write = |before: &str| parse_write(&Value::Array(vec![bulk(before), bulk("17")]));
        let mark = |began| Mark { process: 255, number: 12, began };
        let before = |began| Some(Before { mark: mark(began), name: "gpu 1".to_owned() });
        let found = write("00000000000000ff.12.1795778000000 1795779000000 gpu 1");
        assert_eq!(found, Some((before(Some(1_795_778_000_000)), 17)));
        // Of an earlier version.
        let found = write("00000000000000ff.12 1795779000000 gpu 1");
        assert_eq!(found, Some((before(None), 17)));
        assert_eq!((write(""), write("x")), (Some((None, 17)), Some((None, 17))));
        assert_eq!(parse_write(&Value::Nil), None);
        let sums = parse_budgets(&Value::Array(vec![bulk("1 2 3"), bulk("0 0 9")]));
        assert_eq!(sums, Some(vec![[1, 2, 3], [0, 0, 9]]));
        assert_eq!(parse_budgets(&Value::Array(vec![bulk("1 2")])), None);
        let hosts = vec![bulk("0a"), bulk("1.1 1500 gpu 1"), bulk("0b"), bulk("later")];
        let days = vec![bulk("20784")];
        let reply = Value::Array(vec![Value::Int(2000), Value::Array(hosts), Value::Array(days)]);
        let index = parse_index(&reply).unwrap();
        let host =
            Contributor { id: 10, name: "gpu 1".to_owned(), age: Duration::from_millis(500) };
        assert_eq!((index.hosts, index.days), (vec![host], vec![20_784]));
        let fields = [bulk("0a:23"), bulk("one"), bulk("0a:d"), bulk("two")];
        let read = parse_day(Value::Array(fields.to_vec())).unwrap();
        assert_eq!([read[0].hour, read[1].hour], [Some(23), None]);
        assert_eq!(read[1].value, b"two");
        assert_eq!(parse_day(Value::Int(0)), None);
        assert_eq!(parse_day(Value::Array(vec![bulk("x"), bulk("y")])), None);
    }

    /// The scripts read their arguments by position.
    #[test]
    fn arguments_are_in_the_order_of_the_scripts() {
        let values = vec![(Some(7), b"v".to_vec()), (None, b"w".to_vec())];
        let part = DayPart { day: 9, values, is_complete: true };
        let mark = Mark { process: 1, number: 2, began: None };
        let (uptime, keep) = (Duration::from_millis(60), Duration::from_secs(5));
        let command = write("{p:usage}", (10, "gpu"), (mark, uptime), &[part], keep);
        let words: Vec<String> = command
            .args_iter()
            .skip(2)
            .map(|word| match word {
                redis::Arg::Simple(bytes) => String::from_utf8_lossy(bytes).into_owned(),
                _ => String::new(),
            })
            .collect();
        let expected = [
            "3",
            "{p:usage}:hosts",
            "{p:usage}:days",
            "{p:usage}:d:9",
            "000000000000000a",
            "0000000000000001.2",
            "",
            "60",
            "gpu",
            "5000",
            "2048",
            "9",
            "1",
            "2",
            "7",
            "v",
            "d",
            "w",
        ];
        assert_eq!(words, expected);
    }
}
