//! A look at the bytes of a component before anything is compiled: what it is, what it wants of the host, and how large it is.
//!
//! A compiler takes time and memory that grow with what it is given, sometimes faster than that. So first the outline is read,
//! in one pass that keeps nothing but numbers ([`look`]); what is within the limits is validated, function by function, with
//! exactly those proposals that the engine has on ([`validate`]). Both are done within bounds whatever the bytes
//! are: the limits bound the validator's memory, and a clock its time.

use std::time::{Duration, Instant};

use wasmparser::{
    ComponentExternName, ComponentInstance, ComponentTypeRef, Encoding, FuncValidatorAllocations,
    Instance, MemoryType, Parser, Payload, SectionLimited, TableType, ValidPayload, Validator,
    WasmFeatures,
};

use crate::component::{ComponentError, MOST_BYTES};
use crate::contract::Contract;
use crate::runtime::{
    MOST_CORE_INSTANCES, MOST_MEMORIES, MOST_MEMORY, MOST_TABLE_ELEMENTS, MOST_TABLES,
};

/// Core modules. CPython's component has 38, QuickJS' 11: an adapter for each thing that is imported or stubbed.
const MOST_MODULES: u64 = 64;
/// Components within components. Bindings are 1 deep, and each composing of components adds 1.
const MOST_DEPTH: u64 = 8;
/// Instances of components that nested instantiation could lead to. The compiler writes out each of them, so ten components
/// that each instantiate the one before ten times would be ten thousand millions. CPython's component comes to 3, one
/// of QuickJS with few interfaces to 684.
const MOST_INSTANTIATIONS: u64 = 1 << 16;
/// Functions in all modules. CPython's component has 13,478.
const MOST_FUNCTIONS: u64 = 100_000;
/// Bytes of one function. The longest of CPython, its interpreter loop, has 427 KB; the compiler's time grows faster than the
/// length of a function.
const MOST_FUNCTION_BYTES: u64 = 1 << 20;
/// Types, imports, exports, globals, segments and so on, which cost the validator far more memory than they are long.
/// CPython's component has 12,568.
const MOST_DECLARATIONS: u64 = 200_000;
/// Bytes in which the components themselves, without their modules, are written. CPython's has 82 KB.
const MOST_OUTLINE_BYTES: u64 = 2 << 20;
/// Bytes to fill memories with from the start. CPython's component has 11.1 MB.
const MOST_DATA_BYTES: u64 = 24 << 20;
/// Bytes of a page of linear memory.
const PAGE: u64 = 64 << 10;
/// How long validation may take; CPython's 18 MB take a third of a second. There are modules whose validation takes time that
/// grows with the square of their length.
const LONGEST: Duration = Duration::from_secs(30);

/// What policies may use, for the engine as for this scan: components, WebAssembly 2.0, and what LLVM makes of constants. What
/// no policy needs is off, as past escapes and aborts were made of it: threads, 64-bit and several memories, tail calls,
/// garbage collection, exceptions, references to functions, asynchronous components. Relaxed SIMD is off because its results
/// differ between CPUs.
pub(crate) const FEATURES: WasmFeatures =
    WasmFeatures::COMPONENT_MODEL.union(WasmFeatures::WASM2).union(WasmFeatures::EXTENDED_CONST);

/// What a component is, in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Names of the interfaces of its contract that it imports, without version.
    pub(crate) imports: Vec<String>,
    pub(crate) modules: u64,
    pub(crate) core_instances: u64,
    /// An upper bound of the instances of components.
    pub(crate) instantiations: u64,
    pub(crate) memories: u64,
    pub(crate) tables: u64,
    pub(crate) functions: u64,
    pub(crate) declarations: u64,
    pub(crate) outline_bytes: u64,
    pub(crate) data_bytes: u64,
    /// Bytes of the longest function.
    pub(crate) longest_function: u64,
    /// Bytes of the largest memory at its start.
    pub(crate) largest_memory: u64,
    /// Elements of the largest table at its start.
    pub(crate) largest_table: u64,
    /// Components in components.
    pub(crate) depth: u64,
}

