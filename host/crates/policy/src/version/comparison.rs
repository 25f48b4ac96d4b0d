//! The comparison of a shadow with the active version.

use pointsman_domain::{Advice, Edit};

/// Maximum differences between a shadow and the active version that the status shows.
const MAX_DIFFERENCES: usize = 16;

/// The comparison of a shadow with the active version.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Comparison {
    pub(crate) agreed: u64,
    pub(crate) differed: u64,
    pub(crate) failed: u64,
    pub(crate) dropped: u64,
    /// The latest differences, oldest first.
    pub(crate) differences: Vec<ShadowDifference>,
}

/// A decision in which a shadow differs.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct ShadowDifference {
    pub(crate) request: String,
    /// The parts of the advice that differ.
    pub(crate) fields: Vec<&'static str>,
    pub(crate) active: Option<Advice>,
    pub(crate) shadow: Option<Advice>,
}

impl Comparison {
    /// Counts a difference, and keeps the latest ones, without the texts of edits: they may quote
    /// prompts, and the status is not redacted as records are.
    pub(crate) fn record_difference(&mut self, mut difference: ShadowDifference) {
        self.differed += 1;
        let advice = difference.active.iter_mut().chain(&mut difference.shadow);
        advice.flat_map(|advice| &mut advice.edits).for_each(hide_text);
        if self.differences.len() == MAX_DIFFERENCES {
            self.differences.remove(0);
        }
        self.differences.push(difference);
    }
}

/// Replaces the text of an edit by its length.
fn hide_text(edit: &mut Edit) {
    let length = |text: &str| format!("({} bytes)", text.len());
    match edit {
        Edit::SetField(_, value) => *value = format!("\"{}\"", length(value)),
        Edit::SetHeader(_, text) | Edit::PrependSystem(text) | Edit::ReplaceBody(text) => {
            *text = length(text);
        }
        Edit::SetModel(_)
        | Edit::CapOutputTokens(_)
        | Edit::RemoveField(_)
        | Edit::KeepLastMessages(_)
        | Edit::RemoveHeader(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_do_not_show_edited_text() {
        let edits = [
            Edit::SetField("/user".into(), "\"secret\"".into()),
            Edit::PrependSystem("secret".into()),
            Edit::SetHeader("x-a".into(), "secret".into()),
            Edit::ReplaceBody("secret".into()),
            Edit::SetModel("m".into()),
        ];
        let advice = Some(Advice { edits: edits.into(), ..Advice::default() });
        let mut comparison = Comparison::default();
        let request = "id".to_owned();
        comparison.record_difference(ShadowDifference {
            request,
            fields: vec!["edits"],
            active: advice.clone(),
            shadow: advice,
        });
        let shown = serde_json::to_string(&comparison).unwrap();
        assert!(!shown.contains("secret") && shown.contains("(6 bytes)"), "{shown}");
        assert!(shown.contains("/user") && shown.contains("x-a"), "{shown}");
    }
}
