//! Splits a component into parts that are compiled and cached one by one.
//!
//! A policy in JavaScript is an interpreter with a snapshot of its memory. Only the snapshot
//! depends on the source, and tools write it as a core module of its own. Compiling takes seconds
//! for the interpreter and milliseconds for the rest, so each large module is compiled on its own,
//! and its code is found again for the next version and for other policies. The component imports
//! the modules instead of containing them.

use wasm_encoder::{
    Alias, Component, ComponentAliasSection, ComponentImportSection, ComponentOuterAliasKind,
    ComponentTypeRef, CoreTypeSection, EntityType, ModuleType, RawSection, TagKind, TagType,
    ValType,
};
use wasmparser::types::{CoreTypeId, EntityType as Type, Types};
use wasmparser::{
    BinaryReader, ComponentAlias, ComponentAliasSectionReader, ComponentExternalKind,
};
use wasmparser::{SectionLimited, ValidPayload, Validator};

use crate::wasm::features::{FEATURES, parser};

/// Components with a module of at least this length are split. Policies in Rust and C are smaller,
/// and all of their code may change.
const INTERPRETER_BYTES: usize = 512 << 10;
/// Minimum length of a module that becomes a part.
const MIN_PART_BYTES: usize = 64 << 10;
/// Length of the magic number and the version of a component.
const HEADER_BYTES: usize = 8;

/// Ids of sections of a component.
const CORE_MODULE: u8 = 1;
const CORE_TYPE: u8 = 3;
const COMPONENT: u8 = 4;
const ALIAS: u8 = 6;
const EXPORT: u8 = 11;

/// A component whose large modules are imports.
pub(crate) struct Parts<'a> {
    /// The component, which imports the modules under [`part_name`].
    pub(crate) outline: Vec<u8>,
    pub(crate) modules: Vec<&'a [u8]>,
}

/// Returns the name under which the outline imports the module with this index.
pub(crate) fn part_name(index: usize) -> String {
    format!("part-{index}")
}

/// Splits a component that has been scanned. Returns `None` if it has no large
/// module, or if it has a structure for which the indices in the outline would change.
pub(crate) fn split(bytes: &[u8]) -> Option<Parts<'_>> {
    let mut splitter = Splitter::default();
    let root = splitter.component(bytes, 0)?;
    if !splitter.modules.iter().any(|module| module.len() >= INTERPRETER_BYTES) {
        return None;
    }
    let outline = if splitter.nested == 0 {
        root
    } else {
        // The modules are imported before everything else, so modules of the outermost component
        // would get other indices.
        let has_modules = splitter.nested < splitter.modules.len() || splitter.small_at_root;
        if has_modules {
            return None;
        }
        let mut outline = Component::new();
        for (index, module) in splitter.modules.iter().enumerate() {
            import(&mut outline, index, module)?;
        }
        let mut outline = outline.finish();
        outline.extend_from_slice(root.get(HEADER_BYTES..)?);
        outline
    };
    Some(Parts { outline, modules: splitter.modules })
}

#[derive(Default)]
struct Splitter<'a> {
    modules: Vec<&'a [u8]>,
    /// How many of the modules are in nested components.
    nested: usize,
    /// The outermost component has modules that are no parts, or other names for modules.
    small_at_root: bool,
}

impl<'a> Splitter<'a> {
    /// Returns the component without its large modules. The scan has limited the depth.
    fn component(&mut self, bytes: &'a [u8], depth: u32) -> Option<Vec<u8>> {
        let mut outline = Component::new();
        let mut reader = BinaryReader::new(bytes.get(HEADER_BYTES..)?, 0);
        while !reader.eof() {
            let id = reader.read_u8().ok()?;
            let length = reader.read_var_u32().ok()?;
            let data = reader.read_bytes(usize::try_from(length).ok()?).ok()?;
            match id {
                CORE_MODULE if data.len() >= MIN_PART_BYTES => {
                    let index = self.modules.len();
                    self.modules.push(data);
                    if depth == 0 {
                        import(&mut outline, index, data)?;
                    } else {
                        self.nested += 1;
                        let index = u32::try_from(index).ok()?;
                        let kind = ComponentOuterAliasKind::CoreModule;
                        let mut alias = ComponentAliasSection::new();
                        alias.alias(Alias::Outer { kind, count: depth, index });
                        outline.section(&alias);
                    }
                    continue;
                }
                COMPONENT => {
                    let nested = self.component(data, depth + 1)?;
                    outline.section(&RawSection { id, data: &nested });
                    continue;
                }
                // The types of the parts would get the indices of these.
                CORE_TYPE => return None,
                CORE_MODULE | ALIAS | EXPORT if depth == 0 => {
                    self.small_at_root |= id == CORE_MODULE || names_modules(id, data)?;
                }
                _ => {}
            }
            outline.section(&RawSection { id, data });
        }
        Some(outline.finish())
    }
}

