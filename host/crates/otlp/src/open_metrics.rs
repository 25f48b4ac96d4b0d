//! Reads the text format of the host's own metrics (OpenMetrics), of which all values are taken.
//!
//! One registry has all metrics, and its only export is this text. A second way to collect them
//! would have to be kept equal to it.

/// The type of a metric family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A metric family.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Family<'a> {
    pub(crate) name: &'a str,
    pub(crate) help: &'a str,
    pub(crate) kind: Kind,
    pub(crate) samples: Vec<Sample<'a>>,
}

/// One value of a family.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample<'a> {
    /// What follows the name of the family: `_total`, `_bucket`, `_sum`, `_count` or nothing.
    pub(crate) suffix: &'a str,
    pub(crate) labels: Vec<(&'a str, String)>,
    pub(crate) value: f64,
}

/// Reads the families. Those of other types, and lines that are not understood, are left out.
pub(crate) fn families(text: &str) -> Vec<Family<'_>> {
    let mut families: Vec<Family<'_>> = Vec::new();
    let mut help = ("", "");
    let mut is_known = false;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').unwrap_or((rest, ""));
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, ""));
            let kind = match kind {
                "counter" => Some(Kind::Counter),
                "gauge" => Some(Kind::Gauge),
                "histogram" => Some(Kind::Histogram),
                _ => None,
            };
            is_known = kind.is_some();
            let help = if help.0 == name { help.1 } else { "" };
            families.extend(kind.map(|kind| Family { name, help, kind, samples: Vec::new() }));
        } else if !line.starts_with('#')
            && is_known
            && let Some(family) = families.last_mut()
        {
            family.samples.extend(sample(line, family.name));
        }
    }
    families
}

fn sample<'a>(line: &'a str, family: &str) -> Option<Sample<'a>> {
    let rest = line.strip_prefix(family)?;
    let end = rest.find(['{', ' '])?;
    let (suffix, mut rest) = rest.split_at(end);
    let mut labels = Vec::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while !rest.starts_with('}') {
            let (name, value) = rest.strip_prefix(',').unwrap_or(rest).split_once("=\"")?;
            let (value, after) = quoted(value)?;
            labels.push((name, value));
            rest = after;
        }
        rest = &rest[1..];
    }
    let value = rest.trim_start().split(' ').next()?.parse().ok()?;
    Some(Sample { suffix, labels, value })
}

/// Returns the text up to the closing quote, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((index, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, &text[index + 1..])),
            '\\' => match letters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_may_contain_any_text() {
        let text = "# TYPE a counter\na_total{x=\"1,}\\\"\\\\\\n\",y=\"\"} 3 # {} 1\nb_total 4\n";
        let families = families(text);
        let expected = Sample {
            suffix: "_total",
            labels: vec![("x", "1,}\"\\\n".to_owned()), ("y", String::new())],
            value: 3.0,
        };
        assert_eq!(families[0].samples, [expected]);
    }

    #[test]
    fn invalid_lines_are_left_out() {
        for line in ["a", "a{", "a{x=\"", "a{x=\"1\"", "a{x=\"1\"} ", "a{x} 1", "a x", "a{\\"] {
            let text = format!("# TYPE a gauge\n{line}\na 1\n");
            assert_eq!(families(&text)[0].samples.len(), 1, "{line}");
        }
    }
}
