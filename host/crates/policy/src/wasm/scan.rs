//! Checks the bytes of a component before it is compiled: its kind, its imports and exports, and
//! its size.
//!
//! The time and the memory of a compiler grow with its input, sometimes faster than linearly. So
//! the outline is read first, in one pass that only keeps counts ([`scan`]); a component within the
//! limits is validated, function by function, with exactly the WebAssembly proposals that the
//! engine enables (`wasm::validate`). Both are bounded for any input: the limits bound the memory
//! of the validator, and a timeout its time.

use wasmparser::{
    ComponentExternName, ComponentInstance, ComponentTypeRef, Encoding, Instance, MemoryType,
    Payload, SectionLimited, TableType,
};

use crate::limits::{
    MAX_COMPONENT_BYTES, MAX_CORE_INSTANCES, MAX_MEMORIES, MAX_MEMORY_BYTES, MAX_TABLE_ELEMENTS,
    MAX_TABLES, PAGE_BYTES,
};
use crate::wasm::error::{ComponentError, SizeError};
use crate::wasm::features::parser;
use crate::wasm::import_rules::ImportRules;

/// Maximum core modules. CPython's component has 38, QuickJS' 11: an adapter for each import or
/// stub.
const MAX_MODULES: u64 = 64;
/// Maximum nesting of components. Bindings are 1 deep, and each composition of components adds 1.
const MAX_DEPTH: u64 = 8;
/// Maximum instances of components that nested instantiation could create. The compiler generates
/// code for each of them, so ten components that each instantiate the previous one ten times would
/// be ten billion. CPython's component has 3, one of QuickJS with few interfaces 684.
const MAX_INSTANTIATIONS: u64 = 1 << 16;
/// Maximum functions in all modules. CPython's component has 13,478.
const MAX_FUNCTIONS: u64 = 100_000;
/// Maximum bytes of one function. The longest one of CPython, its interpreter loop, has 427 KB; the
/// time of the compiler grows faster than linearly with the length of a function.
const MAX_FUNCTION_BYTES: u64 = 1 << 20;
/// Maximum types, imports, exports, globals, segments and so on, for which the validator needs far
/// more memory than their encoding takes. CPython's component has 12,568.
const MAX_DECLARATIONS: u64 = 200_000;
/// Maximum encoded bytes of the components without their modules. CPython's has 82 KB.
const MAX_OUTLINE_BYTES: u64 = 2 << 20;
/// Maximum bytes of data segments. CPython's component has 11.1 MB.
const MAX_DATA_BYTES: u64 = 24 << 20;

/// The size of a component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shape {
    /// The interfaces of its contract that it imports, without version.
    pub(crate) imports: Vec<String>,
    pub(crate) modules: u64,
    pub(crate) core_instances: u64,
    /// An upper bound of the number of component instances.
    pub(crate) instantiations: u64,
    pub(crate) memories: u64,
    pub(crate) tables: u64,
    pub(crate) functions: u64,
    pub(crate) declarations: u64,
    pub(crate) outline_bytes: u64,
    pub(crate) data_bytes: u64,
    /// Bytes of the longest function.
    pub(crate) longest_function: u64,
    /// Initial bytes of the largest memory.
    pub(crate) largest_memory: u64,
    /// Initial elements of the largest table.
    pub(crate) largest_table: u64,
    /// The nesting of components.
    pub(crate) depth: u64,
}

/// Scans the outline of a file: checks that it is a component for `contract`, and within the
/// limits.
///
/// # Errors
/// If it is not.
pub(crate) fn scan(bytes: &[u8], contract: &'static ImportRules) -> Result<Shape, ComponentError> {
    // wasmtime keeps machine code in ELF files.
    if bytes.starts_with(b"\x7fELF") {
        return Err(ComponentError::Precompiled);
    }
    if !bytes.starts_with(b"\0asm") {
        return Err(ComponentError::NotWasm);
    }
    let length = bytes.len() as u64;
    if length > MAX_COMPONENT_BYTES {
        return Err(too_large("bytes", length, MAX_COMPONENT_BYTES));
    }
    let mut outline = Outline::new(contract);
    for payload in parser().parse_all(bytes) {
        outline.visit(&payload.map_err(ComponentError::Invalid)?)?;
    }
    let shape = outline.finish()?;
    shape.check()?;
    Ok(shape)
}

fn too_large(what: &'static str, found: u64, max: u64) -> ComponentError {
    SizeError::Above { what, found, max }.into()
}

