//! Environment variables that engines do not inherit, although they commonly need them.

use pointsman_fleet::FleetSpec;

/// Variables with which engines fetch models, or that set their own key.
const NEEDED: [&str; 3] = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "VLLM_API_KEY"];
/// The beginning of the variables with which engines fetch models from S3.
const NEEDED_PREFIX: &str = "AWS_";

/// Returns a warning for each variable that is kept from engines because the configuration reads a
/// secret of the host from it. Without an engine that the host starts there are none.
pub(crate) fn warnings(fleet: &FleetSpec) -> Vec<String> {
    if fleet.lanes.iter().all(|lane| lane.engine.run().is_none()) {
        return Vec::new();
    }
    let needed = fleet.secret_variables.iter().filter(|name| is_needed(name));
    let warning = |name: &String| {
        format!(
            "engines do not inherit {name}, because the configuration reads a secret from it; use \
             another variable for that secret if an engine needs {name}"
        )
    };
    needed.map(warning).collect()
}

fn is_needed(name: &str) -> bool {
    NEEDED.contains(&name) || name.starts_with(NEEDED_PREFIX)
}

#[cfg(test)]
mod tests {
    use super::is_needed;

    #[test]
    fn only_common_variables_of_engines_are_warned_about() {
        for name in ["HF_TOKEN", "VLLM_API_KEY", "AWS_SECRET_ACCESS_KEY"] {
            assert!(is_needed(name), "{name}");
        }
        assert!(!is_needed("POINTSMAN_KEY"));
    }
}
