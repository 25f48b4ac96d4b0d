//! The `[[groups]]` of the configuration: lanes that share memory.

use std::time::Duration;

use pointsman_fleet::{GroupSpec, Pool};

use pointsman_settings::{Code, Problem, Section, missing};

/// Reads all groups. A group with errors gets an unlimited budget, so that its lanes cause no
/// further errors.
pub(super) fn read(root: &Section<'_>) -> Vec<GroupSpec> {
    let mut groups: Vec<GroupSpec> = Vec::new();
    for section in root.sections("groups") {
        let name = section.required_string("name", "\"gpu0\"");
        if let Some(name) = name
            && groups.iter().any(|group| group.name == name)
        {
            section
                .error_at("name", Code::Duplicate.with(format!("group \"{name}\" already exists")));
        }
        if !section.has("memory") {
            section.error_at(
                "memory",
                missing("`memory = \"48GiB\"`, the budget of all lanes together"),
            );
        }
        let budget = section.bytes("memory");
        if budget == Some(0) {
            section.error_at("memory", Code::OutOfRange.with("must be greater than zero"));
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

/// Parses a pool as it is written in the file.
fn parse_pool(text: &str) -> Result<Option<Pool>, Problem> {
    let minor = |text: &str| text.parse().ok().filter(|minor: &u32| (128..256).contains(minor));
    match (text, text.strip_prefix("gpu:")) {
        ("none", _) => Ok(None),
        ("system", _) => Ok(Some(Pool::System)),
        ("gpu", _) => Ok(Some(Pool::Gpu { minor: None })),
        (_, Some(number)) if minor(number).is_some() => {
            Ok(Some(Pool::Gpu { minor: minor(number) }))
        }
        (_, Some(number)) => Err(format!(
            "invalid render node \"{number}\": expected the number in /dev/dri/renderD128, for \
             example \"gpu:128\""
        )
        .into()),
        _ => Err(format!(
            "unknown value \"{text}\": expected \"gpu\" (the first GPU), \"gpu:128\" \
             (/dev/dri/renderD128), \"system\" or \"none\" (only the budget counts; free memory \
             is not checked)"
        )
        .into()),
    }
}

/// Formats a pool as it is written in the file.
pub fn format_pool(pool: Option<Pool>) -> String {
    match pool {
        None => "none".to_owned(),
        Some(Pool::System) => "system".to_owned(),
        Some(Pool::Gpu { minor: None }) => "gpu".to_owned(),
        Some(Pool::Gpu { minor: Some(minor) }) => format!("gpu:{minor}"),
    }
}
