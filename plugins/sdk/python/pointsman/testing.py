"""Fake requests, fleets and hosts for native tests. They behave as the contract specifies.

The contract's types are in `sdk/bindings`, which has to be on the path:
`PYTHONPATH=sdk:sdk/bindings:src python -m unittest`.
"""

import json
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple, Union

from wit_world.imports import types

from .fakes import FakeState, facts, find_any, message_info, message_text
from .hooks import Hooks
from .policy import Call, Host, Policy
from .restrictions import CheckedLog


@dataclass
class FakeLane:
    """A fake lane. `info` and `stat` override fields of the contract's records."""

    name: str
    state: types.LaneState = types.LaneState.READY
    models: Optional[List[str]] = None
    info: Dict[str, Any] = field(default_factory=dict)
    stat: Dict[str, Any] = field(default_factory=dict)


@dataclass
class FakeFleet:
    """A fake fleet. By default a lane serves the models of its own name and `auto`.

    `left` are the names of the lanes that the filters of earlier policies leave; None for all.
    """

    lanes: List[Union[str, FakeLane]]
    topology: int = 1
    left: Optional[List[str]] = None

    def fake_lanes(self) -> List[FakeLane]:
        return [FakeLane(lane) if isinstance(lane, str) else lane for lane in self.lanes]


@dataclass
class FakeRequest:
    """A chat request with these messages (role and content), or with one user message.

    The content of a message is a text, or a list of parts; parts without a text count as media.
    `fields` are further fields of the body, such as `stream` and `tools`.
    """

    content: Union[str, List[Tuple[str, Any]]]
    model: str = "auto"
    headers: Dict[str, str] = field(default_factory=dict)
    tenant: Optional[str] = None
    endpoint_kind: str = "chat-completions"
    key_group: Optional[str] = None
    key_name: Optional[str] = None
    allowance: types.Allowance = field(default_factory=lambda: types.Allowance(None, None, None))
    deadline_ms: Optional[int] = None
    context: Dict[str, Any] = field(default_factory=dict)
    fields: Dict[str, Any] = field(default_factory=dict)

    def messages(self) -> List[Tuple[str, Any]]:
        return [("user", self.content)] if isinstance(self.content, str) else self.content

    def texts(self) -> List[str]:
        return [message_text(content) for _, content in self.messages()]

    def body(self) -> Dict[str, Any]:
        return {
            "model": self.model,
            "messages": [{"role": r, "content": content} for r, content in self.messages()],
            **self.fields,
        }


def fake_finished(
    attempts: Optional[List[types.Attempt]] = None,
    notes: Optional[Dict[str, Union[bool, int, str]]] = None,
    **outcome: Any,
) -> types.Finished:
    """Return a finished request for `learn`. `outcome` overrides fields of the outcome."""
    defaults: Dict[str, Any] = dict(
        request_id="test",
        tenant=None,
        model="auto",
        lane=0,
        topology=1,
        ended=types.TryResult.OK,
        tries=1 if attempts is None else len(attempts),
        queue_ms=0,
        ttft_ms=0,
        total_ms=0,
        prompt_tokens=0,
        cached_tokens=0,
        output_tokens=0,
    )
    full = types.Outcome(**{**defaults, **outcome})
    status = 200 if full.ended == types.TryResult.OK else 0
    single = types.Attempt(full.lane, full.ended, status, full.queue_ms, full.total_ms)
    named = [types.Note(key, _scalar(value)) for key, value in (notes or {}).items()]
    return types.Finished(full, [single] if attempts is None else attempts, named)


def _scalar(value: Union[bool, int, str]) -> types.Scalar:
    if isinstance(value, bool):
        return types.Scalar_Flag(value)
    return types.Scalar_Int(value) if isinstance(value, int) else types.Scalar_Text(value)


