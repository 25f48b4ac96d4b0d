//! The JSON object in the data of one event, with its place in the event's text.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;

use memchr::memchr2;

use crate::scan::{self, Child, Children};
use crate::splice::MODEL;
use crate::sse::event::{has_finish_reason, without_mark};

/// The member of the event that begins a message, which has the name.
const MESSAGE: &str = "message";

/// An event whose data is an object.
#[derive(Debug)]
pub(super) struct Payload<'a> {
    /// The text of the event.
    raw: &'a [u8],
    /// The data: the lines of the event that have some, without the name of the field.
    json: Cow<'a, [u8]>,
    /// Where each line of the data begins, in it and in the text.
    lines: Vec<(usize, usize)>,
    members: Vec<Member>,
    /// Where the object ends in the data.
    end: usize,
}

/// A member of the object: where its key and its value are in the data.
#[derive(Debug, Clone)]
struct Member {
    key: Range<usize>,
    value: Range<usize>,
}

impl<'a> Payload<'a> {
    /// Reads the text of an event; `None` if it has no data, or its data is not an object.
    pub(super) fn read(raw: &'a [u8]) -> Option<Self> {
        let (json, lines) = data(raw)?;
        let start = json.len() - json.trim_ascii_start().len();
        if json.get(start) != Some(&b'{') {
            return None;
        }
        let end = scan::container_end(&json, start)?;
        if !json[end..].trim_ascii_start().is_empty() {
            return None;
        }
        let member = |Child { key, start }| {
            let value = start..scan::value_end(&json, start).min(end);
            Member { key, value }
        };
        let members = Children::new(&json, start)?.map(member).collect();
        Some(Self { raw, json, lines, members, end })
    }

    fn key(&self, member: &Member) -> Cow<'_, str> {
        scan::key(&self.json[member.key.clone()])
    }

    fn has_key(&self, member: &Member, key: &str) -> bool {
        scan::is_key(&self.json[member.key.clone()], key)
    }

    fn value(&self, member: &Member) -> &[u8] {
        &self.json[member.value.clone()]
    }

    /// Returns the last member with this key, which counts in most parsers.
    fn member(&self, key: &str) -> Option<&Member> {
        self.members.iter().rev().find(|member| self.has_key(member, key))
    }

    /// Returns true for the event that only exists because the usage was asked for.
    pub(super) fn is_usage_only(&self) -> bool {
        let has = |key, begin: u8| {
            self.member(key).is_some_and(|member| self.value(member).first() == Some(&begin))
        };
        let choices = self.member("choices").map(|choices| self.value(choices));
        let is_empty = choices.and_then(|choices| choices.strip_prefix(b"["));
        let is_empty = is_empty.is_some_and(|rest| rest.trim_ascii_start() == b"]");
        is_empty && has("usage", b'{') && !self.is_error()
    }

    /// Returns true if the event reports an error.
    pub(super) fn is_error(&self) -> bool {
        self.member("error").is_some_and(|error| self.value(error) != b"null")
    }

    /// Returns true if a choice may have ended with this event.
    pub(super) fn has_finish_reason(&self) -> bool {
        has_finish_reason(&self.json)
    }

    /// Returns whether the name of the model is this literal; `None` if the event names none.
    pub(super) fn model_is(&self, literal: &str) -> Option<bool> {
        let model = self.models().pop()?;
        Some(self.json[model] == *literal.as_bytes())
    }

    /// Returns where the names of the model are: in the event, or in the message that it begins.
    fn models(&self) -> Vec<Range<usize>> {
        let is_name = |range: &Range<usize>| self.json[range.clone()].starts_with(b"\"");
        let mut models = Vec::new();
        for member in &self.members {
            if self.has_key(member, MODEL) {
                models.push(member.value.clone());
            } else if self.has_key(member, MESSAGE) {
                let start = member.value.start;
                for Child { key, start } in Children::new(&self.json, start).into_iter().flatten() {
                    if scan::is_key(&self.json[key], MODEL) {
                        models.push(start..scan::value_end(&self.json, start));
                    }
                }
            }
        }
        models.retain(is_name);
        models
    }

    /// Returns the text of the event with another name of the model, and without a `usage` that is
    /// null if that is to be hidden.
    pub(super) fn changed(&self, model: Option<&str>, hides_usage: bool) -> Pending {
        let mut text = Vec::with_capacity(self.raw.len() + model.map_or(0, str::len));
        let mut copied = 0;
        let mut changes: Vec<(Range<usize>, &str)> = Vec::new();
        if let Some(model) = model {
            changes.extend(self.models().into_iter().map(|range| (range, model)));
        }
        for (index, member) in self.members.iter().enumerate().filter(|_| hides_usage) {
            if self.has_key(member, "usage") && self.value(member) == b"null" {
                changes.push((self.with_comma(index), ""));
            }
        }
        changes.sort_unstable_by_key(|(range, _)| range.start);
        for (range, with) in changes {
            // Both ends of a string are in the same line, and a member is only removed if the data
            // has no other one.
            let range = self.in_raw(range.start)..self.in_raw(range.end);
            if range.start >= copied && range.start <= range.end {
                text.extend_from_slice(&self.raw[copied..range.start]);
                text.extend_from_slice(with.as_bytes());
                copied = range.end;
            }
        }
        text.extend_from_slice(&self.raw[copied..]);
        Pending(text)
    }

    /// Returns the range of a member with the comma before it, or after it if it is the first one;
    /// empty if the data has several lines.
    fn with_comma(&self, index: usize) -> Range<usize> {
        let Member { key, value } = self.members[index].clone();
        if self.lines.len() > 1 {
            return key.start..key.start;
        }
        match (
            index.checked_sub(1).map(|before| &self.members[before]),
            self.members.get(index + 1),
        ) {
            (Some(before), _) => before.value.end..value.end,
            (None, Some(after)) => key.start..after.key.start,
            (None, None) => key.start..value.end,
        }
    }

    /// Returns the position in the text of a position in the data.
    fn in_raw(&self, at: usize) -> usize {
        let line = self.lines.partition_point(|(start, _)| *start <= at);
        let (start, raw) = self.lines[line.saturating_sub(1)];
        raw + (at - start)
    }
}

