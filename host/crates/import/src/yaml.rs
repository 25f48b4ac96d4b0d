//! YAML as a tree of texts with lines. Scalars keep their text: `8080` and `"8080"` are the same.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Span};

use super::error::{ErrorCode, ImportError};

/// Maximum depth of a tree, so that recursion over it is bounded.
const MAX_DEPTH: usize = 64;
/// Maximum number of nodes, also of those that aliases stand for: a few lines of aliases of aliases
/// would be billions of nodes.
const MAX_NODES: usize = 200_000;
/// The key that merges another mapping, usually an alias, into its own.
const MERGE: &str = "<<";

/// A node of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    Null,
    Text(String),
    /// Nodes with their lines.
    List(Vec<(usize, Node)>),
    Map(Vec<Entry>),
}

/// A key of a mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    /// The line of the key, from 1.
    pub(crate) line: usize,
    pub(crate) value: Node,
}

impl Node {
    /// Returns the value of a key; `None` if this is not a mapping or lacks it.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        self.entries().iter().find(|entry| entry.key == key).map(|entry| &entry.value)
    }

    /// Returns the keys of a mapping; empty if this is none.
    pub(crate) fn entries(&self) -> &[Entry] {
        match self {
            Self::Map(entries) => entries,
            Self::Null | Self::Text(_) | Self::List(_) => &[],
        }
    }

    /// Returns the items of a list, or a text as its only item.
    pub(crate) fn texts(&self) -> Vec<&str> {
        match self {
            Self::Text(text) => vec![text],
            Self::List(items) => items.iter().filter_map(|(_, item)| item.text()).collect(),
            Self::Null | Self::Map(_) => Vec::new(),
        }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Null | Self::List(_) | Self::Map(_) => None,
        }
    }

    fn size(&self) -> usize {
        1 + match self {
            Self::Null | Self::Text(_) => 0,
            Self::List(items) => items.iter().map(|(_, item)| item.size()).sum(),
            Self::Map(entries) => entries.iter().map(|entry| entry.value.size()).sum(),
        }
    }

    fn depth(&self) -> usize {
        1 + match self {
            Self::Null | Self::Text(_) => 0,
            Self::List(items) => items.iter().map(|(_, item)| item.depth()).max().unwrap_or(0),
            Self::Map(entries) => {
                entries.iter().map(|entry| entry.value.depth()).max().unwrap_or(0)
            }
        }
    }
}

/// A list or mapping whose end has not been read.
enum Open {
    List { anchor: usize, line: usize, items: Vec<(usize, Node)> },
    Map { anchor: usize, line: usize, entries: Vec<Entry>, key: Option<(usize, String)> },
}

/// Parses the first document of a text.
///
/// # Errors
/// If the text is not YAML, or exceeds a limit.
pub(crate) fn parse(file: &str, text: &str) -> Result<Node, ImportError> {
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let step = event.map_err(Failure::from).and_then(|(event, span)| builder.add(event, span));
        match step {
            Ok(false) => {}
            Ok(true) => break,
            Err(Failure { code, position: (line, column), message }) => {
                return Err(code.at(file, line, Some(column), message));
            }
        }
    }
    Ok(builder.root.unwrap_or(Node::Null))
}

/// An error without its file.
struct Failure {
    code: ErrorCode,
    position: (usize, usize),
    message: String,
}

impl Failure {
    fn new(code: ErrorCode, mark: &Marker, message: impl Into<String>) -> Self {
        Self { code, position: (mark.line(), mark.col() + 1), message: message.into() }
    }
}

impl From<ScanError> for Failure {
    fn from(error: ScanError) -> Self {
        let message = format!("invalid YAML: {}", error.info());
        Self::new(ErrorCode::InvalidSyntax, error.marker(), message)
    }
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    root: Option<Node>,
}

