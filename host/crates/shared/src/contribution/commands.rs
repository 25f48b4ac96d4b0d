//! The scripts of contributions: their arguments and their replies.

use std::time::Duration;

use redis::{Cmd, Value};

use super::{BudgetPart, Contribution, Contributor, ContributorIndex, DayPart, MAX_HOSTS};
use crate::direct::millis;

const WRITE: &str = include_str!("write.lua");
const BUDGETS: &str = include_str!("budgets.lua");
const DAY: &str = include_str!("day.lua");
const INDEX: &str = include_str!("index.lua");

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

/// Returns the command that writes parts of the host with this id and name.
pub(super) fn write(
    base: &str,
    (id, name): (u64, &str),
    Mark { process, number }: Mark,
    parts: &[DayPart],
    keep: Duration,
) -> Cmd {
    let mut keys = vec![hosts_key(base), days_key(base)];
    keys.extend(parts.iter().map(|part| day_key(base, part.day)));
    let mut command = script(WRITE, &keys);
    let name = &name[..name.floor_char_boundary(MAX_NAME)];
    command.arg(hex(id)).arg(format!("{process:016x}.{number}")).arg(name);
    command.arg(millis(keep)).arg(MAX_HOSTS);
    for DayPart { day, values, is_complete } in parts {
        command.arg(*day).arg(u8::from(*is_complete)).arg(values.len());
        for (hour, value) in values {
            let field = hour.map_or_else(|| WHOLE_DAY.to_owned(), |hour| hour.to_string());
            command.arg(field).arg(value.as_slice());
        }
    }
    command
}

/// Reads the mark of the write before; `None` if there was none.
pub(super) fn parse_mark(reply: &Value) -> Option<Mark> {
    let (process, number) = text(reply)?.split(' ').next()?.split_once('.')?;
    Some(Mark { process: parse_hex(process)?, number: number.parse().ok()? })
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
        let mark = bulk("00000000000000ff.12 1795779000000 gpu 1");
        assert_eq!(parse_mark(&mark), Some(Mark { process: 255, number: 12 }));
        assert_eq!((parse_mark(&Value::Nil), parse_mark(&bulk("x"))), (None, None));
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
        let mark = Mark { process: 1, number: 2 };
        let keep = Duration::from_secs(5);
        let command = write("{p:usage}", (10, "gpu"), mark, &[part], keep);
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
