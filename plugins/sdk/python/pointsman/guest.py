"""The component boundary: the exports of a policy component.

`pointsman policy build` generates the module that calls `bind`.
"""

from typing import Any, List, Optional

from componentize_py_types import Err
from wit_world.exports import lifecycle
from wit_world.imports import fleet, log, metrics, request, state, types

from .policy import Call, Policy

_policy: Optional[Policy] = None
_advisor: Any = None


def bind(policy: Policy) -> None:
    """Set the policy that the exports of the component call."""
    global _policy
    _policy = policy


class Lifecycle:
    def describe(self) -> lifecycle.Description:
        assert _policy is not None, "bind() has to be called first"
        return lifecycle.Description(_policy.name, _policy.version, list(_policy.hints))

    def configure(self, config: str) -> None:
        global _advisor
        assert _policy is not None, "bind() has to be called first"
        with _Guard():
            _advisor = _policy.configure(config)


class OnRequest:
    def advise(self, ctx: types.Context) -> types.Advice:
        with _Guard():
            return _configured_advisor().advise(_call(ctx))


class OnFailure:
    def recover(self, ctx: types.Context, failed: types.Failure) -> types.Recovery:
        with _Guard():
            recover = getattr(_configured_advisor(), "recover", None)
            return recover(_call(ctx), failed) if recover else types.Recovery_Planned()


class OnComplete:
    def observe(self, now_ms: int, done: List[types.Outcome]) -> None:
        observe = getattr(_configured_advisor(), "observe", None)
        if observe:
            observe(now_ms, done)


class OnTick:
    def tick(self, now_ms: int, seed: int) -> List[types.LaneWish]:
        tick = getattr(_configured_advisor(), "tick", None)
        return tick(now_ms, seed) if tick else []


def _configured_advisor() -> Any:
    if _advisor is None:
        raise Err(types.PolicyError_Other("called before configure"))
    return _advisor


def _call(context: types.Context) -> Call:
    return Call(context, request, fleet, log, metrics, state)


class _Guard:
    """Converts exceptions to contract errors.

    An uncaught exception would be a trap and cost the instance.
    """

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: Any, error: Optional[BaseException], _trace: Any) -> None:
        if error is not None and not isinstance(error, Err):
            raise Err(types.PolicyError_Other(f"{type(error).__name__}: {error}")) from None
