"""Routes teams to their home lanes, code and long prompts to dedicated lanes.

All other requests go to the lane with the earliest start.
"""

import re
from typing import Iterator, List, NamedTuple, Optional, Tuple

from pointsman import Advice, Call, Config, Host, Lanes, Policy, blend, only
from pointsman.types import Finished, LaneState, Level, Switching, TryResult

# An integer of at most nine digits.
INTEGER = re.compile(r"[+-]?[0-9]{1,9}", re.ASCII)


class Rule(NamedTuple):
    """A rule that applies to a request, with the lane that it selects."""

    lane: str
    name: str
    reason: str


class TeamLanes:
    def __init__(self, config: Config) -> None:
        self.lanes = Lanes()
        self.teams = config.string_map("teams")
        self.code_lane = config.string("code-lane")
        self.long_tokens = config.integer("long-tokens", 8000, minimum=1)
        self.long_lane = config.string("long-lane")
        config.finish()

    def advise(self, call: Call) -> Advice:
        # Earlier policies may have filters.
        candidates = call.fleet.lanes_left()
        chosen, rule, unavailable = self.choose(call, candidates)
        if rule is None:
            advice = blend({"est-wait": 700, "cached-tokens": 300})
            reason = "shortest wait and warmest cache"
        else:
            advice = only([chosen])
            reason = f"{rule.lane}: {rule.reason}"
        advice.with_reason(reason + "".join(f"; {lane} is unavailable" for lane in unavailable))
        advice.with_note("rule", rule.name if rule else "blend")
        advice.with_note("prompt-tokens", call.context.prompt_tokens)
        advice.with_fallback(lane for lane in candidates if lane != chosen)
        priority = parse_integer(call.request.header("x-priority"))
        if priority is not None:
            advice.with_priority(max(-10, min(priority, 10)))
            if priority < 0:
                # Requests of low priority should not delay those of other lanes by a switch.
                advice.with_switching(Switching.WHEN_IDLE)
        return advice

    def learn(self, _now_ms: int, done: List[Finished], host: Host) -> None:
        """Count the requests whose lane by rule failed."""
        for one in done:
            notes = {note.key: note.value.value for note in one.notes}
            failed = bool(one.attempts) and one.attempts[0].ended != TryResult.OK
            if failed and notes.get("rule", "blend") != "blend":
                host.metrics.add("rule-failed", 1)

    def choose(
        self, call: Call, candidates: List[int]
    ) -> Tuple[Optional[int], Optional[Rule], List[str]]:
        """Return the first rule whose lane is available, and the unavailable lanes before it."""
        unavailable: List[str] = []
        for rule in self.rules(call):
            lane = self.lanes.find(call, rule.lane)
            if lane is None or lane not in candidates:
                continue
            stat = call.fleet.stat(lane)
            if stat.state not in (LaneState.DOWN, LaneState.DRAINING):
                return lane, rule, unavailable
            unavailable.append(rule.lane)
            call.metrics.add("skipped", 1)
            if call.log.enabled(Level.DEBUG):
                call.log.write(Level.DEBUG, f"skipped lane {rule.lane}: {stat.state.name.lower()}")
        return None, None, unavailable

    def rules(self, call: Call) -> Iterator[Rule]:
        """Yield the rules that apply, in order of precedence.

        Lazy, so that the prompt is searched only if needed.
        """
        tenant = call.request.tenant()
        if tenant in self.teams:
            yield Rule(self.teams[tenant], "home", f"home lane of {tenant}")
        if self.code_lane is not None and call.request.contains("```", False):
            yield Rule(self.code_lane, "code", "the prompt contains code")
        if self.long_lane is not None and call.context.prompt_tokens > self.long_tokens:
            yield Rule(
                self.long_lane, "long", f"the prompt is longer than {self.long_tokens} tokens"
            )


def parse_integer(text: Optional[str]) -> Optional[int]:
    return int(text) if text is not None and INTEGER.fullmatch(text) else None


policy = Policy(
    name="team-lanes",
    version="0.1.0",
    configure=lambda text: TeamLanes(Config.parse(text)),
)
