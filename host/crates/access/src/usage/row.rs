//! The key of a row: its time and its names.

use std::sync::Arc;

use hashbrown::Equivalent;

/// Hours of a day.
pub(super) const DAY: u32 = 24;

/// Maximum length of a name in bytes. A model name may be what a client has written.
const MAX_NAME: usize = 200;

/// Whose usage it is. A name that does not apply is empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Names {
    pub(super) tenant: Box<str>,
    pub(super) key: Box<str>,
    pub(super) model: Box<str>,
    pub(super) lane: Box<str>,
}

impl Names {
    pub(super) fn new(tenant: &str, key: &str, model: &str, lane: &str) -> Self {
        NamesRef::new(tenant, key, model, lane).to_names()
    }

    /// Writes the names, each after its length.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for name in [&self.tenant, &self.key, &self.model, &self.lane] {
            // At most `MAX_NAME`.
            bytes.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
            bytes.extend_from_slice(name.as_bytes());
        }
        bytes
    }

    /// Reads what [`Names::to_bytes`] has written, and returns what comes after it.
    pub(super) fn from_bytes(mut rest: &[u8]) -> Option<(Self, &[u8])> {
        let mut name = || {
            let (length, after) = rest.split_first()?;
            let (name, after) = after.split_at_checked(usize::from(*length))?;
            rest = after;
            std::str::from_utf8(name).ok().map(Box::from)
        };
        let names = Self { tenant: name()?, key: name()?, model: name()?, lane: name()? };
        Some((names, rest))
    }
}

/// [`Names`] that are borrowed, to look them up. They have the same hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct NamesRef<'a> {
    pub(super) tenant: &'a str,
    key: &'a str,
    model: &'a str,
    lane: &'a str,
}

impl<'a> NamesRef<'a> {
    pub(super) fn new(tenant: &'a str, key: &'a str, model: &'a str, lane: &'a str) -> Self {
        Self { tenant: cut(tenant), key: cut(key), model: cut(model), lane: cut(lane) }
    }

    pub(super) fn to_names(self) -> Names {
        let Self { tenant, key, model, lane } = self;
        Names { tenant: tenant.into(), key: key.into(), model: model.into(), lane: lane.into() }
    }
}

impl Equivalent<Arc<Names>> for NamesRef<'_> {
    fn equivalent(&self, names: &Arc<Names>) -> bool {
        let Names { tenant, key, model, lane } = &**names;
        *self == NamesRef { tenant, key, model, lane }
    }
}

fn cut(name: &str) -> &str {
    &name[..name.floor_char_boundary(MAX_NAME)]
}

/// The time that a row is for. Days are before hours in the file, as they are older.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Span {
    Day,
    Hour,
}

/// The key of a row.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct RowKey {
    pub(super) span: Span,
    /// Its first hour, in hours since 1970.
    pub(super) start: u32,
    pub(super) names: Arc<Names>,
}

impl RowKey {
    /// Writes the key. Keys are in the order of spans and times.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        [&bound(self.span, self.start)[..], &self.names.to_bytes()].concat()
    }

    /// Reads what [`RowKey::to_bytes`] has written; `None` if it is something else.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (span, rest) = bytes.split_first()?;
        let span = match span {
            0 => Span::Day,
            1 => Span::Hour,
            2.. => return None,
        };
        let (start, rest) = rest.split_first_chunk()?;
        let (names, _) = Names::from_bytes(rest)?;
        Some(Self { span, start: u32::from_be_bytes(*start), names: Arc::new(names) })
    }

    /// Returns the key of the day.
    pub(super) fn of_day(self) -> Self {
        Self { span: Span::Day, start: self.start - self.start % DAY, ..self }
    }
}

/// Returns the key before all keys of this span that begin at this hour or later.
pub(super) fn bound(span: Span, start: u32) -> [u8; 5] {
    let [a, b, c, d] = start.to_be_bytes();
    [span as u8, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_are_read_as_they_were_written(
            start: u32, names in any::<[String; 4]>(), is_day: bool,
        ) {
            let [a, b, c, d] = &names;
            let span = if is_day { Span::Day } else { Span::Hour };
            let names = Arc::new(Names::new(a, b, c, d));
            let key = RowKey { span, start, names };
            let bytes = key.to_bytes();
            prop_assert!(bytes[..] >= bound(span, start)[..]);
            prop_assert_eq!(RowKey::from_bytes(&bytes), Some(key));
        }

        #[test]
        fn other_bytes_are_not_a_fault(bytes: Vec<u8>) {
            RowKey::from_bytes(&bytes);
        }
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        let name = "ä".repeat(150);
        let names = Names::new(&name, "", &"x".repeat(1 << 20), "");
        assert_eq!((names.tenant.len(), names.model.len()), (200, 200));
        assert_eq!(Names::new(&format!("x{name}"), "", "", "").tenant.len(), 199);
    }
}
