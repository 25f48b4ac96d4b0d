//! The metrics and labels that expressions of Prometheus name. `promtool` checks their syntax.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

/// An expression of a dashboard or an alert.
#[derive(Debug)]
pub(super) struct Expression {
    /// Where it is.
    pub(super) place: String,
    pub(super) text: String,
    /// The labels of the result that its texts show.
    pub(super) shown: BTreeSet<String>,
}

/// What an expression names.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// The metrics, with the labels that are compared with values.
    pub(super) metrics: BTreeMap<String, BTreeSet<String>>,
    /// The labels of `by` and `on`.
    pub(super) grouped: BTreeSet<String>,
    /// The result has only the labels of `by`.
    pub(super) is_aggregated: bool,
}

impl Expression {
    pub(super) fn names(&self) -> Names {
        let mut names = Names::default();
        let is_name = |next: char| next.is_ascii_alphanumeric() || next == '_';
        let mut rest = self.text.as_str();
        while let Some(start) = rest.find(is_name) {
            rest = &rest[start..];
            let end = rest.find(|next| !is_name(next)).unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            rest = after;
            if word.starts_with("pointsman_") {
                let labels = names.metrics.entry(word.to_owned()).or_default();
                if let Some(matchers) = after.strip_prefix('{') {
                    let (matchers, after) = matchers.split_once('}').unwrap();
                    labels.extend(matchers.split(',').map(label));
                    rest = after;
                }
            } else if ["by", "on"].contains(&word) {
                let (_, list) = after.split_once('(').unwrap();
                let (list, after) = list.split_once(')').unwrap();
                names.grouped.extend(list.split(',').map(|label| label.trim().to_owned()));
                names.is_aggregated |= word == "by";
                rest = after;
            }
        }
        names
    }

    /// Returns the text with values in place of Grafana's variables.
    pub(super) fn without_variables(&self) -> String {
        let text = self.text.replace("$__rate_interval", "5m").replace("$__interval", "1m");
        text.replace("$lane", ".*").replace("$policy", ".*")
    }
}

/// Returns the label of a matcher such as `lane=~"a|b"`.
fn label(matcher: &str) -> String {
    matcher.trim().split(['=', '!']).next().unwrap().to_owned()
}

/// Returns the labels in templates: what follows `start`, up to one of the characters of `end`.
fn templates(text: &str, start: &str, end: &[char]) -> BTreeSet<String> {
    let parts = text.split(start).skip(1);
    parts.map(|part| part.split(end).next().unwrap().trim().to_owned()).collect()
}

/// Returns the expressions of a Grafana dashboard.
pub(super) fn of_dashboard(dashboard: &Value) -> Vec<Expression> {
    let mut expressions = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let text = |key: &str| target[key].as_str().unwrap().to_owned();
            expressions.push(Expression {
                place: panel["title"].as_str().unwrap().to_owned(),
                text: text("expr"),
                shown: templates(&text("legendFormat"), "{{", &['}']),
            });
        }
    }
    for note in dashboard["annotations"]["list"].as_array().unwrap() {
        expressions.push(Expression {
            place: note["name"].as_str().unwrap().to_owned(),
            text: note["expr"].as_str().unwrap().to_owned(),
            shown: templates(note["titleFormat"].as_str().unwrap(), "{{", &['}']),
        });
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        // `label_values(METRIC, LABEL)`
        let Some(definition) = variable["definition"].as_str() else { continue };
        let (metric, label) = definition.split_once(", ").unwrap();
        expressions.push(Expression {
            place: variable["name"].as_str().unwrap().to_owned(),
            text: metric.trim_start_matches("label_values(").to_owned(),
            shown: [label.trim_end_matches(')').to_owned()].into(),
        });
    }
    expressions
}

/// Returns the expressions of a file of alerts, as it is written here.
pub(super) fn of_alerts(path: &Path) -> Vec<Expression> {
    let text = std::fs::read_to_string(path).unwrap();
    let rules = text.split("- alert: ").skip(1);
    let expression = |rule: &str| {
        let (head, texts) = rule.split_once("\n        labels:").unwrap();
        let (name, expression) = head.split_once("\n        expr: ").unwrap();
        let expression = expression.split("\n        for:").next().unwrap();
        Expression {
            place: name.to_owned(),
            text: expression.trim_start_matches(">-").to_owned(),
            shown: templates(texts, "$labels.", &[' ', '}']),
        }
    };
    rules.map(expression).collect()
}
