//! Sends long prompts to a lane of their own, and all others where they start soonest.

use nojson::RawJson;
use pointsman_sdk::{Advice, Call, LaneAdvice, Metric, MetricWeight, Policy, PolicyError};

/// The policy, configured.
pub struct Advisor {
    long_lane: Option<String>,
    long_tokens: u32,
}

impl Policy for Advisor {
    const NAME: &'static str = "POLICY_NAME";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");

    fn configure(config: &str) -> Result<Self, PolicyError> {
        Self::read(config).map_err(PolicyError::InvalidConfig)
    }

    /// Asked about every request.
    fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError> {
        let candidates = call.fleet.candidates();
        let long_lane = self.long_lane.as_deref().filter(|_| call.context.prompt_tokens > self.long_tokens);
        let lane = long_lane.and_then(|name| call.fleet.find(name)).filter(|lane| candidates.contains(lane));
        Ok(match lane {
            Some(lane) => Advice::only([lane])
                .because(format!("a prompt of more than {} tokens", self.long_tokens))
                .falling_back_to(candidates.into_iter().filter(|other| *other != lane)),
            None => {
                let weights = [(Metric::EstWait, 700), (Metric::CachedTokens, 300)];
                let weights = weights.map(|(metric, weight)| MetricWeight { metric, weight });
                let lanes = LaneAdvice::Blend(weights.to_vec());
                Advice { lanes, ..Advice::any() }.because("the shortest wait")
            }
        })
    }
}

impl Advisor {
    fn read(config: &str) -> Result<Self, String> {
        let json = RawJson::parse(config).map_err(|error| format!("the configuration is no JSON: {error}"))?;
        let mut advisor = Self { long_lane: None, long_tokens: 8_000 };
        for (key, value) in json.value().to_object().map_err(|_| "the configuration must be an object")? {
            let key: String = key.try_into().map_err(|_| "a key must be a text")?;
            match key.as_str() {
                "long-lane" => {
                    let name: String = value.try_into().map_err(|_| "`long-lane` must be a text")?;
                    advisor.long_lane = Some(name);
                }
                "long-tokens" => {
                    advisor.long_tokens = value.try_into().map_err(|_| "`long-tokens` must be a whole number")?;
                }
                _ => return Err(format!("there is no key `{key}`")),
            }
        }
        Ok(advisor)
    }
}

pointsman_sdk::export_policy!(Advisor);

#[cfg(test)]
mod tests {
    use pointsman_sdk::testing::{FakeFleet, FakeRequest, advise};

    use super::*;

    #[test]
    fn a_long_prompt_goes_to_the_long_lane() {
        let advisor = Advisor::configure(r#"{"long-lane": "reader", "long-tokens": 3}"#).unwrap();
        let body = r#"{"model": "auto", "messages": [{"role": "user", "content": "more than three tokens"}]}"#;
        let advice = advise(&advisor, &FakeRequest::chat(body), &FakeFleet::new(&["quick", "reader"]));
        assert_eq!(advice.unwrap().lanes, LaneAdvice::Only(vec![1]));
    }

    #[test]
    fn a_mistake_in_the_configuration_is_named() {
        let error = Advisor::configure(r#"{"long-lane": 5}"#).err().unwrap();
        assert!(matches!(error, PolicyError::InvalidConfig(text) if text == "`long-lane` must be a text"));
    }
}
