//! JSON text under edit: a tree that is opened only where an edit needs it. All other text is kept
//! as it is, and is copied once, when the tree is written.

use std::borrow::Cow;
use std::collections::VecDeque;

use serde_json::Value;

use crate::json::{self, PointerError};
use crate::scan::{self, Children};

/// Maximum number of children of an array or object that an edit looks into. Bounds the memory of
/// an edit to about a hundred megabytes; a valid request has fewer members
/// ([`crate::limits::MAX_MEMBERS`]), so that only arrays of numbers can exceed it.
const MAX_CHILDREN: usize = 1_000_000;

/// A JSON value.
#[derive(Debug)]
pub(crate) enum Node<'a> {
    /// The text of the value.
    Text(Cow<'a, str>),
    /// The children of an array or object that an edit has looked into.
    Open(Box<Container<'a>>),
}

/// An array or object. Its text is the leads and values of its children, followed by the tail.
#[derive(Debug)]
pub(crate) struct Container<'a> {
    brackets: Brackets,
    /// Edits insert at both ends.
    children: VecDeque<Child<'a>>,
    /// The text after the last child: white space and the closing bracket. Without children, all
    /// of the text.
    tail: Cow<'a, str>,
}

#[derive(Debug, Clone, Copy)]
enum Brackets {
    Object,
    Array,
}

#[derive(Debug)]
struct Child<'a> {
    /// The text before the value: the opening bracket or a comma, white space, and the key.
    lead: Cow<'a, str>,
    /// The key without escapes; empty in an array.
    key: Cow<'a, str>,
    value: Node<'a>,
}

