//! The parts of the contract that texts are generated from.

use std::path::Path;

use anyhow::{Context as _, Result};
use wit_parser::{Resolve, Type, TypeDefKind};

/// The contract.
pub(crate) struct Contract {
    resolve: Resolve,
    interfaces: Vec<Interface>,
    records: Vec<Record>,
}

/// An interface with its functions.
pub(crate) struct Interface {
    pub(crate) name: String,
    /// Position among the interfaces that the host provides.
    import: Option<usize>,
    pub(crate) functions: Vec<Function>,
}

/// A function.
pub(crate) struct Function {
    pub(crate) name: String,
    /// The signature as in the WIT.
    pub(crate) signature: String,
    /// The first sentence of its documentation.
    pub(crate) summary: String,
}

/// A record.
pub(crate) struct Record {
    pub(crate) name: String,
    pub(crate) fields: Vec<(String, Type)>,
}

impl Contract {
    /// Reads the WIT files of a folder.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let mut resolve = Resolve::default();
        let (package, _) =
            resolve.push_dir(folder).with_context(|| folder.display().to_string())?;
        let mut interfaces = Vec::new();
        let mut records = Vec::new();
        let host = resolve.select_world(&[package], Some("host-api"))?;
        let imports: Vec<String> =
            resolve.worlds[host].imports.keys().map(|key| resolve.name_world_key(key)).collect();
        for (name, id) in &resolve.packages[package].interfaces {
            let interface = &resolve.interfaces[*id];
            let functions = interface.functions.values().map(|function| Function {
                name: function.name.clone(),
                signature: signature(&resolve, function),
                summary: summary(function.docs.contents.as_deref().unwrap_or_default()),
            });
            interfaces.push(Interface {
                name: name.clone(),
                import: imports.iter().position(|key| key.contains(&format!("/{name}@"))),
                functions: functions.collect(),
            });
            for (name, id) in &interface.types {
                if let TypeDefKind::Record(record) = &resolve.types[*id].kind {
                    let fields = record.fields.iter().map(|field| (field.name.clone(), field.ty));
                    records.push(Record { name: name.clone(), fields: fields.collect() });
                }
            }
        }
        // The order of the package depends on the order of the files.
        interfaces.sort_by_key(|interface: &Interface| interface.import);
        Ok(Self { resolve, interfaces, records })
    }

    /// Returns the interfaces with functions.
    pub(crate) fn interfaces(&self) -> impl Iterator<Item = &Interface> {
        self.interfaces.iter().filter(|interface| !interface.functions.is_empty())
    }

    /// Returns the interfaces that the host provides.
    pub(crate) fn imports(&self) -> impl Iterator<Item = &Interface> {
        self.interfaces().filter(|interface| interface.import.is_some())
    }

    /// Returns the record with this name.
    pub(crate) fn record(&self, name: &str) -> Result<&Record> {
        let record = self.records.iter().find(|record| record.name == name);
        record.with_context(|| format!("the contract has no record `{name}`"))
    }

    /// Returns the TypeScript type of a field.
    pub(crate) fn typescript(&self, ty: Type) -> Result<String> {
        Ok(match ty {
            Type::Bool => "boolean".to_owned(),
            Type::String | Type::Char => "string".to_owned(),
            Type::U8
            | Type::U16
            | Type::U32
            | Type::U64
            | Type::S8
            | Type::S16
            | Type::S32
            | Type::S64
            | Type::F32
            | Type::F64 => "number".to_owned(),
            Type::ErrorContext => anyhow::bail!("the SDKs have no error contexts"),
            Type::Id(id) => {
                let definition = &self.resolve.types[id];
                match (&definition.kind, definition.name.as_deref()) {
                    (TypeDefKind::Option(inner), _) => {
                        format!("{} | null", self.typescript(*inner)?)
                    }
                    (TypeDefKind::List(inner), _) => format!("{}[]", self.typescript(*inner)?),
                    (TypeDefKind::Tuple(tuple), _) => {
                        let parts = tuple.types.iter().map(|ty| self.typescript(*ty));
                        format!("[{}]", parts.collect::<Result<Vec<_>>>()?.join(", "))
                    }
                    // The SDK's name for the kind of an engine.
                    (_, Some("engine")) => "EngineKind".to_owned(),
                    (_, Some("permille")) => "number".to_owned(),
                    (_, Some(name)) => pascal(name),
                    (_, None) => anyhow::bail!("a type without a name"),
                }
            }
        })
    }
}

fn signature(resolve: &Resolve, function: &wit_parser::Function) -> String {
    let parameters: Vec<String> = function
        .params
        .iter()
        .map(|parameter| format!("{}: {}", parameter.name, type_name(resolve, parameter.ty)))
        .collect();
    let result = function.result.map(|ty| format!(" -> {}", type_name(resolve, ty)));
    format!("({}){}", parameters.join(", "), result.unwrap_or_default())
}

/// Returns a type as the WIT writes it.
fn type_name(resolve: &Resolve, ty: Type) -> String {
    let Type::Id(id) = ty else { return format!("{ty:?}").to_lowercase() };
    let definition = &resolve.types[id];
    let name = |ty: &Type| type_name(resolve, *ty);
    match (&definition.name, &definition.kind) {
        (Some(name), _) => name.clone(),
        (None, TypeDefKind::Option(inner)) => format!("option<{}>", name(inner)),
        (None, TypeDefKind::List(inner)) => format!("list<{}>", name(inner)),
        (None, TypeDefKind::Result(result)) => {
            let ok = result.ok.as_ref().map_or_else(|| "_".to_owned(), name);
            let error = result.err.as_ref().map_or_else(|| "_".to_owned(), name);
            format!("result<{ok}, {error}>")
        }
        (None, kind) => kind.as_str().to_owned(),
    }
}

/// Returns the first sentence of a documentation, in one line.
fn summary(docs: &str) -> String {
    let line = docs.split_whitespace().collect::<Vec<_>>().join(" ");
    let end = line.find(". ").unwrap_or(line.len());
    line[..end].trim_end_matches('.').to_owned()
}

/// Returns a name of the contract in `snake_case`.
pub(crate) fn snake(name: &str) -> String {
    name.replace('-', "_")
}

/// Returns a name of the contract in `camelCase`.
pub(crate) fn camel(name: &str) -> String {
    let pascal = pascal(name);
    let (first, rest) = pascal.split_at(1.min(pascal.len()));
    first.to_lowercase() + rest
}

fn pascal(name: &str) -> String {
    let upper = |word: &str| {
        let (first, rest) = word.split_at(1.min(word.len()));
        first.to_uppercase() + rest
    };
    name.split('-').map(upper).collect()
}
