use std::path::Path;

use super::ModuleGraph;

/// Returns the cycles of a crate with these files.
fn cycles(files: &[(&str, &str)]) -> Vec<String> {
    let read = |file: &Path| {
        let found = files.iter().find(|(name, _)| Path::new(name) == file);
        found.map(|(_, text)| (*text).to_owned())
    };
    ModuleGraph::read(Path::new("lib.rs"), read).cycles()
}

const ROOT: (&str, &str) = ("lib.rs", "mod a; mod b; mod c; pub use a::A; pub use b::B;");

#[track_caller]
fn assert_cycle(files: &[(&str, &str)], names: &str) {
    let found = cycles(files);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].ends_with(&format!("all: {names}")), "{found:#?}");
}

#[test]
fn planted_cycle_is_found() {
    let acyclic = [ROOT, ("a.rs", "pub struct A;"), ("b.rs", "use crate::a::A; pub fn B() {}")];
    let (one, other) = ("use crate::b::B; pub struct A;", "use crate::a::A; pub struct B;");
    let c = |text| ("c.rs", text);
    assert!(cycles(&[&acyclic[..], &[c("use crate::b::B;")]].concat()).is_empty());
    assert_cycle(&[ROOT, ("a.rs", one), ("b.rs", other), c("")], "b, a");
    // Through a third module, by paths within functions, and in groups.
    let inline = ("a.rs", "pub struct A; fn f() { let x = super::b::B::new(); }");
    assert_cycle(
        &[ROOT, inline, ("b.rs", "pub use super::c::B;"), c("use crate::{a::A}; pub struct B;")],
        "c, a",
    );
}

#[test]
fn cycle_through_re_exports_of_root_is_found() {
    let files = [
        ROOT,
        ("a.rs", "use crate::B; pub struct A;"),
        ("b.rs", "use crate::A as Other; pub struct B;"),
        ("c.rs", ""),
    ];
    assert_cycle(&files, "b, a");
}

#[test]
fn imports_of_items_in_root_and_of_modules_by_name_are_followed() {
    let root = ("lib.rs", "mod a; mod b; pub struct Shared; fn f() { a::f(); b::f(); }");
    let a = ("a.rs", "use crate::{Shared, b}; pub fn f() { b::f() }");
    assert!(cycles(&[root, a, ("b.rs", "use crate::Shared; pub fn f() {}")]).is_empty());
    assert_cycle(&[root, a, ("b.rs", "use super::a; pub fn f() { a::f() }")], "b, a");
    // A name that is not used is not an import.
    assert!(cycles(&[root, a, ("b.rs", "use super::a; pub fn f() {}")]).is_empty());
}

#[test]
fn parent_and_children_may_import_each_other() {
    let root = ("lib.rs", "mod p; mod x;");
    let p = ("p.rs", "mod c; mod d; pub struct P; fn f() { c::f(); d::f() }");
    let c = ("p/c.rs", "use super::P; pub fn f() {}");
    let d = ("p/d.rs", "use super::{P, c}; pub fn f() { c::f() }");
    let x = ("x.rs", "pub struct X;");
    assert!(cycles(&[root, p, c, d, x]).is_empty());
    // The children among each other.
    let back = ("p/c.rs", "use super::P; pub fn f() { super::d::f() }");
    assert_cycle(&[root, p, back, d, x], "p::d, p::c");
    // Out of the parent and back.
    let out = ("p/c.rs", "use crate::x::X; pub fn f() {}");
    let x = ("x.rs", "use crate::p::P; pub struct X;");
    assert_cycle(&[root, p, out, d, x], "x, p, p::d, p::c");
}

#[test]
fn code_for_tests_does_not_count() {
    let files = [
        ROOT,
        ("a.rs", "pub struct A; #[cfg(test)] mod tests { use crate::b::B; }"),
        ("b.rs", "use crate::a::A; pub struct B;"),
        ("c.rs", ""),
    ];
    assert!(cycles(&files).is_empty());
}
