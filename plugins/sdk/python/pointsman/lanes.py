"""Lane ids by name, asked for once per topology: a question to the host costs more than most policies."""

from typing import Dict, Optional

from .policy import Call


class Lanes:
    """The lanes that a policy knows by name. Keep one for as long as the policy lives."""

    def __init__(self) -> None:
        self._topology: Optional[int] = None
        self._ids: Dict[str, Optional[int]] = {}

    def find(self, call: Call, name: str) -> Optional[int]:
        """The id of the lane of that name."""
        if self._topology != call.context.topology:
            self._topology = call.context.topology
            self._ids.clear()
        if name not in self._ids:
            self._ids[name] = call.fleet.find(name)
        return self._ids[name]
