"""Sends long prompts to a dedicated lane, and all others to the lane with the earliest start."""

from pointsman import Advice, Call, Config, Lanes, Policy, blend, only


class Advisor:
    def __init__(self, config: Config) -> None:
        self.lanes = Lanes()
        self.long_lane = config.string("long-lane")
        self.long_tokens = config.integer("long-tokens", 8000, minimum=1)
        config.finish()

    def advise(self, call: Call) -> Advice:
        """Called for every request.

        `call` has `context`, `request`, `fleet`, `log`, `metrics` and `state`.
        """
        candidates = call.fleet.candidates()
        if self.long_lane is not None and call.context.prompt_tokens > self.long_tokens:
            lane = self.lanes.find(call, self.long_lane)
            if lane in candidates:
                return (
                    only([lane])
                    .with_reason(f"a prompt of more than {self.long_tokens} tokens")
                    .with_fallback(other for other in candidates if other != lane)
                )
        return blend({"est-wait": 700, "cached-tokens": 300}).with_reason("the shortest wait")


policy = Policy(
    name="POLICY_NAME", version="0.1.0", configure=lambda text: Advisor(Config.parse(text))
)
