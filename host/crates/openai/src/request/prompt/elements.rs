//! The elements of an array, without a list of them.

use std::fmt;

use serde::de::{Deserializer as _, IgnoredAny, SeqAccess, Visitor};
use serde_json::Deserializer;
use serde_json::value::RawValue;

use crate::bad_request::BadRequest;
use crate::json;

/// Calls `read` with the JSON text of each element of an array, without a list of them.
///
/// # Errors
/// The first error of `read`, or `invalid` if `json` is not an array.
pub(super) fn for_each(
    json: &str,
    invalid: impl Fn() -> BadRequest,
    mut read: impl FnMut(&str) -> Result<(), BadRequest>,
) -> Result<(), BadRequest> {
    json::work::count(json.len());
    let mut failed = None;
    let elements =
        Elements(|element: &str| read(element).map_err(|error| failed = Some(error)).is_ok());
    let visited = Deserializer::from_str(json).deserialize_seq(elements);
    match (failed, visited) {
        (Some(error), _) => Err(error),
        (None, Ok(())) => Ok(()),
        (None, Err(_)) => Err(invalid()),
    }
}

/// Calls `read` until it returns false.
struct Elements<F>(F);

impl<'de, F: FnMut(&'de str) -> bool> Visitor<'de> for Elements<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
        while let Some(element) = seq.next_element::<&RawValue>()? {
            if !(self.0)(element.get()) {
                return Err(serde::de::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}

/// Calls `count` for each element of an array.
pub(super) fn for_each_ignored(json: &str, count: impl FnMut()) -> Result<(), serde_json::Error> {
    struct Ignored<F>(F);

    impl<'de, F: FnMut()> Visitor<'de> for Ignored<F> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }

        fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
            while seq.next_element::<IgnoredAny>()?.is_some() {
                (self.0)();
            }
            Ok(())
        }
    }

    json::work::count(json.len());
    Deserializer::from_str(json).deserialize_seq(Ignored(count))
}
