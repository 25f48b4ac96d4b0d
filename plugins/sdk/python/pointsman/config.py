"""Reading the operator's configuration, with sentences that name the key."""

import json
from typing import Any, Callable, Dict, List, Optional

from componentize_py_types import Err
from wit_world.imports import types

MOST = 4294967295


# A policy that has no advice, or a configuration that does not fit, raises the contract's own error.
PolicyError = Err


def invalid_config(message: str) -> Err:
    """The configuration does not fit. To be raised."""
    return Err(types.PolicyError_InvalidConfig(message))


def unsupported(message: str) -> Err:
    """The request is of a kind that this policy does not know. To be raised."""
    return Err(types.PolicyError_Unsupported(message))


class Config:
    """An object of the configuration. Read all keys, then call `end()`, which refuses those that nobody read."""

    @staticmethod
    def parse(text: str) -> "Config":
        """The whole configuration, from its JSON text."""
        try:
            value = json.loads(text)
        except ValueError:
            raise invalid_config("the configuration is no JSON") from None
        return Config(value)

    def __init__(self, value: Any, path: str = "") -> None:
        if not isinstance(value, dict):
            raise invalid_config(f"`{path}` must be an object" if path else "the configuration must be an object")
        self._values = value
        self._path = path
        self._read: set[str] = set()

    def text(self, key: str, otherwise: Optional[str] = None) -> Optional[str]:
        """A text; `otherwise` where there is none."""
        return self._value(key, otherwise, _is_text, "a text")

    def flag(self, key: str, otherwise: Optional[bool] = None) -> Optional[bool]:
        """`true` or `false`."""
        return self._value(key, otherwise, lambda value: isinstance(value, bool), "true or false")

    def integer(
        self, key: str, otherwise: Optional[int] = None, *, least: int = 0, most: int = MOST
    ) -> Optional[int]:
        """A whole number within bounds."""

        def fits(value: Any) -> bool:
            return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most

        return self._value(key, otherwise, fits, f"a whole number from {least} to {most}")

    def texts(self, key: str, otherwise: Optional[List[str]] = None) -> Optional[List[str]]:
        """A list of texts."""
        return self._value(
            key, otherwise, lambda value: isinstance(value, list) and all(map(_is_text, value)), "a list of texts"
        )

    def text_map(self, key: str) -> Dict[str, str]:
        """An object whose values are texts; empty where there is none."""
        section = self.section(key)
        return {name: section.text(name) or "" for name in section._values}

    def section(self, key: str) -> "Config":
        """An object within this one; empty where there is none."""
        self._read.add(key)
        return Config(self._values.get(key, {}), self._name(key))

    def end(self) -> None:
        """Nothing else is expected."""
        for key in self._values:
            if key not in self._read:
                raise invalid_config(f"there is no key `{self._name(key)}`")

    def _name(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key

    def _value(self, key: str, otherwise: Any, fits: Callable[[Any], bool], what: str) -> Any:
        self._read.add(key)
        if key not in self._values:
            return otherwise
        value = self._values[key]
        if not fits(value):
            raise invalid_config(f"`{self._name(key)}` must be {what}")
        return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
