//! The graph of imports between the modules of a crate, and its cycles.
//!
//! Modules are files. A module imports another one if a path in a `use` or elsewhere leads to an
//! item of it; a re-export is followed to the module that defines the item. Code for tests does not
//! count.

mod cycles;
mod parse;
mod resolve;
mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use self::cycles::{Graph, components, shortest_cycles};
use self::parse::{ModulePath, Reference, parse};
use self::resolve::{Modules, Target, resolve};

/// The modules of a crate and the imports between them.
#[derive(Debug)]
pub struct ModuleGraph {
    /// Paths of the modules, from the crate root, which is the first.
    modules: Vec<ModulePath>,
    /// An example of an import for each pair of modules.
    imports: BTreeMap<(usize, usize), Reference>,
}

impl ModuleGraph {
    /// Reads the crate with this root file, for example `src/lib.rs`. `read` returns the text of a
    /// file, or `None` if the file does not exist.
    ///
    /// # Panics
    /// If the file of a module does not exist.
    pub fn read(root: &Path, read: impl Fn(&Path) -> Option<String>) -> Self {
        let mut modules = Modules::new();
        // For each module its file: modules within a file belong to it.
        let mut files = BTreeMap::new();
        let mut order = Vec::new();
        let folder = root.parent().unwrap().to_owned();
        let mut open = vec![(ModulePath::new(), root.to_owned(), folder)];
        while let Some((path, file, folder)) = open.pop() {
            let text = read(&file).unwrap_or_else(|| panic!("{} is missing", file.display()));
            for module in parse(path.clone(), &text) {
                let inline = &module.path[path.len()..];
                let folder = inline.iter().fold(folder.clone(), |folder, name| folder.join(name));
                for name in &module.files {
                    let child = [&module.path[..], std::slice::from_ref(name)].concat();
                    open.push((child, file_of(&folder, name, &read), folder.join(name)));
                }
                files.insert(module.path.clone(), order.len());
                modules.insert(module.path.clone(), module);
            }
            order.push(path);
        }
        let imports = imports(&modules, &files);
        Self { modules: order, imports }
    }

    /// Returns the number of modules.
    pub fn len(&self) -> usize {
        self.modules.len()
    }

    /// Returns true if there are no modules.
    pub fn is_empty(&self) -> bool {
        self.modules.is_empty()
    }

    /// Returns a description of a shortest cycle for each group of modules that import each other.
    ///
    /// A module and the modules below it may import each other, because a parent re-exports, wires
    /// and declares what its children share. Any other cycle is reported, also one between the
    /// children, and one that leaves the parent and comes back to it.
    pub fn cycles(&self) -> Vec<String> {
        let mut graph: Graph = (0..self.modules.len()).map(|node| (node, [].into())).collect();
        for (from, to) in self.imports.keys() {
            graph.entry(*from).or_default().insert(*to);
        }
        // All modules are below the root.
        graph.insert(0, BTreeSet::new());
        let mut found = Vec::new();
        self.find_cycles(&graph, &mut found);
        found
    }

    fn find_cycles(&self, graph: &Graph, found: &mut Vec<String>) {
        for component in components(graph) {
            let Some(parent) = self.parent_of(component.iter()) else {
                found.push(self.describe(graph, &component));
                continue;
            };
            let mut below: Graph = component
                .iter()
                .map(|node| (*node, graph[node].intersection(&component).copied().collect()))
                .collect();
            below.insert(parent, BTreeSet::new());
            self.find_cycles(&below, found);
        }
    }

    /// Returns the module that all others are below.
    fn parent_of<'a>(&self, nodes: impl Iterator<Item = &'a usize> + Clone) -> Option<usize> {
        let is_below =
            |node: usize, parent: usize| self.modules[node].starts_with(&self.modules[parent]);
        nodes.clone().copied().find(|parent| nodes.clone().all(|node| is_below(*node, *parent)))
    }

    fn describe(&self, graph: &Graph, component: &BTreeSet<usize>) -> String {
        // Not one of a parent and its children, if there is another one.
        let cycle = shortest_cycles(graph, component)
            .min_by_key(|cycle| (self.parent_of(cycle.iter()).is_some(), cycle.len()))
            .unwrap_or_default();
        let name = |node: usize| match self.modules[node].join("::") {
            root if root.is_empty() => "crate".to_owned(),
            name => name,
        };
        let mut text = format!("{} modules import each other, for example:", component.len());
        for pair in cycle.windows(2) {
            let import = &self.imports[&(pair[0], pair[1])];
            text += &format!(
                "\n    {} -> {}: {} in line {}",
                name(pair[0]),
                name(pair[1]),
                import.segments.join("::"),
                import.line
            );
        }
        let names: Vec<String> = component.iter().map(|node| name(*node)).collect();
        text + "\n    all: " + &names.join(", ")
    }
}

fn file_of(folder: &Path, name: &str, read: impl Fn(&Path) -> Option<String>) -> PathBuf {
    let file = folder.join(format!("{name}.rs"));
    if read(&file).is_some() { file } else { folder.join(name).join("mod.rs") }
}

/// Returns an example of each import between two files.
fn imports(
    modules: &Modules,
    files: &BTreeMap<ModulePath, usize>,
) -> BTreeMap<(usize, usize), Reference> {
    let mut imports = BTreeMap::new();
    for module in modules.values() {
        let from = files[&module.path];
        let mut add = |target: ModulePath, reference: &Reference| {
            let to = files[&target];
            if from != to {
                imports.entry((from, to)).or_insert_with(|| reference.clone());
            }
        };
        for import in &module.imports {
            let target = resolve(modules, &module.path, &import.reference.segments);
            match (target, &import.name) {
                // A name for a module: its uses are among the paths.
                (Some(Target::Module(_)), Some(_)) | (None, _) => {}
                (Some(target), _) => add(target.into_module(), &import.reference),
            }
        }
        for path in &module.paths {
            if let Some(target) = resolve(modules, &module.path, &path.segments) {
                add(target.into_module(), path);
            }
        }
    }
    imports
}

#[cfg(test)]
mod tests;
