//! Compose files: the environment variables of their services.

use saphyr::{LoadableYamlNode as _, Scalar, Yaml};

use super::{ImportError, Variables};

/// The key that merges another mapping, usually an alias, into its own.
const MERGE: &str = "<<";

/// Returns the variables that the services set, in the order of the file. A variable without a
/// value is taken from the environment of the caller, and left out. References to variables of the
/// caller are written as those of a configuration.
///
/// # Errors
/// If the text is not a compose file.
pub(super) fn variables(text: &str) -> Result<Variables, ImportError> {
    let documents = Yaml::load_from_str(text).map_err(|error| ImportError {
        line: error.marker().line(),
        message: format!("invalid YAML: {}", error.info()),
    })?;
    let services = documents.first().and_then(|document| get(document, "services")?.as_mapping());
    let Some(services) = services else {
        return Err(ImportError {
            line: 1,
            message: "no `services` found; expected a compose file".to_owned(),
        });
    };
    let mut variables = Vec::new();
    for service in services.values() {
        if let Some(environment) = get(service, "environment") {
            add(environment, &mut variables);
        }
    }
    variables.iter_mut().for_each(|(_, value)| *value = references(value));
    Ok(variables)
}

/// Returns a value with its references as a configuration has them: `$NAME` as `${NAME}`, and `$$`
/// as `$`. Forms that a configuration does not have are left as they are, and rejected there.
fn references(value: &str) -> String {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let mut text = String::with_capacity(value.len());
    let mut rest = value;
    while let Some((before, after)) = rest.split_once('$') {
        text.push_str(before);
        rest = after;
        if let Some(after) = after.strip_prefix('$') {
            // Before a brace, `$$` is the escape of a configuration, too.
            text.push_str(if after.starts_with('{') { "$$" } else { "$" });
            rest = after;
            continue;
        }
        let (name, after) = after.split_at(after.find(|c| !is_part(c)).unwrap_or(after.len()));
        match name.starts_with(|first: char| !first.is_ascii_digit()) {
            true => {
                text.extend(["${", name, "}"]);
                rest = after;
            }
            false => text.push('$'),
        }
    }
    text.push_str(rest);
    text
}

/// Returns the value of a key, also if it is in a merged mapping.
fn get<'a, 'input>(node: &'a Yaml<'input>, key: &str) -> Option<&'a Yaml<'input>> {
    let merged = || get(node.as_mapping_get(MERGE)?, key);
    node.as_mapping_get(key).or_else(merged)
}

/// Adds the variables of an `environment`, which is a list of `KEY=VALUE` or a mapping.
fn add(environment: &Yaml<'_>, variables: &mut Variables) {
    let list = environment.as_sequence().into_iter().flatten();
    let pairs = list.filter_map(|item| item.as_str()?.split_once('='));
    variables.extend(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
    for (key, value) in environment.as_mapping().into_iter().flatten() {
        match (key.as_str(), value) {
            (Some(MERGE), merged) => add(merged, variables),
            (Some(name), Yaml::Value(value)) => {
                variables.extend(text(value).map(|value| (name.to_owned(), value)));
            }
            _ => {}
        }
    }
}

/// Returns the text that a container gets for a value; `None` for none.
fn text(value: &Scalar<'_>) -> Option<String> {
    match value {
        Scalar::Null => None,
        Scalar::Boolean(value) => Some(value.to_string()),
        Scalar::Integer(value) => Some(value.to_string()),
        Scalar::FloatingPoint(value) => Some(value.to_string()),
        Scalar::String(value) => Some(value.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(list: &[(&str, &str)]) -> Variables {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn environments_of_services_are_read() {
        let list = "services:\n  vllm:\n    image: x:1\n    ports:\n      - \"8000:8000\"\n    \
                    environment:\n      - A=1\n      - 'B=2 # no comment'\n      - C\n";
        assert_eq!(variables(list).unwrap(), pairs(&[("A", "1"), ("B", "2 # no comment")]));
        let mapping = "services:\n  vllm:\n    environment:\n      A: 1\n      \
                       B: \"x: y\" # y\n      C: a=b\n      D: 0.45\n      E:\n      \
                       F: true\n      G: |\n        two\n        lines\n";
        let expected = [
            ("A", "1"),
            ("B", "x: y"),
            ("C", "a=b"),
            ("D", "0.45"),
            ("F", "true"),
            ("G", "two\nlines\n"),
        ];
        assert_eq!(variables(mapping).unwrap(), pairs(&expected));
        let flow = "services: { a: { environment: { A: 1 } }, b: { environment: [B=2] } }";
        assert_eq!(variables(flow).unwrap(), pairs(&[("A", "1"), ("B", "2")]));
    }

    #[test]
    fn references_are_those_of_a_configuration() {
        for (value, expected) in [
            ("${A}/x", "${A}/x"),
            ("${A:-b}", "${A:-b}"),
            ("$A_1/x$B", "${A_1}/x${B}"),
            ("$$A", "$A"),
            ("$${A}", "$${A}"),
            ("a$", "a$"),
            ("$1", "$1"),
        ] {
            assert_eq!(references(value), expected, "{value}");
        }
    }

    #[test]
    fn merged_mappings_are_read() {
        let text = "x-env: &env\n  A: 1\nx-service: &service\n  environment:\n    <<: *env\n    \
                    B: 2\nservices:\n  vllm:\n    <<: *service\n    image: x\n";
        assert_eq!(variables(text).unwrap(), pairs(&[("A", "1"), ("B", "2")]));
    }

    #[test]
    fn other_files_are_rejected_with_a_line() {
        assert_eq!(variables("A=1").unwrap_err().line, 1);
        assert_eq!(variables("").unwrap_err().line, 1);
        assert_eq!(variables("services:\n  a: [\n  b: 1\n").unwrap_err().line, 3);
    }
}
