//! The script that merges in the store: its arguments and its replies.

use std::sync::{Arc, LazyLock};

use redis::{Cmd, Script, Value};

use crate::batch::{Batch, BatchReply, Count, Item, Kind, Op, Reply, Write};
use crate::stamp::Stamp;

/// The code. Its replies are read by [`parse`].
pub(crate) const CODE: &str = include_str!("script.lua");

static HASH: LazyLock<String> = LazyLock::new(|| Script::new(CODE).get_hash().to_owned());

/// Returns the command for a batch: with the code, for a store that does not have it yet, or with
/// its hash.
pub(crate) fn command(batch: &Batch, replica: u64, round: u64, with_code: bool) -> Cmd {
    let mut command = redis::cmd(if with_code { "EVAL" } else { "EVALSHA" });
    command.arg(if with_code { CODE } else { HASH.as_str() });
    command.arg(batch.items.len() + 2);
    command.arg(format!("{}:r:{replica:016x}", batch.base));
    command.arg(index_key(&batch.base));
    for Item { key, op } in &batch.items {
        command.arg(entry_key(&batch.base, op.kind(), key));
    }
    command.arg(round).arg(u8::from(batch.has_changes));
    for item in &batch.items {
        match &item.op {
            Op::Count(count) => add_count(&mut command, count),
            Op::Write(write) => add_write(&mut command, write),
            Op::Read(stamp) => {
                command.arg("r").arg(stamp.map_or_else(String::new, Stamp::to_text));
                pad(&mut command, 6);
            }
        }
    }
    command
}

fn add_count(command: &mut Cmd, count: &Count) {
    let Count { field, epoch, until, sum, delta, ttl, is_reset } = count;
    command.arg("c").arg(&**field).arg(epoch.map_or_else(String::new, Stamp::to_text));
    command.arg(until.map_or_else(String::new, |until| until.to_string()));
    command.arg(sum).arg(delta).arg(ttl).arg(u8::from(*is_reset));
}

fn add_write(command: &mut Cmd, write: &Write) {
    command.arg("w").arg(write.stamp.to_text()).arg(write.ttl);
    command.arg(u8::from(write.value.is_some())).arg(write.value.as_deref().unwrap_or_default());
    pad(command, 3);
}

/// Fills up the eight arguments of an item.
fn pad(command: &mut Cmd, count: usize) {
    (0..count).for_each(|_| _ = command.arg(""));
}

/// Returns the command that reads which entries a bucket has.
pub(crate) fn index_command(base: &str, max: usize) -> Cmd {
    let mut command = redis::cmd("ZREVRANGE");
    command.arg(index_key(base)).arg(0).arg(max.saturating_sub(1));
    command
}

fn index_key(base: &str) -> String {
    format!("{base}:i")
}

fn entry_key(base: &str, kind: Kind, key: &str) -> String {
    format!("{base}:{}{key}", kind.tag())
}

/// Reads the reply; `None` if it is not one of the script.
pub(crate) fn parse(value: &Value) -> Option<BatchReply> {
    let Value::Array(parts) = value else { return None };
    let (now, items) = parts.split_first()?;
    let items = items.iter().map(reply).collect::<Option<Vec<Reply>>>()?;
    Some(BatchReply { now: number(now)?, items })
}

fn reply(value: &Value) -> Option<Reply> {
    match value {
        Value::Int(0) => Some(Reply::Missing),
        Value::Int(1) => Some(Reply::Unchanged),
        Value::Array(parts) => match parts.as_slice() {
            [
                Value::BulkString(total),
                Value::BulkString(epoch),
                Value::BulkString(until),
                Value::BulkString(applied),
            ] => Some(Reply::Count {
                total: text(total)?.parse().ok()?,
                applied: text(applied)?.parse().ok()?,
                epoch: Stamp::parse(epoch),
                until: text(until)?.parse().ok()?,
            }),
            [
                Value::BulkString(stamp),
                Value::BulkString(kind),
                Value::BulkString(bytes),
                until,
            ] => Some(Reply::Value {
                stamp: Stamp::parse(stamp)?,
                value: (kind.as_slice() == b"1").then(|| Arc::from(bytes.as_slice())),
                until: number(until)?,
            }),
            _ => None,
        },
        _ => None,
    }
}

fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}
