//! The `[[groups]]` of the configuration: lanes that share memory.

use std::time::Duration;

use pointsman_fleet::{GroupSpec, Pool};

use pointsman_settings::Section;

/// All groups. What is wrong with one has been noted, and it has room for every lane then.
pub(super) fn read(root: &Section<'_>) -> Vec<GroupSpec> {
    let mut groups: Vec<GroupSpec> = Vec::new();
    for section in root.sections("groups") {
        let name = section.required_string("name", "\"gpu0\"");
        if let Some(name) = name
            && groups.iter().any(|group| group.name == name)
        {
            section.error_at("name", format!("there is a group \"{name}\" already"));
        }
        if !section.has("memory") {
            section.error_at(
                "memory",
                "is missing; write how much its lanes may hold together, for example `memory = \"48GiB\"`",
            );
        }
        let budget = section.bytes("memory");
        if budget == Some(0) {
            section.error_at("memory", "must be more than nothing");
        }
        let group = GroupSpec {
            name: name.unwrap_or_default().to_owned(),
            budget: budget.filter(|budget| *budget > 0).unwrap_or(u64::MAX),
            pool: section.parsed("pool", parse_pool).flatten(),
            free_timeout: section.duration("free-timeout", Duration::from_secs(60)),
        };
        section.report_unknown();
        groups.push(group);
    }
    groups
}

fn parse_pool(text: &str) -> Result<Option<Pool>, String> {
    let minor = |text: &str| text.parse().ok().filter(|minor: &u32| (128..256).contains(minor));
    match (text, text.strip_prefix("gpu:")) {
        ("none", _) => Ok(None),
        ("system", _) => Ok(Some(Pool::System)),
        ("gpu", _) => Ok(Some(Pool::Gpu { minor: None })),
        (_, Some(number)) if minor(number).is_some() => {
            Ok(Some(Pool::Gpu { minor: minor(number) }))
        }
        (_, Some(number)) => Err(format!(
            "\"{number}\" is no render node; write the number in /dev/dri/renderD128, as in \"gpu:128\""
        )),
        _ => Err(format!(
            "there is no \"{text}\"; write \"gpu\" (the first GPU), \"gpu:128\" (that of /dev/dri/renderD128), \
             \"system\" or \"none\" (only the sum counts, nobody looks at what is free)"
        )),
    }
}

/// A pool as the file has it.
pub(crate) fn shown_pool(pool: Option<Pool>) -> String {
    match pool {
        None => "none".to_owned(),
        Some(Pool::System) => "system".to_owned(),
        Some(Pool::Gpu { minor: None }) => "gpu".to_owned(),
        Some(Pool::Gpu { minor: Some(minor) }) => format!("gpu:{minor}"),
    }
}
