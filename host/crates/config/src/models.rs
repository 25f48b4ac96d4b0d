//! Reads `[[models]]`: names that several lanes answer to, written in one place.

use pointsman_fleet::LaneSpec;
use pointsman_settings::{Code, Section, missing, nearest};

/// Reads the names, and adds them to their lanes. A name belongs to the lanes that it lists, and to
/// no others. `lanes` is `None` if they could not be read.
pub(super) fn read(root: &Section<'_>, mut lanes: Option<&mut [LaneSpec]>) {
    let mut names: Vec<&str> = Vec::new();
    for section in root.sections("models") {
        let name = section.required_string("name", "\"gpt-4o\"");
        let wanted = section.strings("lanes");
        if wanted.as_ref().map_or(!section.has("lanes"), Vec::is_empty) {
            section.error_at("lanes", missing("`lanes = [\"coder\", \"reader\"]`"));
        }
        let is_hidden = section.bool("hidden", false);
        section.report_unknown();
        let Some(name) = name else { continue };
        if names.contains(&name) {
            let message = format!("model \"{name}\" already exists");
            section.error_at("name", Code::Duplicate.with(message));
        }
        names.push(name);
        let (Some(wanted), Some(lanes)) = (wanted, lanes.as_deref_mut()) else { continue };
        wanted.iter().for_each(|lane| check_lane(&section, lane, lanes));
        for lane in lanes.iter_mut() {
            let is_wanted = wanted.contains(&lane.name);
            add(&section, lane, name, is_wanted, is_hidden);
        }
    }
}

fn check_lane(section: &Section<'_>, wanted: &str, lanes: &[LaneSpec]) {
    let known = || lanes.iter().map(|lane| lane.name.as_str());
    if known().any(|name| name == wanted) {
        return;
    }
    let hint = nearest(wanted, known()).map(|near| format!("; did you mean \"{near}\"?"));
    let message = format!("unknown lane \"{wanted}\"{}", hint.unwrap_or_default());
    section.error_at("lanes", Code::UnknownName.with(message));
}

/// Gives the name to a lane that is wanted, and takes it from any other.
fn add(section: &Section<'_>, lane: &mut LaneSpec, name: &str, is_wanted: bool, is_hidden: bool) {
    let listed = lane.models.iter().any(|model| model == name);
    if is_wanted {
        match (is_hidden, listed) {
            (false, false) => {
                lane.models.push(name.to_owned());
                lane.names.shared.push(name.to_owned());
            }
            (true, false) => lane.names.own.push(name.to_owned()),
            (_, true) => {}
        }
        return;
    }
    // Names of one kind are those of all lanes that have them.
    if listed || (is_hidden && lane.name == name) {
        let message = format!(
            "lane \"{}\" also has the name \"{name}\"; add the lane here, or remove one of the \
             names",
            lane.name
        );
        section.error_at("lanes", Code::Conflict.with(message));
    }
    lane.names.own.retain(|own| own != name);
    lane.names.derived.retain(|derived| derived != name);
}
