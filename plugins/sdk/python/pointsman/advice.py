"""Constructors and builder methods for advice."""

import json
from typing import Any, Iterable, Mapping, Optional, Tuple, Union

from wit_world.imports import types

ALL_TRIGGERS = types.Triggers(0)
for _trigger in types.Triggers:
    ALL_TRIGGERS |= _trigger

# The metrics by their names in the contract.
_METRICS = {metric.name.lower().replace("_", "-"): metric for metric in types.Metric}

Step = Union[int, types.FallbackStep]


class Advice(types.Advice):
    """Advice for one request.

    Created by `any_lane`, `only`, `avoid`, `ordered`, `scores`, `blend` or `reject`.
    """

    def __init__(
        self, lanes: types.LaneAdvice, rejection: Optional[types.Rejection] = None
    ) -> None:
        # Instead of the constructor of the contract's type: a call less.
        self.reject, self.lanes = rejection, lanes
        self.switching = self.queue = self.fallback = None
        self.edits, self.notes, self.hints = [], [], []

    def with_reason(self, reason: str) -> "Advice":
        """Add the reason shown to operators and clients, as the note `why`."""
        return self.with_note("why", reason)

    def with_note(self, key: str, value: Union[bool, int, str]) -> "Advice":
        """Add a note for the decision log."""
        self.notes.append(types.Note(key, _scalar(key, value)))
        return self

    def with_hint(self, key: str, value: Union[bool, int, str]) -> "Advice":
        """Add a hint. The policy has to list the key in its `hints`."""
        self.hints.append(types.Note(key, _scalar(key, value)))
        return self

    def with_priority(self, priority: int) -> "Advice":
        """Set the queue priority: higher goes first, 0 is normal."""
        self._queue().priority = priority
        return self

    def with_flow(self, flow: str) -> "Advice":
        """Set the flow. Flows of the same priority share capacity fairly."""
        self._queue().flow = flow
        return self

    def with_max_wait(
        self, ms: int, on_timeout: types.OnTimeout = types.OnTimeout.FALL_BACK
    ) -> "Advice":
        """Set the maximum wait in the queue, after which the request falls back or is rejected."""
        queue = self._queue()
        queue.max_wait_ms, queue.on_timeout = ms, on_timeout
        return self

    def with_fallback(
        self,
        lanes: Iterable[Step],
        on: types.Triggers = ALL_TRIGGERS,
        first_token_ms: Optional[int] = None,
    ) -> "Advice":
        """Set the fallbacks, in order."""
        steps = [types.FallbackStep(lane, []) if isinstance(lane, int) else lane for lane in lanes]
        self.fallback = types.FallbackAdvice(on, steps, first_token_ms)
        return self

    def with_switching(self, switching: types.Switching) -> "Advice":
        """Set whether lanes may be switched for this request."""
        self.switching = switching
        return self

    def with_edits(self, *changes: types.Edit) -> "Advice":
        """Add edits of the request; see `edits`."""
        self.edits.extend(changes)
        return self

    def _queue(self) -> types.QueueAdvice:
        if self.queue is None:
            self.queue = types.QueueAdvice(0, None, None, types.OnTimeout.FALL_BACK)
        return self.queue


def any_lane() -> Advice:
    """Return advice without an opinion about lanes."""
    return Advice(types.LaneAdvice_Any())


def only(lanes: Iterable[int]) -> Advice:
    """Return advice that allows only these lanes."""
    return Advice(types.LaneAdvice_Only(list(lanes)))


def avoid(lanes: Iterable[int]) -> Advice:
    """Return advice that excludes these lanes."""
    return Advice(types.LaneAdvice_Avoid(list(lanes)))


def ordered(lanes: Iterable[int]) -> Advice:
    """Return advice that allows only these lanes and ranks them, best first."""
    return Advice(types.LaneAdvice_Ordered(list(lanes)))


def scores(pairs: Iterable[Tuple[int, int]]) -> Advice:
    """Return scores from 0 to 1000, given as pairs of lane id and score."""
    return Advice(types.LaneAdvice_Scores([types.LaneScore(lane, score) for lane, score in pairs]))


def blend(weights: Mapping[str, int]) -> Advice:
    """Let the host score the lanes by weighted metrics.

    For example: `blend({"est-wait": 700, "cached-tokens": 300})`.
    """
    pairs = [types.MetricWeight(_METRICS[metric], weight) for metric, weight in weights.items()]
    return Advice(types.LaneAdvice_Blend(pairs))


def reject(status: int, code: str, message: str, retry_after_s: Optional[int] = None) -> Advice:
    """Reject the request with an HTTP status (400 to 499, or 503), a stable code and a message."""
    return Advice(types.LaneAdvice_Any(), types.Rejection(status, code, message, retry_after_s))


class edits:
    """Edits of the request, for `with_edits` and for fallback steps."""

    set_model = types.Edit_SetModel
    cap_output_tokens = types.Edit_CapOutputTokens
    remove_field = types.Edit_RemoveField
    prepend_system = types.Edit_PrependSystem
    keep_last_messages = types.Edit_KeepLastMessages
    remove_header = types.Edit_RemoveHeader

    @staticmethod
    def set_field(pointer: str, value: Any) -> types.Edit:
        """Set a field of the body, by JSON Pointer, to a JSON value."""
        return types.Edit_SetField((pointer, json.dumps(value)))

    @staticmethod
    def set_header(name: str, value: str) -> types.Edit:
        """Set a header of the request to the engine."""
        return types.Edit_SetHeader((name, value))


def _scalar(key: str, value: Union[bool, int, str]) -> types.Scalar:
    # bool is a subclass of int, so it has to be checked first.
    if isinstance(value, bool):
        return types.Scalar_Flag(value)
    if isinstance(value, int):
        return types.Scalar_Int(value)
    if isinstance(value, str):
        return types.Scalar_Text(value)
    raise TypeError(f"note or hint `{key}`: expected bool, int or str")