impl<'a> Node<'a> {
    /// Creates a value from its text.
    pub(crate) fn new(text: &'a str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }

    /// Returns the text, unless an edit has looked into the value.
    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Open(_) => None,
        }
    }

    /// Returns true if the value is an array.
    pub(crate) fn is_array(&self) -> bool {
        match self {
            Self::Text(text) => text.starts_with('['),
            Self::Open(container) => matches!(container.brackets, Brackets::Array),
        }
    }

    /// Returns the children; `None` if the value has none because it is not a container.
    pub(crate) fn open(&mut self) -> Result<Option<&mut Container<'a>>, PointerError> {
        if let Self::Text(text) = self {
            let container = match text {
                Cow::Borrowed(text) => Container::parse(text)?,
                // The value of an earlier edit. Small compared to the body.
                Cow::Owned(text) => Container::parse(text)?.map(Container::into_owned),
            };
            let Some(container) = container else { return Ok(None) };
            *self = Self::Open(Box::new(container));
        }
        match self {
            Self::Open(container) => Ok(Some(container)),
            Self::Text(_) => Ok(None),
        }
    }

    /// Returns the member of an object.
    pub(crate) fn member(&mut self, key: &str) -> Result<Option<&mut Self>, PointerError> {
        let Some(container) = self.open()? else { return Ok(None) };
        let at = container.position(key);
        Ok(at.map(|at| &mut container.children[at].value))
    }

    /// Returns true if there is a value at `tokens`.
    pub(crate) fn has(&mut self, tokens: &[String]) -> Result<bool, PointerError> {
        let mut node = self;
        for token in tokens {
            let Some(child) = node.member(token)? else { return Ok(false) };
            node = child;
        }
        Ok(true)
    }

    /// Sets the value at `tokens`. A missing last member is added; `-` appends to an array. A
    /// member that is given several times becomes one, because engines differ in which one counts.
    pub(crate) fn set(
        &mut self,
        tokens: &[String],
        value: Cow<'a, str>,
    ) -> Result<(), PointerError> {
        let [token, deeper @ ..] = tokens else {
            *self = Self::Text(value);
            return Ok(());
        };
        let not_a_container = || PointerError::NotAContainer(token.clone());
        let container = self.open()?.ok_or_else(not_a_container)?;
        match (container.position(token), container.brackets) {
            (Some(at), _) => {
                container.children[at].value.set(deeper, value)?;
                container.remove_duplicates(at, token);
                Ok(())
            }
            (None, Brackets::Object) if deeper.is_empty() => {
                container.push_front(token, value);
                Ok(())
            }
            (None, Brackets::Array) if deeper.is_empty() && token == "-" => {
                container.push_back(value);
                Ok(())
            }
            (None, Brackets::Object) => Err(PointerError::NoMember(token.clone())),
            (None, Brackets::Array) => Err(PointerError::NoElement(token.clone())),
        }
    }

    /// Removes the value at `tokens`, or all values of a member that is given several times.
    /// Removing a missing value changes nothing.
    pub(crate) fn remove(&mut self, tokens: &[String]) -> Result<(), PointerError> {
        let [token, deeper @ ..] = tokens else { return Err(PointerError::Empty) };
        let Some(container) = self.open()? else { return Ok(()) };
        match container.position(token) {
            None => Ok(()),
            Some(at) if deeper.is_empty() => {
                container.remove(at, token);
                Ok(())
            }
            Some(at) => {
                container.children[at].value.remove(deeper)?;
                container.remove_duplicates(at, token);
                Ok(())
            }
        }
    }

    /// Removes all members of an object whose keys `is_removed` returns true for, in one pass. A
    /// value that is not an object is left as it is.
    pub(crate) fn remove_members(
        &mut self,
        is_removed: impl Fn(&str) -> bool,
    ) -> Result<(), PointerError> {
        let Some(container) = self.open()? else { return Ok(()) };
        match container.brackets {
            Brackets::Object => container.retain(|_, key| !is_removed(key)),
            Brackets::Array => {}
        }
        Ok(())
    }

    /// Returns the text of the value.
    pub(crate) fn write(&self) -> String {
        let mut text = String::with_capacity(self.len());
        self.write_to(&mut text);
        json::work::count(text.len());
        text
    }

    fn write_to(&self, out: &mut String) {
        match self {
            Self::Text(text) => out.push_str(text),
            Self::Open(container) => {
                for child in &container.children {
                    out.push_str(&child.lead);
                    child.value.write_to(out);
                }
                out.push_str(&container.tail);
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Open(container) => {
                let children = container.children.iter();
                let children: usize =
                    children.map(|child| child.lead.len() + child.value.len()).sum();
                children + container.tail.len()
            }
        }
    }

    fn into_owned(self) -> Node<'static> {
        match self {
            Self::Text(text) => Node::Text(Cow::Owned(text.into_owned())),
            Self::Open(container) => Node::Open(Box::new(container.into_owned())),
        }
    }
}

impl<'a> Container<'a> {
    /// Returns the children of `json`; `None` if it is neither an array nor an object.
    fn parse(json: &'a str) -> Result<Option<Self>, PointerError> {
        let bytes = json.as_bytes();
        let brackets = match bytes.first() {
            Some(b'{') => Brackets::Object,
            Some(b'[') => Brackets::Array,
            _ => return Ok(None),
        };
        let Some(mut found) = Children::new(bytes, 0) else { return Ok(None) };
        let mut end = 0;
        let mut children = VecDeque::new();
        while let Some(scan::Child { key, start }) = found.next() {
            if children.len() == MAX_CHILDREN {
                return Err(PointerError::TooManyChildren);
            }
            let lead = json.get(end..start).ok_or(PointerError::InvalidJson)?;
            end = scan::value_end(bytes, start);
            found.continue_at(end);
            let value = json.get(start..end).ok_or(PointerError::InvalidJson)?;
            children.push_back(Child {
                lead: Cow::Borrowed(lead),
                key: scan::key(&bytes[key]),
                value: Node::new(value),
            });
        }
        Ok(Some(Self { brackets, children, tail: Cow::Borrowed(&json[end..]) }))
    }

