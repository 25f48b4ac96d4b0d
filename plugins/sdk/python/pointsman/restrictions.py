"""What a component does not have: each use is an error that names it, instead of a trap."""

import builtins
import sys
from importlib.machinery import PathFinder
from typing import Any

from wit_world.imports import types


class CheckedLog:
    """The contract's interface `log`, with a check of the arguments."""

    def __init__(self, log: Any) -> None:
        self._log = log

    def write(self, level: types.Level, message: str) -> None:
        """Write a line to the log."""
        if not isinstance(level, types.Level) or not isinstance(message, str):
            found = f"{type(level).__name__}, {type(message).__name__}"
            raise TypeError(f"log.write: expected (types.Level, str), found ({found})")
        self._log.write(level, message)

    def enabled(self, level: types.Level) -> bool:
        """Return whether a line of this level would be logged."""
        return self._log.enabled(level)


def restrict(log: Any) -> None:
    """Replace functions that would trap. Called when the program has started."""

    def print_to_log(*values: Any, sep: str = " ", **_ignored: Any) -> None:
        log.write(types.Level.INFO, (" " if sep is None else sep).join(map(str, values)))

    builtins.print = print_to_log
    # All modules that a component has were imported at its start: there are no files to search.
    sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not PathFinder]