class ConfiguredPolicy:
    """A policy that was configured on a fake host.

    `state` are entries that the state has: integers are counters. Entries expire by `now_ms` of
    the calls.
    """

    def __init__(
        self, policy: Policy, config: Any = None, state: Optional[Dict[str, Any]] = None
    ) -> None:
        self.lines: List[Tuple[types.Level, str]] = []
        self.counters: Dict[str, int] = {}
        self.state = FakeState(state or {})
        self.hooks = Hooks(policy, json.dumps({} if config is None else config))
        self.advisor = self.hooks.advisor

    def call(self, request: FakeRequest, fleet: FakeFleet) -> Call:
        """Return the argument that the host would pass to `advise`."""
        context = _context(request, fleet)
        self.state.now_ms = context.now_ms
        return Call(
            context,
            _Request(request),
            _Fleet(fleet, request.model),
            CheckedLog(_Log(self.lines)),
            _Metrics(self.counters),
            self.state,
        )

    def host(self, fleet: FakeFleet, now_ms: int = 0) -> Host:
        """Return the argument that the host would pass to `observe` and `tick`."""
        self.state.now_ms = now_ms
        log = CheckedLog(_Log(self.lines))
        return Host(_Fleet(fleet, ""), log, _Metrics(self.counters), self.state)

    def advise(self, request: FakeRequest, fleet: FakeFleet) -> types.Advice:
        """Return the policy's advice, or raise its error."""
        return self.hooks.advise(self.call(request, fleet))

    def recover(
        self, request: FakeRequest, fleet: FakeFleet, failed: types.Failure
    ) -> types.Recovery:
        """Return what the policy decides after a failed attempt, or raise its error."""
        return self.hooks.recover(self.call(request, fleet), failed)

    def observe(
        self, done: List[types.Outcome], fleet: Optional[FakeFleet] = None, now_ms: int = 0
    ) -> None:
        """Pass finished requests to the policy."""
        self.hooks.observe(now_ms, done, self.host(fleet or FakeFleet([]), now_ms))

    def learn(
        self, done: List[types.Finished], fleet: Optional[FakeFleet] = None, now_ms: int = 0
    ) -> None:
        """Pass finished requests with their attempts and notes to the policy."""
        self.hooks.learn(now_ms, done, self.host(fleet or FakeFleet([]), now_ms))

    def tick(self, fleet: FakeFleet, now_ms: int = 0, seed: int = 0) -> List[types.LaneWish]:
        """Return the policy's hints about lanes."""
        return self.hooks.tick(now_ms, seed, self.host(fleet, now_ms))


# The endpoints that `context.endpoint` names; for all others it is `other`.
_ENUM_ENDPOINTS = {
    "chat-completions": types.Endpoint.CHAT_COMPLETIONS,
    "completions": types.Endpoint.COMPLETIONS,
    "responses": types.Endpoint.RESPONSES,
    "embeddings": types.Endpoint.EMBEDDINGS,
}


def _context(request: FakeRequest, fleet: FakeFleet) -> types.Context:
    defaults: Dict[str, Any] = dict(
        now_ms=0,
        seed=0,
        topology=fleet.topology,
        age_us=0,
        budget_us=5_000,
        attempt=0,
        endpoint=_ENUM_ENDPOINTS.get(request.endpoint_kind, types.Endpoint.OTHER),
        **facts(request.body()),
    )
    return types.Context(**{**defaults, **request.context})


