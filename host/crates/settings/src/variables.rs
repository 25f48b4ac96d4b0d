//! References to environment variables in the strings of a file: `${NAME}` and `${NAME:-DEFAULT}`.
//!
//! They are replaced in the parsed document, so that a value can never add a key or end a string.

use std::borrow::Cow;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diagnostics::{Code, Diagnostics, Problem};
use crate::variable::Variable;

/// Maximum size of a string in bytes after its references were replaced.
const MAX_EXPANDED: usize = 64 << 10;

/// Returns the text as a string of a file in which references are replaced: `${` is escaped.
pub fn escape_references(text: &str) -> Cow<'_, str> {
    match text.contains("${") {
        true => text.replace("${", "$${").into(),
        false => text.into(),
    }
}

/// Replaces the references in all strings of a table, and reports those that cannot be replaced.
pub fn expand(table: &mut DeTable<'_>, diagnostics: &Diagnostics<'_>) {
    expand_table(table, "", diagnostics);
}

fn expand_table(table: &mut DeTable<'_>, path: &str, diagnostics: &Diagnostics<'_>) {
    for (key, value) in table.iter_mut() {
        let key = key.get_ref();
        let path = if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
        expand_value(value, &path, diagnostics);
    }
}

fn expand_value(value: &mut Spanned<DeValue<'_>>, path: &str, diagnostics: &Diagnostics<'_>) {
    let range = value.span();
    match value.get_mut() {
        DeValue::String(text) if text.contains("${") => {
            let mut found = Vec::new();
            match replace(text, &mut found) {
                Ok(expanded) => {
                    *text = expanded.into();
                    for (name, value) in found {
                        let (is_default, value) = (value.is_none(), value.unwrap_or_default());
                        let (key, name) = (path.to_owned(), name);
                        diagnostics.add_variable(Variable { key, name, is_default, value });
                    }
                }
                Err(problem) => diagnostics.add(range, path, problem),
            }
        }
        DeValue::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                expand_value(item, &format!("{path}[{index}]"), diagnostics);
            }
        }
        DeValue::Table(table) => expand_table(table, path, diagnostics),
        DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_) => {}
    }
}