/// Returns whether a section of aliases or exports adds a module to the index space.
fn names_modules(id: u8, data: &[u8]) -> Option<bool> {
    let reader = BinaryReader::new(data, 0);
    let is_module = |kind: ComponentExternalKind| kind == ComponentExternalKind::Module;
    if id == EXPORT {
        let section = SectionLimited::<wasmparser::ComponentExport<'_>>::new(reader).ok()?;
        for export in section {
            if is_module(export.ok()?.kind) {
                return Some(true);
            }
        }
        return Some(false);
    }
    for alias in ComponentAliasSectionReader::new(reader).ok()? {
        if let ComponentAlias::InstanceExport { kind, .. } = alias.ok()?
            && is_module(kind)
        {
            return Some(true);
        }
    }
    Some(false)
}

/// Adds the import of the part with this index to a component whose earlier parts have been
/// imported.
fn import(outline: &mut Component, index: usize, module: &[u8]) -> Option<()> {
    let mut types = CoreTypeSection::new();
    types.ty().module(&module_type(module)?);
    let mut imports = ComponentImportSection::new();
    let type_index = ComponentTypeRef::Module(u32::try_from(index).ok()?);
    imports.import(part_name(index).as_str(), type_index);
    outline.section(&types).section(&imports);
    Some(())
}

/// Returns the type of a module: its imports and exports. `None` if they use types of later
/// proposals.
fn module_type(module: &[u8]) -> Option<ModuleType> {
    let types = declared_types(module)?;
    let mut module_type = ModuleType::new();
    for (from, name, entity) in types.as_ref().core_imports()? {
        let entity = entity_type(&mut module_type, &types, entity)?;
        module_type.import(from, name, entity);
    }
    for (name, entity) in types.as_ref().core_exports()? {
        let entity = entity_type(&mut module_type, &types, entity)?;
        module_type.export(name, entity);
    }
    Some(module_type)
}

/// Reads the declarations of a module, and skips the code.
fn declared_types(module: &[u8]) -> Option<Types> {
    let mut validator = Validator::new_with_features(FEATURES);
    for payload in parser().parse_all(module) {
        if let ValidPayload::End(types) = validator.payload(&payload.ok()?).ok()? {
            return Some(types);
        }
    }
    None
}

fn entity_type(module: &mut ModuleType, types: &Types, entity: Type) -> Option<EntityType> {
    Some(match entity {
        Type::Func(id) => EntityType::Function(function_type(module, types, id)?),
        Type::Table(table) => EntityType::Table(table.try_into().ok()?),
        Type::Memory(memory) => EntityType::Memory(memory.into()),
        Type::Global(global) => EntityType::Global(global.try_into().ok()?),
        Type::Tag(id) => EntityType::Tag(TagType {
            kind: TagKind::Exception,
            func_type_idx: function_type(module, types, id)?,
        }),
        Type::FuncExact(_) => return None,
    })
}

/// Adds a function type, and returns its index.
fn function_type(module: &mut ModuleType, types: &Types, id: CoreTypeId) -> Option<u32> {
    let subtype = &types[id];
    let wasmparser::CompositeInnerType::Func(function) = &subtype.composite_type.inner else {
        return None;
    };
    let values = |values: &[wasmparser::ValType]| {
        values.iter().map(|value| ValType::try_from(*value).ok()).collect::<Option<Vec<_>>>()
    };
    let (params, results) = (values(function.params())?, values(function.results())?);
    let index = module.type_count();
    module.ty().function(params, results);
    Some(index)
}

#[cfg(test)]
mod tests;