impl Shape {
    fn check(&self) -> Result<(), ComponentError> {
        for (found, max, what) in [
            (self.modules, MAX_MODULES, "core modules"),
            (self.core_instances, MAX_CORE_INSTANCES.into(), "core instances"),
            (self.instantiations, MAX_INSTANTIATIONS, "instances of nested components"),
            (self.memories, MAX_MEMORIES.into(), "memories"),
            (self.tables, MAX_TABLES.into(), "tables"),
            (self.functions, MAX_FUNCTIONS, "functions"),
            (
                self.declarations,
                MAX_DECLARATIONS,
                "declarations (types, imports, exports and others)",
            ),
            (self.outline_bytes, MAX_OUTLINE_BYTES, "bytes of component types and instances"),
            (self.data_bytes, MAX_DATA_BYTES, "bytes of data"),
            (self.longest_function, MAX_FUNCTION_BYTES, "bytes in one function"),
            (self.largest_memory, MAX_MEMORY_BYTES, "initial bytes of a memory"),
            (self.largest_table, MAX_TABLE_ELEMENTS as u64, "initial elements of a table"),
        ] {
            if found > max {
                return Err(too_large(what, found, max));
            }
        }
        Ok(())
    }
}

/// The state of a scan. Counts are those that sections claim to hold, which may be wrong: `u32`
/// counts are summed as `u64`, so that no sum overflows.
#[derive(Debug)]
struct Outline {
    shape: Shape,
    /// The enclosing modules and components, outermost first.
    enclosing: Vec<Encoding>,
    /// Instances of other components that each enclosing component creates.
    instances: Vec<u64>,
    /// The contract that the component has to implement.
    contract: &'static ImportRules,
    /// The required exports that were found, as a bit set.
    exported: u32,
    /// The first error of a name. Reported only if the outline is well-formed.
    name_error: Option<ComponentError>,
}

impl Outline {
    fn new(contract: &'static ImportRules) -> Self {
        let shape = Shape {
            imports: Vec::new(),
            modules: 0,
            core_instances: 0,
            instantiations: 1,
            memories: 0,
            tables: 0,
            functions: 0,
            declarations: 0,
            outline_bytes: 0,
            data_bytes: 0,
            longest_function: 0,
            largest_memory: 0,
            largest_table: 0,
            depth: 0,
        };
        Self {
            shape,
            enclosing: Vec::new(),
            instances: Vec::new(),
            contract,
            exported: 0,
            name_error: None,
        }
    }
}

impl Outline {
    fn visit(&mut self, payload: &Payload<'_>) -> Result<(), ComponentError> {
        let shape = &mut self.shape;
        match payload {
            Payload::Version { encoding, .. } => return self.enter(*encoding),
            Payload::End(_) => self.leave(),
            Payload::ModuleSection { .. } => shape.modules += 1,

            Payload::TypeSection(section) => shape.declare(section.count()),
            Payload::ImportSection(section) => shape.declare(section.count()),
            Payload::GlobalSection(section) => shape.declare(section.count()),
            Payload::ExportSection(section) => shape.declare(section.count()),
            Payload::ElementSection(section) => shape.declare(section.count()),
            Payload::TagSection(section) => shape.declare(section.count()),
            Payload::FunctionSection(section) => shape.functions += u64::from(section.count()),
            Payload::CodeSectionEntry(body) => {
                shape.longest_function = shape.longest_function.max(body.as_bytes().len() as u64);
            }
            Payload::MemorySection(section) => {
                shape.memories += u64::from(section.count());
                for_each(section, |memory| {
                    shape.largest_memory = shape.largest_memory.max(initial_bytes(&memory))
                })?;
            }
            Payload::TableSection(section) => {
                shape.tables += u64::from(section.count());
                for_each(section, |table| {
                    let TableType { initial, .. } = table.ty;
                    shape.largest_table = shape.largest_table.max(initial);
                })?;
            }
            Payload::DataSection(section) => {
                shape.declare(section.count());
                for_each(section, |data| shape.data_bytes += data.data.len() as u64)?;
            }
            _ => return self.visit_component(payload),
        }
        Ok(())
    }

