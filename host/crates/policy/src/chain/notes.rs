//! The notes that a policy gets back with the outcome of a request.

use pointsman_domain::{Note, PolicyRef, Scalar};

/// Maximum bytes of the notes of one policy that are kept until the end of a request. Thousands of
/// requests may be in flight, and thousands of outcomes in the queue.
const MAX_BYTES: usize = 4 << 10;

/// Returns the notes of `policy`, in order, as long as they fit.
pub(crate) fn kept(policy: &PolicyRef, notes: &[(PolicyRef, Note)]) -> Vec<(PolicyRef, Note)> {
    let mut left = MAX_BYTES;
    let own = notes.iter().filter(|(by, _)| by == policy);
    let fits = |(_, note): &&(PolicyRef, Note)| match left.checked_sub(size(note)) {
        Some(rest) => {
            left = rest;
            true
        }
        None => false,
    };
    own.take_while(fits).cloned().collect()
}

/// Returns the bytes that a note takes at least.
fn size(note: &Note) -> usize {
    let value = match &note.value {
        Scalar::Flag(_) | Scalar::Int(_) => size_of::<Scalar>(),
        Scalar::Text(text) => text.len(),
    };
    note.key.len() + value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_of_the_policy_are_kept_as_long_as_they_fit() {
        let (own, other) = (PolicyRef::new("own", "1"), PolicyRef::new("other", "1"));
        let note = |key: &str, bytes: usize| Note {
            key: key.to_owned(),
            value: Scalar::Text("x".repeat(bytes)),
        };
        let notes = [
            (own.clone(), note("a", MAX_BYTES - 2)),
            (other, note("b", 1)),
            (own.clone(), note("c", 0)),
            (own.clone(), note("d", 0)),
        ];
        let kept = kept(&own, &notes);
        let keys: Vec<&str> = kept.iter().map(|(_, note)| note.key.as_str()).collect();
        assert_eq!(keys, ["a", "c"]);
    }
}