/// An event that is to be forwarded.
#[derive(Debug)]
pub(super) struct Pending(Vec<u8>);

impl Pending {
    /// Returns the text of the event.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Appends blank lines to the text.
    pub(super) fn extend(&mut self, text: &[u8]) {
        self.0.extend_from_slice(text);
    }

    /// Adds the members of the event with the usage that this event does not have.
    pub(super) fn add_members_of(&mut self, usage: &Payload<'_>) {
        let Some(own) = Payload::read(&self.0) else { return };
        // A set, because both events may have very many members.
        let own_keys: HashSet<_> = own.members.iter().map(|member| own.key(member)).collect();
        let is_added = |member: &&Member| {
            let key = usage.key(member);
            key != "usage" && key != "choices" && !own_keys.contains(&key)
        };
        let mut added = Vec::new();
        for member in usage.members.iter().filter(is_added) {
            added.push(b',');
            added.extend_from_slice(&usage.json[member.key.start..member.value.end]);
        }
        let at = own.in_raw(own.end - 1);
        self.0.splice(at..at, added).for_each(drop);
    }
}

/// Where the lines of an event's data begin: in the data, and in the event.
type Lines = Vec<(usize, usize)>;

/// Returns the data of an event, and where each line of it begins; `None` if it has none.
fn data(raw: &[u8]) -> Option<(Cow<'_, [u8]>, Lines)> {
    let mut json = Cow::Borrowed(&raw[..0]);
    let mut lines = Lines::new();
    let mut at = 0;
    while at < raw.len() {
        let end = memchr2(b'\n', b'\r', &raw[at..]).map_or(raw.len(), |found| at + found);
        let line = without_mark(&raw[at..end]);
        if let Some(data) = line.strip_prefix(b"data:") {
            let begin = end - data.len();
            if lines.is_empty() {
                json = Cow::Borrowed(data);
                lines.push((0, begin));
            } else {
                let json = json.to_mut();
                json.push(b'\n');
                lines.push((json.len(), begin));
                json.extend_from_slice(data);
            }
        }
        at = end + 1;
    }
    (!lines.is_empty()).then_some((json, lines))
}
