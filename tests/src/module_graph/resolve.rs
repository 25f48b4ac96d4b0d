//! Resolves paths to the modules that define their items.

use std::collections::{BTreeMap, HashSet};

use super::parse::{Import, Module, ModulePath};

/// All modules of a crate, by their paths.
pub(super) type Modules = BTreeMap<ModulePath, Module>;

/// What a path refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    Module(ModulePath),
    /// An item, with the module that defines it.
    Item(ModulePath),
}

impl Target {
    pub(super) fn into_module(self) -> ModulePath {
        match self {
            Self::Module(path) | Self::Item(path) => path,
        }
    }
}

/// The names that are being resolved; a name that leads to itself is not resolved.
type Seen = HashSet<(ModulePath, String)>;

/// Returns what a path in the module `from` refers to; `None` for another crate, or a name that is
/// not a module or an import.
pub(super) fn resolve(modules: &Modules, from: &ModulePath, segments: &[String]) -> Option<Target> {
    resolve_path(modules, from, segments, &mut Seen::new())
}

fn resolve_path(
    modules: &Modules,
    from: &ModulePath,
    segments: &[String],
    seen: &mut Seen,
) -> Option<Target> {
    let mut rest = segments;
    let mut target = match segments.first()?.as_str() {
        "crate" => {
            rest = &rest[1..];
            Target::Module(Vec::new())
        }
        "self" | "super" => {
            let mut module = from.clone();
            while let Some(first @ ("self" | "super")) = rest.first().map(String::as_str) {
                if first == "super" {
                    module.pop();
                }
                rest = &rest[1..];
            }
            Target::Module(module)
        }
        name => {
            let target = resolve_name(modules, from, name, seen)?;
            rest = &rest[1..];
            target
        }
    };
    for name in rest {
        target = match target {
            Target::Module(module) => {
                resolve_name(modules, &module, name, seen).unwrap_or(Target::Item(module))
            }
            // A variant or an associated item.
            Target::Item(module) => Target::Item(module),
        };
    }
    Some(target)
}

/// Returns what a name in a module refers to.
fn resolve_name(
    modules: &Modules,
    module: &ModulePath,
    name: &str,
    seen: &mut Seen,
) -> Option<Target> {
    let found = modules.get(module)?;
    if found.children.contains(name) {
        let mut child = module.clone();
        child.push(name.to_owned());
        return modules.contains_key(&child).then_some(Target::Module(child));
    }
    if found.items.contains(name) {
        return Some(Target::Item(module.clone()));
    }
    if !seen.insert((module.clone(), name.to_owned())) {
        return None;
    }
    let named = |import: &&Import| import.name.as_deref() == Some(name);
    if let Some(import) = found.imports.iter().find(named) {
        return resolve_path(modules, module, &import.reference.segments, seen);
    }
    let mut globs = found.imports.iter().filter(|import| import.name.is_none());
    globs.find_map(|import| {
        let target = resolve_path(modules, module, &import.reference.segments, seen)?;
        resolve_name(modules, &target.into_module(), name, seen)
    })
}
