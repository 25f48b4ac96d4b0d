//! Messages that depend on each other: an edit that removes messages leaves a conversation that
//! engines and chat templates accept.
//!
//! A call of tools and all of its results are a group, which is kept or removed as a whole. The
//! last message of the user is always kept.

use std::collections::HashMap;

use crate::document::{Container, Node};
use crate::json::PointerError;
use crate::scan;

/// What an edit needs to know of the messages of a request.
#[derive(Debug)]
pub(super) struct Conversation(Vec<Message>);

#[derive(Debug)]
struct Message {
    kind: Kind,
    /// The message that this one belongs to: for the result of a tool, the one with its call; else
    /// itself.
    group: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    System,
    User,
    ToolResult,
    Other,
}

impl Conversation {
    /// Reads the messages of a request.
    pub(super) fn read(messages: &mut Container<'_>) -> Result<Self, PointerError> {
        let mut read: Vec<Message> = Vec::new();
        // The messages with calls, by the ids of the calls.
        let mut calls: HashMap<String, usize> = HashMap::new();
        // The last message that is neither a system message nor the result of a tool.
        let mut last = None;
        for (index, message) in messages.values().enumerate() {
            let (kind, id) = kind(message)?;
            let mut group = index;
            match kind {
                Kind::System => {}
                Kind::ToolResult => {
                    // Without an id, or with an unknown one, its place says which call it answers.
                    let call = id.and_then(|id| calls.get(&id).copied());
                    group = call.or(last).unwrap_or(index);
                }
                Kind::User | Kind::Other => {
                    last = Some(index);
                    read_calls(message, |id| {
                        calls.insert(id, index);
                    })?;
                }
            }
            read.push(Message { kind, group });
        }
        Ok(Self(read))
    }

    /// Returns which messages to keep: the system messages, the last `count` others, and the last
    /// one of the user. Of a group that begins before these messages nothing is kept, unless the
    /// conversation ends with it: the model is asked for what follows from its results.
    pub(super) fn keep_last(&self, count: usize) -> Vec<bool> {
        let is_other = |index: &usize| self.0[*index].kind != Kind::System;
        let others: Vec<usize> = (0..self.0.len()).filter(is_other).collect();
        let begin = match count.min(others.len()) {
            0 => usize::MAX,
            count => others[others.len() - count],
        };
        let last_group = others.last().map(|last| self.0[*last].group).filter(|_| count > 0);
        let last_user = self.last_user();
        let keep = self.0.iter().enumerate().map(|(index, message)| {
            message.kind == Kind::System
                || message.group >= begin
                || last_group == Some(message.group)
                || last_user == Some(index)
        });
        keep.collect()
    }

    /// Returns true if the message at a position can be removed alone.
    pub(super) fn can_remove(&self, index: usize) -> bool {
        let has_group = self.0.iter().enumerate().any(|(other, message)| {
            message.group != other && (message.group == index || other == index)
        });
        !has_group && self.last_user() != Some(index)
    }

    fn last_user(&self) -> Option<usize> {
        self.0.iter().rposition(|message| message.kind == Kind::User)
    }
}

/// Returns the kind of a message, and for the result of a tool the id of its call. At Anthropic's
/// endpoint, results are blocks of messages of the user.
fn kind(message: &mut Node<'_>) -> Result<(Kind, Option<String>), PointerError> {
    Ok(match message.member("role")?.and_then(|role| role.text()) {
        Some("\"system\"" | "\"developer\"") => (Kind::System, None),
        Some("\"tool\"" | "\"function\"") => (Kind::ToolResult, text(message, "tool_call_id")?),
        Some("\"user\"") => {
            let mut result = None;
            for_each_block(message, "\"tool_result\"", |block| {
                let id = text(block, "tool_use_id")?;
                result.get_or_insert(id);
                Ok(())
            })?;
            match result {
                Some(id) => (Kind::ToolResult, id),
                None => (Kind::User, None),
            }
        }
        Some(_) | None => (Kind::Other, None),
    })
}

/// Calls `read` with each content block of a message that has this type.
fn for_each_block(
    message: &mut Node<'_>,
    kind: &str,
    mut read: impl FnMut(&mut Node<'_>) -> Result<(), PointerError>,
) -> Result<(), PointerError> {
    let Some(content) = message.member("content")? else { return Ok(()) };
    let Some(blocks) = content.open()? else { return Ok(()) };
    for block in blocks.values() {
        if block.member("type")?.and_then(|kind| kind.text()) == Some(kind) {
            read(block)?;
        }
    }
    Ok(())
}

/// Returns the text of a member that is a string.
fn text(node: &mut Node<'_>, key: &str) -> Result<Option<String>, PointerError> {
    let literal = node.member(key)?.and_then(|value| value.text());
    let literal = literal.filter(|literal| literal.starts_with('"'));
    Ok(literal.map(|literal| scan::key(literal.as_bytes()).into_owned()))
}

/// Calls `found` with the id of each call of a message.
fn read_calls(message: &mut Node<'_>, mut found: impl FnMut(String)) -> Result<(), PointerError> {
    for_each_block(message, "\"tool_use\"", |block| {
        text(block, "id")?.map(&mut found);
        Ok(())
    })?;
    let Some(calls) = message.member("tool_calls")? else { return Ok(()) };
    let Some(calls) = calls.open()? else { return Ok(()) };
    for call in calls.values() {
        text(call, "id")?.map(&mut found);
    }
    Ok(())
}