    /// Visits the sections of components.
    fn visit_component(&mut self, payload: &Payload<'_>) -> Result<(), ComponentError> {
        let outermost = self.enclosing.len() == 1;
        let shape = &mut self.shape;
        match payload {
            Payload::InstanceSection(section) => {
                shape.outline(section);
                for_each(section, |instance| {
                    shape.core_instances +=
                        u64::from(matches!(instance, Instance::Instantiate { .. }));
                })?;
            }
            Payload::ComponentInstanceSection(section) => {
                shape.outline(section);
                let mut more = 0;
                for_each(section, |instance| {
                    more += u64::from(matches!(instance, ComponentInstance::Instantiate { .. }));
                })?;
                if let Some(instances) = self.instances.last_mut() {
                    *instances += more;
                }
            }
            Payload::CoreTypeSection(section) => shape.outline(section),
            Payload::ComponentTypeSection(section) => shape.outline(section),
            Payload::ComponentAliasSection(section) => shape.outline(section),
            Payload::ComponentCanonicalSection(section) => shape.outline(section),
            Payload::ComponentImportSection(section) => {
                shape.outline(section);
                if outermost {
                    for_each(section, |import| self.import(&import.name, import.ty))?;
                }
            }
            Payload::ComponentExportSection(section) => {
                shape.outline(section);
                if outermost {
                    for_each(section, |export| self.export(&export.name))?;
                }
            }
            // Headers, start functions and custom sections need no memory; others are rejected by
            // validation.
            _ => {}
        }
        Ok(())
    }

    fn enter(&mut self, encoding: Encoding) -> Result<(), ComponentError> {
        if self.enclosing.is_empty() && encoding == Encoding::Module {
            return Err(ComponentError::CoreModule);
        }
        self.enclosing.push(encoding);
        if encoding == Encoding::Component {
            self.instances.push(0);
            self.shape.depth = self.shape.depth.max(self.instances.len() as u64 - 1);
            // Immediately, because the memory of the parser grows with the depth.
            if self.shape.depth > MAX_DEPTH {
                return Err(too_large("levels of nested components", self.shape.depth, MAX_DEPTH));
            }
        }
        Ok(())
    }

    fn leave(&mut self) {
        if self.enclosing.pop() == Some(Encoding::Component)
            && let Some(instances) = self.instances.pop()
        {
            // An upper bound for any instantiation graph: the number of ways to pick at most one
            // instance of each component. Saturates far above the maximum.
            self.shape.instantiations = self.shape.instantiations.saturating_mul(instances + 1);
        }
    }

    fn import(&mut self, name: &ComponentExternName<'_>, kind: ComponentTypeRef) {
        let error = match kind {
            ComponentTypeRef::Instance(_) => self.contract.check_import(name.name),
            _ => Some(ComponentError::ForbiddenImport(name.name.to_owned())),
        };
        self.name_error = self.name_error.take().or(error);
        if let Some(interface) = self.interface(name.name) {
            self.shape.imports.push(interface.to_owned());
        }
    }

    fn export(&mut self, name: &ComponentExternName<'_>) {
        let Some(interface) = self.interface(name.name) else { return };
        if let Some(index) =
            self.contract.exports.iter().position(|required| *required == interface)
        {
            self.exported |= 1 << index;
            self.name_error =
                self.name_error.take().or_else(|| self.contract.check_version(name.name));
        }
    }

    /// Returns the interface of the contract with this name, without its version.
    fn interface<'a>(&self, name: &'a str) -> Option<&'a str> {
        let rest = name.strip_prefix(self.contract.package)?;
        Some(rest.split_once('@').map_or(rest, |(interface, _)| interface))
    }

    fn finish(self) -> Result<Shape, ComponentError> {
        if let Some(error) = self.name_error {
            return Err(error);
        }
        let ImportRules { package, guest, exports, .. } = self.contract;
        let missing =
            exports.iter().enumerate().find(|(index, _)| self.exported & (1 << index) == 0);
        match missing {
            Some((_, missing)) => {
                Err(ComponentError::MissingExport { name: format!("{package}{missing}"), guest })
            }
            None => Ok(self.shape),
        }
    }
}

impl Shape {
    fn declare(&mut self, count: u32) {
        self.declarations += u64::from(count);
    }

    fn outline<T>(&mut self, section: &SectionLimited<'_, T>) {
        self.declare(section.count());
        self.outline_bytes += section.range().len() as u64;
    }
}

/// Visits every item of a section.
fn for_each<'a, T: wasmparser::FromReader<'a>>(
    section: &SectionLimited<'a, T>,
    mut visit: impl FnMut(T),
) -> Result<(), ComponentError> {
    for item in section.clone() {
        visit(item.map_err(ComponentError::Invalid)?);
    }
    Ok(())
}

/// Returns the initial bytes of a memory, saturating.
fn initial_bytes(memory: &MemoryType) -> u64 {
    let page = memory
        .page_size_log2
        .map_or(PAGE_BYTES, |log2| 1_u64.checked_shl(log2).unwrap_or(u64::MAX));
    memory.initial.saturating_mul(page)
}

#[cfg(test)]
mod tests;