/// Returns the text with its references replaced. Adds the names of the variables to `found`, with
/// their values; without a value if the default applies.
fn replace(text: &str, found: &mut Vec<(String, Option<String>)>) -> Result<String, Problem> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(position) = rest.find("${") {
        let (before, reference) = rest.split_at(position);
        // The escape `$${` stands for `${`.
        if let Some(before) = before.strip_suffix('$') {
            expanded.push_str(before);
            expanded.push_str("${");
            rest = &reference["${".len()..];
            continue;
        }
        expanded.push_str(before);
        let Some((inner, after)) = reference["${".len()..].split_once('}') else {
            return Err("`${` without `}`; write `$${` for the text itself".into());
        };
        expanded.push_str(&resolve(inner, found)?);
        if expanded.len() > MAX_EXPANDED {
            let message = format!("exceeds the limit of {MAX_EXPANDED} bytes with its variables");
            return Err(Code::OutOfRange.with(message));
        }
        rest = after;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// Returns the value of a reference, given what is between its braces.
fn resolve(inner: &str, found: &mut Vec<(String, Option<String>)>) -> Result<String, Problem> {
    let (name, default) = match inner.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inner, None),
    };
    let is_name = !name.starts_with(|first: char| first.is_ascii_digit())
        && !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !is_name {
        let hint = match name.strip_prefix("env.") {
            Some(name) => format!("write `${{{name}}}`"),
            None => "expected `${NAME}` or `${NAME:-DEFAULT}`".to_owned(),
        };
        return Err(format!(
            "invalid reference to an environment variable `${{{inner}}}`: {hint}; write `$${{` for \
             the text itself"
        )
        .into());
    }
    if default.is_some_and(|default| default.contains("${")) {
        let message = format!("the default of `${{{name}}}` contains another reference; use one");
        return Err(message.into());
    }
    // As in a shell, `:-` applies to an empty variable, too.
    let value = match std::env::var(name) {
        Ok(value) if value.is_empty() => default.is_none().then_some(value),
        Ok(value) => Some(value),
        Err(std::env::VarError::NotPresent) => None,
        Err(std::env::VarError::NotUnicode(_)) => {
            let message = format!("environment variable `{name}` is not valid UTF-8");
            return Err(Code::Unavailable.with(message));
        }
    };
    let resolved = value.clone().or_else(|| default.map(str::to_owned)).ok_or_else(|| {
        Code::Unavailable.with(format!(
            "environment variable `{name}` is not set; set it, or write a default as \
             `${{{name}:-DEFAULT}}`"
        ))
    })?;
    found.push((name.to_owned(), value));
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Secrets, Section, read_expanded};

    /// The lines, keys and codes of errors.
    type Errors = Vec<(usize, String, Code)>;

    /// Reads `a` of a document, and the variables.
    fn read_a(source: &str) -> Result<(String, Vec<Variable>), Errors> {
        let read = |root: &Section<'_>| {
            let variables = root.variables();
            Some((root.section("t").string("a")?.to_owned(), variables))
        };
        read_expanded(source, &[], Secrets::Read, read).map_err(|errors| {
            errors.into_iter().map(|error| (error.line, error.key, error.code)).collect()
        })
    }

    #[test]
    fn references_are_replaced() {
        let name = env!("CARGO_PKG_NAME");
        for (text, expected) in [
            ("${CARGO_PKG_NAME}", name.to_owned()),
            ("/a/${CARGO_PKG_NAME}.${CARGO_PKG_NAME}", format!("/a/{name}.{name}")),
            ("${POINTSMAN_UNSET:-x:-y}", "x:-y".to_owned()),
            ("${POINTSMAN_UNSET:-}", String::new()),
            ("${CARGO_PKG_NAME:-x}", name.to_owned()),
            ("$${CARGO_PKG_NAME} $HOME $$ $", "${CARGO_PKG_NAME} $HOME $$ $".to_owned()),
            ("${CARGO_PKG_NAME}$${x}${POINTSMAN_UNSET:-$}", format!("{name}${{x}}$")),
        ] {
            let (value, _) = read_a(&format!("[t]\na = '{text}'")).unwrap();
            assert_eq!(value, expected, "{text}");
        }
        let (_, variables) = read_a("t.a = '${CARGO_PKG_NAME} ${POINTSMAN_UNSET:-x}'").unwrap();
        let variables: Vec<_> = variables
            .iter()
            .map(|found| (found.key.as_str(), found.name.as_str(), found.is_default))
            .collect();
        assert_eq!(variables, [("t.a", "CARGO_PKG_NAME", false), ("t.a", "POINTSMAN_UNSET", true)]);
    }

    #[test]
    fn references_that_cannot_be_replaced_are_errors() {
        for (text, code) in [
            ("${POINTSMAN_UNSET}", Code::Unavailable),
            ("${env.HOME}", Code::InvalidValue),
            ("${}", Code::InvalidValue),
            ("${1A}", Code::InvalidValue),
            ("${HOME", Code::InvalidValue),
            ("${A:-${B}}", Code::InvalidValue),
            (&"${CARGO_MANIFEST_DIR}".repeat(20_000), Code::OutOfRange),
        ] {
            let expected = Err(vec![(2, "t.a".to_owned(), code)]);
            assert_eq!(read_a(&format!("[t]\na = '{text}'")), expected);
        }
    }

    #[test]
    fn lists_and_tables_in_lists_are_expanded() {
        let source = "t.a = 'x'\nl = [{ b = ['${POINTSMAN_UNSET}'] }]";
        let expected = Err(vec![(2, "l[0].b[0]".to_owned(), Code::Unavailable)]);
        assert_eq!(read_a(source), expected);
    }

    /// The value of an escaped text is the text itself.
    #[test]
    fn escaped_text_is_kept() {
        for text in ["${A}", "$${A}", "a ${", "$$", "plain", "$$${x}"] {
            let escaped = escape_references(text);
            assert_eq!(replace(&escaped, &mut Vec::new()).as_deref(), Ok(text), "{escaped}");
        }
    }
}
