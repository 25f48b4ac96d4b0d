//! Reads what the import graph needs to know of a module: its children, items, imports and paths.

use std::collections::BTreeSet;

use super::tokens::{Token, tokens};

/// A path to a module, from the crate root.
pub(super) type ModulePath = Vec<String>;

/// A module: a file, or a `mod name { … }` within a file.
#[derive(Debug, Default)]
pub(super) struct Module {
    pub(super) path: ModulePath,
    /// Names of the modules in files of their own.
    pub(super) files: Vec<String>,
    /// Names of all child modules.
    pub(super) children: BTreeSet<String>,
    /// Names of the items that are defined here.
    pub(super) items: BTreeSet<String>,
    pub(super) imports: Vec<Import>,
    /// Paths outside of `use`, such as `crate::hook::Hook`.
    pub(super) paths: Vec<Reference>,
}

/// A path in the source, as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) segments: Vec<String>,
    pub(super) line: usize,
}

/// One name of a `use` declaration.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Import {
    pub(super) reference: Reference,
    /// The name that it is bound to; `None` for `*`.
    pub(super) name: Option<String>,
}

const ITEMS: [&str; 8] = ["fn", "struct", "enum", "trait", "type", "const", "static", "union"];
const OTHER_ITEMS: [&str; 7] = ["mod", "impl", "let", "unsafe", "async", "extern", "macro_rules"];

/// Parses a file, whose module has this path, into its modules. Code for tests is left out.
pub(super) fn parse(path: ModulePath, source: &str) -> Vec<Module> {
    let tokens = tokens(source);
    let root = Module { path, ..Module::default() };
    let mut parser =
        Parser { tokens: &tokens, at: 0, depth: 0, open: vec![(root, 0)], closed: Vec::new() };
    while parser.at < tokens.len() {
        parser.step();
    }
    parser.closed.extend(parser.open.into_iter().map(|(module, _)| module));
    parser.closed
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    /// The number of open braces.
    depth: usize,
    /// The modules that the current token is in, with their depth; the innermost is last.
    open: Vec<(Module, usize)>,
    closed: Vec<Module>,
}

