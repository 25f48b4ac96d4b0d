//! `pointsman import-env`: settings for vLLM that were written as environment variables, as a lane of a configuration.

use std::io::Read as _;

use anyhow::{Context as _, Result, anyhow};
use pointsman_fleet::vllm::{import, parse_env_file};

use crate::cli::ImportEnv;

/// Read an env file, a Dockerfile or a compose file, and print the lane that it describes.
pub(crate) fn import_env(options: &ImportEnv) -> Result<()> {
    let file = options.file.display();
    let text = if options.file.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(&options.file)
    };
    let text = text.with_context(|| format!("{file} cannot be read"))?;
    let lane =
        lane(&text, &options.lane).map_err(|(line, what)| anyhow!("{file}:{line}: {what}"))?;
    #[expect(clippy::print_stdout, reason = "this is what the command was asked for")]
    {
        print!("{lane}");
    }
    Ok(())
}

/// TOML of a lane with what `text` says. Else the line that cannot be read, and why.
fn lane(text: &str, name: &str) -> Result<String, (usize, String)> {
    let variables = parse_env_file(text)?;
    if variables.is_empty() {
        return Err((1, "there is no variable in it; write lines of KEY=VALUE".to_owned()));
    }
    let imported = import(&variables);
    let name = serde_json::Value::from(name);
    let mut lane = format!(
        "# Taken over by `pointsman import-env`. Look through it, add `group` and `memory`, and check it with `pointsman \
         check`.\n[[lanes]]\nname = {name}\n"
    );
    for sentence in imported.settings.check() {
        lane.push_str(&format!("# To do: {}\n", sentence.escape_debug()));
    }
    lane.push_str(&imported.to_toml());
    Ok(lane)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_over_is_a_lane() {
        let text = "VLLM_MODEL=/m/x/model.safetensors\nVLLM_MAX_MODEL_LEN=32K # long\nHF_TOKEN=hf_s3cret\n";
        let lane = lane(text, "the \"coder\"").unwrap();
        assert!(lane.contains("name = \"the \\\"coder\\\"\"\n"), "{lane}");
        assert!(
            lane.contains("\nmodel = \"/m/x\"\n") && lane.contains("\nmax-model-len = 32768\n"),
            "{lane}"
        );
        assert!(!lane.contains("s3cret") && !lane.contains("To do"), "{lane}");
    }

    #[test]
    fn what_is_missing_is_said() {
        assert!(lane("A=1", "a").unwrap().contains("# To do: model is missing"));
        assert_eq!(lane("A=1\nno", "a").unwrap_err().0, 2);
        assert!(lane("# nothing", "a").unwrap_err().1.contains("no variable"));
    }
}
