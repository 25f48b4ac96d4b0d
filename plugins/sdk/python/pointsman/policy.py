"""The policy and the arguments of its hooks."""

from dataclasses import dataclass, field
from typing import Any, Callable, List

from wit_world.imports import types

from .interfaces import Fleet, Log, Metrics, Request, State


@dataclass
class Call:
    """The argument of a call about a request: numeric facts, and the contract's interfaces."""

    context: types.Context
    request: Request
    fleet: Fleet
    log: Log
    metrics: Metrics
    state: State


@dataclass
class Host:
    """The argument of the hooks that are not about a request: the contract's interfaces."""

    fleet: Fleet
    log: Log
    metrics: Metrics
    state: State


@dataclass
class Policy:
    """A policy: name and version as in the manifest, and a function that creates an advisor.

    `configure` gets the JSON text of the configuration. An advisor has the method `advise(call)`
    and, if `policy.toml` lists their hooks, `recover(call, failed)`, `observe(now_ms, done,
    host)`, `learn(now_ms, done, host)` and `tick(now_ms, seed, host)`.
    """

    name: str
    version: str
    configure: Callable[[str], Any]
    hints: List[str] = field(default_factory=list)
