//! `cargo xtask contract`: what follows from the contract. Regenerates texts that can be derived
//! from the WIT, and lists the places that have to be written by hand.

mod places;
mod regions;
mod wit;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

pub(crate) use self::wit::Contract;

/// Folder of the contract.
const FOLDER: &str = "wit/0.1";

/// Writes the generated texts, and lists what is left.
pub(crate) fn write(root: &Path) -> Result<()> {
    let contract = Contract::read(&root.join(FOLDER))?;
    for (file, text) in regions::generate(root, &contract)? {
        let path = root.join(&file);
        if fs::read_to_string(&path)? != text {
            fs::write(&path, text).with_context(|| path.display().to_string())?;
            println!("updated {file}");
        }
    }
    let missing = places::missing(root, &contract)?;
    if missing.is_empty() {
        println!("complete: every function and field of the contract has all of its places");
    } else {
        println!("left to write by hand:");
        missing.iter().for_each(|place| println!("  {place}"));
    }
    Ok(())
}

/// Checks that the generated texts are those of the contract, and that nothing is left.
pub(crate) fn check(root: &Path) -> Result<()> {
    let contract = Contract::read(&root.join(FOLDER))?;
    let mut problems = Vec::new();
    for (file, text) in regions::generate(root, &contract)? {
        if fs::read_to_string(root.join(&file))? != text {
            problems.push(format!("{file}: differs from the contract; run `cargo xtask contract`"));
        }
    }
    problems.extend(places::missing(root, &contract)?);
    if !problems.is_empty() {
        bail!("{}", problems.join("\n"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use pointsman_xtask::command::root;

    use super::{Contract, FOLDER, check, places, regions};

    #[test]
    fn committed_texts_match_the_contract() {
        check(&root().unwrap()).unwrap();
    }

    /// A new function and a new field change the generated texts, and their places by hand are
    /// listed with file and line.
    #[test]
    fn additions_are_generated_or_listed() {
        let root = root().unwrap();
        let folder = tempfile::tempdir().unwrap();
        for file in ["types.wit", "host.wit", "policy.wit"] {
            let text = fs::read_to_string(root.join(FOLDER).join(file)).unwrap();
            let text = text
                .replace("  find: func(", "  newest: func() -> option<lane-id>;\n  find: func(")
                .replace("    displaces: u32,", "    displaces: u32,\n    toy-depth: u32,");
            fs::write(folder.path().join(file), text).unwrap();
        }
        let contract = Contract::read(folder.path()).unwrap();
        let generated = regions::generate(&root, &contract).unwrap();
        for (file, part) in [
            ("plugins/sdk/javascript/pointsman.d.ts", "  readonly toyDepth: number;\n"),
            ("plugins/sdk/javascript/testing.js", "  toyDepth: 0,\n"),
            ("plugins/sdk/python/pointsman/testing.py", "            toy_depth=0,\n"),
            ("plugins/sdk/rust/src/testing/fleet.rs", "        toy_depth: 0,\n"),
            ("host/crates/domain/src/fleet_view.rs", "            toy_depth: 0,\n"),
            ("host/docs/policies-reference.md", "`fleet.newest() -> option<lane-id>`"),
        ] {
            let (_, text) = generated.iter().find(|(name, _)| name == file).unwrap();
            assert!(text.contains(part), "{file}: {part}");
        }
        let missing = places::missing(&root, &contract).unwrap();
        for part in [
            "host_functions.rs:",
            "plugins/sdk/rust/src/lib.rs:",
            "plugins/sdk/javascript/pointsman.d.ts:",
            "plugins/sdk/python/pointsman/testing.py:",
        ] {
            let found = |place: &&String| place.contains(part) && place.contains("fleet.newest");
            let place = missing.iter().find(found);
            assert!(place.is_some(), "{part} is not among {missing:#?}");
        }
        let convert = missing
            .iter()
            .any(|place| place.contains("convert.rs:") && place.contains("lane-stat.toy-depth"));
        assert!(convert, "{missing:#?}");
    }
}