impl Builder {
    /// Adds an event, and returns true if the document is complete.
    fn add(&mut self, event: Event<'_>, span: Span) -> Result<bool, Failure> {
        let line = span.start.line();
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let is_null = style == ScalarStyle::Plain
                    && matches!(text.as_ref(), "" | "~" | "null" | "Null" | "NULL");
                let node = if is_null { Node::Null } else { Node::Text(text.into_owned()) };
                self.close(node, anchor, line, &span.start)?;
            }
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor).cloned() else {
                    let message = "an alias inside of its own anchor";
                    return Err(Failure::new(ErrorCode::InvalidSyntax, &span.start, message));
                };
                if self.open.len() + node.depth() > MAX_DEPTH {
                    return Err(too_deep(&span.start));
                }
                self.nodes = self.nodes.saturating_add(node.size());
                self.close(node, 0, line, &span.start)?;
            }
            Event::SequenceStart(anchor, _) => {
                self.push(Open::List { anchor, line, items: Vec::new() }, &span.start)?;
            }
            Event::MappingStart(anchor, _) => {
                let map = Open::Map { anchor, line, entries: Vec::new(), key: None };
                self.push(map, &span.start)?;
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::List { anchor, line, items }) => {
                    self.close(Node::List(items), anchor, line, &span.start)?;
                }
                Some(Open::Map { anchor, line, entries, .. }) => {
                    self.close(Node::Map(merged(entries)), anchor, line, &span.start)?;
                }
                None => {}
            },
            Event::DocumentEnd => return Ok(true),
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) => {}
        }
        Ok(false)
    }

    fn push(&mut self, open: Open, mark: &Marker) -> Result<(), Failure> {
        if self.open.len() + 1 >= MAX_DEPTH {
            return Err(too_deep(mark));
        }
        self.open.push(open);
        Ok(())
    }

    /// Puts a complete node where it belongs.
    fn close(
        &mut self,
        node: Node,
        anchor: usize,
        line: usize,
        mark: &Marker,
    ) -> Result<(), Failure> {
        self.nodes = self.nodes.saturating_add(1);
        if anchor > 0 {
            // The copy counts as well: anchors of anchors would be quadratic.
            self.nodes = self.nodes.saturating_add(node.size());
            self.anchors.insert(anchor, node.clone());
        }
        if self.nodes > MAX_NODES {
            let message = format!("more than {MAX_NODES} nodes, also of aliases");
            return Err(Failure::new(ErrorCode::TooLarge, mark, message));
        }
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::List { items, .. }) => items.push((line, node)),
            Some(Open::Map { entries, key, .. }) => match key.take() {
                Some((line, key)) => entries.push(Entry { key, line, value: node }),
                None => match node {
                    Node::Text(text) => *key = Some((line, text)),
                    Node::Null => *key = Some((line, String::new())),
                    Node::List(_) | Node::Map(_) => {
                        let message = "a list or mapping as a key";
                        return Err(Failure::new(ErrorCode::InvalidSyntax, mark, message));
                    }
                },
            },
        }
        Ok(())
    }
}

fn too_deep(mark: &Marker) -> Failure {
    let message = format!("more than {MAX_DEPTH} levels");
    Failure::new(ErrorCode::TooLarge, mark, message)
}

/// Replaces merge keys by the keys of their mappings that the mapping itself lacks.
fn merged(entries: Vec<Entry>) -> Vec<Entry> {
    if !entries.iter().any(|entry| entry.key == MERGE) {
        return entries;
    }
    let (merges, mut own): (Vec<_>, Vec<_>) =
        entries.into_iter().partition(|entry| entry.key == MERGE);
    for merge in merges {
        let maps = match merge.value {
            Node::List(items) => items.into_iter().map(|(_, item)| item).collect(),
            other => vec![other],
        };
        for map in maps {
            if let Node::Map(entries) = map {
                for entry in entries {
                    if !own.iter().any(|known| known.key == entry.key) {
                        own.push(entry);
                    }
                }
            }
        }
    }
    own
}
