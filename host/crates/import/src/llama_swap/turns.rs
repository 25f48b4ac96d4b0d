//! Groups of llama-swap: which models take turns.

use std::collections::HashMap;

use crate::document::Lane;
use crate::fields::Fields;
use crate::output::Output;
use crate::yaml::Entry;

/// The group of models that exclude each other.
const SWAP: &str = "swap";
const SWAP_COMMENT: &str = "Lanes that take turns: as in llama-swap, one at a time.";

/// How a model shares memory with others.
#[derive(Debug, Clone)]
enum Turn {
    /// In the group in which models exclude each other; so many of its own group fit together.
    Exclusive(usize),
    /// In turns with the members of its group only.
    Group(String),
    /// With all others.
    Together,
}

/// How each model shares memory.
#[derive(Debug, Default)]
pub(super) struct Turns(HashMap<String, Turn>);

impl Turns {
    /// Reads `groups`.
    pub(super) fn read(groups: Option<&Entry>, ids: &[&str], output: &mut Output) -> Self {
        let mut turns = HashMap::new();
        for group in groups.iter().flat_map(|groups| groups.value.entries()) {
            let mut fields = Fields::new(format!("groups.{}", group.key), &group.value);
            let swap = fields.flag("swap").unwrap_or(true);
            let exclusive = fields.flag("exclusive").unwrap_or(true);
            let persistent = fields.flag("persistent").unwrap_or(false);
            let members = fields.take("members").map(|entry| entry.value.texts());
            let members = members.unwrap_or_default();
            let turn = match (swap, exclusive && !persistent) {
                (true, true) => Turn::Exclusive(1),
                (false, true) => Turn::Exclusive(members.len().max(1)),
                (true, false) => Turn::Group(group.key.clone()),
                (false, false) => Turn::Together,
            };
            if exclusive == persistent {
                let there =
                    "whether loading a member unloads other groups, and is unloaded by them";
                let here = "approximated by groups; put real sizes into `memory`";
                output.note(group.line, format!("groups.{}", group.key), there, here);
            }
            for member in members {
                if ids.contains(&member) {
                    turns.insert(member.to_owned(), turn.clone());
                } else {
                    let here = "left out";
                    output.note(
                        group.line,
                        fields.path("members"),
                        "a model that is missing",
                        here,
                    );
                }
            }
            fields.report_rest(output);
        }
        Self(turns)
    }

    /// Puts a lane into the group that its model is in.
    pub(super) fn place(&self, lane: &mut Lane, id: &str, output: &mut Output) {
        let document = &mut output.document;
        match self.0.get(id) {
            None => document.group(lane, SWAP, 1, SWAP_COMMENT),
            Some(Turn::Exclusive(share)) => document.group(lane, SWAP, *share, SWAP_COMMENT),
            // Another name, so that it differs from the group of exclusive models.
            Some(Turn::Group(name)) => {
                let comment = format!("The group {name}: one lane at a time.");
                document.group(lane, &format!("group-{name}"), 1, &comment);
            }
            Some(Turn::Together) => {}
        }
    }
}
