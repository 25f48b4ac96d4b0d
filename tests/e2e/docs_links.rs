//! The links of all pages: their files and headings exist.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use pointsman_tests::host::root;

use crate::source_tree::files;

/// Returns the lines of a page that are not code.
fn prose(text: &str) -> String {
    let mut is_code = false;
    let mut prose = String::new();
    for line in text.lines() {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        if !is_code && !is_fence {
            writeln!(prose, "{line}").unwrap();
        }
    }
    prose
}

/// Returns the anchors of the headings of a page, as GitHub names them.
fn anchors(text: &str) -> BTreeSet<String> {
    let prose = prose(text);
    let headings = prose.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|heading| {
            let title = heading.trim_start_matches('#').trim().to_lowercase();
            let kept = |letter: &char| letter.is_alphanumeric() || " -_".contains(*letter);
            title.chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

/// Returns the targets of the links of a page, except those to other sites.
fn targets(text: &str) -> Vec<String> {
    let prose = prose(text);
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    targets
        .map(|(target, _)| target.to_owned())
        .filter(|target| !target.contains("://") && !target.starts_with("mailto:"))
        .collect()
}

/// Returns why a link does not lead to a file or heading; `None` if it does.
fn problem(page: &Path, target: &str) -> Option<&'static str> {
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let file = match path {
        "" => page.to_owned(),
        path => page.parent().unwrap().join(path),
    };
    if !file.exists() {
        return Some("no such file");
    }
    let has_anchor =
        || anchors(&fs::read_to_string(&file).unwrap()).contains(&anchor.to_lowercase());
    (!anchor.is_empty() && !has_anchor()).then_some("no such heading")
}

#[test]
fn links_of_pages_lead_to_files_and_headings() {
    let mut broken = String::new();
    let mut count = 0;
    for page in files(".md") {
        // The templates of policies are pages of another folder.
        if page.to_string_lossy().contains("crates/build/templates/") {
            continue;
        }
        for target in targets(&fs::read_to_string(&page).unwrap()) {
            count += 1;
            if let Some(problem) = problem(&page, &target) {
                let name = page.strip_prefix(root()).unwrap().display();
                writeln!(broken, "{name}: {target}: {problem}").unwrap();
            }
        }
    }
    assert!(broken.is_empty() && count > 100, "{count} links, of which are broken:\n{broken}");
}

#[test]
fn broken_links_are_found() {
    let page = root().join("host/docs/policies.md");
    assert_eq!(problem(&page, "policies-reference.md#hooks"), None);
    assert_eq!(problem(&page, "policies-reference.md#no-such-heading"), Some("no such heading"));
    assert_eq!(problem(&page, "no-such-page.md"), Some("no such file"));
    assert_eq!(targets("[a](b.md#c) `x`\n```\n[d](e)\n```\n[f](https://g)\n"), ["b.md#c"]);
    assert!(anchors("## Judged *by* `outcomes`\n").contains("judged-by-outcomes"));
}
