"""The component boundary: the exports of a policy component.

`pointsman policy build` generates the module that calls `bind`.
"""

from typing import Any, List, Optional

from componentize_py_types import Err
from wit_world.exports import lifecycle
from wit_world.imports import fleet, log, metrics, request, state, types

from . import clock
from .fault import message_of, report_fault
from .hooks import Hooks
from .policy import Call, Host, Policy
from .restrictions import CheckedLog, restrict

_CONTRACT_ERRORS = (
    types.PolicyError_InvalidConfig,
    types.PolicyError_Unsupported,
    types.PolicyError_OutOfBudget,
    types.PolicyError_Other,
)

# The entry module imports this module before the policy.
clock.install()

_log = CheckedLog(log)
# Reused by all calls, because creating objects takes a large part of a call; only the context
# changes.
_call = Call(None, request, fleet, _log, metrics, state)  # type: ignore[arg-type]
_policy: Optional[Policy] = None
_hooks: Optional[Hooks] = None


def bind(policy: Policy) -> None:
    """Set the policy that the exports of the component call."""
    global _policy
    _policy = policy


class Lifecycle:
    def describe(self) -> lifecycle.Description:
        assert _policy is not None, "bind() has to be called first"
        return lifecycle.Description(_policy.name, _policy.version, list(_policy.hints))

    def configure(self, config: str) -> None:
        global _hooks
        assert _policy is not None, "bind() has to be called first"
        try:
            restrict(_log)
            clock.begin(None, 0)
            _hooks = Hooks(_policy, config)
        except BaseException as error:
            raise _contract_error(error) from None


class OnRequest:
    def advise(self, ctx: types.Context) -> types.Advice:
        try:
            return _configured().advise(_begin(ctx))
        except BaseException as error:
            raise _contract_error(error) from None


class OnFailure:
    def recover(self, ctx: types.Context, failed: types.Failure) -> types.Recovery:
        try:
            return _configured().recover(_begin(ctx), failed)
        except BaseException as error:
            raise _contract_error(error) from None


class OnComplete:
    def observe(self, now_ms: int, done: List[types.Outcome]) -> None:
        with _Reported():
            clock.begin(now_ms, now_ms)
            _configured().observe(now_ms, done, _host())


class OnOutcome:
    def learn(self, now_ms: int, done: List[types.Finished]) -> None:
        with _Reported():
            _configured().learn(now_ms, done, _host())


class OnTick:
    def tick(self, now_ms: int, seed: int) -> List[types.LaneWish]:
        with _Reported():
            clock.begin(now_ms, seed)
            return _configured().tick(now_ms, seed, _host())


def _configured() -> Hooks:
    if _hooks is None:
        raise RuntimeError("called before configure")
    return _hooks


def _begin(context: types.Context) -> Call:
    clock.begin(context.now_ms, context.seed)
    _call.context = context
    return _call


def _host() -> Host:
    return Host(fleet, _log, metrics, state)


def _contract_error(error: BaseException) -> BaseException:
    """Convert an exception to a contract error.

    An uncaught exception would be a trap and cost the instance. An error of `state` is an
    exception like any other: only errors of the policy itself pass through.
    """
    if isinstance(error, Err) and isinstance(error.value, _CONTRACT_ERRORS):
        return error
    report_fault(log, error)
    return Err(types.PolicyError_Other(message_of(error)))


class _Reported:
    """Reports exceptions of a hook that cannot return an error, and which therefore traps."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: Any, error: Optional[BaseException], _trace: Any) -> None:
        if error is not None:
            report_fault(log, error)
