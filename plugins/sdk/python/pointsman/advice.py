"""Short ways to say common things."""

import json
from typing import Any, Iterable, Mapping, Optional, Tuple, Union

from wit_world.imports import types

ALL_TRIGGERS = types.Triggers(0)
for _trigger in types.Triggers:
    ALL_TRIGGERS |= _trigger

Step = Union[int, types.FallbackStep]


class Advice(types.Advice):
    """What a policy advises for one request. Begin with `any_lane`, `only`, `avoid`, `ordered`, `scores`, `blend` or `reject`."""

    def __init__(self, lanes: types.LaneAdvice, rejection: Optional[types.Rejection] = None) -> None:
        super().__init__(rejection, lanes, None, None, None, [], [], [])

    def because(self, why: str) -> "Advice":
        """With the reason that people are shown."""
        return self.note("why", why)

    def note(self, key: str, value: Union[bool, int, str]) -> "Advice":
        """With an explanation for the decision log."""
        self.notes.append(types.Note(key, _scalar(key, value)))
        return self

    def hint(self, key: str, value: Union[bool, int, str]) -> "Advice":
        """With a hint, which the policy's `hints` have to name."""
        self.hints.append(types.Note(key, _scalar(key, value)))
        return self

    def with_priority(self, priority: int) -> "Advice":
        """With this place in the host's queue: higher goes first, 0 is normal."""
        self._queue().priority = priority
        return self

    def in_flow(self, flow: str) -> "Advice":
        """Sharing capacity fairly with other flows of the same priority."""
        self._queue().flow = flow
        return self

    def waiting_at_most(self, ms: int, on_timeout: types.OnTimeout = types.OnTimeout.FALL_BACK) -> "Advice":
        """Waiting at most so long, and then falling back or being refused."""
        queue = self._queue()
        queue.max_wait_ms, queue.on_timeout = ms, on_timeout
        return self

    def falling_back_to(
        self, lanes: Iterable[Step], on: types.Triggers = ALL_TRIGGERS, first_token_ms: Optional[int] = None
    ) -> "Advice":
        """With these fallbacks, in order."""
        steps = [types.FallbackStep(lane, []) if isinstance(lane, int) else lane for lane in lanes]
        self.fallback = types.FallbackAdvice(on, steps, first_token_ms)
        return self

    def with_switching(self, switching: types.Switching) -> "Advice":
        """With this say in whether lanes may be exchanged for the request."""
        self.switching = switching
        return self

    def editing(self, *changes: types.Edit) -> "Advice":
        """With these changes to the request; see `edits`."""
        self.edits.extend(changes)
        return self

    def _queue(self) -> types.QueueAdvice:
        if self.queue is None:
            self.queue = types.QueueAdvice(0, None, None, types.OnTimeout.FALL_BACK)
        return self.queue


def any_lane() -> Advice:
    """No opinion about lanes."""
    return Advice(types.LaneAdvice_Any())


def only(lanes: Iterable[int]) -> Advice:
    """Only these lanes will do."""
    return Advice(types.LaneAdvice_Only(list(lanes)))


def avoid(lanes: Iterable[int]) -> Advice:
    """All but these lanes will do."""
    return Advice(types.LaneAdvice_Avoid(list(lanes)))


def ordered(lanes: Iterable[int]) -> Advice:
    """These lanes, best first."""
    return Advice(types.LaneAdvice_Ordered(list(lanes)))


def scores(pairs: Iterable[Tuple[int, int]]) -> Advice:
    """Scores from 0 to 1000, as pairs of lane id and score."""
    return Advice(types.LaneAdvice_Scores([types.LaneScore(lane, score) for lane, score in pairs]))


def blend(weights: Mapping[str, int]) -> Advice:
    """The host scores the candidates by weighted figures: `blend({"est-wait": 700, "cached-tokens": 300})`."""
    named = [(types.Metric[metric.replace("-", "_").upper()], weight) for metric, weight in weights.items()]
    return Advice(types.LaneAdvice_Blend([types.MetricWeight(metric, weight) for metric, weight in named]))


def reject(status: int, code: str, message: str, retry_after_s: Optional[int] = None) -> Advice:
    """Refuse the request: 400 to 499, or 503."""
    return Advice(types.LaneAdvice_Any(), types.Rejection(status, code, message, retry_after_s))


class edits:
    """Changes to the request, for `editing` and for fallback steps."""

    set_model = types.Edit_SetModel
    cap_output_tokens = types.Edit_CapOutputTokens
    remove_field = types.Edit_RemoveField
    prepend_system = types.Edit_PrependSystem
    keep_last_messages = types.Edit_KeepLastMessages
    remove_header = types.Edit_RemoveHeader

    @staticmethod
    def set_field(pointer: str, value: Any) -> types.Edit:
        """Sets a field of the body by JSON Pointer, to any value that JSON has."""
        return types.Edit_SetField((pointer, json.dumps(value)))

    @staticmethod
    def set_header(name: str, value: str) -> types.Edit:
        """Sets a header of the request to the engine."""
        return types.Edit_SetHeader((name, value))


def _scalar(key: str, value: Union[bool, int, str]) -> types.Scalar:
    # A bool is an int in Python, so it is asked for first.
    if isinstance(value, bool):
        return types.Scalar_Flag(value)
    if isinstance(value, int):
        return types.Scalar_Int(value)
    if isinstance(value, str):
        return types.Scalar_Text(value)
    raise TypeError(f"the note or hint `{key}` is no bool, int or str")
