"""The clock and the random numbers of a component: those of the running call.

A call therefore has the same result when it is repeated or replayed. `install` replaces functions
before the policy is imported. While the component is built, they still do what they did.
"""

import datetime
import os
import random
import time
from typing import Any, Callable, Optional

# Nothing that happens within a call takes time.
_DURATIONS = ("monotonic", "perf_counter", "process_time", "thread_time", "clock_gettime")

_RealDateTime = datetime.datetime


class _Moment:
    def __init__(self) -> None:
        self.is_started = False
        self.now_ms: Optional[int] = None
        self.seed = 0
        # Whether the functions of `random` have the seed of this call, or one from the policy.
        self.is_seeded = False


_moment = _Moment()


def begin(now_ms: Optional[int], seed: int) -> None:
    """Begin a call. `configure` has no time."""
    if not _moment.is_started:
        _seed_generators()
    _moment.is_started, _moment.now_ms, _moment.seed = True, now_ms, seed
    _moment.is_seeded = False


def install() -> None:
    """Replace the functions that would trap in a component."""
    _replace(time, "time", lambda: _now_ms() / 1000)
    _replace(time, "time_ns", lambda: _now_ms() * 1_000_000)
    _replace(time, "sleep", _no_wait)
    for name in _DURATIONS:
        _replace(time, name, _no_duration)
        _replace(time, f"{name}_ns", _no_duration)
    for name in ("gmtime", "localtime", "ctime"):
        _replace(time, name, _of_now(getattr(time, name)))
    real_strftime = time.strftime
    _replace(time, "strftime", lambda form, t=None: real_strftime(form, t or time.gmtime()))
    _replace(os, "urandom", _no_entropy)
    _replace_generator()
    datetime.datetime = _DateTime  # type: ignore[misc]


class _CallRandom(random.Random):
    """The generator of the functions of `random`.

    It gets the seed of a call when it is first used there, because seeding takes a tenth of the
    time of a call.
    """

    def seed(self, a: Any = None, version: int = 2) -> None:
        _moment.is_seeded = True
        super().seed(a, version)

    def setstate(self, state: Any) -> None:
        _moment.is_seeded = True
        super().setstate(state)

    def getstate(self) -> Any:
        self._begin()
        return super().getstate()

    def random(self) -> float:
        self._begin()
        return super().random()

    def getrandbits(self, k: int) -> int:
        self._begin()
        return super().getrandbits(k)

    def gauss(self, mu: float = 0.0, sigma: float = 1.0) -> float:
        # It returns a number that an earlier call may have left.
        self._begin()
        return super().gauss(mu, sigma)

    def _begin(self) -> None:
        if _moment.is_started and not _moment.is_seeded:
            self.seed(_moment.seed)


def _replace_generator() -> None:
    """Replace the functions of `random`, which are methods of one generator."""
    module: Any = random
    before, module._inst = module._inst, _CallRandom()
    for name, value in list(vars(module).items()):
        if getattr(value, "__self__", None) is before:
            setattr(module, name, getattr(module._inst, name))


def _seed_generators() -> None:
    """Give generators without a seed that of the call: there is no entropy."""
    real = random.Random.seed

    def seeded(self: Any, a: Any = None, version: int = 2) -> None:
        real(self, _moment.seed if a is None else a, version)

    random.Random.seed = seeded  # type: ignore[method-assign]


def _now_ms() -> int:
    if _moment.now_ms is None:
        raise RuntimeError("`configure` has no clock; use the time of a call")
    return _moment.now_ms


def _replace(module: Any, name: str, replacement: Callable[..., Any]) -> None:
    real = getattr(module, name, None)
    if real is None:
        return

    def replaced(*arguments: Any) -> Any:
        return (replacement if _moment.is_started else real)(*arguments)

    setattr(module, name, replaced)


def _of_now(real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda seconds=None: real(time.time() if seconds is None else seconds)


def _no_duration(*_arguments: Any) -> Any:
    raise RuntimeError("time stands still during a call, so that it cannot be measured")


def _no_wait(_seconds: float) -> None:
    raise RuntimeError("a policy cannot wait")


def _no_entropy(_size: int) -> bytes:
    raise RuntimeError("a policy has no entropy; use `random`, which has the seed of the call")


class _DateTimeType(type):
    """Makes values of the replaced class instances of the new one."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _RealDateTime)


class _DateTime(datetime.datetime, metaclass=_DateTimeType):
    """The standard class, with the clock of the call."""

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return cls.fromtimestamp(time.time(), tz)

    @classmethod
    def today(cls) -> Any:
        return cls.now()

    @classmethod
    def utcnow(cls) -> Any:
        return cls.now(datetime.timezone.utc).replace(tzinfo=None)


_DateTime.__name__ = _DateTime.__qualname__ = "datetime"
