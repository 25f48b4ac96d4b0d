//! Sends long prompts to a dedicated lane, and all others to the lane with the earliest start.

use pointsman_sdk::{Advice, Call, Metric, Policy, PolicyError, config};

/// The configured policy.
pub struct Advisor {
    /// Lane for long prompts.
    long_lane: Option<String>,
    /// Prompts of more tokens than this are long.
    long_tokens: u32,
}

impl Policy for Advisor {
    const NAME: &'static str = "POLICY_NAME";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");

    fn configure(json: &str) -> Result<Self, PolicyError> {
        let mut advisor = Self { long_lane: None, long_tokens: 8_000 };
        config::read(json, |key, value| {
            match key {
                "long-lane" => advisor.long_lane = Some(value.string()?),
                "long-tokens" => advisor.long_tokens = value.integer(1..=u32::MAX)?,
                _ => return Err(value.unknown_key()),
            }
            Ok(())
        })?;
        Ok(advisor)
    }

    /// Called for every request.
    fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError> {
        let candidates = call.fleet.candidates();
        let is_long = call.context.prompt_tokens > self.long_tokens;
        let lane = self
            .long_lane
            .as_deref()
            .filter(|_| is_long)
            .and_then(|name| call.fleet.find(name))
            .filter(|lane| candidates.contains(lane));
        Ok(match lane {
            Some(lane) => Advice::only([lane])
                .with_reason(format!("a prompt of more than {} tokens", self.long_tokens))
                .with_fallback(candidates.into_iter().filter(|other| *other != lane)),
            None => {
                Advice::blend([(Metric::EstWait, 700), (Metric::CachedTokens, 300)])
                    .with_reason("the shortest wait")
            }
        })
    }
}

pointsman_sdk::export_policy!(Advisor);

#[cfg(test)]
mod tests {
    use pointsman_sdk::LaneAdvice;
    use pointsman_sdk::testing::{FakeFleet, FakeRequest, advise};

    use super::*;

    #[test]
    fn long_prompt_goes_to_the_long_lane() {
        let advisor = Advisor::configure(r#"{"long-lane": "reader", "long-tokens": 3}"#).unwrap();
        let request = FakeRequest::chat(
            r#"{"model": "auto", "messages": [{"role": "user", "content": "a few more tokens"}]}"#,
        );
        let advice = advise(&advisor, &request, &FakeFleet::new(&["quick", "reader"]));
        assert_eq!(advice.unwrap().lanes, LaneAdvice::Only(vec![1]));
    }

    #[test]
    fn invalid_configuration_names_the_key() {
        let error = Advisor::configure(r#"{"long-lane": 5}"#).err().unwrap();
        let expected = "long-lane: expected a string, found 5";
        assert_eq!(error, PolicyError::InvalidConfig(expected.into()));
    }
}
