"""Teams have home lanes; code and long prompts have lanes of their own; all else goes where it starts soonest."""

import re
from typing import Iterator, List, NamedTuple, Optional, Tuple

from pointsman import Advice, Call, Config, Lanes, Policy, blend, only
from pointsman.types import LaneState, Level, Switching

# A whole number of at most nine digits.
INTEGER = re.compile(r"[+-]?[0-9]{1,9}", re.ASCII)


class Rule(NamedTuple):
    """A lane that a request should go to, which rule says so, and why."""

    lane: str
    name: str
    why: str


class TeamLanes:
    def __init__(self, config: Config) -> None:
        self.lanes = Lanes()
        self.teams = config.text_map("teams")
        self.code_lane = config.text("code-lane")
        self.long_tokens = config.integer("long-tokens", 8000, least=1)
        self.long_lane = config.text("long-lane")
        config.end()

    def advise(self, call: Call) -> Advice:
        candidates = call.fleet.candidates()
        chosen, rule, passed_over = self.choose(call, candidates)
        if rule is None:
            advice = blend({"est-wait": 700, "cached-tokens": 300})
            why = "the shortest wait and the warmest cache"
        else:
            advice = only([chosen])
            why = f"{rule.lane}: {rule.why}"
        advice.because(why + "".join(f", and {lane} cannot serve" for lane in passed_over))
        advice.note("rule", rule.name if rule else "blend")
        advice.note("prompt-tokens", call.context.prompt_tokens)
        advice.falling_back_to(lane for lane in candidates if lane != chosen)
        priority = integer(call.request.header("x-priority"))
        if priority is not None:
            advice.with_priority(max(-10, min(priority, 10)))
            if priority < 0:
                # What can wait holds up nobody else's work.
                advice.with_switching(Switching.WHEN_IDLE)
        return advice

    def choose(self, call: Call, candidates: List[int]) -> Tuple[Optional[int], Optional[Rule], List[str]]:
        """The first rule whose lane can serve, and the lanes of rules that cannot."""
        passed_over: List[str] = []
        for rule in self.rules(call):
            lane = self.lanes.find(call, rule.lane)
            if lane is None or lane not in candidates:
                continue
            stat = call.fleet.stat(lane)
            if stat.state not in (LaneState.DOWN, LaneState.DRAINING):
                return lane, rule, passed_over
            passed_over.append(rule.lane)
            call.metrics.add("passed-over", 1)
            if call.log.enabled(Level.DEBUG):
                call.log.write(Level.DEBUG, f"passed over {rule.lane}, which is {stat.state.name.lower()}")
        return None, None, passed_over

    def rules(self, call: Call) -> Iterator[Rule]:
        """The rules that apply, first things first."""
        tenant = call.request.tenant()
        if tenant in self.teams:
            yield Rule(self.teams[tenant], "home", f"the home of {tenant}")
        if self.code_lane is not None and call.request.contains("```", False):
            yield Rule(self.code_lane, "code", "the prompt has code in it")
        if self.long_lane is not None and call.context.prompt_tokens > self.long_tokens:
            yield Rule(self.long_lane, "long", f"the prompt is longer than {self.long_tokens} tokens")


def integer(text: Optional[str]) -> Optional[int]:
    return int(text) if text is not None and INTEGER.fullmatch(text) else None


policy = Policy(
    name="team-lanes",
    version="0.1.0",
    configure=lambda text: TeamLanes(Config.parse(text)),
)
