"""What a policy is, and what it is asked with."""

from dataclasses import dataclass, field
from typing import Any, Callable, List

from wit_world.imports import types


@dataclass
class Call:
    """One question of the host: the request in numbers, and the interfaces of the contract."""

    context: types.Context
    request: Any
    fleet: Any
    log: Any
    metrics: Any
    state: Any


@dataclass
class Policy:
    """A policy: its name and version as in the manifest, and what makes an advisor of the configuration's JSON text.

    An advisor has the method `advise(call)` and, in the world `full-policy`, may have `recover(call, failed)`,
    `observe(now_ms, done)` and `tick(now_ms, seed)`.
    """

    name: str
    version: str
    configure: Callable[[str], Any]
    hints: List[str] = field(default_factory=list)
