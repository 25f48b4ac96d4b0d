//! What a component imports and exports, for descriptions of it.

use wasmparser::Payload;

use crate::wasm::features::parser;

/// The names of what a component imports and exports, in the order of the component.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interfaces {
    /// Interfaces and functions that it imports.
    pub imports: Vec<String>,
    /// Interfaces and functions that it exports.
    pub exports: Vec<String>,
}

impl Interfaces {
    /// Reads the names, as far as the bytes are a component: they are not validated.
    pub fn read(component: &[u8]) -> Self {
        let (mut found, mut depth) = (Self::default(), 0_u32);
        for payload in parser().parse_all(component) {
            match payload {
                Ok(Payload::ModuleSection { .. } | Payload::ComponentSection { .. }) => depth += 1,
                Ok(Payload::End(_)) => depth = depth.saturating_sub(1),
                Ok(Payload::ComponentImportSection(section)) if depth == 0 => {
                    let names = section.into_iter().filter_map(Result::ok);
                    found.imports.extend(names.map(|import| import.name.name.to_owned()));
                }
                Ok(Payload::ComponentExportSection(section)) if depth == 0 => {
                    let names = section.into_iter().filter_map(Result::ok);
                    found.exports.extend(names.map(|export| export.name.name.to_owned()));
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_outermost_component() {
        let component = wat::parse_str(
            r#"(component
                (component $inner (component $empty) (export "inner" (component $empty)))
                (core module)
                (import "pointsman:policy/host@0.1.0" (instance))
                (import "run" (func))
                (component $c)
                (export "pointsman:policy/router@0.1.0" (component $c))
            )"#,
        );
        let found = Interfaces::read(&component.unwrap());
        assert_eq!(found.imports, ["pointsman:policy/host@0.1.0", "run"]);
        assert_eq!(found.exports, ["pointsman:policy/router@0.1.0"]);
        assert_eq!(Interfaces::read(b"nothing"), Interfaces::default());
    }
}
