//! Reads the objectives of a scenario.

use pointsman_report::{Objective, ObjectiveError, ObjectiveErrorKind};
use pointsman_settings::{Code, Problem};

use crate::scenario::{Scenario, ScenarioError};

/// Parses the objectives of a scenario that has these classes and lanes.
pub(super) fn parse(
    scenario: &Scenario,
    classes: &[&str],
    lanes: &[&str],
) -> Result<Vec<Objective>, ScenarioError> {
    let parse = |text: &String| {
        let objective = Objective::parse(text)?;
        objective.check(classes.iter().copied(), lanes.iter().copied())?;
        Ok(objective)
    };
    let objectives = scenario.objectives.iter().map(parse).collect::<Result<_, _>>();
    objectives.map_err(|error| scenario.objective_error(problem(&error)))
}

fn problem(error: &ObjectiveError) -> Problem {
    let code = match error.kind {
        ObjectiveErrorKind::UnknownMetric { .. } | ObjectiveErrorKind::UnknownName { .. } => {
            Code::UnknownName
        }
        ObjectiveErrorKind::MissingOperator
        | ObjectiveErrorKind::InvalidOperator
        | ObjectiveErrorKind::MissingMetric
        | ObjectiveErrorKind::MissingName { .. }
        | ObjectiveErrorKind::MissingStatistic { .. }
        | ObjectiveErrorKind::Scope { .. }
        | ObjectiveErrorKind::NotAShare { .. }
        | ObjectiveErrorKind::InvalidValue { .. } => Code::InvalidValue,
    };
    code.with(error.to_string())
}
