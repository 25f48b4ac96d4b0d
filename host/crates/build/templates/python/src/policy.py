"""Sends long prompts to a lane of their own, and all others where they start soonest."""

from pointsman import Advice, Call, Config, Lanes, Policy, blend, only


class Advisor:
    def __init__(self, config: Config) -> None:
        self.lanes = Lanes()
        self.long_lane = config.text("long-lane")
        self.long_tokens = config.integer("long-tokens", 8000, least=1)
        config.end()

    def advise(self, call: Call) -> Advice:
        """Asked about every request: `call` has `context`, `request`, `fleet`, `log`, `metrics` and `state`."""
        candidates = call.fleet.candidates()
        if self.long_lane is not None and call.context.prompt_tokens > self.long_tokens:
            lane = self.lanes.find(call, self.long_lane)
            if lane in candidates:
                return (
                    only([lane])
                    .because(f"a prompt of more than {self.long_tokens} tokens")
                    .falling_back_to(other for other in candidates if other != lane)
                )
        return blend({"est-wait": 700, "cached-tokens": 300}).because("the shortest wait")


policy = Policy(name="POLICY_NAME", version="0.1.0", configure=lambda text: Advisor(Config.parse(text)))