/// What can be told from the outline alone: whether it is a component for that contract, within the limits.
///
/// # Errors
/// With a sentence that says what is wrong with it.
pub(crate) fn look(bytes: &[u8], contract: &'static Contract) -> Result<Shape, ComponentError> {
    // wasmtime keeps machine code in ELF files.
    if bytes.starts_with(b"\x7fELF") {
        return Err(ComponentError::Precompiled);
    }
    if !bytes.starts_with(b"\0asm") {
        return Err(ComponentError::Invalid("it does not begin as WebAssembly does".into()));
    }
    let length = bytes.len() as u64;
    if length > MOST_BYTES {
        return Err(too_large("bytes", length, MOST_BYTES));
    }
    let mut outline = Outline::new(contract);
    for payload in parser().parse_all(bytes) {
        outline.see(&payload.map_err(invalid)?)?;
    }
    let shape = outline.finish()?;
    shape.check()?;
    Ok(shape)
}

/// Validate what [`look`] found to be within the limits.
///
/// # Errors
/// With what is not valid, and where.
pub(crate) fn validate(bytes: &[u8]) -> Result<(), ComponentError> {
    validate_within(bytes, LONGEST)
}

fn validate_within(bytes: &[u8], longest: Duration) -> Result<(), ComponentError> {
    let begun = Instant::now();
    let mut validator = Validator::new_with_features(FEATURES);
    let mut scratch = FuncValidatorAllocations::default();
    for payload in parser().parse_all(bytes) {
        let valid = validator.payload(&payload.map_err(invalid)?).map_err(invalid)?;
        if let ValidPayload::Func(function, body) = valid {
            let mut function = function.into_validator(scratch);
            function.validate(&body).map_err(invalid)?;
            scratch = function.into_allocations();
        }
        if begun.elapsed() >= longest {
            return Err(ComponentError::Slow(longest));
        }
    }
    Ok(())
}

fn parser() -> Parser {
    let mut parser = Parser::new(0);
    parser.set_features(FEATURES);
    parser
}

#[expect(clippy::needless_pass_by_value, reason = "it is what map_err hands over")]
fn invalid(error: wasmparser::Error) -> ComponentError {
    ComponentError::Invalid(error.to_string())
}

fn too_large(what: &str, number: u64, most: u64) -> ComponentError {
    ComponentError::TooLarge(format!("{number} {what}, and {most} are the limit"))
}

impl Shape {
    fn check(&self) -> Result<(), ComponentError> {
        for (number, most, what) in [
            (self.modules, MOST_MODULES, "core modules"),
            (self.core_instances, MOST_CORE_INSTANCES.into(), "core instances"),
            (self.instantiations, MOST_INSTANTIATIONS, "instances of components within each other"),
            (self.memories, MOST_MEMORIES.into(), "memories"),
            (self.tables, MOST_TABLES.into(), "tables"),
            (self.functions, MOST_FUNCTIONS, "functions"),
            (
                self.declarations,
                MOST_DECLARATIONS,
                "types, imports, exports and other declarations",
            ),
            (self.outline_bytes, MOST_OUTLINE_BYTES, "bytes of types and wiring"),
            (self.data_bytes, MOST_DATA_BYTES, "bytes of data"),
            (self.longest_function, MOST_FUNCTION_BYTES, "bytes in one function"),
            (self.largest_memory, MOST_MEMORY, "bytes in one memory from the start"),
            (
                self.largest_table,
                MOST_TABLE_ELEMENTS as u64,
                "elements in one table from the start",
            ),
        ] {
            if number > most {
                return Err(too_large(what, number, most));
            }
        }
        Ok(())
    }
}

/// The numbers so far. Counts are what sections claim to hold, so they are summed with care.
#[derive(Debug)]
struct Outline {
    shape: Shape,
    /// What we are in, outermost first.
    within: Vec<Encoding>,
    /// Instances that each component in `within` makes of others.
    instances: Vec<u64>,
    /// What it has to be made for.
    contract: &'static Contract,
    /// Which of the required exports were found, as a set of bits.
    exported: u32,
    /// What is wrong with a name. Kept until the outline is known to be well-formed.
    bad_name: Option<ComponentError>,
}