class _Request:
    def __init__(self, request: FakeRequest) -> None:
        self._request = request

    def id(self) -> str:
        return "test"

    def model(self) -> str:
        return self._request.model

    def tenant(self) -> Optional[str]:
        return self._request.tenant

    def header(self, name: str) -> Optional[str]:
        known = self._request.headers.items()
        return next((value for key, value in known if key.lower() == name.lower()), None)

    def field(self, pointer: str, max_bytes: int) -> types.FieldValue:
        value: Any = self._request.body()
        for step in pointer.split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            try:
                value = value[int(step)] if isinstance(value, list) else value[step]
            except (KeyError, IndexError, TypeError, ValueError):
                return types.FieldValue_Absent()
        text = json.dumps(value)
        size = len(text.encode())
        return types.FieldValue_TooLarge(size) if size > max_bytes else types.FieldValue_Json(text)

    def messages(self) -> List[types.MessageInfo]:
        return [message_info(role, content) for role, content in self._request.messages()]

    def text(self, index: int, offset: int, max_bytes: int) -> str:
        texts = self._request.texts()
        text = texts[index].encode() if index < len(texts) else b""
        # Trims inwards to character boundaries, as the contract specifies.
        return text[offset : offset + max_bytes].decode(errors="ignore")

    def body(self, offset: int, max_bytes: int) -> bytes:
        return json.dumps(self._request.body()).encode()[offset : offset + max_bytes]

    def contains(self, needle: str, ignore_case: bool) -> bool:
        def fold(text: str) -> bytes:
            return text.encode().lower() if ignore_case else text.encode()

        return any(fold(needle) in fold(text) for text in self._request.texts())

    def prefix_hashes(self, block_bytes: int, max_blocks: int) -> List[int]:
        text = "".join(self._request.texts()).encode()
        hashes: List[int] = []
        value = 0xCBF29CE484222325
        for at, byte in enumerate(text, 1):
            value = ((value ^ byte) * 0x100000001B3) & ((1 << 64) - 1)
            if block_bytes and at % block_bytes == 0 and len(hashes) < max_blocks:
                hashes.append(value)
        return hashes

    def endpoint_kind(self) -> str:
        return self._request.endpoint_kind

    def key_group(self) -> Optional[str]:
        return self._request.key_group

    def key_name(self) -> Optional[str]:
        return self._request.key_name

    def allowance(self) -> types.Allowance:
        return self._request.allowance

    def deadline_ms(self) -> Optional[int]:
        return self._request.deadline_ms

    def find_any(self, patterns: List[str], ignore_case: bool) -> List[types.TextMatch]:
        def fold(text: str) -> bytes:
            return text.encode().lower() if ignore_case else text.encode()

        return find_any([fold(one) for one in patterns], [fold(t) for t in self._request.texts()])


class _Fleet:
    def __init__(self, fleet: FakeFleet, model: str) -> None:
        self._lanes = fleet.fake_lanes()
        self._left = fleet.left
        self._model = model

    def stats(self) -> List[types.LaneStat]:
        return [self._stat(lane) for lane in range(len(self._lanes))]

    def stat(self, lane: int) -> Optional[types.LaneStat]:
        return self._stat(lane) if lane < len(self._lanes) else None

    def candidates(self) -> List[int]:
        return [id for id in range(len(self._lanes)) if self._model in self._info(id).models]

    def info(self, lane: int) -> Optional[types.LaneInfo]:
        return self._info(lane) if lane < len(self._lanes) else None

    def find(self, name: str) -> Optional[int]:
        return next((id for id, lane in enumerate(self._lanes) if lane.name == name), None)

    def with_label(self, key: str, value: str) -> List[int]:
        return [id for id in range(len(self._lanes)) if (key, value) in self._info(id).labels]

    def lanes_left(self) -> List[int]:
        left = self._left
        return [id for id in self.candidates() if left is None or self._lanes[id].name in left]

    def _info(self, id: int) -> types.LaneInfo:
        lane = self._lanes[id]
        models = lane.models if lane.models is not None else [lane.name, "auto"]
        defaults = dict(
            id=id,
            name=lane.name,
            engine=types.Engine.VLLM,
            models=models,
            labels=[],
            max_context=0,
            slots=4,
            group=0,
            cost_milli=0,
        )
        return types.LaneInfo(**{**defaults, **lane.info})

    def _stat(self, id: int) -> types.LaneStat:
        lane = self._lanes[id]
        defaults = dict(
            id=id,
            state=lane.state,
            running=0,
            waiting=0,
            queued=0,
            slots_free=4,
            kv_used=0,
            errors=0,
            ttft_p50_ms=0,
            ttft_p99_ms=0,
            decode_tps=0,
            est_wait_ms=0,
            ready_in_ms=0,
            displaces=0,
            cached_tokens=0,
            stale_ms=0,
        )
        return types.LaneStat(**{**defaults, **lane.stat})


class _Log:
    def __init__(self, lines: List[Tuple[types.Level, str]]) -> None:
        self._lines = lines

    def write(self, level: types.Level, message: str) -> None:
        self._lines.append((level, message))

    def enabled(self, _level: types.Level) -> bool:
        return True


class _Metrics:
    def __init__(self, counters: Dict[str, int]) -> None:
        self._counters = counters

    def add(self, name: str, value: int) -> None:
        self._counters[name] = self._counters.get(name, 0) + value

    record_value = add
