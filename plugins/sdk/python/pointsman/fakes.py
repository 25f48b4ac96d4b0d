"""Parts of the fake host: what a host derives from the body of a chat request, and the state."""

import json
from typing import Any, Dict, List, Optional, Tuple

from componentize_py_types import Err
from wit_world.imports import types
from wit_world.imports.state import StateError

MAX_KEY_BYTES = 128
MAX_VALUE_BYTES = 4096

_ROLES = {
    "system": types.Role.SYSTEM,
    "developer": types.Role.SYSTEM,
    "user": types.Role.USER,
    "assistant": types.Role.ASSISTANT,
    "tool": types.Role.TOOL,
}


def _parts(content: Any) -> List[Optional[str]]:
    """Return the parts of a message: texts, and None for media."""
    if content is None:
        return []
    if isinstance(content, str):
        return [content]
    return [part if isinstance(part, str) else part.get("text") for part in content]


def message_text(content: Any) -> str:
    """Return the text of a message."""
    return "".join(part for part in _parts(content) if part is not None)


def message_info(role: str, content: Any) -> types.MessageInfo:
    """Return what the contract's `messages` says of a message."""
    parts = _parts(content)
    media = sum(part is None for part in parts)
    size = len(message_text(content).encode())
    return types.MessageInfo(_ROLES.get(role, types.Role.OTHER), size, len(parts), media)


def find_any(patterns: List[bytes], texts: List[bytes]) -> List[types.TextMatch]:
    """Return the first occurrence of each pattern."""
    found = []
    for pattern, searched in enumerate(patterns):
        message = next((at for at, text in enumerate(texts) if searched in text), None)
        if message is not None:
            found.append(types.TextMatch(pattern, message, texts[message].index(searched)))
    return found


def facts(body: Dict[str, Any]) -> Dict[str, Any]:
    """Return the fields of the context that follow from the body."""
    infos = [message_info(one["role"], one["content"]) for one in body["messages"]]
    kind = (body.get("response_format") or {}).get("type")
    grammars = ("structured_outputs", "grammar", "json_schema")
    return dict(
        streaming=body.get("stream") is True,
        body_bytes=len(json.dumps(body)),
        prompt_tokens=-(-sum(info.text_bytes for info in infos) // 4),
        max_output_tokens=body.get("max_completion_tokens") or body.get("max_tokens") or 0,
        messages=len(infos),
        has_tools=bool(body.get("tools") or body.get("functions")),
        has_media=any(info.media_parts for info in infos),
        has_grammar=kind in ("json_object", "json_schema") or any(key in body for key in grammars),
    )


class FakeState:
    """The state of the fake host: bytes and counters, with expiry and the limits of a host."""

    def __init__(self, entries: Dict[str, Any]) -> None:
        # The time of the running call in milliseconds, by which entries expire.
        self.now_ms = 0
        self._entries: Dict[str, Tuple[Any, Optional[int]]] = {}
        for key, value in entries.items():
            stored = value.encode() if isinstance(value, str) else value
            self._entries[key] = (stored, None)

    def get(self, key: str) -> Optional[bytes]:
        """Return an entry; a counter as 8 bytes, the lowest first."""
        value = self._live(key)
        return value.to_bytes(8, "little", signed=True) if isinstance(value, int) else value

    def put(self, key: str, value: bytes, ttl_ms: int) -> None:
        """Store bytes."""
        if len(key.encode()) > MAX_KEY_BYTES or len(value) > MAX_VALUE_BYTES:
            raise Err(StateError.TOO_LONG)
        self._entries[key] = (bytes(value), self._end(ttl_ms))

    def delete(self, key: str) -> None:
        """Remove an entry."""
        self._entries.pop(key, None)

    def increment(self, key: str, by: int, ttl_ms: int) -> int:
        """Add to a counter and return its new value."""
        if len(key.encode()) > MAX_KEY_BYTES:
            raise Err(StateError.TOO_LONG)
        value = self._live(key)
        if isinstance(value, bytes):
            raise Err(StateError.NOT_A_COUNTER)
        end = self._end(ttl_ms) if value is None else self._entries[key][1]
        self._entries[key] = ((value or 0) + by, end)
        return self._entries[key][0]

    def _end(self, ttl_ms: int) -> Optional[int]:
        return None if ttl_ms == 0 else self.now_ms + ttl_ms

    def _live(self, key: str) -> Any:
        value, end = self._entries.get(key, (None, None))
        return value if end is None or end > self.now_ms else None
