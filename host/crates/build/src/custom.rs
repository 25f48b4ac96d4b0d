//! Builds policies in any other language with a command of their author. Its output is a component,
//! or a core module with the exports of the contract, which is converted.

use std::process::Command;

use pointsman_files::read_regular;

use crate::command::run;
use crate::component::{MAX_OUTPUT_BYTES, componentize, with_world};
use crate::error::BuildError;
use crate::manifest::{CommandPlan, scratch};
use crate::vendor::write_contract;

/// The environment variable with the path that the command has to write.
const OUTPUT: &str = "POINTSMAN_COMPONENT";
/// The environment variable with the folder of the contract's WIT files.
const CONTRACT: &str = "POINTSMAN_WIT";

/// Version and layer of a component in its header, after the magic number.
const COMPONENT_HEADER: [u8; 4] = [0x0d, 0, 1, 0];

/// Beginning of the name of the section with the types of a module's world.
const WORLD_SECTION: &[u8] = b"component-type";

/// Runs the command in the policy's folder and returns the component.
pub(crate) fn build(plan: &CommandPlan, log: &mut dyn FnMut(&str)) -> Result<Vec<u8>, BuildError> {
    let scratch = scratch(&plan.folder)?;
    let (output, contract) = (scratch.join("policy.wasm"), scratch.join("wit"));
    write_contract(&contract)?;
    let [program, arguments @ ..] = plan.command.as_slice() else {
        return Err(BuildError::Usage("build.command: expected a program".to_owned()));
    };
    let mut command = Command::new(program);
    command.args(arguments).current_dir(&plan.folder);
    run(command.env(OUTPUT, &output).env(CONTRACT, &contract), log)?;
    let bytes = read_regular(&output, MAX_OUTPUT_BYTES).map_err(|error| {
        BuildError::Usage(format!("build.command: ${OUTPUT} was not written: {error}"))
    })?;
    if bytes.get(4..8) == Some(&COMPONENT_HEADER) {
        return Ok(bytes);
    }
    // Bindings of some languages put the types of the world into the module.
    let has_world = bytes.windows(WORLD_SECTION.len()).any(|part| part == WORLD_SECTION);
    if has_world {
        return componentize(&bytes);
    }
    componentize(&with_world(&bytes, &plan.hooks)?)
}