impl Outline {
    fn new(contract: &'static Contract) -> Self {
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
            within: Vec::new(),
            instances: Vec::new(),
            contract,
            exported: 0,
            bad_name: None,
        }
    }
}

impl Outline {
    fn see(&mut self, payload: &Payload<'_>) -> Result<(), ComponentError> {
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
                    shape.largest_memory = shape.largest_memory.max(initial(&memory))
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
            _ => return self.see_component(payload),
        }
        Ok(())
    }

    /// The sections of components.
    fn see_component(&mut self, payload: &Payload<'_>) -> Result<(), ComponentError> {
        let outermost = self.within.len() == 1;
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
            // Nothing that takes room: headers, starts, custom sections, and what the validator refuses.
            _ => {}
        }
        Ok(())
    }

    fn enter(&mut self, encoding: Encoding) -> Result<(), ComponentError> {
        if self.within.is_empty() && encoding == Encoding::Module {
            return Err(ComponentError::CoreModule);
        }
        self.within.push(encoding);
        if encoding == Encoding::Component {
            self.instances.push(0);
            self.shape.depth = self.shape.depth.max(self.instances.len() as u64 - 1);
            // At once: this is what the parser's own memory grows with.
            if self.shape.depth > MOST_DEPTH {
                return Err(too_large(
                    "components within each other",
                    self.shape.depth,
                    MOST_DEPTH,
                ));
            }
        }
        Ok(())
    }

    fn leave(&mut self) {
        if self.within.pop() == Some(Encoding::Component)
            && let Some(instances) = self.instances.pop()
        {
            // Whatever instantiates whatever, there are no more instances than ways to pick at most one of each component's.
            self.shape.instantiations = self.shape.instantiations.saturating_mul(instances + 1);
        }
    }

    fn import(&mut self, name: &ComponentExternName<'_>, kind: ComponentTypeRef) {
        let bad = match kind {
            ComponentTypeRef::Instance(_) => self.contract.forbidden(name.name),
            _ => Some(ComponentError::ForbiddenImport(name.name.to_owned())),
        };
        self.bad_name = self.bad_name.take().or(bad);
        if let Some(interface) = self.interface(name.name) {
            self.shape.imports.push(interface.to_owned());
        }
    }

    fn export(&mut self, name: &ComponentExternName<'_>) {
        let Some(interface) = self.interface(name.name) else { return };
        if let Some(place) =
            self.contract.exports.iter().position(|required| *required == interface)
        {
            self.exported |= 1 << place;
            self.bad_name = self.bad_name.take().or_else(|| self.contract.unserved(name.name));
        }
    }

    /// The interface of the contract that has this name, without its version.
    fn interface<'a>(&self, name: &'a str) -> Option<&'a str> {
        let rest = name.strip_prefix(self.contract.package)?;
        Some(rest.split_once('@').map_or(rest, |(interface, _)| interface))
    }

    fn finish(self) -> Result<Shape, ComponentError> {
        if let Some(bad) = self.bad_name {
            return Err(bad);
        }
        let Contract { package, guest, exports, .. } = self.contract;
        let missing =
            exports.iter().enumerate().find(|(place, _)| self.exported & (1 << place) == 0);
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

/// Every item of a section.
fn for_each<'a, T: wasmparser::FromReader<'a>>(
    section: &SectionLimited<'a, T>,
    mut see: impl FnMut(T),
) -> Result<(), ComponentError> {
    for item in section.clone() {
        see(item.map_err(invalid)?);
    }
    Ok(())
}

/// Bytes of a memory at its start.
fn initial(memory: &MemoryType) -> u64 {
    let page =
        memory.page_size_log2.map_or(PAGE, |log2| 1_u64.checked_shl(log2).unwrap_or(u64::MAX));
    memory.initial.saturating_mul(page)
}

#[cfg(test)]
mod tests;