impl Parser<'_> {
    fn module(&mut self) -> &mut Module {
        let last = self.open.len() - 1;
        &mut self.open[last].0
    }

    fn word(&self, offset: usize) -> &str {
        self.tokens.get(self.at + offset).map(Token::word).unwrap_or_default()
    }

    fn is(&self, offset: usize, punctuation: char) -> bool {
        self.tokens.get(self.at + offset).is_some_and(|token| token.is(punctuation))
    }

    fn is_separator(&self, offset: usize) -> bool {
        self.tokens.get(self.at + offset).is_some_and(Token::is_separator)
    }

    /// Reads one item, path or token.
    fn step(&mut self) {
        if self.is(0, '#') && (self.is(1, '[') || (self.is(1, '!') && self.is(2, '['))) {
            self.attribute();
        } else if self.word(0) == "mod" && self.is(2, ';') {
            let name = self.word(1).to_owned();
            self.module().children.insert(name.clone());
            self.module().files.push(name);
            self.at += 3;
        } else if self.word(0) == "mod" && self.is(2, '{') {
            self.open_module();
        } else if self.word(0) == "use" && !self.is(1, '<') {
            self.at += 1;
            self.use_tree(&[]);
        } else if self.is_separator(1) && !self.word(0).is_empty() {
            self.path();
        } else {
            self.token();
        }
    }

    fn open_module(&mut self) {
        let name = self.word(1).to_owned();
        let mut path = self.module().path.clone();
        path.push(name.clone());
        self.module().children.insert(name);
        self.depth += 1;
        self.open.push((Module { path, ..Module::default() }, self.depth));
        self.at += 3;
    }

    fn token(&mut self) {
        let begins_item = ITEMS.contains(&self.word(0)) && !self.word(1).is_empty();
        let is_macro = self.word(0) == "macro_rules" && self.is(1, '!');
        if self.depth == self.open[self.open.len() - 1].1 && (begins_item || is_macro) {
            let name = self.word(if is_macro { 2 } else { 1 }).to_owned();
            self.module().items.insert(name);
        }
        if self.is(0, '{') {
            self.depth += 1;
        } else if self.is(0, '}') {
            if self.open.len() > 1 && self.depth == self.open[self.open.len() - 1].1 {
                self.closed.extend(self.open.pop().map(|(module, _)| module));
            }
            self.depth = self.depth.saturating_sub(1);
        }
        self.at += 1;
    }

    /// Skips an attribute, and what follows if it is for tests.
    fn attribute(&mut self) {
        let start = self.at;
        self.at += if self.is(1, '!') { 2 } else { 1 };
        self.skip_group();
        let words: Vec<&str> = self.tokens[start..self.at].iter().map(Token::word).collect();
        let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
        if words == ["cfg", "test"] || words == ["test"] {
            self.skip_item();
        }
    }

    /// Skips a group in parentheses, brackets or braces.
    fn skip_group(&mut self) {
        let mut depth = 0;
        while self.at < self.tokens.len() {
            let opens = ['(', '[', '{'].iter().any(|letter| self.is(0, *letter));
            let closes = [')', ']', '}'].iter().any(|letter| self.is(0, *letter));
            depth = depth + usize::from(opens) - usize::from(closes);
            self.at += 1;
            if depth == 0 {
                return;
            }
        }
    }

    /// Skips an item, a statement, a field or a variant, with its further attributes.
    fn skip_item(&mut self) {
        while self.is(0, '#') && self.is(1, '[') {
            self.at += 1;
            self.skip_group();
        }
        let visibility = match self.word(0) == "pub" {
            true if self.is(1, '(') => 4,
            is_public => usize::from(is_public),
        };
        let keyword = self.word(visibility);
        let is_use = keyword == "use";
        let is_item = is_use || ITEMS.contains(&keyword) || OTHER_ITEMS.contains(&keyword);
        while self.at < self.tokens.len() {
            if self.is(0, '}') {
                // The end of the block around it.
                return;
            } else if self.is(0, ';') || (self.is(0, ',') && !is_item) {
                self.at += 1;
                return;
            } else if ['(', '[', '{'].iter().any(|letter| self.is(0, *letter)) {
                let ends = self.is(0, '{') && !is_use;
                self.skip_group();
                if ends {
                    return;
                }
            } else {
                self.at += 1;
            }
        }
    }

    /// Reads a path outside of `use`.
    fn path(&mut self) {
        let line = self.tokens[self.at].line;
        // The rest of a path such as `<T as Trait>::Item`, or of a method such as `x.collect::<T>`.
        let is_rest = self.at > 0
            && (self.tokens[self.at - 1].is_separator() || self.tokens[self.at - 1].is('.'));
        let mut segments = vec![self.word(0).to_owned()];
        self.at += 1;
        while self.is_separator(0) && !self.word(1).is_empty() {
            segments.push(self.word(1).to_owned());
            self.at += 2;
        }
        if !is_rest && segments.len() > 1 {
            self.module().paths.push(Reference { segments, line });
        }
    }

    /// Reads a tree of imports below `prefix`.
    fn use_tree(&mut self, prefix: &[String]) {
        let Some(line) = self.tokens.get(self.at).map(|token| token.line) else { return };
        if self.is_separator(0) {
            // An external crate.
            self.at += 1;
        }
        let mut segments = prefix.to_vec();
        loop {
            if self.is(0, '{') {
                self.at += 1;
                while self.at < self.tokens.len() && !self.is(0, '}') {
                    self.use_tree(&segments);
                    self.at += usize::from(self.is(0, ','));
                }
                self.at += 1;
                return;
            } else if self.is(0, '*') {
                self.at += 1;
                let reference = Reference { segments, line };
                self.module().imports.push(Import { reference, name: None });
                return;
            }
            let word = self.word(0).to_owned();
            self.at += 1;
            if word != "self" || segments.is_empty() {
                segments.push(word);
            }
            if !self.is_separator(0) {
                break;
            }
            self.at += 1;
        }
        let mut name = segments.last().cloned();
        if self.word(0) == "as" {
            name = Some(self.word(1).to_owned());
            self.at += 2;
        }
        let reference = Reference { segments, line };
        self.module().imports.push(Import { reference, name });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(references: impl IntoIterator<Item = Reference>) -> Vec<String> {
        references.into_iter().map(|reference| reference.segments.join("::")).collect()
    }

    #[test]
    fn imports_paths_and_items_are_found() {
        let source = r##"
            //! crate::comment
            use std::{fmt, io::{self, Read as _}};
            pub(crate) use super::a::{B, c::*};
            mod file;
            /// crate::doc
            pub(crate) fn f<'a>(x: &'a str) -> impl Fn() + use<'a> {
                let c = ['\'', 'c', '"', '\u{1}'];
                let text = ("crate::text \"", r#"crate::"raw"#, b"crate::b");
                <u8 as crate::t::Trait>::call::<crate::g::G>(x.parse::<u8>());
                /* crate::block /* nested */ */
                crate::last::call()
            }
            #[cfg(test)]
            use crate::only_in_tests::{A, B};
            mod inline { pub(super) struct S; use super::f; }
            enum E { #[cfg(test)] A(crate::variant::Of), B }
            #[cfg(test)]
            mod tests { use crate::also_in_tests::A; }
            struct Last { field: crate::field::F }
        "##;
        let mut modules = parse(vec!["m".to_owned()], source);
        modules.sort_by(|one, other| one.path.cmp(&other.path));
        let [module, inline] = &modules[..] else { panic!("{modules:#?}") };
        assert_eq!(
            (&module.path[..], &inline.path[..]),
            (&["m".to_owned()][..], &["m".to_owned(), "inline".to_owned()][..])
        );
        assert_eq!(module.files, ["file"]);
        assert_eq!(module.items.iter().collect::<Vec<_>>(), ["E", "Last", "f"]);
        assert_eq!(
            written(module.paths.iter().cloned()),
            ["crate::t::Trait", "crate::g::G", "crate::last::call", "crate::field::F"]
        );
        let imports =
            |module: &Module| written(module.imports.iter().map(|import| import.reference.clone()));
        assert_eq!(
            imports(module),
            ["std::fmt", "std::io", "std::io::Read", "super::a::B", "super::a::c"]
        );
        let names: Vec<_> = module.imports.iter().map(|import| import.name.as_deref()).collect();
        assert_eq!(names, [Some("fmt"), Some("io"), Some("_"), Some("B"), None]);
        assert_eq!(imports(inline), ["super::f"]);
    }
}
