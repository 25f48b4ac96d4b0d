"""The Pointsman SDK for Python. See README.md."""

from . import types

from .advice import Advice, any_lane, avoid, blend, edits, only, ordered, reject, scores
from .config import Config, PolicyError, invalid_config, unsupported
from .lanes import Lanes
from .policy import Call, Host, Policy
from .random import Random

__all__ = [
    "Advice",
    "Call",
    "Config",
    "Host",
    "Lanes",
    "Policy",
    "PolicyError",
    "Random",
    "any_lane",
    "avoid",
    "blend",
    "edits",
    "invalid_config",
    "only",
    "ordered",
    "reject",
    "scores",
    "types",
    "unsupported",
]