    fn into_owned(self) -> Container<'static> {
        let owned = |child: Child<'_>| Child {
            lead: Cow::Owned(child.lead.into_owned()),
            key: Cow::Owned(child.key.into_owned()),
            value: child.value.into_owned(),
        };
        Container {
            brackets: self.brackets,
            children: self.children.into_iter().map(owned).collect(),
            tail: Cow::Owned(self.tail.into_owned()),
        }
    }

    /// Returns the position of the child that a token of a JSON Pointer names.
    fn position(&self, token: &str) -> Option<usize> {
        match self.brackets {
            // Of duplicate members the last one counts, as in most parsers.
            Brackets::Object => self.children.iter().rposition(|child| child.key == token),
            Brackets::Array => token.parse().ok().filter(|at| *at < self.children.len()),
        }
    }

    /// Inserts a child before all others. `key` has an effect in an object only.
    pub(crate) fn push_front(&mut self, key: &str, value: impl Into<Cow<'a, str>>) {
        let (lead, key) = match self.brackets {
            Brackets::Object => {
                (Cow::Owned(format!("{{{}:", Value::from(key))), Cow::Owned(key.to_owned()))
            }
            Brackets::Array => (Cow::Borrowed("["), Cow::Borrowed("")),
        };
        // The opening bracket is now part of the new child's lead.
        match self.children.front_mut() {
            Some(first) => first.lead = format!(",{}", &first.lead[1..]).into(),
            None => self.tail = self.tail[1..].to_owned().into(),
        }
        self.children.push_front(Child { lead, key, value: Node::Text(value.into()) });
    }

    /// Appends an element to an array.
    fn push_back(&mut self, value: Cow<'a, str>) {
        let comma = if self.children.is_empty() { "" } else { "," };
        let lead = format!("{}{comma}", &self.tail[..self.tail.len() - 1]).into();
        self.tail = Cow::Borrowed("]");
        self.children.push_back(Child { lead, key: Cow::Borrowed(""), value: Node::Text(value) });
    }

    /// Removes the child at a position, which `token` names, and all other members of that name.
    fn remove(&mut self, at: usize, token: &str) {
        match self.brackets {
            Brackets::Object => self.retain(|_, key| key != token),
            Brackets::Array => self.retain(|other, _| other != at),
        }
    }

    /// Removes all members named `token` except the one at `at`. An array has no duplicates.
    fn remove_duplicates(&mut self, at: usize, token: &str) {
        match self.brackets {
            Brackets::Object => self.retain(|other, key| other == at || key != token),
            Brackets::Array => {}
        }
    }

    /// Keeps the children for whose position and key `is_kept` returns true. The others go with the
    /// white space before them, or after them if they are the first ones.
    fn retain(&mut self, is_kept: impl Fn(usize, &str) -> bool) {
        let (mut at, mut keeps_first) = (0, true);
        self.children.retain(|child| {
            let keeps = is_kept(at, &child.key);
            keeps_first &= keeps || at > 0;
            at += 1;
            keeps
        });
        if keeps_first {
            return;
        }
        let [open, both] = match self.brackets {
            Brackets::Object => ["{", "{}"],
            Brackets::Array => ["[", "[]"],
        };
        match self.children.front_mut() {
            Some(first) => {
                let after_comma = first.lead.split_once(',').map_or("", |(_, after)| after);
                first.lead = format!("{open}{after_comma}").into();
            }
            None => self.tail = Cow::Borrowed(both),
        }
    }

    /// Returns the children's values.
    pub(crate) fn values(&mut self) -> impl Iterator<Item = &mut Node<'a>> {
        self.children.iter_mut().map(|child| &mut child.value)
    }

    /// Keeps the elements of an array for which `keep` has true, without white space.
    pub(crate) fn keep(&mut self, keep: &[bool]) {
        let mut keep = keep.iter();
        self.children.retain(|_| keep.next().is_some_and(|keep| *keep));
        let mut lead = "[";
        for child in &mut self.children {
            child.lead = Cow::Borrowed(std::mem::replace(&mut lead, ","));
        }
        self.tail = Cow::Borrowed(if self.children.is_empty() { "[]" } else { "]" });
    }
}

#[cfg(test)]
mod tests;
