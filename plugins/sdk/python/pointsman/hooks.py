"""The hooks of a configured policy, with checks of what they return."""

from typing import Any, List

from wit_world.imports import types

from .fault import MethodError, code_of
from .policy import Call, Host, Policy

# Flag of code objects with `*args`.
_VARARGS = 0x04

_RECOVERIES = (
    types.Recovery_Planned,
    types.Recovery_Retry,
    types.Recovery_GiveUp,
)


class Hooks:
    """A configured policy. Hooks that its advisor lacks have no effect."""

    def __init__(self, policy: Policy, config: str) -> None:
        self.advisor = policy.configure(config)
        if not callable(getattr(self.advisor, "advise", None)):
            found = _describe(self.advisor)
            message = f"configure returned {found}, not an object with the method `advise`"
            raise MethodError(message, policy.configure)

    def advise(self, call: Call) -> types.Advice:
        """Return the advice about a request."""
        advice = self.advisor.advise(call)
        if not isinstance(advice, types.Advice):
            found = _describe(advice)
            raise MethodError(f"advise returned {found}, not Advice", self.advisor.advise)
        return advice

    def recover(self, call: Call, failed: types.Failure) -> types.Recovery:
        """Return what follows a failed attempt."""
        hook = getattr(self.advisor, "recover", None)
        recovery = hook(call, failed) if hook else None
        if recovery is None:
            return types.Recovery_Planned()
        if not isinstance(recovery, _RECOVERIES):
            raise MethodError(f"recover returned {_describe(recovery)}, not a recovery", hook)
        return recovery

    def observe(self, now_ms: int, done: List[types.Outcome], host: Host) -> None:
        """Pass finished requests to the policy."""
        hook = getattr(self.advisor, "observe", None)
        if hook:
            hook(*_arguments(hook, now_ms, done, host))

    def learn(self, now_ms: int, done: List[types.Finished], host: Host) -> None:
        """Pass finished requests with their attempts and the policy's notes to the policy."""
        hook = getattr(self.advisor, "learn", None)
        if hook:
            hook(*_arguments(hook, now_ms, done, host))

    def tick(self, now_ms: int, seed: int, host: Host) -> List[types.LaneWish]:
        """Return hints about lanes."""
        hook = getattr(self.advisor, "tick", None)
        hints = hook(*_arguments(hook, now_ms, seed, host)) if hook else None
        if hints is None:
            return []
        if not isinstance(hints, list) or not all(isinstance(x, types.LaneWish) for x in hints):
            raise MethodError(f"tick returned {_describe(hints)}, not a list of LaneWish", hook)
        return hints


def _arguments(hook: Any, *arguments: Any) -> Any:
    """Leave the host out for hooks without a parameter for it, as in older policies."""
    code = code_of(hook)
    if code is None or code.co_flags & _VARARGS:
        return arguments
    takes = code.co_argcount - (1 if hasattr(hook, "__self__") else 0)
    return arguments[: max(takes, 2)]


def _describe(value: Any) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"
