"""A reader for a policy's configuration. Every error names its key."""

import json
from typing import Any, Callable, Dict, List, Optional, overload

from componentize_py_types import Err
from wit_world.imports import types

MAX_U32 = 4294967295
MAX_FOUND_CHARS = 60


# The contract's error. Policies raise it if they have no advice or an invalid configuration.
PolicyError = Err


def invalid_config(message: str) -> Err:
    """Return the error for an invalid configuration, to be raised."""
    return Err(types.PolicyError_InvalidConfig(message))


def unsupported(message: str) -> Err:
    """Return the error for a kind of request that the policy does not support, to be raised."""
    return Err(types.PolicyError_Unsupported(message))


class Config:
    """An object of the configuration.

    Read all keys, then call `finish()`, which rejects all others.
    """

    @staticmethod
    def parse(text: str) -> "Config":
        """Parse the configuration from its JSON text."""
        try:
            value = json.loads(text)
        except ValueError:
            raise invalid_config("invalid JSON") from None
        return Config(value)

    def __init__(self, value: Any, path: str = "") -> None:
        if not isinstance(value, dict):
            raise _expected(path, "an object", value)
        self._values = value
        self._path = path
        self._read: set[str] = set()

    @overload
    def string(self, key: str, default: None = None) -> Optional[str]: ...
    @overload
    def string(self, key: str, default: str) -> str: ...

    def string(self, key: str, default: Optional[str] = None) -> Optional[str]:
        """Read a string. Return `default` if the key is absent."""
        return self._value(key, default, _is_string, "a string")

    @overload
    def boolean(self, key: str, default: None = None) -> Optional[bool]: ...
    @overload
    def boolean(self, key: str, default: bool) -> bool: ...

    def boolean(self, key: str, default: Optional[bool] = None) -> Optional[bool]:
        """Read a boolean. Return `default` if the key is absent."""
        return self._value(key, default, lambda value: isinstance(value, bool), "a boolean")

    @overload
    def integer(
        self, key: str, default: None = None, *, minimum: int = 0, maximum: int = MAX_U32
    ) -> Optional[int]: ...
    @overload
    def integer(
        self, key: str, default: int, *, minimum: int = 0, maximum: int = MAX_U32
    ) -> int: ...

    def integer(
        self, key: str, default: Optional[int] = None, *, minimum: int = 0, maximum: int = MAX_U32
    ) -> Optional[int]:
        """Read an integer from `minimum` to `maximum`. Return `default` if the key is absent."""

        def is_valid(value: Any) -> bool:
            # bool is a subclass of int.
            is_integer = isinstance(value, int) and not isinstance(value, bool)
            return is_integer and minimum <= value <= maximum

        return self._value(key, default, is_valid, f"an integer from {minimum} to {maximum}")

    @overload
    def strings(self, key: str, default: None = None) -> Optional[List[str]]: ...
    @overload
    def strings(self, key: str, default: List[str]) -> List[str]: ...

    def strings(self, key: str, default: Optional[List[str]] = None) -> Optional[List[str]]:
        """Read a list of strings. Return `default` if the key is absent."""

        def is_valid(value: Any) -> bool:
            return isinstance(value, list) and all(map(_is_string, value))

        return self._value(key, default, is_valid, "a list of strings")

    def string_map(self, key: str) -> Dict[str, str]:
        """Read an object with string values. It is empty if the key is absent."""
        section = self.section(key)
        return {name: section.string(name, "") for name in section.keys()}

    def integer_map(
        self, key: str, *, minimum: int = 0, maximum: int = MAX_U32
    ) -> Dict[str, int]:
        """Read an object with integers. It is empty if the key is absent."""
        section = self.section(key)
        return {
            name: section.integer(name, 0, minimum=minimum, maximum=maximum)
            for name in section.keys()
        }

    def keys(self) -> List[str]:
        """Return all keys. Those that are not read are rejected by `finish()`."""
        return list(self._values)

    def section(self, key: str) -> "Config":
        """Return a nested object. It is empty if the key is absent."""
        self._read.add(key)
        return Config(self._values.get(key, {}), self._path_of(key))

    def finish(self) -> None:
        """Reject keys that were not read."""
        for key in self._values:
            if key not in self._read:
                raise invalid_config(f"{self._path_of(key)}: unknown key")

    def _path_of(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key

    def _value(self, key: str, default: Any, is_valid: Callable[[Any], bool], what: str) -> Any:
        self._read.add(key)
        if key not in self._values:
            return default
        value = self._values[key]
        if not is_valid(value):
            raise _expected(self._path_of(key), what, value)
        return value


def _expected(path: str, what: str, value: Any) -> Err:
    """Return the error `PATH: expected X, found Y`. Long values are truncated for the log."""
    if isinstance(value, list):
        found = "a list"
    elif isinstance(value, dict):
        found = "an object"
    else:
        found = json.dumps(value, ensure_ascii=False)
    if len(found) > MAX_FOUND_CHARS:
        found = found[:MAX_FOUND_CHARS] + "…"
    prefix = f"{path}: " if path else ""
    return invalid_config(f"{prefix}expected {what}, found {found}")


def _is_string(value: Any) -> bool:
    return isinstance(value, str)
